"""Gradient functions that are not TensorFlow's own: what runs them is never replayed."""

from __future__ import annotations

from typing import Any

from terra_tf import _native
from terra_tf._tf_internals import ops

_is_own: dict[Any, bool] = {}


def note(op_type: Any) -> bool:
    """Tells the step on this thread that the gradient function of an op is about to run.

    Returns:
      Whether it is TensorFlow's own.
    """
    if _is_known(op_type):
        return True
    controller = _native.load().module.current_controller()
    if controller is not None:
        controller.native.note_user_gradient()
    return False


def _is_known(op_type: Any) -> bool:
    is_own = _is_own.get(op_type)
    if is_own is None:
        is_own = _is_own[op_type] = _is_tensorflows(op_type)
    return is_own


def _is_tensorflows(op_type: Any) -> bool:
    name = op_type.decode() if isinstance(op_type, bytes) else op_type
    try:
        function = ops.gradient_registry.lookup(name)
    except LookupError:
        return True  # nothing runs: TensorFlow raises
    module = getattr(function, "__module__", "") or ""
    return function is None or module.split(".")[0] in ("tensorflow", "keras")
