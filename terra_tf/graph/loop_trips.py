"""Trips that look alike by their ops: whether their inputs, seen from each trip, are alike too."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from terra_tf.graph.loop_tables import LoopTables
from terra_tf.graph.loops import InputKey
from terra_tf.trace.joins import Join, Rule
from terra_tf.trace.trace_graph import Captured, Constant, Feed, NodeInput, Output, Variable


class Trips:
    """The trips of one repetition, and what their ops' inputs are as seen from them.

    Args:
      tables: Of the graph.
      can_skip: Says of a level whether a way may go without it.
      start: The first trip's first level.
      period: Levels per trip.
      num_trips: How many trips.

    Attributes:
      nodes: By trip, its nodes; what is at one place in all of them, its *rank*, belongs together.
      trip_of: Node -> its trip.
      rank_of: Node -> its rank.
    """

    def __init__(
        self,
        tables: LoopTables,
        can_skip: Callable[[int], bool],
        start: int,
        period: int,
        num_trips: int,
    ) -> None:
        self.tables, self.can_skip = tables, can_skip
        self.start, self.period, self.num_trips = start, period, num_trips
        self.nodes = [self._nodes_of(trip) for trip in range(num_trips)]
        self.trip_of = {n: trip for trip, nodes in enumerate(self.nodes) for n in nodes}
        self.rank_of = {n: rank for nodes in self.nodes for rank, n in enumerate(nodes)}

    def level(self, trip: int) -> int:
        """Returns a trip's first level."""
        return self.start + trip * self.period

    def _nodes_of(self, trip: int) -> list[int]:
        first = self.level(trip)
        return [
            number
            for level in range(first, first + self.period)
            for block in self.tables.blocks[level]
            for number in block.nodes
        ]

    def longest_alike(self) -> tuple[int, int] | None:
        """The first of the most trips in a row that are alike, and how many."""
        best: tuple[int, int] | None = None
        first = 1
        forms = [self.form(trip) for trip in range(self.num_trips)]
        for trip in range(1, self.num_trips + 1):
            if trip < self.num_trips and forms[trip] == forms[first]:
                continue
            begins = first - int(self._can_begin(forms[first - 1], forms[first], first - 1))
            if best is None or trip - begins > best[1]:
                best = (begins, trip - begins)
            first = trip
        return best

    def _can_begin(self, form: dict, of_others: dict, trip: int) -> bool:
        """Says whether a trip is like the others, but for what the loop starts with."""
        initial: dict[Hashable, Hashable] = {}
        for (rank, position), here in form.items():
            there = of_others[rank, position]
            if here == there:
                continue
            number = self.nodes[trip][rank]
            if there[0] != "before" or here[0] not in ("outside", "constant", "captured", "feed"):
                return False
            if here[0] == "feed" and not self._runs_for_certain(number):
                return False  # a way past this op would wait for the feed
            source = identity(self.tables.graph.nodes[number].inputs[position])
            if isinstance(there[1], tuple) and initial.setdefault(there, source) != source:
                return False
        return True

    def _runs_for_certain(self, number: int) -> bool:
        """Whether every way that comes to the loop passes a node."""
        level = self.tables.cases.level_of(number)
        return len(self.tables.blocks[level]) == 1 and not self.can_skip(level)

    def form(self, trip: int) -> dict[InputKey, Any]:
        """What the inputs of a trip's ops are, and at -1 what webs their results belong to."""
        tables = self.tables
        form: dict[InputKey, Any] = {}
        feeds: dict[Feed, int] = {}
        for rank, number in enumerate(self.nodes[trip]):
            node = tables.graph.nodes[number]
            if not node.is_imperative:
                for position, source in enumerate(node.inputs):
                    join = tables.joins.of_input.get((number, position))
                    if join is not None:
                        what = self._of_join(join, trip)
                    elif isinstance(source, Feed):
                        what = ("feed", source.spec, feeds.setdefault(source, len(feeds)))
                    else:
                        what = self._of_source(source, trip)
                    form[rank, position] = what
            outputs = (Output(number, output) for output in range(len(node.outputs)))
            webs = [tables.webs_of.get(output, ()) for output in outputs]
            form[rank, -1] = [[self._of_web(web, trip) for web in group] for group in webs]
        return form

    def _of_source(self, source: NodeInput, trip: int) -> Hashable:
        if isinstance(source, Output):
            its_trip = self.trip_of.get(source.node, -1)
            if its_trip in (trip, trip - 1) and its_trip >= 0:
                word = "inside" if its_trip == trip else "before"
                return (word, self.rank_of[source.node], source.output)
            return ("outside", *source)
        if isinstance(source, Constant):
            return ("constant", source.spec)
        if isinstance(source, Captured):
            return ("captured", source.handle)
        assert isinstance(source, Variable)
        return ("variable", source.slot)

    def _of_join(self, join: Join, trip: int) -> Hashable:
        if join.rule is Rule.LATEST:
            what = self._of_web(join.web, trip)
            is_own = join.external is None and isinstance(what, tuple)
            if is_own and self.is_own(join.web, trip - 1):
                return ("before", what, join.spec)
        elif join.rule is Rule.SAME:
            assert join.same is not None
            node, position = join.same
            is_inside = self.trip_of.get(node) == trip
            what = (self.rank_of[node], position) if is_inside else ("elsewhere", join.number)
        else:
            what = tuple(self._of_source(source, trip) for source in join.alternatives)
        return ("join", join.rule, what, join.spec, join.external is not None)

    def _of_web(self, web: int, trip: int) -> Hashable:
        """A web of one trip's own by its place there; another by its number."""
        members = self.tables.joins.webs[web]
        for its_trip in (trip, trip - 1):
            if self.is_own(web, its_trip):
                ranks = sorted((self.rank_of[node], output) for node, output in members)
                return (trip - its_trip, *ranks)
        return web

    def is_own(self, web: int, trip: int) -> bool:
        """Whether all that a web's producers are is a trip's."""
        members = self.tables.joins.webs[web]
        return trip >= 0 and all(self.trip_of.get(output.node) == trip for output in members)


def identity(source: NodeInput) -> Hashable:
    """What two inputs have in common that are the same in every step."""
    if isinstance(source, Constant):
        return source.value, source.spec
    return source.handle if isinstance(source, Captured) else source
