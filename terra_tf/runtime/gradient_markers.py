"""Names the gradient functions that run, and what the tape does between them.

A backward op is known by its forward op's marker, which stands on the thread's stack while the
op's gradient function runs:

    tape -> wrapper -> marker on the stack -> the op's gradient function -> its ops
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from terra_tf._tf_internals import backprop
from terra_tf.runtime import user_gradients
from terra_tf.trace.markers import GradientMarkers, gradient_function_wrapper, marked_caller


class _ThreadMarkers(threading.local):
    def __init__(self) -> None:
        self.markers = GradientMarkers()


_thread = _ThreadMarkers()


def thread_markers() -> GradientMarkers:
    """Returns the calling thread's stack of running gradient functions."""
    return _thread.markers


_call_marked = marked_caller(thread_markers)
_run_natively: dict[Any, Any] = {}  # function -> what replays calls of it


def _run_gradient_function(original: Any, marker: Any, op_type: Any, *args: Any) -> Any:
    if not user_gradients.note(op_type) or marker is None:
        return original(op_type, *args)
    return _run_natively[original]((op_type, *args), {}, marker)


def _run_sum(original: Any, marker: Any, gradients: Any) -> Any:
    return _run_natively[original]((gradients,), {}, marker)


wrapper = gradient_function_wrapper(
    backprop._gradient_function, _call_marked, _run_gradient_function
)
GRADIENT_WRAPPER_CODE = _call_marked.__code__


def prepare(native: Any) -> None:
    """Lets native code replay what the wrappers run."""
    for name, function in (
        ("a gradient function", backprop._gradient_function),
        ("a sum of gradients", backprop._default_vspace.aggregate_fn),
    ):
        _run_natively[function] = native.pure_function(name, function, False, False)


def vector_space(native: Any) -> Any:
    """What the tape calls from C between gradient functions: sums and zeros.

    Without a marker each would look like one more turn of the loop around the gradient call.
    """
    space = backprop._default_vspace

    def aggregate(gradients: Any) -> Any:
        controller = native.current_controller()
        marker = None
        if controller is not None and len(gradients) > 1:
            marker = controller.tape_names.name_sum(gradients)
        if marker is None:
            return space.aggregate_fn(gradients)
        return _call_marked(marker, _run_sum, space.aggregate_fn, marker, gradients)

    def marked_zeros(zeros: Callable[..., Any]) -> Callable[..., Any]:
        def make_zeros(*args: Any) -> Any:
            controller = native.current_controller()
            if controller is None:
                return zeros(*args)
            return _call_marked(controller.tape_names.name_zeros(), zeros, *args)

        return make_zeros

    return space._replace(
        aggregate_fn=aggregate,
        zeros_fn=marked_zeros(space.zeros_fn),
        zeros_like_fn=marked_zeros(space.zeros_like_fn),
    )
