"""Whether a plan fits the TraceGraph and the function that it is about.

    check_built(built)      the plan of a graph by itself (`plan_verify`), and that it fits

The invariants, by the names that messages begin with:

    edge        what has followed an op in some trace may follow it here
    trip        a loop's trips have the same ops
    fetch       what Python reads, keeps or runs an op on is fetched
    way         every stored path of the TraceGraph can be followed, with its inputs, to its end
    message     what Python says, the function takes; on each path, it gets what it waits for
"""

from __future__ import annotations

from terra_tf._tf_internals import dtypes
from terra_tf.graph.epochs import kept_over_epochs
from terra_tf.graph.generated_graph import EmittedLoop, GeneratedGraph
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.runtime.plan_messages import Messages, takers
from terra_tf.runtime.plan_tables import PlanTables
from terra_tf.runtime.plan_verify import broken, chain_from, check_plan, name_of
from terra_tf.runtime.plan_ways import NoWayError, Ways
from terra_tf.trace.trace_graph import END, START, TraceGraph, outputs_of

_RESOURCE = dtypes.resource.as_datatype_enum


def check_built(built: BuiltGraph) -> None:
    """Checks the plan of a graph, and that it fits the TraceGraph.

    Raises:
      InternalError: Naming the invariant that broke, and where it did first.
    """
    tables = built.plan_tables
    check_plan(tables)
    check_fit(tables, built)


def check_fit(tables: PlanTables, built: BuiltGraph) -> None:
    """Checks that a plan, which keeps the invariants by itself, fits what a graph was made of.

    Raises:
      InternalError: Naming the invariant that broke, and where it did first.
    """
    ways = Ways(tables)
    _check_edges(tables, built.trace_graph, ways)
    _check_trips(tables, built.generated.loops)
    _check_fetches(tables, built)
    _check_takers(tables, built.generated)
    messages = Messages(tables, built.generated)
    for number, path in enumerate(built.trace_graph.paths):
        try:
            decisions = ways.follow(path)
        except NoWayError as error:
            broken("way", f"path {number} cannot be followed: {error}")
        difference = messages.difference(path, decisions.keys())
        if difference is not None:
            broken("message", f"on path {number} {difference}")


def _check_trips(tables: PlanTables, loops: list[EmittedLoop]) -> None:
    """The trips of a loop are one body: what a branch of one has, it has in the others."""
    ops: dict[int, list] = {}
    for number, node in enumerate(tables.nodes):
        if node.is_head:
            block = [tables.nodes[n] for n in chain_from(tables, number)]
            ops.setdefault(node.level, []).append((node.branch, [(n.name, n.kind) for n in block]))
    for loop, _, shifts, _ in loops:
        for first in (loop.begin + shift for shift in shifts):
            for level in range(first, loop.end - loop.begin + first):
                like = first + (level - first) % loop.period
                if sorted(ops[level]) != sorted(ops[like]):
                    broken("trip", f"levels {like} and {level}, of two trips, have other ops")


def _check_edges(tables: PlanTables, graph: TraceGraph, ways: Ways) -> None:
    if len(tables.nodes) != len(graph.nodes):
        broken("edge", f"{len(tables.nodes)} ops for {len(graph.nodes)}")
    for node, following in graph.successors.items():
        is_start = node == START
        known = tables.first_nodes if is_start else tables.nodes[node].successors
        is_fork = tables.starts_with_fork if is_start else tables.nodes[node].is_fork
        if sorted(known) != sorted(n for n in following if n != END):
            broken("edge", f"op {node} is followed by {sorted(known)}, and was by {following}")
        if len(following) != 1 and not is_fork:
            broken("edge", f"op {node} is followed by several, and is no fork")
        for successor in following:
            if not ways.is_legal(node, successor):
                broken("edge", f"no way leads from op {node} to {successor}, as a trace has gone")


def _check_fetches(tables: PlanTables, built: BuiltGraph) -> None:
    graph = built.trace_graph
    starts = tuple(epoch.start for epoch in tables.epochs[1:])
    needed = dict.fromkeys(graph.fetches, "Python reads or keeps it")
    for key in kept_over_epochs(graph, built.generated.cases, starts):
        needed.setdefault(key, "Python keeps it when an epoch begins")
    for number, node in enumerate(graph.nodes):
        if node.is_imperative:
            for source in node.inputs:
                for key in outputs_of(source):
                    needed.setdefault(key, f"Python runs op {number} on it")
    for (number, position), why in needed.items():
        maker = tables.nodes[number]
        output = maker.outputs[position]
        if not maker.is_real and output.dtype != _RESOURCE and output.fetch_channel < 0:
            broken("fetch", f"output {position} of {name_of(number, maker)} is not fetched: {why}")


def _check_takers(tables: PlanTables, generated: GeneratedGraph) -> None:
    known: dict[int, str] = {}
    for channel, op in takers(generated):
        if channel in known:
            broken("message", f"two ops of the function go by channel {channel}")
        known[channel] = op
    for channel, op, use in tables.channels():
        if known.pop(channel, "no op") != op:
            broken("message", f"{use} goes by channel {channel}, where the function has no {op}")
    for channel, op in known.items():
        broken("message", f"a {op} of the function goes by channel {channel}, and Python by none")
