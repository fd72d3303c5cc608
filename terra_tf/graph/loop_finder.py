"""Finds the loops that the generated function rolls: trips that are one after another, and alike.

A trip is levels of the case assignment. Trips look alike if level by level they have the same
blocks: types, attributes, places in the code, results' types (`loop_tables`). They are alike if
each input of each op is the same, seen from its trip (`loop_trips`).

No op behind a loop may use what a trip made, unless through a web, or from the last trip of a loop
that is always run to its end. Whatever does not fit stays unrolled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Hashable
from typing import Any

from terra_tf.graph.loop_tables import LoopTables
from terra_tf.graph.loop_trips import Trips, identity
from terra_tf.graph.loops import Carried, CarriedWeb, InputKey, RolledLoop, TripFeed, Varying
from terra_tf.trace.joins import Rule
from terra_tf.trace.trace_graph import Constant, Feed, Output, Variable

_MAX_LEVELS_PER_TRIP = 64
_MAX_TRIES = 64
_FEWEST_TRIPS = 3  # the first may be unlike the others, and the last
_MANY_OPS = 10_000  # in the trips of one loop: they take TensorFlow many seconds to build


class LoopFinder:
    """Looks for loops in a graph's switch-cases.

    Args:
      tables: Of the graph.
      min_trips: The fewest trips that are worth rolling where their number varies; 3 at least.
      min_constant_trips: The same where every path makes all trips.
      refused: (first level, levels per trip) of loops that cannot be rolled.
    """

    def __init__(
        self,
        tables: LoopTables,
        min_trips: int,
        min_constant_trips: int,
        refused: Collection[tuple[int, int]] = (),
    ) -> None:
        self._tables = tables
        self._min_constant_trips = max(min_constant_trips, _FEWEST_TRIPS)
        self._min_trips = min(max(min_trips, _FEWEST_TRIPS), self._min_constant_trips)
        self._refused = refused

    def find(self, first: int, end: int, can_skip: Callable[[int], bool]) -> list[RolledLoop]:
        """Returns the outermost loops of levels [first, end), in order.

        `can_skip` says of a level whether a way through these levels may go without it.
        """
        loops: list[RolledLoop] = []
        todo = [(first, end)]
        tried: list[tuple[int, int, int]] = []
        while todo:
            begin, stop = todo.pop()
            run = self._longest_run(begin, stop, tried)
            if run is None:
                continue
            loop = self._roll(can_skip, *run)
            if loop is not None:
                loops.append(loop)
                todo += [(begin, loop.begin), (loop.end, stop)]
            elif len(tried) < _MAX_TRIES:
                tried.append(run)
                todo.append((begin, stop))
        return sorted(loops, key=lambda loop: loop.begin)

    def _longest_run(
        self, first: int, end: int, tried: list[tuple[int, int, int]]
    ) -> tuple[int, int, int] | None:
        """The repetition that covers most levels: its first level, levels per trip, trips."""
        best: tuple[int, int, int] | None = None
        most = 0
        kinds = self._tables.kinds
        for period in range(1, min(_MAX_LEVELS_PER_TRIP, (end - first) // self._min_trips) + 1):
            start = first
            for level in range(first, end - period + 1):
                if level + period < end and kinds[level] == kinds[level + period]:
                    continue
                run = (start, period, (level + period - start) // period)
                covered = run[1] * run[2]
                if run[2] >= self._min_trips and covered > most and not _is_tried(run, tried):
                    best, most = run, covered
                start = level + 1
        return best

    def _roll(
        self, can_skip: Callable[[int], bool], start: int, period: int, num_trips: int
    ) -> RolledLoop | None:
        trips = Trips(self._tables, can_skip, start, period, num_trips)
        found = trips.longest_alike()
        if found is None or found[1] < self._min_trips:
            return None
        first, count = found
        if (trips.level(first), period) in self._refused:
            return None
        loop = _Roller(trips, first, count).roll()
        return None if loop is None or self._is_better_unrolled(loop) else loop

    def _is_better_unrolled(self, loop: RolledLoop) -> bool:
        """Says whether every path makes all trips, which are few, and of few ops."""
        if not loop.is_certain or loop.num_trips >= self._min_constant_trips:
            return False
        blocks = (block for level in loop.blocks.values() for block in level)
        has_many_ops = sum(len(block.nodes) for block in blocks) >= _MANY_OPS
        return not has_many_ops or self._min_constant_trips == sys.maxsize


class _Roller:
    """Makes a loop of trips that are alike, or finds why not."""

    def __init__(self, trips: Trips, first: int, count: int) -> None:
        self._tables, self._trips = trips.tables, trips
        self._first, self._count = first, count
        self._nodes = self._tables.graph.nodes
        self._begin = trips.level(first)
        self._end = self._begin + count * trips.period
        self._is_certain = not any(map(trips.can_skip, range(self._begin, self._end)))
        self._begins_for_certain = not trips.can_skip(self._begin)
        self._carried: dict[Hashable, Carried] = {}

    def roll(self) -> RolledLoop | None:
        exits = self._find_exits()
        if exits is None:
            return None
        nodes = tuple(self._trips.nodes[self._first + 1])
        representative = range(
            self._begin + self._trips.period, self._begin + 2 * self._trips.period
        )
        return RolledLoop(
            begin=self._begin,
            period=self._trips.period,
            num_trips=self._count,
            blocks={
                level: self._tables.blocks[level]
                for level in range(self._begin, self._end)
            },
            nodes=nodes,
            inputs=self._find_inputs(),
            webs=self._find_webs(),
            carried_webs=self._find_carried_webs(),
            variable_nodes=tuple(n for n in nodes if self._takes_variables(n)),
            exits=exits,
            skippable=frozenset(
                representative[offset] for offset in self._find_skippable()
            ),
            is_certain=self._is_certain,
            begins_for_certain=self._begins_for_certain,
        )

    def _takes_variables(self, number: int) -> bool:
        node = self._nodes[number]
        takes = any(isinstance(source, Variable) for source in node.inputs)
        return takes and not node.is_imperative

    def _is_inside(self, number: int) -> bool:
        trip = self._trips.trip_of.get(number, -1)
        return self._first <= trip < self._first + self._count

    def _find_exits(self) -> tuple[Output, ...] | None:
        """The last trip's results that are used behind the loop; None if others are."""
        tables, exits = self._tables, []
        last = self._first + self._count - 1
        for trip in range(self._first, last + 1):
            for rank, number in enumerate(self._trips.nodes[trip]):
                if any(not self._is_inside(n) for n in tables.same_users.get(number, ())):
                    return None
                users = tables.users.get(number, set())
                through_webs = self._users_through_webs(number, trip)
                if all(map(self._is_inside, users | through_webs)):
                    continue
                if trip != last or not self._is_certain:
                    return None
                if all(map(self._is_inside, users)):
                    continue
                number = self._trips.nodes[self._first + 1][rank]
                exits += [Output(number, o) for o in range(len(self._nodes[number].outputs))]
        return tuple(exits)

    def _users_through_webs(self, number: int, trip: int) -> set[int]:
        """The users of the webs of a trip's own that a node's results belong to."""
        tables = self._tables
        outputs = (Output(number, o) for o in range(len(self._nodes[number].outputs)))
        webs = {web for output in outputs for web in tables.webs_of.get(output, ())}
        own = (web for web in webs if self._trips.is_own(web, trip))
        return {user for web in own for user in tables.web_users.get(web, ())}

    def _find_inputs(self) -> dict[InputKey, Any]:
        inputs: dict[InputKey, Any] = {}
        for rank, number in enumerate(self._trips.nodes[self._first + 1]):
            node = self._nodes[number]
            for position in range(0 if node.is_imperative else len(node.inputs)):
                if (number, position) not in self._tables.joins.of_input:
                    found = self._input(rank, position)
                    if found is not None:
                        inputs[number, position] = found
        return inputs

    def _input(self, rank: int, position: int) -> Carried | Varying | TripFeed | None:
        trips = self._trips.nodes[self._first : self._first + self._count]
        sources = [self._nodes[nodes[rank]].inputs[position] for nodes in trips]
        source = sources[1]
        if isinstance(source, Output) and self._trips.trip_of.get(source.node) == self._first:
            carried = trips[1][self._trips.rank_of[source.node]]
            result = Output(carried, source.output)
            known = (result, identity(sources[0]))
            return self._carried.setdefault(known, Carried(result, (trips[0][rank], position)))
        if isinstance(source, Constant):
            constants = [s for s in sources if isinstance(s, Constant)]
            if len({(s.value, s.spec) for s in constants}) > 1:
                tensors = tuple(s.tensor for s in constants)
                return Varying(self._begin + self._trips.period, tensors)
        if isinstance(source, Feed) and len(set(sources)) > 1:
            return TripFeed(source)
        return None

    def _find_webs(self) -> tuple[int, ...]:
        webs: dict[int, None] = {}
        for number in self._trips.nodes[self._first + 1]:
            for output in range(len(self._nodes[number].outputs)):
                for web in self._tables.webs_of.get(Output(number, output), ()):
                    members = self._tables.joins.webs[web]
                    trips = {self._trips.trip_of.get(member.node) for member in members}
                    if trips != {self._first + 1}:
                        webs[web] = None
        return tuple(webs)

    def _find_carried_webs(self) -> tuple[CarriedWeb, ...]:
        trips, joins = self._trips, self._tables.joins
        found: dict[int, CarriedWeb] = {}
        for rank, number in enumerate(trips.nodes[self._first + 1]):
            for position in range(len(self._nodes[number].inputs)):
                join = joins.of_input.get((number, position))
                if join is None or join.rule is not Rule.LATEST or join.web in found:
                    continue
                if trips.is_own(join.web, self._first):
                    node, output = joins.webs[join.web][0]
                    its_rank = trips.rank_of[node]
                    result, last = (
                        self._own_web(trips.nodes[trip][its_rank], output, trip)
                        for trip in (self._first + 1, self._first + self._count - 1)
                    )
                    first = (trips.nodes[self._first][rank], position)
                    found[join.web] = CarriedWeb(join.web, result, last, first)
        return tuple(found.values())

    def _own_web(self, number: int, output: int, trip: int) -> int:
        """The web of a trip's own that a result is a producer of."""
        webs = self._tables.webs_of[Output(number, output)]
        return next(web for web in webs if self._trips.is_own(web, trip))

    def _find_skippable(self) -> set[int]:
        """Which of a trip's levels some way goes without."""
        cases, period = self._tables.cases, self._trips.period
        skippable: set[int] = set()
        for node, successor in self._tables.graph.edges():
            before, after = cases.level_of(node), cases.level_of(successor)
            first, last = max(before + 1, self._begin), min(after, self._end)
            if first >= last:
                continue
            for level in range(first, last):
                offset = (level - self._begin) % period
                # Who was before this trip and comes behind the loop has left the loop.
                if after < self._end or before >= level - offset:
                    skippable.add(offset)
        return skippable


def _is_tried(run: tuple[int, int, int], tried: list[tuple[int, int, int]]) -> bool:
    """Whether a repetition, or the same one turned or with more levels per trip, was tried."""
    start, period, num_trips = run
    return any(
        period % its_period == 0
        and start < its_start + its_period * its_trips
        and its_start < start + period * num_trips
        for its_start, its_period, its_trips in tried
    )
