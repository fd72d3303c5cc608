"""Which node of a TraceGraph each op of a trace is.

An op is a known node if type, attributes and location are equal, and if besides it has the
same number of inputs, types, device and variables. What is known but does not fit gives a new
node, a *sibling*:

- for another variable than the node's, where both are variables of their own elsewhere;
- for other shapes, up to `_MAX_SHAPES` kinds, so that the graph's shapes stay static; after
  that the first sibling's shapes become unknown. An op whose result's shape depends on data
  alone becomes unknown at once, and so does any op after it whose dimensions differ, or any at
  all where dimensions of arguments are unknown;
- where going through the known node would make a cycle.

A place with too many siblings of any kind becomes imperative; where they differ in a text, two are
too many.

Where the trips of a loop are about a variable each, `trips` says which trip an op is of.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterable
from typing import Any, cast

from terra_tf.config import config
from terra_tf.errors import ImperativeReason
from terra_tf.trace.function_facts import is_function
from terra_tf.trace.markers import marker_for, unique_marker
from terra_tf.trace.op_classes import SAYS_A_TEXT
from terra_tf.trace.records import (
    ExternalRef,
    OpRecord,
    OutputRef,
    TensorSpec,
    Trace,
    VariableRef,
)
from terra_tf.trace.relocation import Relocator
from terra_tf.trace.trace_graph import (
    Constant,
    Joined,
    Node,
    NodeInput,
    NodeKey,
    Output,
    TraceGraph,
    Variable,
    outputs_of,
)
from terra_tf.trace.trips import Trips

_MAX_SHAPES = 4
FUNCTION = "function"  # its own name may be another one each time it is made
_MAX_FUNCTIONS = 3  # at a place: with more, it is made anew in each step


@dataclasses.dataclass(slots=True)
class Placement:
    """Where the ops of a trace belong; nothing of the graph has changed yet.

    Attributes:
      nodes: Op -> node; numbers from `num_known` on are new nodes.
      records: The ops with the locations and markers that the graph has for them.
      trip_slots: Op -> the trace's slot that its trip of a loop is about, or None.
      slots: The trace's variable slot -> the graph's; numbers past the graph's are new.
      num_known: How many nodes the graph has.
      overflown: Known nodes that have become places of too many siblings.
    """

    nodes: list[int]
    records: list[OpRecord]
    trip_slots: list[int | None]
    slots: dict[int, int]
    num_known: int
    overflown: set[int]


def key_of(record: OpRecord) -> NodeKey:
    """Returns the paper's key. What Python runs itself may have other attributes every time."""
    attributes = record.canonical if record.imperative is None else None
    op_type = record.op_type
    if is_function(op_type) or record.imperative is ImperativeReason.NO_OP_DEFINITION:
        op_type = FUNCTION
        if record.imperative is None:  # its name is one of its attributes
            attributes = (record.op_type, attributes)
    return NodeKey(op_type, attributes, record.location)


def variant_of(record: OpRecord, trace: Trace) -> Hashable:
    """Returns what ops of one key must share to be one node, shapes and variables apart."""
    return (
        record.counts,
        record.device,
        record.imperative,
        record.forward,
        tuple(_dtype(ref, trace) for ref in record.inputs),
        tuple(spec.dtype for spec in record.outputs),
    )


def place(graph: TraceGraph, trace: Trace) -> Placement:
    """Finds the node of each op of a trace."""
    lenient = _Placer(graph, trace, None).run()
    if _stays_acyclic(graph, lenient.nodes):
        return lenient
    order = graph.topological_order()
    assert order is not None
    return _Placer(graph, trace, {node: rank for rank, node in enumerate(order)}).run()


def _stays_acyclic(graph: TraceGraph, nodes: list[int]) -> bool:
    """Says whether the graph with the edges of one more path has no cycle."""
    added: dict[int, list[int]] = {}
    for node, successor in itertools.pairwise(nodes):
        if successor not in graph.successors.get(node, ()):
            added.setdefault(node, []).append(successor)
    if not added:
        return True
    num_nodes = max(len(graph.nodes), max(nodes) + 1)
    num_before = [0] * num_nodes
    for node in range(num_nodes):
        for successor in (*graph.successors.get(node, ()), *added.get(node, ())):
            if successor >= 0:
                num_before[successor] += 1
    ready = [node for node in range(num_nodes) if num_before[node] == 0]
    num_done = 0
    while ready:
        node = ready.pop()
        num_done += 1
        for successor in (*graph.successors.get(node, ()), *added.get(node, ())):
            if successor >= 0:
                num_before[successor] -= 1
                if num_before[successor] == 0:
                    ready.append(successor)
    return num_done == num_nodes


def _dtype(ref: object, trace: Trace) -> int | None:
    if isinstance(ref, OutputRef):
        return trace.ops[ref.node].outputs[ref.output].dtype
    if isinstance(ref, ExternalRef):
        return trace.externals[ref.index].spec.dtype
    return None


def _max_siblings(record: OpRecord) -> int:
    """A text that was three different ones will be another in each step: it has a number in it."""
    if is_function(record.op_type):
        return min(_MAX_FUNCTIONS, config.max_siblings)
    return min(2, config.max_siblings) if record.op_type in SAYS_A_TEXT else config.max_siblings


