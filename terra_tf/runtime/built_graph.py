"""A TraceGraph with everything that was built from it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from terra_tf import _native
from terra_tf._tf_internals import context
from terra_tf.config import config
from terra_tf.errors import TooCostlyError, UndelegableOpError
from terra_tf.graph.generated_graph import GeneratedGraph
from terra_tf.graph.generator import generate
from terra_tf.runtime.plan import make_plan
from terra_tf.runtime.plan_dump import dump_plan
from terra_tf.runtime.plan_tables import PlanTables, tables_of
from terra_tf.runtime.undisturbed import FailedCallError, call_undisturbed
from terra_tf.trace.location_tree import place_in_code
from terra_tf.trace.trace_graph import END, START, Feed, Path, TraceGraph


@dataclasses.dataclass(slots=True)
class BuiltGraph:
    """What co-executing a step needs.

    Attributes:
      trace_graph: The nodes as they were when it was built.
      generated: The function and its channels; keeps the function registered.
      plan: The native tables.
      feed_slots: (feed, place) -> the plan's feed slot.
      nodes_at: Location -> the nodes there.
      nodes_in_trips: Place in the code -> the nodes there, where each trip of the loop around
        it is about a variable.
    """

    trace_graph: TraceGraph
    generated: GeneratedGraph
    plan: Any
    feed_slots: dict[tuple[Feed, tuple | None], int]
    nodes_at: dict[Any, list[int]]
    nodes_in_trips: dict[Any, list[int]]

    def nodes_near(self, location: Any) -> list[int]:
        """Returns the nodes at a location in other trips of the loops around it."""
        here = self.nodes_at.get(location, ())
        others = self.nodes_in_trips.get(place_in_code(location), ())
        return [number for number in others if number not in here]

    def has_way(self, path: Path) -> bool:
        """Says whether a path's steps are legal here, where epochs may have cut more blocks."""
        steps = zip((START, *path.nodes), (*path.nodes, END))
        return all(self.generated.is_legal(*step) for step in steps)

    def is_imperative_at(self, location: Any) -> bool:
        """Says whether Python itself runs every op that the graph has at a location."""
        return not any(
            location in (node.key.location, node.record.location) and not node.is_imperative
            for node in self.trace_graph.nodes
        )

    @property
    def plan_tables(self) -> PlanTables:
        """The plan as the cursor has it."""
        return tables_of(self.plan, self.generated.epochs)

    def plan_text(self) -> str:
        """Returns the plan as deterministic text; `plan_dump` says how to read it."""
        return dump_plan(self.plan_tables)

    @property
    def num_feeds(self) -> int:
        """How many tensors (and variables) Python feeds in a step."""
        g = self.generated
        channels = (g.feed_channels, g.variable_channels, g.output_feeds, g.seed_channels)
        return sum(len(each) for each in channels)

    def feed_slot(self, node: int, feed: Feed) -> int | None:
        """Returns the plan's slot of a feed at a node, or None if only imperative ops see it."""
        for place in reversed(self.generated.places_of(node)):
            slot = self.feed_slots.get((feed, place))
            if slot is not None:
                return slot
        return None

    def imperative_ops(self) -> dict[str, int]:
        """Returns op type -> how many of the graph's ops Python runs itself."""
        nodes = (node for node in self.trace_graph.nodes if node.is_imperative)
        return dict(collections.Counter(node.record.op_type for node in nodes))


def build_graph(trace_graph: TraceGraph, keep_going: Callable[[], None]) -> BuiltGraph:
    """Generates the function and the plan.

    Args:
      trace_graph: Of what.
      keep_going: Is called at each op, in another thread; what it raises ends the build.

    Raises:
      FailedCallError: The graph cannot be built; the caller runs imperatively.
      TooCostlyError: It would have taken too long.
      BaseException: Something from outside was raised. Nothing has been built then.
    """
    is_on_host = len(context.context().list_logical_devices()) == 1
    options = {
        "roll_from": config.roll_loops_from,
        "roll_constant_from": config.roll_constant_loops_from,
        "keeps_bits": not config.grappler_arithmetic,
        "looks_at_indices": is_on_host,
        "hold_handle": _native.load().module.HeldHandle if is_on_host else None,
        "keep_going": keep_going,
    }
    while True:
        try:
            return call_undisturbed(_build, trace_graph.snapshot(), options)
        except FailedCallError as failed:
            if isinstance(failed.error, TooCostlyError):
                raise failed.error from None
            if not isinstance(failed.error, UndelegableOpError):
                raise
            for number, reason in failed.error.reasons.items():
                trace_graph.force(number, reason)


def _build(snapshot: TraceGraph, options: dict[str, Any]) -> BuiltGraph:
    generated = generate(snapshot, _native.load().module.infer_shapes, **options)
    plan, feed_slots = make_plan(snapshot, generated)
    nodes_at: dict[Any, list[int]] = {}
    nodes_in_trips: dict[Any, list[int]] = {}
    for number, node in enumerate(snapshot.nodes):
        nodes_at.setdefault(node.key.location, []).append(number)
        place = None if node.trip_slot is None else place_in_code(node.key.location)
        if place is not None:
            nodes_in_trips.setdefault(place, []).append(number)
    nodes_in_trips = {
        place: numbers
        for place, numbers in nodes_in_trips.items()
        if len({snapshot.nodes[number].trip_slot for number in numbers}) > 1
    }
    return BuiltGraph(snapshot, generated, plan, feed_slots, nodes_at, nodes_in_trips)
