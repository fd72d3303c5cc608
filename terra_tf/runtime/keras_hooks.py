"""Hooks in Keras 3, put in place once the program has imported it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from terra_tf.runtime.api_hooks import ApiHooks

_OPTIMIZERS = "keras.src.optimizers.base_optimizer"
_GLOBAL_STATE = "keras.src.backend.common.global_state"


class KerasHooks:
    """What of Keras is hooked.

    Args:
      replace: Sets an attribute of a class, to be put back one day.
    """

    def __init__(self, replace: Callable[[Any, str, Any], Any]) -> None:
        self._replace = replace
        self._methods = ApiHooks(_methods)
        self._is_done = False

    def install(self, native: Any, wanted: bool) -> None:
        """Hooks Keras if it has been imported by now. Called at each step."""
        keras = sys.modules.get("keras")
        if keras is None or not hasattr(keras, "Model"):  # or it is being imported
            return
        self._methods.sync(native, wanted)
        if self._is_done:
            return
        self._is_done = True
        native.set_keras_state(sys.modules[_GLOBAL_STATE])
        optimizer = sys.modules[_OPTIMIZERS].BaseOptimizer
        hook = native.replayable("Optimizer.apply", optimizer.__dict__["apply"])
        self._replace(optimizer, "apply", hook)

    def forget(self) -> None:
        """Everything is put back."""
        self._methods.remove()
        self._is_done = False


def _methods() -> Iterator[tuple[str, types.FunctionType, bool]]:
    keras = sys.modules["keras"]
    yield "Layer.__call__", vars(keras.Layer)["__call__"], True
    yield "Loss.__call__", vars(keras.Loss)["__call__"], True
    for name, metric in vars(keras.metrics).items():
        if isinstance(metric, type) and issubclass(metric, keras.Metric):
            for method in ("update_state", "result"):
                if isinstance(function := vars(metric).get(method), types.FunctionType):
                    yield f"{name}.{method}", function, True
