"""The checker of TraceGraphs: states every invariant, and says exactly which one broke.

    check_trace_graph(graph)             what must hold of any graph
    check_trace_graph(graph, [a, b])     and that it can execute the traces a and b

For tests, after every merge. Nothing is repaired or changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from terra_tf._tf_internals import dtypes
from terra_tf.errors import InternalError, format_message
from terra_tf.trace.records import ExternalRef, TensorSpec, Trace
from terra_tf.trace.trace_graph import (
    Captured,
    Constant,
    Feed,
    Node,
    NodeInput,
    Output,
    TraceGraph,
    Variable,
)


def check_trace_graph(graph: TraceGraph, traces: Iterable[Trace] = ()) -> None:
    """Checks a TraceGraph's invariants.

    Waits for nothing but its constants' tensors. The graph's owner must hold its lock.

    Args:
      graph: What to check.
      traces: Traces that it must be able to execute: those merged since its last new path.

    Raises:
      InternalError: Naming the first node and invariant that broke.
    """
    for index, node in enumerate(graph.nodes):
        _check_record(index, node)
        for position, source in enumerate(node.inputs):
            _check_input(graph, index, position, source)
    _check_variable_order(graph)
    _check_groups(graph)
    _check_keys(graph)
    _check_output_set(graph, "fetch", graph.fetches)
    _check_output_set(graph, "shape read", graph.shape_reads)
    for number, trace in enumerate(traces):
        _check_executable(graph, number, trace)


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise InternalError(
            format_message(
                f"a TraceGraph is broken: {broken}",
                "TERRA-TRACE-GRAPH",
                why="merging traces must keep the invariants that trace/verify.py states.",
                suggestions=["please report this, with the program"],
            )
        )


def _name(index: int, node: Node) -> str:
    return f"op {index} {node.record.op_type}"


# ------------------------------------------------------------------ one node


def _check_record(index: int, node: Node) -> None:
    name, record = _name(index, node), node.record
    is_key = node.key.op_type == record.op_type
    if record.imperative is None:  # what Python runs may have other attributes every time
        is_key = is_key and node.key.attributes == record.canonical
    _require(is_key, f"the key of {name} names {node.key.op_type} with {node.key.attributes}")
    num_counted = sum(1 if count < 0 else count for count in record.counts)
    _require(
        len(node.inputs) == len(record.inputs) == num_counted,
        f"{name} has {len(node.inputs)} inputs, its record {len(record.inputs)},"
        f" and its counts {record.counts} make {num_counted}",
    )
    _require(
        len(node.outputs) == len(record.outputs)
        and all(map(_generalizes, node.outputs, record.outputs)),
        f"the outputs {node.outputs} of {name} do not include its record's {record.outputs}",
    )
    forward = record.forward_node
    _require(
        forward is None or 0 <= forward < index,
        f"the forward op of {name} is op {forward}, which does not come before it",
    )


def _check_input(graph: TraceGraph, index: int, position: int, source: NodeInput) -> None:
    where = f"input {position} of {_name(index, graph.nodes[index])}"
    if isinstance(source, Output):
        _require(
            0 <= source.node < index,
            f"{where} is output {source.output} of op {source.node}, which does not come before it",
        )
        num_outputs = len(graph.nodes[source.node].outputs)
        _require(
            0 <= source.output < num_outputs,
            f"{where} is output {source.output} of op {source.node}, which has {num_outputs}",
        )
    elif isinstance(source, Variable):
        _require(
            0 <= source.slot < len(graph.variables),
            f"{where} is variable {source.slot} of {len(graph.variables)}",
        )
    elif isinstance(source, Constant):
        _require(
            host_bytes(source.tensor) == source.value,
            f"{where} is a constant whose tensor has another value than its bytes",
        )


def host_bytes(tensor: Any) -> bytes:
    """Returns the bytes by which constants are compared, computed anew from the tensor."""
    value = tensor.numpy()
    if tensor.dtype == dtypes.string:
        return repr(value.tolist() if hasattr(value, "tolist") else value).encode()
    return value.tobytes()


# ------------------------------------------------------------ the whole graph


def _check_variable_order(graph: TraceGraph) -> None:
    """A prefix of the graph must use a prefix of the slots, or a diverged step loses some."""
    num_used = 0
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            if isinstance(source, Variable):
                _require(
                    source.slot <= num_used,
                    f"{_name(index, node)} uses variable {source.slot}"
                    f" before variable {num_used} is used",
                )
                num_used = max(num_used, source.slot + 1)
    _require(
        num_used == len(graph.variables),
        f"no op uses variable {num_used} of {len(graph.variables)}",
    )


def _check_groups(graph: TraceGraph) -> None:
    """Uses of one group were one tensor in every trace, so they are alike."""
    first_uses: dict[int, tuple[str, tuple]] = {}
    for index, node in enumerate(graph.nodes):
        for position, source in enumerate(node.inputs):
            if isinstance(source, (Output, Variable)):
                continue
            where = f"input {position} of {_name(index, node)}"
            first, nature = first_uses.setdefault(source.group, (where, _nature(source)))
            _require(
                nature == _nature(source),
                f"{where} and {first} are of one group, but {_nature(source)} and {nature}",
            )


def _nature(source: Constant | Captured | Feed) -> tuple:
    """What all uses of a group share: everything but which tensor object carries it."""
    return type(source).__name__, source.spec, source[1]


def _check_keys(graph: TraceGraph) -> None:
    known: dict[Any, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.key.location is not None:
            first = known.setdefault(node.key, index)
            _require(
                first == index, f"{_name(index, node)} and op {first} have the same key {node.key}"
            )


def _check_output_set(graph: TraceGraph, what: str, outputs: Iterable[tuple[int, int]]) -> None:
    for node, output in sorted(outputs):
        exists = 0 <= node < len(graph.nodes) and 0 <= output < len(graph.nodes[node].outputs)
        _require(exists, f"a {what} of output {output} of op {node}, which does not exist")


# ----------------------------------------------------------------- one trace


def _check_executable(graph: TraceGraph, number: int, trace: Trace) -> None:
    name = f"trace {number}"
    mismatch = graph.path_mismatch(trace)
    _require(mismatch is None, f"{name} cannot be executed: {mismatch}")
    for slot, (variable, handle) in enumerate(zip(graph.variables, trace.variables, strict=True)):
        is_same = graph._handle_id(variable.handle) == graph._handle_id(handle)
        _require(
            is_same or not variable.captured,
            f"variable {slot} is captured, and is another one in {name}",
        )
    external_of_group: dict[int, int] = {}
    for index, (node, record) in enumerate(zip(graph.nodes, trace.ops, strict=True)):
        for position, (source, ref) in enumerate(zip(node.inputs, record.inputs, strict=True)):
            if isinstance(ref, ExternalRef) and not isinstance(source, (Output, Variable)):
                where = f"input {position} of {_name(index, node)}"
                _check_external(graph, where, source, trace, ref.index, name)
                first = external_of_group.setdefault(source.group, ref.index)
                _require(first == ref.index, f"the group of {where} is two tensors in {name}")
        _require(
            all(map(_generalizes, node.outputs, record.outputs)),
            f"the outputs of {_name(index, node)} do not include those of {name}",
        )
    missing = trace.fetches() - graph.fetches
    _require(not missing, f"{name} needs {sorted(missing)}, which the graph does not fetch")


def _check_external(
    graph: TraceGraph, where: str, source: NodeInput, trace: Trace, index: int, name: str
) -> None:
    external = trace.externals[index]
    if isinstance(source, Constant):
        _require(external.value == source.value, f"{where} is constant, and differs in {name}")
    if isinstance(source, Captured):
        _require(
            graph._handle_id(external.tensor) == source.handle,
            f"{where} is captured, and is another tensor in {name}",
        )


def _generalizes(general: TensorSpec, special: TensorSpec) -> bool:
    """Says whether every tensor of the second type is of the first."""
    if general.dtype != special.dtype:
        return False
    if general.shape is None or special.shape is None:
        return general.shape is None
    return len(general.shape) == len(special.shape) and all(
        dim in (-1, other) for dim, other in zip(general.shape, special.shape, strict=True)
    )
