"""Hooks in Keras 3 and in `tf_keras`, put in place once the program has imported them."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from terra_tf.runtime.api_hooks import ApiHooks
from terra_tf.runtime.object_state import LEARNING_RATE_IS_GIVEN, takes_given_rate

_OPTIMIZERS = "keras.src.optimizers.base_optimizer"
_LEGACY_OPTIMIZERS = "tf_keras.src.optimizers.optimizer"
_TF_OPTIMIZERS = "keras.src.backend.tensorflow.optimizer"
_GLOBAL_STATE = "keras.src.backend.common.global_state"


class KerasHooks:
    """What of Keras is hooked.

    Args:
      replace: Sets an attribute of a class, to be put back one day.
    """

    def __init__(self, replace: Callable[[Any, str, Any], Any]) -> None:
        self._replace = replace
        self._methods = ApiHooks(_methods)
        self._done: set[str] = set()

    def install(self, native: Any, wanted: bool) -> None:
        """Hooks what has been imported by now. Called at each step."""
        if _is_imported("keras"):
            self._methods.sync(native, wanted)
            if "keras" not in self._done:
                variable_type = sys.modules["keras"].Variable
                native.set_keras_state(sys.modules[_GLOBAL_STATE], variable_type)
                optimizer = sys.modules[_OPTIMIZERS].BaseOptimizer
                self._hook_optimizer(native, "keras", optimizer, "apply")
                self._hook_update(native, sys.modules[_TF_OPTIMIZERS].TFOptimizer)
        if "tf_keras" not in self._done and _is_imported("tf_keras"):
            # `apply_gradients` is given an iterator, and hands a list on.
            optimizer = sys.modules[_LEGACY_OPTIMIZERS].Optimizer
            self._hook_optimizer(native, "tf_keras", optimizer, "_internal_apply_gradients")

    def _hook_optimizer(self, native: Any, library: str, optimizer: type, method: str) -> None:
        name = f"Optimizer.{method.removeprefix('_internal_')}"
        original = vars(optimizer)[method]
        if isinstance(original, types.FunctionType):  # else it was interrupted behind this
            self._replace(optimizer, method, native.replayable(name, original))
        self._done.add(library)

    def _hook_update(self, native: Any, optimizer: type) -> None:
        """What of `apply` is replayed where a schedule of the user's makes the rate."""
        original = vars(optimizer)["_backend_update_step"]

        def with_rate(self: Any, grads: Any, variables: Any, rate: Any, _: Any) -> Any:
            return original(self, grads, variables, rate)

        replayed = native.replayable("Optimizer.update", with_rate)

        @functools.wraps(original)
        def update(self: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> Any:
            if takes_given_rate(type(self)):
                hint = LEARNING_RATE_IS_GIVEN
                return replayed(self, grads, trainable_variables, learning_rate, hint)
            return original(self, grads, trainable_variables, learning_rate)

        self._replace(optimizer, "_backend_update_step", update)

    def forget(self) -> None:
        """Everything is put back."""
        self._methods.remove()
        self._done.clear()


def _is_imported(library: str) -> bool:
    return hasattr(sys.modules.get(library), "Model")  # it may be being imported


def _methods() -> Iterator[tuple[str, types.FunctionType, bool]]:
    keras = sys.modules["keras"]
    yield "Layer.__call__", vars(keras.Layer)["__call__"], True
    yield "Loss.__call__", vars(keras.Loss)["__call__"], True
    for name, metric in vars(keras.metrics).items():
        if isinstance(metric, type) and issubclass(metric, keras.Metric):
            for method in ("update_state", "result"):
                if isinstance(function := vars(metric).get(method), types.FunctionType):
                    yield f"{name}.{method}", function, True
