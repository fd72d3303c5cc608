"""The static call stack: what the interpreter shows of where it is, frame identity apart.

A stack is a list of *points*, outermost first: `ENTRY`, then one `CodePoint`
per active call. Points are interned, so two stacks are compared level by level
with `is`. Frames of terra_tf itself are left out, but for the one that calls
gradient functions, in whose place stands a `MarkerPoint` naming the forward op:

    [ENTRY, train.py:43 in step, gradient of 17, math_grad.py:812 in _TanhGrad]
"""

import functools
import os
import weakref
from collections.abc import Callable, Hashable, Sequence
from types import CodeType, FrameType

from terra_tf.trace.bytecode import CodeInfo, Move, code_info
from terra_tf.trace.code_origin import is_left_out_of_locations, is_user_file


class Point:
    """One level of a static stack. Interned: compare with `is`.

    Attributes:
      info: the code object's description, or None.
      offset: the start of the instruction in bytes, or -1.
      marker: for the call of a gradient function, the key of its forward op.
      is_user: whether the code is the user's.
      first_counters: the counters of the loops around it in their first iteration.
      turn: how it comes to itself in the next iteration; None if in no loop.
    """

    __slots__ = ("first_counters", "info", "is_user", "marker", "offset", "turn")

    def __init__(self) -> None:
        self.info: CodeInfo | None = None
        self.offset = -1
        self.marker: Hashable | None = None
        self.is_user = False
        self.first_counters: tuple[int, ...] = ()
        self.turn: Move | None = None

    def __repr__(self) -> str:
        return "<entry>"

    @property
    def lineno(self) -> int:
        """The source line, or 0."""
        return 0

    def move_to(self, other: "Point") -> Move | None:
        """Say how one activation comes from here to another point, or None if it cannot."""
        return None


class CodePoint(Point):
    """Name an instruction of a code object."""

    __slots__ = ()
    info: CodeInfo

    def __init__(self, info: CodeInfo, offset: int):
        super().__init__()
        self.info = info
        self.offset = offset
        self.is_user = is_user_file(info.filename)
        self.first_counters = (0,) * len(info.loops_at(offset))
        turn = info.move(offset, offset) if self.first_counters else None
        self.turn = turn if turn and turn.advances else None

    def __repr__(self) -> str:
        return f"{os.path.basename(self.info.filename)}:{self.lineno} in {self.info.code.co_name}"

    @property
    def lineno(self) -> int:
        """The source line."""
        return self.info.line_at(self.offset)

    def move_to(self, other: Point) -> Move | None:
        """Say how one activation comes from here to another point, or None if it cannot."""
        return self.info.move(self.offset, other.offset) if other.info is self.info else None


class MarkerPoint(Point):
    """Stand for the call of a forward op's gradient function."""

    __slots__ = ()

    def __init__(self, marker: Hashable | None):
        super().__init__()
        self.marker = marker

    def __repr__(self) -> str:
        return f"gradient of {self.marker}"


ENTRY = Point()
"""Stands for whatever called the outermost frame."""

_UNMARKED = MarkerPoint(None)
_markers: dict[Hashable | None, MarkerPoint] = {None: _UNMARKED}


def marker_point(marker: Hashable) -> MarkerPoint:
    """Return the one point of a marker."""
    return _markers.get(marker) or _markers.setdefault(marker, MarkerPoint(marker))


_Table = dict[int, Point | None]


class _PointsOfCode(_Table):
    """Map each `f_lasti` of one code object to its point, which several share."""

    def __init__(self, info: CodeInfo):
        super().__init__()
        self._info = info

    def __missing__(self, last_instruction: int) -> Point | None:
        offset = self._info.normalize(last_instruction)
        is_start = offset == last_instruction
        point = CodePoint(self._info, offset) if is_start else self[offset]
        return self.setdefault(last_instruction, point)


class _SamePoint(_Table):
    """Map every `f_lasti` to one point, or to None for a frame to leave out."""

    def __init__(self, point: Point | None):
        super().__init__()
        self._point = point

    def __missing__(self, last_instruction: int) -> Point | None:
        return self.setdefault(last_instruction, self._point)


def _points_of_code(info: CodeInfo) -> _PointsOfCode:
    if info not in _points_of:
        _points_of.setdefault(info, _PointsOfCode(info))
    return _points_of[info]


_points_of: dict[CodeInfo, _PointsOfCode] = {}
_LEFT_OUT = _SamePoint(None)
_GRADIENT_WRAPPER = _SamePoint(_UNMARKED)


class StackReader:
    """Read static stacks. Not for two threads at once.

    Code objects are known by their ids while they live, because hashing one is
    slow; they are not kept alive, because `exec` may make new ones at each step.

    Args:
      is_left_out: says of a file name whether its frames are left out.
      gradient_wrapper_code: the code of the function that calls gradient
        functions, or None if there is none.
    """

    def __init__(self, is_left_out: Callable[[str], bool] = is_left_out_of_locations,
                 gradient_wrapper_code: CodeType | None = None):
        self._is_left_out = is_left_out
        self._gradient_wrapper_code = gradient_wrapper_code
        self._tables: dict[int, _Table] = {}
        self._references: dict[int, weakref.ref] = {}

    def read(self, frame: FrameType | None, stop_frame: FrameType | None) -> list[Point]:
        """Return the static stack from just inside `stop_frame` to `frame`, outermost first.

        Where `stop_frame` is not on the stack, its whole length is read.
        """
        tables = self._tables
        stack: list[Point] = []
        while frame is not stop_frame and frame is not None:
            code = frame.f_code
            table = tables.get(id(code))
            if table is None:
                table = self._add_table(code)
            point = table[frame.f_lasti]
            if point is not None:
                stack.append(point)
            frame = frame.f_back
        stack.append(ENTRY)
        stack.reverse()
        return stack

    def _add_table(self, code: CodeType) -> _Table:
        # First what forgets the table: other code may get the address.
        self._references[id(code)] = weakref.ref(code, functools.partial(self._forget, id(code)))
        table = self._tables[id(code)] = self._find_table(code)
        return table

    def _find_table(self, code: CodeType) -> _Table:
        if code is self._gradient_wrapper_code:
            return _GRADIENT_WRAPPER
        if self._is_left_out(code.co_filename):
            return _LEFT_OUT
        return _points_of_code(code_info(code))

    def _forget(self, code_id: int, _: weakref.ref) -> None:
        self._tables.pop(code_id, None)
        self._references.pop(code_id, None)


def place_markers(stack: list[Point], markers: Sequence[Hashable]) -> None:
    """Name the calls of gradient functions in a static stack, in place.

    Args:
      stack: as `StackReader.read` returned it.
      markers: one per active gradient function, innermost first. One that has
        no frame on this stack (the gradient function was called in another
        thread) is placed around all frames.
    """
    places = [depth for depth, point in enumerate(stack) if point is _UNMARKED]
    for marker in markers:
        if places:
            stack[places.pop()] = marker_point(marker)
        else:
            stack.insert(1, marker_point(marker))
