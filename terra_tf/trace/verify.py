"""The checker of TraceGraphs: states every invariant, and says exactly which one broke.

    check_trace_graph(graph)             what must hold of any graph
    check_trace_graph(graph, [a, b])     and that it can execute the traces a and b
    check_merged(graph, trace)           and that it can execute the trace just merged, where that
                                         was put, which takes less time

For tests; the last one after every merge (the knob `verify`). Nothing is repaired or changed. The
invariants, by the names that messages begin with:

    record      a node's key, inputs and outputs fit the record that it carries
    reachable   every node is on a way from START to END, and every edge's ends exist
    acyclic     edges have no cycle
    forks       are counted
    flow        as many traces leave a node as come to it
    path        a stored path follows edges, and its sources are among its nodes' inputs
    input       inputs exist; what a path says an op took had run before it on that path
    sibling     what may follow one and the same node differs in more than its number
    group       uses of one external tensor that a path passes together are alike
    fetch       fetched outputs exist; so do those whose shapes are read
    structure   every stored path is legal for the switch-cases and joins; SAME ends somewhere
    trace       a given trace is covered, with its values, variables, shapes and fetches
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from terra_tf._tf_internals import dtypes
from terra_tf.errors import ImperativeReason, broken_invariant
from terra_tf.trace.joins import Rule
from terra_tf.trace.merging import mismatch
from terra_tf.trace.placing import FUNCTION, place
from terra_tf.trace.records import ExternalRef, TensorSpec, Trace, VariableRef
from terra_tf.trace.structure import Structure, structure_of
from terra_tf.trace.trace_graph import (
    END,
    START,
    Captured,
    Constant,
    Feed,
    Joined,
    Node,
    NodeInput,
    Output,
    Path,
    TraceGraph,
    Variable,
    outputs_of,
)
from terra_tf.trace.weakly import Weak

_MAX_PATHS_AFTER_A_MERGE = 8


def check_trace_graph(graph: TraceGraph, traces: Iterable[Trace] = ()) -> None:
    """Checks a TraceGraph's invariants.

    Waits for nothing but its constants' tensors. The graph's owner must hold its lock.

    Args:
      graph: What to check.
      traces: Traces that it must be able to execute; those merged, the latest at least.

    Raises:
      InternalError: Naming the invariant that broke, and where it did first.
    """
    paths = list(graph.paths)
    _check_graph(graph, paths)
    _check_structure("as it would be made now", structure_of(graph.snapshot()), paths)
    if graph.structure is not None:
        _check_structure("as kept", graph.structure, paths)
    for number, trace in enumerate(traces):
        _check_executable(graph, f"trace {number}", trace)


def check_merged(graph: TraceGraph, trace: Trace) -> None:
    """Checks a TraceGraph's invariants, and what it has learned of the trace merged last.

    The graph keeps its structure, which the next merge would have to make. Of the stored paths only
    the latest are followed: all of them are when a graph has been built. The trace is not looked
    for in the graph again, which would take as long as merging it, and may end at other nodes: of
    two trips about one variable the second may be taken for the first.

    Raises:
      InternalError: Naming the invariant that broke, and where it did first.
    """
    latest = sorted(graph.paths, key=graph.paths.__getitem__)[-_MAX_PATHS_AFTER_A_MERGE:]
    _check_graph(graph, latest)
    _check_structure("as kept", structure_of(graph), latest)
    _check_values(graph, "the trace", trace, graph.last_path.nodes)


def _check_graph(graph: TraceGraph, paths: list[Path]) -> None:
    for index, node in enumerate(graph.nodes):
        _check_record(index, node)
        for position, source in enumerate(node.inputs):
            _check_input(graph, index, position, source)
    _check_edges(graph)
    for number, path in enumerate(paths):
        _check_path(graph, f"path {number}", path)
    _check_siblings(graph)
    _check_output_set(graph, "fetch", graph.fetches)
    _check_output_set(graph, "shape read", graph.shape_reads)
    _check_output_set(graph, "lifetime", graph.kept_until)
    lasts = {until for nodes in graph.kept_until.values() for until in nodes}
    if not lasts <= set(range(len(graph.nodes))):
        _broken("fetch", "a lifetime ends at no node")


def _broken(invariant: str, what: str) -> NoReturn:
    rule = "merging traces must keep the invariants that trace/verify.py states."
    raise broken_invariant("a TraceGraph", invariant, what, "TERRA-TRACE-GRAPH", rule=rule)


def _name(index: int, node: Node) -> str:
    return f"op {index} {node.record.op_type}"


class _Where(NamedTuple):
    """An input, for a message that is seldom needed."""

    graph: TraceGraph
    node: int
    position: int
    path: str = ""

    def __str__(self) -> str:
        name = f"input {self.position} of {_name(self.node, self.graph.nodes[self.node])}"
        return f"{name} on {self.path}" if self.path else name


# ------------------------------------------------------------------ one node


def _check_record(index: int, node: Node) -> None:
    record = node.record
    is_key = node.key.op_type in (record.op_type, FUNCTION)
    attributes: Any = record.canonical
    if node.key.op_type == FUNCTION:
        attributes = (record.op_type, attributes)
    is_any = _has_too_many_siblings(node)  # of its type, with any number of inputs
    may_differ = record.imperative is not None or is_any
    if not may_differ:  # what Python runs may have other attributes every time
        is_key = is_key and node.key.attributes == attributes
    if not is_key:
        named = f"{node.key.op_type} with {node.key.attributes}"
        _broken("record", f"the key of {_name(index, node)} names {named}")
    num_counted = sum(1 if count < 0 else count for count in record.counts)
    if not is_any and not len(node.inputs) == len(record.inputs) == num_counted:
        _broken(
            "record",
            f"{_name(index, node)} has {len(node.inputs)} inputs, its record {len(record.inputs)},"
            f" and its counts {record.counts} make {num_counted}",
        )
    if not _all_include(node.outputs, record.outputs):
        outputs = f"the outputs {node.outputs} of {_name(index, node)}"
        _broken("record", f"{outputs} do not include its record's {record.outputs}")


def _has_too_many_siblings(node: Node) -> bool:
    return node.forced is ImperativeReason.TOO_MANY_SIBLINGS


def _all_include(general: tuple[TensorSpec, ...], special: tuple[TensorSpec, ...]) -> bool:
    return len(general) == len(special) and all(map(TensorSpec.includes, general, special))


def _check_input(graph: TraceGraph, index: int, position: int, source: NodeInput) -> None:
    where = _Where(graph, index, position)
    for output in outputs_of(source):
        if not _exists(graph, *output):
            _broken(
                "input",
                f"{where} is output {output.output} of op {output.node}, which does not exist",
            )
    if isinstance(source, Joined):
        if list(source.sources) != sorted(set(source.sources)):
            _broken("input", f"{where} joins {source.sources}, which are not in order")
        num_kinds = len(source.sources) + (source.external is not None)
        if not source.sources or num_kinds < 2:
            _broken(
                "input",
                f"{where} joins {num_kinds} sources, {len(source.sources)} of them outputs",
            )
    elif isinstance(source, Variable):
        if not 0 <= source.slot < len(graph.variables):
            _broken("input", f"{where} is variable {source.slot} of {len(graph.variables)}")
    elif isinstance(source, Constant) and host_bytes(source.tensor) != source.value:
        _broken("input", f"{where} is a constant whose tensor has another value than its bytes")


def _exists(graph: TraceGraph, node: int, output: int) -> bool:
    return 0 <= node < len(graph.nodes) and 0 <= output < len(graph.nodes[node].outputs)


def host_bytes(tensor: Any) -> bytes:
    """Returns the bytes by which constants are compared, computed anew from the tensor."""
    value = tensor.numpy()
    if tensor.dtype == dtypes.string:
        return repr(value.tolist() if hasattr(value, "tolist") else value).encode()
    return value.tobytes()


# --------------------------------------------------------------------- edges


def _check_edges(graph: TraceGraph) -> None:
    num_nodes = len(graph.nodes)
    before: dict[int, list[int]] = {}
    num_entering: dict[int, int] = {}
    for source, following in graph.successors.items():
        for successor, num_traces in following.items():
            exist = START <= source < num_nodes and (successor == END or 0 <= successor < num_nodes)
            if not exist:
                _broken("reachable", f"the edge {source} -> {successor} leads nowhere")
            before.setdefault(successor, []).append(source)
            num_entering[successor] = num_entering.get(successor, 0) + num_traces
    from_start = _reached(START, graph.successors)
    to_end = _reached(END, before)
    for index, node in enumerate(graph.nodes):
        if index not in from_start:
            _broken("reachable", f"no way leads from the start to {_name(index, node)}")
        if index not in to_end:
            _broken("reachable", f"no way leads from {_name(index, node)} to the end")
    if graph.topological_order() is None:
        _broken("acyclic", "its edges have a cycle")
    num_forks = sum(len(following) > 1 for following in graph.successors.values())
    if graph.num_forks != num_forks:
        _broken("forks", f"it has {num_forks}, and {graph.num_forks} are counted")
    for index, node in enumerate(graph.nodes):
        num_leaving = sum(graph.successors[index].values())
        if num_leaving != num_entering[index]:
            _broken(
                "flow",
                f"traces that come to {_name(index, node)}: {num_entering[index]},"
                f" and that leave it: {num_leaving}",
            )


def _reached(start: int, after: dict) -> set[int]:
    reached, waiting = {start}, [start]
    while waiting:
        for node in after.get(waiting.pop(), ()):
            if node not in reached:
                reached.add(node)
                waiting.append(node)
    return reached


# --------------------------------------------------------------------- paths


def _check_path(graph: TraceGraph, name: str, path: Path) -> None:
    for edge in zip((START, *path.nodes), (*path.nodes, END)):
        is_known = edge[1] in graph.successors.get(edge[0], ())
        if not is_known:
            _broken("path", f"{name} goes from {edge[0]} to {edge[1]}, where no edge leads")
    for number, sources in zip(path.nodes, path.sources):
        node = graph.nodes[number]
        if len(sources) != len(node.inputs) and not _has_too_many_siblings(node):
            _broken("path", f"{name} does not tell the source of each input of op {number}")
    if len(path.nodes) != len(path.sources):
        _broken("path", f"{name} does not tell the sources of each op")
    has_run: set[int] = set()
    used: dict[int, tuple[_Where, Constant | Captured | Feed]] = {}
    for index, sources in zip(path.nodes, path.sources):
        node = graph.nodes[index]
        for position, (known, source) in enumerate(zip(node.inputs, sources)):
            if source is None:
                if not node.is_imperative:  # Python gives it what it takes
                    where = _Where(graph, index, position)
                    _check_outside(name, where, known)
                    _check_group(name, where, known, used)
            elif source.node not in has_run or not _exists(graph, *source):
                where = _Where(graph, index, position, name)
                made = f"output {source.output} of op {source.node}"
                _broken("input", f"{where} is {made}, which does not come before it")
            elif source != known and not node.is_imperative and source not in outputs_of(known):
                where = _Where(graph, index, position, name)
                _broken("path", f"{where} is {source}, and {known} for its node")
        has_run.add(index)


def _check_outside(name: str, where: _Where, known: NodeInput) -> None:
    is_of_step = known.external is None if isinstance(known, Joined) else isinstance(known, Output)
    if is_of_step:
        where = where._replace(path=name)
        _broken("path", f"{where} comes from outside, and is {known} for its node")


def _check_group(
    name: str,
    where: _Where,
    known: NodeInput,
    used: dict[int, tuple[_Where, Constant | Captured | Feed]],
) -> None:
    """Uses of one group were one tensor in every trace that passed them."""
    external = known.external if isinstance(known, Joined) else known
    if external is None or isinstance(external, (Output, Variable)):
        return
    first, other = used.setdefault(external.group, (where, external))
    is_alike = _is_compatible(external.spec, other.spec)
    if not isinstance(external, Feed) and type(external) is type(other):
        is_alike = is_alike and external[1] == other[1]  # the value, or the handle
    if not is_alike:
        _broken(
            "group",
            f"{where} and {first} are of one group on {name}, but {external} and {other}",
        )


def _is_compatible(one: TensorSpec, other: TensorSpec) -> bool:
    """Says whether a tensor can be of both types."""
    if one.dtype != other.dtype or one.shape is None or other.shape is None:
        return one.dtype == other.dtype
    return len(one.shape) == len(other.shape) and all(
        a == b or -1 in (a, b) for a, b in zip(one.shape, other.shape)
    )


# ------------------------------------------------------------ the whole graph


def _check_siblings(graph: TraceGraph) -> None:
    for before, following in graph.successors.items():
        known: dict[Any, int] = {}
        for index in following:
            if index == END:
                continue
            node = graph.nodes[index]
            nature = (node.key, node.variant, tuple(map(_identity, node.inputs)), node.outputs)
            first = known.setdefault(nature, index)
            if first != index:
                _broken(
                    "sibling",
                    f"{_name(index, node)} and op {first}, which both may follow op {before},"
                    " differ in nothing",
                )


_NOBODYS = Weak(None)


def _identity(source: NodeInput) -> NodeInput:
    """Leaves out the tensor, which has no hash; its value or handle stays."""
    if isinstance(source, Captured):
        return source._replace(weak=_NOBODYS)
    return source._replace(tensor=None) if isinstance(source, Constant) else source


def _check_output_set(graph: TraceGraph, what: str, outputs: Iterable[tuple[int, int]]) -> None:
    for node, output in sorted(outputs):
        if not _exists(graph, node, output):
            _broken("fetch", f"a {what} of output {output} of op {node}, which does not exist")


def _check_structure(name: str, structure: Structure, paths: list[Path]) -> None:
    for path in paths:
        why_not = structure.why_not(path)
        if why_not is not None:
            _broken("structure", f"{name}, it cannot follow a path: {why_not}")
    _check_same(structure)


def _check_same(structure: Structure) -> None:
    joins = structure.joins.of_input
    for key, join in joins.items():
        seen = {key}
        while join.rule is Rule.SAME:
            assert join.same is not None
            ends = join.same in joins and join.same not in seen
            where = f"input {key[1]} of op {key[0]}"
            if not ends:
                _broken("structure", f"{where} is the same as {join.same}, which never ends")
            seen.add(join.same)
            join = joins[join.same]


# ----------------------------------------------------------------- one trace


def _check_executable(graph: TraceGraph, name: str, trace: Trace) -> None:
    why_not = mismatch(graph, trace)
    if why_not is not None:
        _broken("trace", f"{name} cannot be executed: {why_not}")
    _check_values(graph, name, trace, place(graph, trace).nodes)


def _check_values(graph: TraceGraph, name: str, trace: Trace, nodes: Sequence[int]) -> None:
    """Whether the nodes take what a trace has given to their ops, and give what it has got."""
    if len(nodes) != len(trace.ops):
        _broken("trace", f"{name} has {len(trace.ops)} ops, and its path {len(nodes)}")
    external_of_group: dict[int, int] = {}
    variables: dict[int, int] = {}
    for index, record in zip(nodes, trace.ops):
        node = graph.nodes[index]
        if not (record.has_raised or _all_include(node.outputs, record.outputs)):
            _broken("trace", f"the outputs of {_name(index, node)} do not include those of {name}")
        if node.is_imperative:
            continue
        for position, (source, ref) in enumerate(zip(node.inputs, record.inputs, strict=True)):
            where = _Where(graph, index, position)
            if isinstance(ref, VariableRef):
                _check_variable(where, source, trace, ref.slot, name, variables)
            known = source.external if isinstance(source, Joined) else source
            if not isinstance(ref, ExternalRef) or known is None:
                continue
            assert isinstance(known, (Constant, Captured, Feed))
            _check_external(graph, where, known, trace, ref.index, name)
            first = external_of_group.setdefault(known.group, ref.index)
            if first != ref.index and isinstance(known, Feed):
                _broken("trace", f"the group of {where} is two tensors in {name}")
    fetches = {(nodes[node], output) for node, output in trace.fetches()}
    missing = sorted(fetches - graph.fetches)
    if missing:
        _broken("trace", f"{name} needs {missing}, which the graph does not fetch")


def _check_variable(
    where: _Where,
    source: NodeInput,
    trace: Trace,
    slot: int,
    name: str,
    variables: dict[int, int],
) -> None:
    if not isinstance(source, Variable):
        _broken("trace", f"{where} is {source}, and a variable in {name}")
    number = variables.setdefault(slot, source.slot)
    if number != source.slot:
        _broken("trace", f"{where} is variable {source.slot}, and {number} elsewhere in {name}")
    variable = where.graph.variables[number]
    is_same = where.graph.is_same(variable.handle, trace.variables[slot])
    if variable.captured and not is_same:
        _broken("trace", f"variable {number} is captured, and is another one in {name}")


def _check_external(
    graph: TraceGraph,
    where: _Where,
    known: Constant | Captured | Feed,
    trace: Trace,
    index: int,
    name: str,
) -> None:
    external = trace.externals[index]
    if isinstance(known, Constant):
        is_same = external.value == known.value
        if not is_same:
            _broken("trace", f"{where} is constant, and differs in {name}")
    if isinstance(known, Captured):
        is_same = graph.is_same(known.tensor, external.tensor)
        if not is_same:
            _broken("trace", f"{where} is captured, and is another tensor in {name}")
    if not known.spec.includes(external.spec):
        _broken("trace", f"{where} is of type {known.spec}, and {external.spec} in {name}")
