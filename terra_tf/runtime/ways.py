"""The branches and loops of the user's program that a graph has, with their lines."""

from __future__ import annotations

import dataclasses
import os

from terra_tf.runtime.source_lines import line_of
from terra_tf.trace.case_assignment import CaseAssignment
from terra_tf.trace.location_tree import Location
from terra_tf.trace.static_stack import CodePoint
from terra_tf.trace.trace_graph import TraceGraph


@dataclasses.dataclass(frozen=True)
class Branch:
    """One way at a fork: the line of its first op, and in how many traces it was taken."""

    where: str
    traces: int


@dataclasses.dataclass(frozen=True)
class Fork:
    """A place where a graph has a choice: one of its branches, or with `can_skip` none."""

    branches: tuple[Branch, ...]
    can_skip: bool


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of the user's code that ran ops: its line, and the most trips that were traced."""

    where: str
    max_trips: int


def forks_of(graph: TraceGraph, cases: CaseAssignment) -> tuple[Fork, ...]:
    """Returns a graph's switch-cases in order."""
    forks = []
    for level in cases.levels:
        if level.is_inline:
            continue
        heads = [graph.nodes[block.nodes[0]] for block in level.blocks]
        branches = tuple(Branch(line_of(head.record), head.hits) for head in heads)
        forks.append(Fork(branches, not level.is_mandatory))
    return tuple(forks)


def loops_of(graph: TraceGraph) -> tuple[Loop, ...]:
    """Returns the loops of the user's code around the graph's ops, by line."""
    trips: dict[tuple, int] = {}
    for node in graph.nodes:
        location = node.key.location
        for level in location.levels if isinstance(location, Location) else ():
            if not isinstance(level.point, CodePoint) or not level.point.is_user:
                continue
            info = level.point.info
            for loop, counter in zip(info.loops_at(level.point.offset), level.counters):
                where = (os.path.basename(info.filename), info.line_of_loop(loop), info.qualname)
                trips[where] = max(trips.get(where, 0), counter + 1)
    return tuple(
        Loop(f"{file}:{line} in {name}", count)
        for (file, line, name), count in sorted(trips.items())
    )
