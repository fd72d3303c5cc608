"""The rule that leads from one location of a step to the next.

    next location = next_location(previous location, static stack)

It is a function: the same program run the same way gets the same locations,
whether it is traced or co-executed. Within a step no location comes twice,
because each rule below moves forward in the program, starts another
iteration, or counts an ordinal up.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from terra_tf.trace.location_tree import Location
from terra_tf.trace.static_stack import MarkerPoint, Point


def next_location(previous: Location, stack: Sequence[Point],
                  entered: AbstractSet[Location] = frozenset()) -> Location:
    """Return the location of an op from that of the op before and its own static stack.

    The outermost level at which the stacks differ has moved on, perhaps into
    another iteration. If that is impossible, or nothing differs, the innermost
    loop around an unchanged level must have turned. Without such a loop,
    something was called again.

    Args:
      previous: the location of the op before in this step.
      stack: points, outermost first, starting with `ENTRY`.
      entered: the locations of all markers met in this step.
    """
    path = previous.path
    common = _num_common(path, stack)
    if common < len(stack):
        arrived = _move_on(path, common, stack[common], entered)
        if arrived is not None:
            return arrived.descend(stack, common + 1)
    repeated = path[common - 1]
    loop = repeated.innermost_loop
    if loop is not None:
        return loop.turned().descend(stack, len(loop.path))
    return repeated.called_again().descend(stack, common)


def _num_common(path: Sequence[Location], stack: Sequence[Point]) -> int:
    common = 0
    for location, point in zip(path, stack, strict=False):
        if location.point is not point:
            break
        common += 1
    return common


def _move_on(path: Sequence[Location], depth: int, point: Point,
             entered: AbstractSet[Location]) -> Location | None:
    """Explain that the level at `depth` is now at `point`, or return None."""
    caller = path[depth - 1]
    if isinstance(point, MarkerPoint):
        location = caller.first_callee(point)
        return None if location in entered else location
    move = path[depth].point.move_to(point) if depth < len(path) else None
    if move is None:
        return None
    return caller.callee(point, move.counters_after(path[depth].level.counters), 0)
