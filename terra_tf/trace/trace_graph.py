"""The TraceGraph: what the traces of one entry signature have in common.

    merge(trace)   ->  MergeResult: was the trace covered by what was known?

In this version a TraceGraph holds one path: nodes in program order between START and END. A
node's key is (type, canonical attributes, location), the paper's node equality. Each input of
a node is what it was in every trace:

    Output(n, o)   output o of node n
    Variable(s)    slot s, `captured` while it was the same variable every time
    Constant       a small host value, equal every time
    Captured       one and the same tensor every time
    Feed(g)        an external tensor; uses with the same g were one tensor in every trace

Merging only ever generalizes: Constant and Captured become Feed, a feed group splits, a
captured variable becomes a bound one, fetches are added. A trace that cannot be had that way
took another path; it replaces what was there, and the next equal one covers it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from terra_tf._tf_internals import dtypes
from terra_tf.errors import ImperativeReason
from terra_tf.trace.records import ExternalRef, OpRecord, OutputRef, TensorSpec, Trace, VariableRef


class Output(NamedTuple):
    """An output of another node."""

    node: int
    output: int


class Variable(NamedTuple):
    """A variable slot of the graph."""

    slot: int


class Constant(NamedTuple):
    """A host value that was equal in every trace; `tensor` carries it."""

    tensor: Any
    value: bytes
    spec: TensorSpec
    group: int


class Captured(NamedTuple):
    """A tensor that was the same object in every trace."""

    tensor: Any
    handle: int
    spec: TensorSpec
    group: int


class Feed(NamedTuple):
    """An external tensor that differs from step to step."""

    spec: TensorSpec
    group: int


NodeInput = Output | Variable | Constant | Captured | Feed


class NodeKey(NamedTuple):
    """The paper's node equality: type, attributes, executed location."""

    op_type: str
    attributes: Hashable
    location: Any


@dataclasses.dataclass(slots=True)
class Node:
    """One op of the graph.

    Attributes:
      key: Its identity.
      record: The record of the latest trace (attribute values, types, folded results).
      inputs: What its inputs are.
      outputs: Its results' types; a dimension that differed between traces is -1.
      forced: Why it has to run imperatively although its op could be delegated, or None.
      hits: How many traces passed it.
    """

    key: NodeKey
    record: OpRecord
    inputs: tuple[NodeInput, ...]
    outputs: tuple[TensorSpec, ...]
    forced: ImperativeReason | None = None
    hits: int = 1


@dataclasses.dataclass(slots=True)
class VariableSlot:
    """A variable slot. `captured` holds the handle while it never changed."""

    handle: Any
    captured: bool


class MergeKind(enum.Enum):
    """What a trace brought."""

    COVERED = "covered"  # nothing new
    GENERALIZED = "generalized"  # known path, but a constant, feed, variable or fetch changed
    NEW_PATH = "new path"


@dataclasses.dataclass(frozen=True, slots=True)
class MergeResult:
    """The kind, and for a person what changed first."""

    kind: MergeKind
    detail: str = ""


