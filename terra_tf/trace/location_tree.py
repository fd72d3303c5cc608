"""Locations as a tree: each is its caller's location and one level more.

Interned, so that equal locations are one object, a comparison is `is`, and
going on from one op to the next makes only the levels that changed. What a
location means is told in `location`.
"""

import itertools
import threading
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Optional

from terra_tf.trace.bytecode import CodeInfo
from terra_tf.trace.code_origin import is_decorator_file
from terra_tf.trace.static_stack import ENTRY, CodePoint, MarkerPoint, Point


class LocationLevel(NamedTuple):
    """One active call in a location.

    Attributes:
      point: the instruction, or the marker of a gradient function.
      counters: the iteration of each loop around it, outermost first.
      ordinal: how often it was called again without a loop.
    """

    point: Point
    counters: tuple[int, ...]
    ordinal: int

    @property
    def code_info(self) -> CodeInfo | None:
        """The code object's description; None for a marker."""
        return self.point.info

    @property
    def offset(self) -> int:
        """The normalized byte offset; -1 for a marker."""
        return self.point.offset


class SourceFrame(NamedTuple):
    """A line of source, as a traceback names it."""

    filename: str
    lineno: int
    function: str


class LibraryCall(NamedTuple):
    """The public library call that an op belongs to.

    Ops of one call have the same `call_site`. (So have those of calls that C
    makes from one instruction, as in `map(tf.tanh, xs)`.)

    Attributes:
      depth: index in `Location.levels` of the call's outermost frame.
      call_site: the location of the caller, `depth` levels long.
      qualname: of the outermost frame that is not a mere decorator's.
    """

    depth: int
    call_site: "Location"
    qualname: str


class Location:
    """Say where in a step an op ran. Interned: equal locations are one object.

    A location is its caller's location (`parent`) and one level more. Never
    construct one: they come from `location`.
    Safe to share between threads.

    Attributes:
      id: a number of its own, stable for the life of the process.
      point: the innermost level's point.
      level: the innermost level.
      path: the locations of all active calls, outermost (`ENTRY`) first, itself last.
      innermost_loop: the innermost of `path` that can turn a loop, or None.
      innermost_marker: the innermost of `path` that calls a gradient function, or None.
      innermost_user: the innermost of `path` in the user's code, or None.
    """

    __slots__ = ("_callees", "id", "innermost_loop", "innermost_marker", "innermost_user",
                 "level", "parent", "path", "point")

    def __init__(self, parent: Optional["Location"], level: LocationLevel):
        self.id = next(_ids)
        self.parent = parent
        self.level = level
        self.point = point = level.point
        self.path: tuple[Location, ...] = (*parent.path, self) if parent else (self,)
        self.innermost_loop: Location | None = self
        self.innermost_marker: Location | None = self
        self.innermost_user: Location | None = self
        if point.turn is None:
            self.innermost_loop = parent and parent.innermost_loop
        if not isinstance(point, MarkerPoint):
            self.innermost_marker = parent and parent.innermost_marker
        if not point.is_user:
            self.innermost_user = parent and parent.innermost_user
        # None, the only one, or all by level: each container counts, there are thousands of
        # locations, and the garbage collector looks into everything.
        self._callees: Location | dict[LocationLevel, Location] | None = None

    def __repr__(self) -> str:
        return f"Location({self.id}: {describe(self)})"

    @property
    def levels(self) -> tuple[LocationLevel, ...]:
        """All levels, outermost first."""
        return tuple(location.level for location in self.path[1:])

    @property
    def forward(self) -> Hashable | None:
        """The marker of the forward op whose gradient this is part of (the innermost), or None."""
        return self.innermost_marker.point.marker if self.innermost_marker else None

    @property
    def gradient_call_site(self) -> Optional["Location"]:
        """Where the gradient was asked for, or None if this is no backward op."""
        return self.innermost_marker.parent if self.innermost_marker else None

    def callee(self, point: Point, counters: tuple[int, ...], ordinal: int) -> "Location":
        """Return the location one level further in."""
        return self._callee(LocationLevel(point, counters, ordinal))

    def first_callee(self, point: Point) -> "Location":
        """Return the location one level further in, in first iterations."""
        level = _first_levels.get(point)
        if level is None:
            level = _first_levels[point] = LocationLevel(point, point.first_counters, 0)
        return self._callee(level)

    def _callee(self, level: LocationLevel) -> "Location":
        callee = self._known_callee(level)
        if callee is None:
            with _interning:
                callee = self._known_callee(level) or self._add_callee(level)
        return callee

    def _known_callee(self, level: LocationLevel) -> Optional["Location"]:
        known = self._callees
        if isinstance(known, dict):
            return known.get(level)
        return known if known is not None and known.level == level else None

    def _add_callee(self, level: LocationLevel) -> "Location":
        callee: Location = Location(self, level)
        several: dict[LocationLevel, Location] = {}
        # Nothing is allocated from here on, so no finalizer runs an op that adds another one.
        known = self._known_callee(level)
        if known is not None:
            return known
        if isinstance(self._callees, Location):
            several[self._callees.level] = self._callees
            self._callees = several
        if self._callees is None:
            self._callees = callee
        else:
            self._callees[level] = callee
        return callee

    def descend(self, stack: Sequence[Point], depth: int) -> "Location":
        """Return the location after first entering the calls of a static stack from `depth` on."""
        location = self
        for point in stack[depth:]:
            location = location.first_callee(point)
        return location

    def turned(self) -> "Location":
        """Return this location in the next iteration of a loop, which it must be in."""
        turn = self.point.turn
        assert turn is not None
        return self.path[-2].callee(self.point, turn.counters_after(self.level.counters), 0)

    def called_again(self) -> "Location":
        """Return the location that differs in the innermost level's ordinal, up by one."""
        ordinal = self.level.ordinal + 1
        if self.parent is not None:
            return self.parent.callee(self.point, self.level.counters, ordinal)
        with _interning:
            if len(_entries) == ordinal:
                _entries.append(Location(None, LocationLevel(ENTRY, (), ordinal)))
            return _entries[ordinal]

    def user_frame(self) -> SourceFrame:
        """Return the line of the user's code that ran the op, or else the innermost line."""
        candidates = [self.innermost_user] if self.innermost_user else reversed(self.path)
        for location in candidates:
            point = location.point
            if isinstance(point, CodePoint):
                return SourceFrame(point.info.filename, point.lineno, point.info.code.co_name)
        return SourceFrame("<unknown>", 0, "<no Python frame>")

    def library_call(self) -> LibraryCall | None:
        """Return the call that leads from the innermost user frame into a library.

        Library code may call the user back (a Keras layer's `call`); what that
        calls is a call of its own. None if the user's own frame ran the op.
        """
        call_site = self.innermost_user or self.path[0]
        depth = len(call_site.path) - 1
        first = None
        for inner in self.path[depth + 1:]:
            info = inner.point.info
            if info is not None and not is_decorator_file(info.filename):
                return LibraryCall(depth, call_site, info.qualname)
            first = first or info
        return LibraryCall(depth, call_site, first.qualname) if first else None


