"""Where in the run of a step an op was executed.

A static stack (see `static_stack`) can occur many times in a step. A *location*
tells these apart: each level also has the iteration of each loop around the
instruction, and an *ordinal* for code that was called again from C without any
loop (`map`, `sorted`). The paper keeps a call id stack and a loop id stack for
this; here nothing in the program is touched: see `location_rule`.

No frame is ever identified, so the counters are *virtual* iterations: unique
within a step and the same at each run, but an iteration without any op is not
counted.

A *backward op* runs inside a gradient function. One level of its location is a
*marker* naming the forward op. The tape may call gradient functions in any
order, so markers take no ordinals:

    step: levels outside (the gradient call site) > marker > levels inside
"""

import functools
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import CodeType, FrameType

from terra_tf.trace.code_origin import is_left_out_of_locations
from terra_tf.trace.location_rule import next_location
from terra_tf.trace.location_tree import (
    LibraryCall,
    Location,
    LocationLevel,
    SourceFrame,
    describe,
    first_location,
)
from terra_tf.trace.static_stack import Point, StackReader, place_markers

_OP_WRAPPERS = re.compile(r"[/\\]gen_\w+_ops\.py$")
_READ, _READ_FUNCTION = "ReadVariableOp", "read_variable_op"

__all__ = ["LibraryCall", "Location", "LocationChain", "LocationLevel", "LocationTracker",
           "SourceFrame", "describe", "first_location", "next_location"]


class LocationChain:
    """The locations of a step's ops, each from the one before and a static stack.

    One per step; takes no lock of its own.
    """

    def __init__(self) -> None:
        self._previous: Location | None = None
        self._previous_op = ""
        self._entered: set[Location] = set()

    def next(self, stack: Sequence[Point]) -> Location:
        """Return the location of the op that runs with this stack after the latest op."""
        if self._previous is None:
            return first_location(stack)
        if self._is_op_of_previous_read(stack):
            return self._previous.called_again()
        if self._has_converted_its_inputs(stack):
            return self._previous.path[len(stack) - 1].called_again()
        return next_location(self._previous, stack, self._entered)

    def arrive(self, location: Location, op_type: str = "") -> None:
        """Say where the latest op ran, and which it was."""
        self._previous = location
        self._previous_op = op_type
        marked = location.innermost_marker
        while marked is not None and marked not in self._entered:
            self._entered.add(marked)
            marked = marked.path[-2].innermost_marker

    def note_op(self, op_type: str) -> None:
        """Say which op the latest was."""
        self._previous_op = op_type

    def _is_op_of_previous_read(self, stack: Sequence[Point]) -> bool:
        """Say whether the previous op read a variable that this op has among its inputs.

        TensorFlow reads such a variable inside of the op's own call, so both have one stack,
        and no loop has turned in between. A read of its own has a function of its own.
        """
        previous = self._previous
        if previous is None or self._previous_op != _READ or previous.point.info is None:
            return False
        is_own = previous.point.info.code.co_name == _READ_FUNCTION
        path = previous.path
        return not is_own and len(path) == len(stack) and all(
            location.point is point for location, point in zip(path, stack, strict=True)
        )

    def _has_converted_its_inputs(self, stack: Sequence[Point]) -> bool:
        """Say whether the previous op ran in the conversion of this op's inputs.

        A Keras variable converts itself, in Python that the op's wrapper calls from C: no loop
        has turned since.
        """
        path = self._previous.path if self._previous is not None else ()
        return len(stack) < len(path) and _is_op_wrapper(stack[-1]) and all(
            location.point is point for location, point in zip(path, stack, strict=False)
        )


def _is_op_wrapper(point: Point) -> bool:
    """Say whether a point is in a generated function of TensorFlow's: each runs one op."""
    return point.info is not None and _is_op_wrapper_file(point.info.code.co_filename)


@functools.lru_cache(maxsize=4096)
def _is_op_wrapper_file(filename: str) -> bool:
    return _OP_WRAPPERS.search(filename) is not None


class LocationTracker:
    """Give each op of a step its location. One per thread; takes no lock of its own.

    Args:
      is_left_out: says of a file name whether its frames are left out of
        locations; by default terra_tf's own, and those of TensorFlow's profiling wrappers.
      gradient_wrapper_code: the code object of the one function, marked frame by
        frame in `locate`, through which every gradient function is called.
        Whatever else the tape calls from C (to add gradients up, to make zeros)
        should go through it too, or it looks like another iteration of the loop
        around the gradient call.
    """

    def __init__(self, is_left_out: Callable[[str], bool] = is_left_out_of_locations,
                 gradient_wrapper_code: CodeType | None = None):
        self._reader = StackReader(is_left_out, gradient_wrapper_code)
        self._stop_frame: FrameType | None = None
        self._chain = LocationChain()

    def begin(self, stop_frame: FrameType | None) -> None:
        """Start a step.

        Args:
          stop_frame: the frame whose callees locations start with. It is kept
            alive until `end`.
        """
        self.end()
        self._stop_frame = stop_frame

    def go_on(self, ops: Iterable[tuple[Location | None, str]]) -> None:
        """Go on in the middle of a step: where ops that have run since ran, and which they were."""
        for location, op_type in ops:
            if location is None:
                self._chain.note_op(op_type)
            else:
                self._chain.arrive(location, op_type)

    def end(self) -> None:
        """End the step and let go of its frame."""
        self._stop_frame = None
        self._chain = LocationChain()

    def note_op(self, op_type: str) -> None:
        """Say which op ran at the previous location."""
        self._chain.note_op(op_type)

    def locate(self, frame: FrameType, backward_marker: Hashable | None = None,
               outer_markers: Sequence[Hashable] = ()) -> Location:
        """Return the location of the op that `frame` runs now, and remember it as the previous one.

        Args:
          frame: the innermost frame.
          backward_marker: inside a gradient function, the key of its forward op.
          outer_markers: inside gradient functions that call each other, the
            keys of the outer ones, outermost first.
        """
        location = self.look(frame, backward_marker, outer_markers)
        self._chain.arrive(location)
        return location

    def look(self, frame: FrameType, backward_marker: Hashable | None = None,
             outer_markers: Sequence[Hashable] = ()) -> Location:
        """Return what `locate` would, and remember nothing."""
        stack = self._reader.read(frame, self._stop_frame)
        if backward_marker is not None:
            place_markers(stack, (backward_marker, *reversed(outer_markers)))
        return self._chain.next(stack)
