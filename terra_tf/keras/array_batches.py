"""Batches of NumPy arrays, as `train_on_batch` is given them, made tensors before the step.

A step that takes arrays makes tensors of them in several places, and a call on an array is not
replayed. If none but Keras' own Python would see the arrays, they become tensors at once: Keras
does the same with either. A program's own `train_step`, metric or loss gets what it was given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from terra_tf._tf_internals import EagerTensor
from terra_tf.runtime.object_state import is_librarys_function

_OF_STEPS = ("compute_loss", "_compute_loss", "compute_metrics", "__call__")
_NUMERIC_KINDS = "biuf"


def with_tensors(model: Any, kind: str, batch: Any, tree: Any) -> Any:
    """Returns a batch in which arrays are tensors, or the batch itself.

    Args:
      model: A Keras model.
      kind: Of the step: "train", "test" or "predict".
      batch: What the step is given.
      tree: Keras' functions of nested structures.
    """
    leaves = tree.flatten(batch)
    if not any(type(leaf) is np.ndarray for leaf in leaves):
        return batch
    if not all(_is_convertible(leaf) for leaf in leaves) or not _is_keras_own(model, kind):
        return batch
    return tree.map_structure(
        lambda leaf: tf.convert_to_tensor(leaf) if type(leaf) is np.ndarray else leaf, batch
    )


def _is_convertible(leaf: Any) -> bool:
    if type(leaf) is np.ndarray:
        return leaf.dtype.kind in _NUMERIC_KINDS
    return leaf is None or type(leaf) is EagerTensor


def _is_keras_own(model: Any, kind: str) -> bool:
    """Says whether only Keras' Python sees a batch of this model's before it is tensors."""
    # Models of the functional API make tensors themselves, in their `call`.
    makes_tensors = model._convert_input_args or _is_librarys_method(model, "call")
    methods = (f"{kind}_step", *_OF_STEPS)
    if not makes_tensors or not all(_is_librarys_method(model, name) for name in methods):
        return False
    return kind == "predict" or (_converts_labels(model) and _metrics_are_keras_own(model))


def _is_librarys_method(model: Any, name: str) -> bool:
    function = getattr(type(model), name, None)
    return name not in vars(model) and is_librarys_function(function)


def _converts_labels(model: Any) -> bool:
    """Says whether each loss makes tensors of labels before anybody else sees them."""
    compiled = vars(model).get("_compile_loss")
    if compiled is None or not compiled.built:
        return False
    losses = [compiled, *(flat.loss for flat in compiled._flat_losses)]
    return all(is_librarys_function(type(loss).__call__) for loss in losses if loss is not None)


def _metrics_are_keras_own(model: Any) -> bool:
    compiled = vars(model).get("_compile_metrics")
    if compiled is None:
        return True
    return compiled.built and all(
        is_librarys_function(type(metric).update_state)
        and (not hasattr(metric, "_fn") or is_librarys_function(metric._fn))
        for metric in compiled.metrics
    )
