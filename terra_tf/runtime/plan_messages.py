"""Whether a plan and its function talk of the same: each message has a sender and a taker.

A channel of the mailbox has two ends, which are made by different parts of this package: an op of
the function, and a number in the plan. Where they do not fit, a step waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from terra_tf._tf_internals import context
from terra_tf.graph.generated_graph import GeneratedGraph, trip_place
from terra_tf.runtime.plan_tables import InputKind, NodeKind, PlanTables
from terra_tf.trace.trace_graph import Path

_TRIP = "Terra>Trip"


def takers(generated: GeneratedGraph) -> Iterator[tuple[int, str]]:
    """Yields the channel and the type of each communication op of a function.

    In the body of a loop an op has a channel for each trip, one after the other.
    """
    yield from _takers(generated.lowered.definition, 1)


def _takers(definition: Any, num_trips: int) -> Iterator[tuple[int, str]]:
    trips = (node.attr["num_trips"].i for node in definition.node_def if node.op == _TRIP)
    num_trips *= next(trips, 1)
    for node in definition.node_def:
        if node.op.startswith("Terra>") and "channel" in node.attr:
            first = node.attr["channel"].i
            yield from ((channel, node.op) for channel in range(first, first + num_trips))
        for name in _functions_of(node):
            yield from _takers(context.context().get_function_def(name), num_trips)


def _functions_of(node: Any) -> list[str]:
    if node.op == "While":
        return [node.attr[name].func.name for name in ("cond", "body")]
    return [each.name for each in node.attr["branches"].list.func] if node.op == "Case" else []


class Messages:
    """What Python sends on its way through a plan, and what the function waits for there."""

    def __init__(self, tables: PlanTables, generated: GeneratedGraph) -> None:
        self._tables, self._generated = tables, generated
        numbers = range(len(tables.nodes))
        self._places_of = [generated.places_of(number) for number in numbers]
        self._fed_by = [self._fed_by_node(number) for number in numbers]

    def difference(self, path: Path, decisions: Set[int]) -> str | None:
        """Returns how the two differ on a path, or None if they do not.

        Args:
          path: The path.
          decisions: What Python says of the way, by channel.
        """
        places = self._passed({place for node in path.nodes for place in self._places_of[node]})
        awaited = self._awaited_decisions(places)
        for channel in sorted(awaited ^ decisions):
            return self._who(channel, channel in awaited)
        fed = {channel for node in path.nodes for channel in self._fed_by[node]}
        awaited = self._awaited_feeds({None, *places})
        for channel in sorted(awaited ^ fed):
            return self._who(channel, channel in awaited)
        return None

    def _passed(self, places: set) -> set:
        """Adds the trips in which a path has no node, before one in which it has some."""
        passed = set(places)
        for loop, _, shifts, depth in self._generated.loops:  # outer ones first
            for shift in shifts:
                begin = loop.begin + shift
                if not passed.issuperset(self._generated.trip_places[begin][:depth]):
                    continue
                firsts = range(begin, begin + loop.num_trips * loop.period, loop.period)
                trips = [trip_place(first, depth) for first in firsts]
                last = max((k for k, place in enumerate(trips) if place in passed), default=-1)
                passed.update(trips[: last + 1])
        return passed

    def _who(self, channel: int, is_awaited: bool) -> str:
        use = next(use for known, _, use in self._tables.channels() if known == channel)
        return f"{use} is {'awaited and not said' if is_awaited else 'said to nobody'}"

    def _awaited_feeds(self, places: set) -> set[int]:
        """A feed stands in the line, branch or trip that is the first to use it."""
        tables = (self._generated.feed_channels, self._generated.variable_channels)
        return {
            channel
            for table in tables
            for (_, place), channel in table.items()
            if place in places
        }

    def _awaited_decisions(self, places: set) -> set[int]:
        """Where the way comes to a switch-case, or to the beginning of a trip."""
        generated = self._generated
        awaited = {
            channel
            for level, channel in generated.case_channels.items()
            if places.issuperset(generated.trip_places.get(level, ()))
        }
        for loop, channel, shifts, depth in generated.loops:
            for shift in shifts if channel >= 0 else ():
                begin = loop.begin + shift
                is_reached = places.issuperset(generated.trip_places[begin][:depth])
                for trip in range(loop.num_trips):
                    if is_reached:
                        awaited.add(channel + trip)
                    its_place = trip_place(begin + trip * loop.period, depth)
                    is_reached = is_reached and its_place in places
                channel += loop.num_trips
        return awaited

    def _fed_by_node(self, number: int) -> list[int]:
        node = self._tables.nodes[number]
        if node.kind is not NodeKind.DELEGATED:
            return []
        feeds, variables = self._tables.feeds, self._tables.variables
        channels = [
            feeds[a].channel if kind is InputKind.FEED else variables[a].feed_channel
            for kind, a, _ in node.inputs
            if kind in (InputKind.FEED, InputKind.VARIABLE)
        ]
        return [channel for channel in channels if channel >= 0]