class TraceGraph:
    """The merged traces of one entry signature. Not thread-safe; its owner's lock holds.

    Args:
      handle_id: Maps a tensor to the identity of its handle.
    """

    def __init__(self, handle_id: Callable[[Any], int]) -> None:
        self._handle_id = handle_id
        self._next_group = 0
        self.nodes: list[Node] = []
        self.variables: list[VariableSlot] = []
        self.fetches: set[tuple[int, int]] = set()
        self.shape_reads: set[tuple[int, int]] = set()
        self.raised_locations: set[Any] = set()
        self.num_traces = 0

    def merge(self, trace: Trace) -> MergeResult:
        """Merges one trace; see the module's docstring."""
        self.num_traces += 1
        mismatch = self.path_mismatch(trace)
        if mismatch is not None:
            self._replace(trace)
            return MergeResult(MergeKind.NEW_PATH, mismatch)
        changes = self._generalize(trace)
        changes += self._add_fetches(trace)
        if changes:
            return MergeResult(MergeKind.GENERALIZED, changes[0])
        return MergeResult(MergeKind.COVERED)

    # ------------------------------------------------------------ one path

    def path_mismatch(self, trace: Trace) -> str | None:
        """Returns why a trace took another path than this graph's, or None if it did not."""
        if len(trace.ops) != len(self.nodes):
            return f"{len(trace.ops)} ops where {len(self.nodes)} were known"
        if len(trace.variables) != len(self.variables):
            return f"{len(trace.variables)} variables where {len(self.variables)} were known"
        for index, (node, record) in enumerate(zip(self.nodes, trace.ops)):
            problem = _op_mismatch(node, record)
            if problem is None:
                problem = _dataflow_mismatch(node, record, trace)
            if problem is not None:
                return f"op {index} {record.op_type}: {problem}"
        return None

    def _replace(self, trace: Trace) -> None:
        groups = [self._new_group() for _ in trace.externals]
        self.variables = [VariableSlot(handle, True) for handle in trace.variables]
        self.nodes = [
            Node(
                NodeKey(record.op_type, record.canonical, record.location),
                record,
                tuple(self._first_input(ref, trace, groups) for ref in record.inputs),
                record.outputs,
            )
            for record in trace.ops
        ]
        for node in self.nodes:
            if node.key.location in self.raised_locations:
                node.forced = ImperativeReason.RAISED_BEFORE
        self.fetches = trace.fetches()
        self.shape_reads = trace.shape_reads()

    def _new_group(self) -> int:
        self._next_group += 1
        return self._next_group

    def _first_input(self, ref: Any, trace: Trace, groups: list[int]) -> NodeInput:
        if isinstance(ref, OutputRef):
            return Output(*ref)
        if isinstance(ref, VariableRef):
            return Variable(ref.slot)
        external, group = trace.externals[ref.index], groups[ref.index]
        if external.value is not None:
            return Constant(external.tensor, external.value, external.spec, group)
        if external.is_argument or not external.owns_memory:
            return Feed(external.spec, group)
        return Captured(external.tensor, self._handle_id(external.tensor), external.spec, group)

    # ------------------------------------------------------- generalizing

    def _generalize(self, trace: Trace) -> list[str]:
        changes: list[str] = []
        regrouped: dict[tuple[int, int], int] = {}
        for slot, handle in zip(self.variables, trace.variables):
            if slot.captured and self._handle_id(slot.handle) != self._handle_id(handle):
                slot.captured = False
                changes.append("another variable")
            slot.handle = handle
        for index, (node, record) in enumerate(zip(self.nodes, trace.ops)):
            new_inputs = tuple(
                self._merge_input(old, ref, trace, regrouped)
                for old, ref in zip(node.inputs, record.inputs)
            )
            for old, new in zip(node.inputs, new_inputs):
                if type(old) is not type(new):
                    changes.append(f"{type(old).__name__} of op {index} {record.op_type} changed")
            outputs = tuple(map(_merge_spec, node.outputs, record.outputs))
            if outputs != node.outputs:
                changes.append(f"the shape of op {index} {record.op_type} changed")
            node.inputs, node.outputs, node.record = new_inputs, outputs, record
            if record.location in self.raised_locations and node.forced is None:
                node.forced = ImperativeReason.RAISED_BEFORE
                changes.append(f"op {index} {record.op_type} has raised before")
            node.hits += 1
        changes += self._split_groups(regrouped)
        return changes

    def _merge_input(self, old: NodeInput, ref: Any, trace: Trace, regrouped: dict) -> NodeInput:
        if not isinstance(ref, ExternalRef) or isinstance(old, (Output, Variable)):
            return old  # the second can only be an imperative op's
        external = trace.externals[ref.index]
        group = regrouped.setdefault((old.group, ref.index), self._next_group + 1)
        self._next_group = max(self._next_group, group)
        if isinstance(old, Constant) and external.value == old.value:
            return old._replace(group=group)
        if isinstance(old, Captured) and old.handle == self._handle_id(external.tensor):
            return old._replace(group=group)
        return Feed(external.spec, group)

    def _split_groups(self, regrouped: dict[tuple[int, int], int]) -> list[str]:
        """A feed group that came apart means more feeds; constants' groups do not matter."""
        parts: dict[int, set[int]] = {}
        for (old, _), new in regrouped.items():
            parts.setdefault(old, set()).add(new)
        split = {new for news in parts.values() if len(news) > 1 for new in news}
        uses = {i.group for node in self.nodes for i in node.inputs if isinstance(i, Feed)}
        return ["two uses of one tensor came apart"] if split & uses else []

    def _add_fetches(self, trace: Trace) -> list[str]:
        new = trace.fetches() - self.fetches
        self.fetches |= new
        self.shape_reads |= trace.shape_reads()
        return [f"a new fetch of op {min(new)[0]}"] if new else []

    def snapshot(self) -> TraceGraph:
        """Returns a copy that further merging does not change."""
        copy = TraceGraph(self._handle_id)
        copy._next_group = self._next_group
        copy.nodes = [dataclasses.replace(node) for node in self.nodes]
        copy.variables = [dataclasses.replace(variable) for variable in self.variables]
        copy.fetches = set(self.fetches)
        copy.shape_reads = set(self.shape_reads)
        copy.raised_locations = set(self.raised_locations)
        copy.num_traces = self.num_traces
        return copy

    def add_fetches(self, outputs: set[tuple[int, int]]) -> None:
        """Adds outputs that Python turned out to need."""
        self.fetches |= outputs

    def note_raised(self, location: Any) -> None:
        """Makes what runs at `location` imperative from now on: it has failed once."""
        self.raised_locations.add(location)
        for node in self.nodes:
            if location in (node.key.location, node.record.location):
                node.forced = ImperativeReason.RAISED_BEFORE

    @property
    def num_fetched_bytes(self) -> int:
        """The size of all fetched values together, as traced."""
        total = 0
        for node, output in self.fetches:
            spec = self.nodes[node].record.outputs[output]
            total += math.prod(spec.shape or ()) * dtypes.as_dtype(spec.dtype).size
        return total


