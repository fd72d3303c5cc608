"""Names the gradient functions that run, and what the tape does between them.

A backward op is known by its forward op's marker, which stands on the thread's stack while the
op's gradient function runs:

    tape -> wrapper -> marker on the stack -> the op's gradient function -> its ops
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from terra_tf._tf_internals import backprop, context
from terra_tf.runtime import user_gradients
from terra_tf.runtime.swapped_code import SwappedCode
from terra_tf.trace.markers import GradientMarkers, gradient_function_wrapper, marked_caller


class _ThreadMarkers(threading.local):
    def __init__(self) -> None:
        self.markers = GradientMarkers()


_thread = _ThreadMarkers()


def thread_markers() -> GradientMarkers:
    """Returns the calling thread's stack of running gradient functions."""
    return _thread.markers


def begin_step() -> None:
    """No gradient function of this thread is running, and none has."""
    markers = _thread.markers
    markers.stack.clear()
    markers.last = None


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
    """Lets native code replay what the wrapper runs."""
    function = backprop._gradient_function
    _run_natively[function] = native.pure_function("a gradient function", function, False, False)


def hooks(native: Any) -> Iterator[SwappedCode]:
    """Yields what marks the sums and zeros that the tape makes, from C, between gradient functions.

    Without a marker each would look like one more turn of the loop around the gradient call. The
    functions' code is swapped, and not the vector space that has them: TensorFlow frees the old
    one, which each forward accumulator that was made before goes on using.
    """
    space = backprop._default_vspace
    yield SwappedCode(space.aggregate_fn, functools.partial(_marked_sum, native), __file__)
    for zeros in (space.zeros_fn, space.zeros_like_fn):
        yield SwappedCode(zeros, functools.partial(_marked_zeros, native), __file__)


def _marked_sum(native: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    _run_natively[original] = native.pure_function("a sum of gradients", original, False, False)

    def add_up(args: tuple, kwargs: dict[str, Any]) -> Any:
        controller = native.current_controller()
        gradients = args[0] if len(args) == 1 and not kwargs else ()
        marker = None
        if controller is not None and len(gradients) > 1:
            marker = controller.tape_names.name_sum(gradients)
        if marker is None:
            return original(*args, **kwargs)
        return _call_marked(marker, _run_sum, original, marker, gradients)

    return add_up


def _marked_zeros(native: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def make_zeros(args: tuple, kwargs: dict[str, Any]) -> Any:
        controller = native.current_controller()
        if controller is None or not context.executing_eagerly() or native.is_telling_tapes():
            return original(*args, **kwargs)  # of a graph, or within an op: its stack says where
        return _call_marked(controller.tape_names.name_zeros(), original, *args, **kwargs)

    return make_zeros
