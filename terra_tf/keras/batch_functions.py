"""What Keras' `fit`, `evaluate` and `predict` call for each batch, or few, under `accelerate`.

Keras makes such functions by `make_train_function`, `make_test_function` and
`make_predict_function`. Run eagerly, each step of theirs goes through `strategy.run`, a reduction
over replicas and a `tf.experimental.Optional`, none of which changes anything without a
distribution strategy. These do the same without.

Source: keras/src/backend/tensorflow/trainer.py, `_make_function` and `make_predict_function`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import EagerTensor
from terra_tf.function import Function
from terra_tf.keras.array_batches import with_tensors

_TRAINER = "keras.src.backend.tensorflow.trainer"


def has_default_strategy(model: Any) -> bool:
    """Says whether the model runs without a distribution strategy, now and as it was made."""
    return vars(model).get("_distribute_strategy") is None and not tf.distribute.has_strategy()


class BatchFunction:
    """Runs a step of a model on batches.

    Args:
      model: A Keras model; no reference to it is kept here, but by `step`.
      kind: "train", "test" or "predict".
      step: The `Function` of the model's step.
      make_stock: Makes Keras' own function, which runs where there is a distribution strategy.
    """

    def __init__(
        self, model: Any, kind: str, step: Function, make_stock: Callable[[], Callable]
    ) -> None:
        self._model = weakref.ref(model)
        self._kind = kind
        self._step = step
        self._make_stock = make_stock
        self._stock: Callable | None = None

    def __call__(self, batches: Any) -> Any:
        model: Any = self._model()
        if has_default_strategy(model):
            return self._run(batches, model.steps_per_execution)
        if self._stock is None:
            self._stock = self._make_stock()
        return self._stock(batches)

    def _run(self, batches: Any, num_batches: int) -> Any:
        raise NotImplementedError

    def _run_step(self, data: Any) -> Any:
        if not _is_flat(data):
            tree = _tree()
            data = with_tensors(self._model(), self._kind, _without_optionals(data, tree), tree)
        return _copy(self._step(data))


class IteratorFunction(BatchFunction):
    """Takes up to `steps_per_execution` batches from an iterator: for training and testing."""

    def _run(self, batches: Iterator, num_batches: int) -> Any:
        if not isinstance(batches, tf.data.Iterator):  # of `train_on_batch`
            for _, data in zip(range(num_batches), batches):
                outputs = self._run_step(data)
            return outputs
        if num_batches == 1:
            return _as_from_optional(self._run_step(batches.get_next()))
        for index in range(num_batches):
            try:
                data = batches.get_next()
            except tf.errors.OutOfRangeError as error:
                if index == 0:
                    raise StopIteration from error
                break
            outputs = _as_from_optional(self._run_step(data))
        return outputs


class PredictFunction(BatchFunction):
    """Takes a list of batches, and returns their outputs as if they were one batch."""

    def _run(self, batches: Any, num_batches: int) -> Any:
        outputs = self._run_step(batches[0])
        if num_batches == 1:
            return outputs
        concat = sys.modules[_TRAINER].concat
        for data in batches[1:]:
            outputs = _tree().map_structure(
                lambda *parts: concat(list(parts)), outputs, self._run_step(data)
            )
        return outputs


def _tree() -> Any:
    return sys.modules["keras"].tree


def _is_flat(structure: Any) -> bool:
    """Says whether it is a tuple of tensors and None, as most batches are."""
    return type(structure) is tuple and all(
        item is None or type(item) is EagerTensor for item in structure
    )


def _without_optionals(data: Any, tree: Any) -> Any:
    return tree.map_structure(
        lambda item: None if isinstance(item, tf.experimental.Optional) else item, data
    )


def _is_plain(outputs: Any) -> bool:
    """Says whether outputs are a tensor, or a dictionary of tensors, as most steps return."""
    if type(outputs) is dict:
        return all(type(item) is EagerTensor for item in outputs.values())
    return type(outputs) is EagerTensor


def _copy(outputs: Any) -> Any:
    """Returns a structure of its own, as reducing over replicas does: callbacks may change it."""
    if _is_plain(outputs):
        return dict(outputs) if type(outputs) is dict else outputs
    return _tree().map_structure(lambda item: item, outputs)


def _as_from_optional(outputs: Any) -> Any:
    """Makes tensors of what are none, as Keras' way through an Optional does."""
    if _is_plain(outputs):
        return outputs
    return tf.experimental.Optional.from_value(outputs).get_value()
