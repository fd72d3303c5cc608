"""Hooks in Keras 3, put in place once the program has imported it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_OPTIMIZERS = "keras.src.optimizers.base_optimizer"


class KerasHooks:
    """What of Keras is hooked.

    Args:
      replace: Sets an attribute of a class, to be put back one day.
    """

    def __init__(self, replace: Callable[[Any, str, Any], Any]) -> None:
        self._replace = replace
        self._is_done = False

    def install(self, native: Any) -> None:
        """Hooks Keras if it has been imported by now. Called at each step."""
        if self._is_done or _OPTIMIZERS not in sys.modules:
            return
        optimizer = getattr(sys.modules[_OPTIMIZERS], "BaseOptimizer", None)
        if optimizer is None:  # it is being imported
            return
        self._is_done = True
        hook = native.replayable("Optimizer.apply", optimizer.__dict__["apply"])
        self._replace(optimizer, "apply", hook)

    def forget(self) -> None:
        """Everything has been put back."""
        self._is_done = False