def _ranks(specs: tuple[TensorSpec, ...]) -> list[int | None]:
    return [None if spec.shape is None else len(spec.shape) for spec in specs]


def _same_arity(node: Node, record: OpRecord) -> bool:
    """Says whether an op's inputs can be those of a node that takes a list of any length."""
    counts = node.record.counts, record.counts
    return len(counts[0]) == len(counts[1]) and all(
        (known < 0) == (new < 0) for known, new in zip(*counts, strict=True)
    )


class _Index:
    """The nodes by key, made anew for each merge."""

    def __init__(self, graph: TraceGraph) -> None:
        self.siblings: dict[Hashable, list[int]] = {}
        self.at_place: dict[Hashable, list[int]] = {}
        for number, node in enumerate(graph.nodes):
            self.siblings.setdefault((node.key, node.variant), []).append(number)
            self.at_place.setdefault((node.key.op_type, node.key.location), []).append(number)


class _Placer:
    def __init__(self, graph: TraceGraph, trace: Trace, ranks: dict[int, int] | None) -> None:
        self._graph = graph
        self._trace = trace
        self._ranks = ranks  # if given, known nodes must come in this order
        self._last_rank = -1
        self._index = _Index(graph)
        self._used: set[int] = set()
        self._num_new = 0
        self._num_new_slots = 0
        self._relocator = Relocator()
        self._markers = {node.record.marker for node in graph.nodes}
        self._placement = Placement([], [], [], {}, len(graph.nodes), set())
        self._dimensions_vary = graph.has_unknown_dimensions  # so far on this path
        handles = [variable.handle for variable in graph.variables]
        slots = {graph.handle_id(h): i for i, h in enumerate(handles) if h is not None}
        for slot, handle in enumerate(trace.variables):
            known = slots.get(graph.handle_id(handle))
            if known is not None and graph.variables[known].captured:
                self._placement.slots[slot] = known
        self._trips = Trips(
            graph, trace, self._placement.slots, self._placement.nodes, self._is_free
        )

    def run(self) -> Placement:
        num_followed = self._num_followed()
        for index, recorded in enumerate(self._trace.ops):
            record = self._relocator.relocate(recorded)
            is_followed = index < num_followed
            record, slot = self._trips.settle(index, record, is_followed)
            node = self._trace.followed[index] if is_followed else self._find(record)
            self._place(recorded, record, node)
            self._placement.trip_slots.append(slot)
        return self._placement

    def _num_followed(self) -> int:
        """How many ops the cursor has placed; an order of its own is for graphs as they are."""
        is_known = self._trace.generation == self._graph.generation and self._ranks is None
        return len(self._trace.followed) if is_known else 0

    def _place(self, recorded: OpRecord, record: OpRecord, number: int | None) -> None:
        placement = self._placement
        if number is None:
            number = placement.num_known + self._num_new
            self._num_new += 1
            self._bind_new(record)
            location = record.location
            marker = recorded.marker
            if marker is not None:
                marker = unique_marker(marker_for(location, number), self._markers)
        else:
            node = self._graph.nodes[number]
            self._bind_known(record, node)
            self._note_dimensions(record, node)
            location, marker = node.key.location, node.record.marker
        self._relocator.arrive(recorded, location, marker)
        self._used.add(number)
        placement.nodes.append(number)
        placement.records.append(
            record._replace(location=location, marker=marker)
        )

    def _find(self, record: OpRecord) -> int | None:
        key, variant = key_of(record), variant_of(record, self._trace)
        if record.has_raised:
            return self._find_raising(record, key, variant)
        siblings = self._index.siblings.get((key, variant), ())
        candidates = self._in_order(
            n for n in siblings if self._is_free(n) and self._variables_fit(record, n)
        )
        found = self._find_fitting(record, candidates)
        if found is None:
            found = self._find_generalizing(record, candidates, len(siblings))
        if found is None:
            found = self._find_never_succeeded(record, key, variant)
        return self._find_overflown(record) if found is None else self._pass(found)

    def _find_raising(self, record: OpRecord, key: NodeKey, variant: Any) -> int | None:
        """Of an op that has raised nobody knows what its results would have been."""
        known = self._alike_but_for_results(record, key, variant)
        return self._pass(known[0]) if known else None

    def _find_never_succeeded(self, record: OpRecord, key: NodeKey, variant: Any) -> int | None:
        nodes = self._graph.nodes
        known = self._alike_but_for_results(record, key, variant)
        return next((n for n in known if nodes[n].may_raise and not nodes[n].outputs), None)

    def _alike_but_for_results(
        self, record: OpRecord, key: NodeKey, variant: Any
    ) -> list[int]:
        return [
            number
            for number in self._index.at_place.get((key.op_type, key.location), ())
            if self._graph.nodes[number].key == key
            and cast(tuple, self._graph.nodes[number].variant)[:-1] == variant[:-1]
            and self._is_free(number)
            and self._variables_fit(record, number)
        ]

    def _find_fitting(self, record: OpRecord, candidates: list[int]) -> int | None:
        for wanted in ("fits", "generalizes"):
            for number in candidates:
                if self._shapes_fit(record, self._graph.nodes[number]) == wanted:
                    return number
        return None

    def _find_generalizing(
        self, record: OpRecord, candidates: list[int], num_siblings: int
    ) -> int | None:
        for number in candidates:
            if num_siblings >= _MAX_SHAPES or self._varies_in_dimensions(record, number):
                return number
        return None

    def _varies_in_dimensions(self, record: OpRecord, number: int) -> bool:
        """Says whether dimensions that vary before this op can be why its shapes are others."""
        if not self._dimensions_vary:
            return False
        ranks = [_ranks(outputs) for outputs in (self._graph.nodes[number].outputs, record.outputs)]
        return ranks[0] == ranks[1]

    def _find_overflown(self, record: OpRecord) -> int | None:
        place = self._index.at_place.get((key_of(record).op_type, record.location), ())
        if record.location is None or len(place) < _max_siblings(record):
            return None
        for number in place:
            node = self._graph.nodes[number]
            variant: Any = node.variant
            same_types = variant[-1] == tuple(spec.dtype for spec in record.outputs)
            if self._is_free(number) and same_types and _same_arity(node, record):
                self._placement.overflown.add(number)
                return self._pass(number)
        return None

    def _note_dimensions(self, record: OpRecord, node: Node) -> None:
        if not all(
            old.is_static and old.includes(new) for old, new in zip(node.outputs, record.outputs)
        ):
            self._dimensions_vary = True

    def _pass(self, number: int) -> int:
        if self._ranks is not None:
            self._last_rank = self._ranks[number]
        return number

    def _is_free(self, number: int) -> bool:
        in_order = self._ranks is None or self._ranks[number] > self._last_rank
        return in_order and number not in self._used

    def _in_order(self, candidates: Iterable[int]) -> list[int]:
        """What has followed the op before comes first."""
        nodes = self._placement.nodes
        following = self._graph.successors.get(nodes[-1] if nodes else -1, {})
        return sorted(candidates, key=lambda number: number not in following)

    # ----------------------------------------------------------- variables

    def _variables_fit(self, record: OpRecord, number: int) -> bool:
        node = self._graph.nodes[number]
        if node.forced is ImperativeReason.TOO_MANY_SIBLINGS:
            return True
        tentative: dict[int, int] = {}
        for source, ref in zip(node.inputs, record.inputs):
            if not isinstance(ref, VariableRef) or not isinstance(source, Variable):
                continue
            known = self._placement.slots.get(ref.slot, tentative.get(ref.slot))
            if known is None and not self._is_bound(source.slot, tentative):
                known = tentative[ref.slot] = source.slot
            if known != source.slot:
                return False
        return True

    def _is_bound(self, slot: int, tentative: dict[int, int]) -> bool:
        return slot in self._placement.slots.values() or slot in tentative.values()

    def _bind_known(self, record: OpRecord, node: Node) -> None:
        slots = self._placement.slots
        for source, ref in zip(node.inputs, record.inputs):
            if not isinstance(ref, VariableRef) or not isinstance(source, Variable):
                continue
            if ref.slot not in slots and not self._is_bound(source.slot, {}):
                slots[ref.slot] = source.slot  # what Python runs itself may take any variable

    def _bind_new(self, record: OpRecord) -> None:
        for ref in record.inputs:
            if isinstance(ref, VariableRef) and ref.slot not in self._placement.slots:
                new = len(self._graph.variables) + self._num_new_slots
                self._placement.slots[ref.slot] = new
                self._num_new_slots += 1

    # -------------------------------------------------------------- shapes

    def _shapes_fit(self, record: OpRecord, node: Node) -> str:
        """Returns "fits", "generalizes" (in place), or "differs" (a sibling is better)."""
        fits = all(old.includes(new) for old, new in zip(node.outputs, record.outputs))
        for source, ref in zip(node.inputs, record.inputs):
            if isinstance(ref, ExternalRef):
                if self._external_differs(source, ref, fits):
                    return "differs"
            elif isinstance(ref, OutputRef) and self._output_differs(source, ref):
                return "differs"
        return "fits" if fits else "generalizes"

    def _external_differs(self, source: NodeInput, ref: ExternalRef, fits: bool) -> bool:
        external = self._trace.externals[ref.index]
        known = source.external if isinstance(source, Joined) else source
        if known is None or isinstance(known, (Output, Variable)):
            return False
        if not known.spec.includes(external.spec):
            return True
        return not fits and isinstance(known, Constant) and known.value != external.value

    def _output_differs(self, source: NodeInput, ref: OutputRef) -> bool:
        """Says whether an input has another shape than any of the known producers gives it."""
        known = outputs_of(source)
        if self._placement.nodes[ref.node] in {output.node for output in known}:
            return False  # the same op gave another shape: that depends on data
        new = self._trace.ops[ref.node].outputs[ref.output]
        specs = [self._graph.nodes[o.node].outputs[o.output] for o in known]
        return bool(specs) and not any(spec.includes(new) for spec in specs)
