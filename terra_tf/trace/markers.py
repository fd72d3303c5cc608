"""Names of forward ops for their gradient functions.

The tape keeps with each op its attributes, and gives them to the op's gradient function.
Appended to them is a *marker*, the op's name: the id of its location, or a variation of it
where an op or a node of that name is there already. So each op of a gradient function knows
which forward op it belongs to, and its location has the marker as one of its levels.

Between gradient functions the tape sums gradients up and makes zeros; what does that is marked
too: `("sum", marker, output, n)` by the term that was computed last, `("zeros", marker, n)` by
the gradient function that has returned last.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

MARKER = "_terra_node"
SUM, ZEROS = "sum", "zeros"


class GradientMarkers:
    """The forward ops whose gradient functions are running, innermost last. One per thread."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.last: Any = None  # the one that has returned last


def marker_for(location: Any, index: int) -> Any:
    """Returns what names an op on a tape: the same in every step that runs it.

    Without a location, the op's number has to do.
    """
    return getattr(location, "id", index)


def unique_marker(marker: Any, given: set[Any]) -> Any:
    """Returns `marker`, or a variation of it that was not given yet; adds it to `given`."""
    unique, count = marker, 1
    while unique in given:
        count += 1
        unique = ("again", marker, count)
    given.add(unique)
    return unique


def marker_of(attrs: tuple | None) -> Any:
    """Returns the forward op's marker that a tape entry's attributes carry, or None."""
    if attrs is not None and len(attrs) >= 2 and attrs[-2] == MARKER:
        return attrs[-1]
    return None


def without_marker(attrs: tuple) -> tuple:
    """Returns a tape entry's attributes as the op was given them."""
    return attrs if marker_of(attrs) is None else attrs[:-2]


def marked_caller(markers_of_thread: Callable) -> Callable:
    """Returns `call(marker, function, *args)`; the function's ops know their marker.

    Its code object is the one that locations look for.
    """

    def call_marked(
        marker: Any, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        markers = markers_of_thread()
        depth = len(markers.stack)
        try:
            markers.stack.append(marker)
            return function(*args, **kwargs)
        finally:
            markers.last = marker
            del markers.stack[depth:]

    return call_marked


def gradient_function_wrapper(
    original: Callable, call_marked: Callable, run: Callable[..., Any]
) -> Callable:
    """Wraps TensorFlow's gradient dispatcher so that ops know their forward op.

    Args:
      original: The dispatcher.
      call_marked: What `marked_caller` returned.
      run: `run(original, marker, op_type, ...)` calls it, or does without.
    """

    def call_gradient_function(op_name: str, attr_tuple: tuple, *args: Any) -> Any:
        marker = marker_of(attr_tuple)
        if marker is None:
            return run(original, None, op_name, attr_tuple, *args)
        attrs = without_marker(attr_tuple)
        return call_marked(marker, run, original, marker, op_name, attrs, *args)

    return call_gradient_function


def translated(marker: Hashable | None, names: Mapping[Hashable, Hashable]) -> Hashable | None:
    """Returns a marker in which ops go by other names.

    Args:
      marker: Of an op, a sum, zeros, or None.
      names: An op's marker -> its other name. What is not in it keeps its own.
    """
    if marker in names:
        return names[marker]
    if isinstance(marker, tuple) and marker and marker[0] in (SUM, ZEROS):
        kind, what, *rest = marker
        return (kind, translated(what, names), *rest)
    return marker