_first_levels: dict[Point, LocationLevel] = {}  # in first iterations, shared by all locations
_ids = itertools.count()
_interning = threading.RLock()  # a finalizer may run ops while a location is made
_entries = [Location(None, LocationLevel(ENTRY, (), 0))]


def place_in_code(location: object) -> tuple[Point, ...] | None:
    """Return a location without the trips of the loops around it, or None if there is no loop."""
    if not isinstance(location, Location) or location.innermost_loop is None:
        return None
    return tuple(level.point for level in location.path)


def first_location(stack: Sequence[Point]) -> Location:
    """Return the location of the first op of a step from its static stack."""
    return _entries[0].descend(stack, 1)


def turns_user_loop(location: Location, following: Location) -> bool:
    """Say whether a loop of the user's code turned, began or ended between two locations."""
    for here, there in zip(location.path[1:], following.path[1:], strict=False):
        if here is not there and here.level != there.level:
            return here.point.is_user and here.level.counters != there.level.counters
    return False


def describe(location: Location) -> str:
    """Return a location as text: the user's frames, or all frames if there are none.

    For example `train.py:43 in step > model.py:10 in call [loop 2]`.
    """
    levels = [level for level in location.levels
              if level.point.is_user or isinstance(level.point, MarkerPoint)]
    if location.innermost_user is None:
        levels = list(location.levels)
    return " > ".join(map(_describe_level, levels)) or "<no Python frame>"


def _describe_level(level: LocationLevel) -> str:
    loops = f" [loop {', '.join(map(str, level.counters))}]" if level.counters else ""
    repeat = f" [repeat {level.ordinal}]" if level.ordinal else ""
    return f"{level.point!r}{loops}{repeat}"
