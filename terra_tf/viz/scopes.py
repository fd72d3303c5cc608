"""Where each op of a TraceGraph is shown: nested scopes, named after the user's program.

    layer                  a call of the user's function `layer`
    loop                   a loop of the user's code
      trip_3               its fourth iteration
    switch_case_2          alternatives: one of its branches runs, or none
      branch_0             one alternative
    gradients              backward ops; below it, the scopes of the forward ops

A call is a scope of its own each time it happens (`layer`, `layer_1`): calls are told apart by
the location of their caller, loop iterations and all. A switch-case stands in the innermost
scope that holds all of its ops. Names are unique among siblings and the same at every run.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from terra_tf.trace.case_assignment import CaseAssignment, Level
from terra_tf.trace.dump import count
from terra_tf.trace.location import Location, LocationLevel
from terra_tf.trace.static_stack import CodePoint, MarkerPoint
from terra_tf.trace.trace_graph import TraceGraph


class Scope(NamedTuple):
    """One scope.

    Attributes:
      kind: "call", "loop", "trip", "gradients", "switch_case" or "branch".
      name: Unique among its siblings; letters, digits and underscores.
      label: For a person.
    """

    kind: str
    name: str
    label: str


ScopePath = tuple[Scope, ...]


class _Segment(NamedTuple):
    """A scope before it has a name among its siblings; `key` is its identity."""

    key: Hashable
    kind: str
    base: str
    label: str


@dataclasses.dataclass(frozen=True)
class Scopes:
    """The scopes of a graph.

    Attributes:
      of_node: Node -> its scopes, outermost first.
      of_case: Level of a switch-case -> its scopes, its own last.
    """

    of_node: dict[int, ScopePath]
    of_case: dict[int, ScopePath]


def find_scopes(graph: TraceGraph, cases: CaseAssignment) -> Scopes:
    """Returns the scopes of every node and every switch-case."""
    reader = _SegmentReader(graph)
    namer = _Namer()
    of_node: dict[int, ScopePath] = {}
    of_case: dict[int, ScopePath] = {}
    num_cases = 0
    for number, level in enumerate(cases.levels):
        if level.is_inline:
            for node in level.blocks[0].nodes:
                of_node[node] = namer.name(reader.segments(node))
            continue
        around = _common_prefix([reader.segments(n) for b in level.blocks for n in b.nodes])
        case = (*around, _case_segment(num_cases, level))
        num_cases += 1
        of_case[number] = namer.name(case)
        for block in level.blocks:
            branch = (*case, _branch_segment(num_cases, block.index))
            for node in block.nodes:
                of_node[node] = namer.name((*branch, *reader.segments(node)[len(around) :]))
    return Scopes(of_node, of_case)


def _case_segment(number: int, level: Level) -> _Segment:
    label = f"switch-case {number}: {count(len(level.blocks), 'branch')}"
    return _Segment(("case", number), "switch_case", f"switch_case_{number}", label)


def _branch_segment(number: int, index: int) -> _Segment:
    return _Segment(("branch", number, index), "branch", f"branch_{index}", f"branch {index}")


def _common_prefix(paths: list[tuple[_Segment, ...]]) -> tuple[_Segment, ...]:
    common = paths[0]
    for path in paths[1:]:
        length = 0
        for one, other in zip(common, path):
            if one != other:
                break
            length += 1
        common = common[:length]
    return common


class _SegmentReader:
    """Reads calls, loops and gradients off locations."""

    def __init__(self, graph: TraceGraph) -> None:
        self._graph = graph
        self._known: dict[int, tuple[_Segment, ...]] = {}
        self._at_marker: dict[Any, Any] = {}
        for node in graph.nodes:
            self._at_marker.setdefault(node.record.marker, node.key.location)

    def segments(self, node: int) -> tuple[_Segment, ...]:
        """Returns the scopes around a node, outermost first."""
        if node not in self._known:
            location = self._graph.nodes[node].key.location
            self._known[node] = tuple(self._of_location(location))
        return self._known[node]

    def _of_location(self, location: Any) -> Iterator[_Segment]:
        if not isinstance(location, Location):
            return
        is_inside = False  # the decorated function itself is no scope
        for outer, here in zip(location.path, location.path[1:]):
            if isinstance(here.point, MarkerPoint):
                yield _Segment(("gradients", outer), "gradients", "gradients", "gradients")
                yield from self._of_forward(outer, here.point.marker)
                is_inside = True
            elif isinstance(here.point, CodePoint) and here.point.is_user:
                if is_inside:
                    yield _call_segment(outer, here.point)
                is_inside = True
                yield from _loop_segments(outer, here.level, here.point)

    def _of_forward(self, outer: Location, marker: Any) -> Iterator[_Segment]:
        """The scopes of the forward op, again, for its gradient."""
        name = marker
        while name not in self._at_marker and isinstance(name, tuple):  # ("sum", marker, ...)
            name = name[1]
        forward = self._at_marker.get(name)
        for segment in () if forward is None else self._of_location(forward):
            yield segment._replace(key=("gradient", outer, segment.key))


def _call_segment(caller: Location, point: CodePoint) -> _Segment:
    code = point.info.code
    site = caller.user_frame()
    label = f"{code.co_name}, called at {os.path.basename(site.filename)}:{site.lineno}"
    return _Segment(("call", caller, point.info), "call", _identifier(code.co_name), label)


def _loop_segments(
    caller: Location, level: LocationLevel, point: CodePoint
) -> Iterator[_Segment]:
    info = point.info
    for depth, (loop, trip) in enumerate(zip(info.loops_at(point.offset), level.counters)):
        key = (caller, info, loop, level.counters[:depth])
        where = f"{os.path.basename(info.filename)}:{info.line_of_loop(loop)}"
        yield _Segment(("loop", *key), "loop", "loop", f"loop at {where}")
        label = f"trip {trip} of the loop at {where}"
        yield _Segment(("trip", *key, trip), "trip", f"trip_{trip}", label)


def _identifier(name: str) -> str:
    """Returns a name that TensorBoard takes: `<lambda>` becomes `lambda`."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "call"


class _Namer:
    """Gives segments names that are unique among siblings, in order of appearance."""

    def __init__(self) -> None:
        self._names: dict[tuple[Hashable, ...], str] = {}
        self._taken: dict[tuple[Hashable, ...], collections.Counter[str]] = {}

    def name(self, segments: Iterable[_Segment]) -> ScopePath:
        path: list[Scope] = []
        keys: tuple[Hashable, ...] = ()
        for segment in segments:
            outer, keys = keys, (*keys, segment.key)
            name = self._names.get(keys)
            if name is None:
                name = self._names[keys] = self._new_name(outer, segment.base)
            path.append(Scope(segment.kind, name, segment.label))
        return tuple(path)

    def _new_name(self, outer: tuple[Hashable, ...], base: str) -> str:
        taken = self._taken.setdefault(outer, collections.Counter())
        num_before = taken[base]
        taken[base] += 1
        return base if num_before == 0 else f"{base}_{num_before}"
