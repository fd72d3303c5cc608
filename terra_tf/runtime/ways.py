"""The branches and loops of the user's program that a graph has, with their lines."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from terra_tf.graph.generated_graph import GeneratedGraph
from terra_tf.graph.loops import RolledLoop
from terra_tf.runtime.source_lines import line_of
from terra_tf.trace.location_tree import Location
from terra_tf.trace.static_stack import CodePoint
from terra_tf.trace.trace_graph import Node, TraceGraph


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
    """A loop of the user's code that ran ops: its line, and the most trips that were traced.

    `form` is "rolled" for a `While` of the graph, or "unrolled", with the reason if it looked as
    if it could be rolled.
    """

    where: str
    max_trips: int
    form: str = "unrolled"


def forks_of(graph: TraceGraph, generated: GeneratedGraph) -> tuple[Fork, ...]:
    """Returns a graph's switch-cases in order; those of a rolled loop's body once."""
    forks = []
    for number, level in enumerate(generated.cases.levels):
        if number not in generated.case_channels or _is_of_another_trip(number, generated):
            continue
        heads = [graph.nodes[block.nodes[0]] for block in level.blocks]
        branches = tuple(Branch(line_of(head.record), head.hits) for head in heads)
        forks.append(Fork(branches, not level.is_mandatory))
    return tuple(forks)


def _is_of_another_trip(level: int, generated: GeneratedGraph) -> bool:
    """Whether another trip's level stands for this one in the graph."""
    return any(
        loop.begin <= level < loop.end
        and not loop.representative <= level < loop.representative + loop.period
        for loop, *_ in generated.loops
    )


def loops_of(graph: TraceGraph, generated: GeneratedGraph) -> tuple[Loop, ...]:
    """Returns the loops of the user's code around the graph's ops, by line."""
    trips: dict[tuple, int] = {}
    for node in graph.nodes:
        for place, counter in _loops_around(node):
            trips[place] = max(trips.get(place, 0), counter + 1)
    forms = {_turned(graph, loop): f"unrolled: {why}" for loop, why in generated.unrolled}
    forms |= {_turned(graph, loop): "rolled" for loop, *_ in generated.loops}
    return tuple(
        Loop(f"{file}:{line} in {name}", count, forms.get((file, line, name), "unrolled"))
        for (file, line, name), count in sorted(trips.items())
    )


def _turned(graph: TraceGraph, loop: RolledLoop) -> tuple | None:
    """The loop of the user's code whose trips a rolled loop's are."""
    pair = [loop.blocks[level][0].nodes[0] for level in (loop.begin, loop.representative)]
    for first, second in zip(*(_loops_around(graph.nodes[number]) for number in pair)):
        if first != second:
            return first[0]
    return None


def _loops_around(node: Node) -> Iterator[tuple[tuple, int]]:
    """Yields each loop of the user's code around an op, (file, line, function), and its trip."""
    location = node.key.location
    for level in location.levels if isinstance(location, Location) else ():
        if not isinstance(level.point, CodePoint) or not level.point.is_user:
            continue
        info = level.point.info
        for loop, counter in zip(info.loops_at(level.point.offset), level.counters):
            place = (os.path.basename(info.filename), info.line_of_loop(loop), info.qualname)
            yield place, counter