def _merge_spec(old: TensorSpec, new: TensorSpec) -> TensorSpec:
    if old.shape == new.shape or old.shape is None:
        return old
    if new.shape is None or len(new.shape) != len(old.shape):
        return TensorSpec(old.dtype, None)
    dims = (a if a == b else -1 for a, b in zip(old.shape, new.shape))
    return TensorSpec(old.dtype, tuple(dims))


def _op_mismatch(node: Node, record: OpRecord) -> str | None:
    known = node.record
    if known.op_type != record.op_type:
        return f"{known.op_type} was known there"
    # What Python runs itself may have other attributes every time (a py_function's token).
    if known.canonical != record.canonical and record.imperative is None:
        return "it had other attributes"
    if known.counts != record.counts:
        return "another number of inputs"
    if known.device != record.device:
        return f"on {record.device or 'the default device'}"
    if known.imperative != record.imperative or known.forward_node != record.forward_node:
        return "another role"
    if tuple(s.dtype for s in known.outputs) != tuple(s.dtype for s in record.outputs):
        return "other output types"
    return None


def _dataflow_mismatch(node: Node, record: OpRecord, trace: Trace) -> str | None:
    for position, (old, ref) in enumerate(zip(node.inputs, record.inputs)):
        if isinstance(ref, OutputRef):
            same = isinstance(old, Output) and tuple(old) == tuple(ref)
        elif isinstance(ref, VariableRef):
            same = isinstance(old, Variable) and old.slot == ref.slot
        else:
            same = not isinstance(old, (Output, Variable))
            same = same and old.spec == trace.externals[ref.index].spec
        if not same and record.imperative is None:
            return f"input {position} comes from elsewhere"
    return None
