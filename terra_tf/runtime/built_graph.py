"""A TraceGraph with everything that was built from it."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from terra_tf import _native
from terra_tf.errors import UndelegableOpError
from terra_tf.graph.generated_graph import GeneratedGraph
from terra_tf.graph.generator import generate
from terra_tf.runtime.plan import make_plan
from terra_tf.trace.trace_graph import Feed, TraceGraph


@dataclasses.dataclass(slots=True)
class BuiltGraph:
    """What co-executing a step needs.

    Attributes:
      trace_graph: The nodes as they were when it was built.
      generated: The function and its channels; keeps the function registered.
      plan: The native tables.
      feed_slots: (feed, place) -> the plan's feed slot.
      nodes_at: Location -> the nodes there.
    """

    trace_graph: TraceGraph
    generated: GeneratedGraph
    plan: Any
    feed_slots: dict[tuple[Feed, tuple | None], int]
    nodes_at: dict[Any, list[int]]

    @property
    def num_feeds(self) -> int:
        """How many tensors (and variables) Python feeds in a step."""
        g = self.generated
        channels = (g.feed_channels, g.variable_channels, g.output_feeds, g.seed_channels)
        return sum(map(len, channels))

    def feed_slot(self, node: int, feed: Feed) -> int | None:
        """Returns the plan's slot of a feed at a node, or None if only imperative ops see it."""
        slot = self.feed_slots.get((feed, self.generated.place_of(node)))
        return self.feed_slots.get((feed, None)) if slot is None else slot

    def imperative_ops(self) -> dict[str, int]:
        """Returns op type -> how many of the graph's ops Python runs itself."""
        nodes = (node for node in self.trace_graph.nodes if node.is_imperative)
        return dict(collections.Counter(node.record.op_type for node in nodes))


def build_graph(trace_graph: TraceGraph) -> BuiltGraph:
    """Generates the function and the plan.

    Raises:
      UnsupportedError: The graph cannot be built; the caller runs imperatively.
    """
    while True:
        snapshot = trace_graph.snapshot()
        try:
            generated = generate(snapshot, _native.load().module.infer_shapes)
            break
        except UndelegableOpError as error:
            trace_graph.force(error.node, error.reason)
    plan, feed_slots = make_plan(snapshot, generated)
    return BuiltGraph(snapshot, generated, plan, feed_slots, _nodes_at(snapshot))


def _nodes_at(graph: TraceGraph) -> dict[Any, list[int]]:
    nodes: dict[Any, list[int]] = {}
    for number, node in enumerate(graph.nodes):
        nodes.setdefault(node.key.location, []).append(number)
    return nodes
