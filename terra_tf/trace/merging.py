"""Merging a trace into a TraceGraph.

    merge(graph, trace)  ->  MergeResult: was the trace covered by what was known?

A trace is *covered* if a graph built before could have followed it: every op a known node,
every step from node to node legal (an edge that was never seen is legal if it leads from the
end of one block to the start of another at a higher level), every input what `joins` predicts.
Everything else generalizes: new nodes and edges, constants and captured tensors that become
feeds, feed groups that split, captured variables that become bound, shapes that become
unknown, inputs that are joined, fetches.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable

from terra_tf._tf_internals import dtypes
from terra_tf.config import config
from terra_tf.errors import ImperativeReason
from terra_tf.trace.location_tree import Location
from terra_tf.trace.placing import Placement, key_of, place, variant_of
from terra_tf.trace.records import (
    ExternalRef,
    OpRecord,
    OutputRef,
    TensorSpec,
    Trace,
    VariableRef,
)
from terra_tf.trace.structure import structure_of
from terra_tf.trace.trace_graph import (
    Captured,
    Constant,
    Feed,
    Joined,
    MergeKind,
    MergeResult,
    Node,
    NodeInput,
    Output,
    Path,
    TraceGraph,
    Variable,
    VariableSlot,
    outputs_of,
)
from terra_tf.trace.weakly import Weak


def merge(graph: TraceGraph, trace: Trace) -> MergeResult:
    """Merges one trace; see the module's docstring."""
    graph.num_traces += 1
    placement = place(graph, trace)
    path = _path_of(trace, placement)
    unpredicted = _why_not_predicted(graph, placement, path)
    merger = _Merger(graph, trace, placement)
    changes = merger.merge_nodes()
    graph.add_path(path)
    changes += merger.add_fetches()
    is_too_large = len(graph.nodes) > config.max_graph_nodes
    if is_too_large and graph.compact(max(1, len(graph.paths) // 2)) > 0:
        changes.append("the graph had grown too large: ways not taken lately were forgotten")
    if unpredicted is not None or changes:
        graph.structure = None
    if unpredicted is not None:
        return MergeResult(MergeKind.NEW_PATH, unpredicted)
    if changes:
        return MergeResult(MergeKind.GENERALIZED, changes[0])
    return MergeResult(MergeKind.COVERED)


def mismatch(graph: TraceGraph, trace: Trace) -> str | None:
    """Returns why a graph built from `graph` could not follow a trace's path, or None."""
    placement = place(graph, trace)
    return _why_not_predicted(graph, placement, _path_of(trace, placement))


def _why_not_predicted(graph: TraceGraph, placement: Placement, path: Path) -> str | None:
    if path.nodes and not graph.nodes:
        return f"{len(path.nodes)} ops where none were known"
    for index, node in enumerate(path.nodes):
        if node >= placement.num_known:
            return f"op {index} was not known there"
    if path in graph.paths:
        return None
    return structure_of(graph).why_not(path)


def _path_of(trace: Trace, placement: Placement) -> Path:
    nodes = tuple(placement.nodes)
    sources = tuple(
        tuple(
            Output(nodes[ref.node], ref.output) if isinstance(ref, OutputRef) else None
            for ref in record.inputs
        )
        for record in trace.ops
    )
    return Path(nodes, sources)


class _Merger:
    def __init__(self, graph: TraceGraph, trace: Trace, placement: Placement) -> None:
        self._graph = graph
        self._trace = trace
        self._placement = placement
        self._changes: list[str] = []
        self._ref_of_group: dict[int, int] = {}  # group -> the external that keeps its number
        self._new_groups: dict[tuple[int, int], int] = {}  # (group, external) -> split off
        self._group_of_ref: dict[int, int] = {}  # external -> a group for new uses
        self._varied: set[tuple[Hashable, int]] = set()  # (place, input) of constants that vary

    def merge_nodes(self) -> list[str]:
        self._merge_variables()
        placement = self._placement
        placed = list(zip(placement.nodes, placement.records, placement.trip_slots))
        for number, record, trip_slot in placed:
            if number < placement.num_known:  # first: new uses can join the groups of known ones
                self._merge_node(number, record)
                self._merge_trip(number, record, self._slot_of(trip_slot))
        self._feed_what_varies_alike()
        for number, record, trip_slot in placed:
            if number >= placement.num_known:
                self._add_node(record, self._slot_of(trip_slot))
        return self._changes

    def _slot_of(self, trip_slot: int | None) -> int | None:
        return None if trip_slot is None else self._placement.slots.get(trip_slot)

    def _merge_variables(self) -> None:
        graph = self._graph
        for slot, number in sorted(self._placement.slots.items(), key=lambda item: item[1]):
            handle = self._trace.variables[slot]
            if number >= len(graph.variables):
                graph.variables.append(VariableSlot.of(handle))
                continue
            variable = graph.variables[number]
            if variable.captured and not graph.is_same(variable.handle, handle):
                variable.captured = False
                self._changes.append("another variable")
            variable.bind(handle)

    # ---------------------------------------------------------- known nodes

    def _merge_node(self, number: int, record: OpRecord) -> None:
        node = self._graph.nodes[number]
        inputs = tuple(map(self._merge_input, node.inputs, record.inputs))
        pairs = () if node.is_imperative else zip(node.inputs, inputs)
        for index, (old, new) in enumerate(pairs):
            if type(old) is not type(new) and not isinstance(new, Joined):
                self._note(f"{type(old).__name__} of", number, record, "changed")
                if isinstance(old, Constant) and isinstance(new, Feed) and _is_number(new):
                    self._varied.add((_place_of(record), index))
            if isinstance(new, Feed) and isinstance(old, Feed) and new.spec != old.spec:
                self._note("a feed's shape of", number, record, "changed")
            if isinstance(new, Joined) and not self._can_feed(old, new):
                self._note("an input of", number, record, "comes from outside too")
        if record.has_raised:
            node.inputs, node.hits = inputs, node.hits + 1
            if not node.may_raise:
                node.may_raise = True
                self._note("", number, record, "has raised")
            return
        outputs = tuple(old.joined(new) for old, new in zip(node.outputs, record.outputs))
        if node.may_raise and not node.outputs:  # it has never succeeded before
            outputs, node.variant = record.outputs, variant_of(record, self._trace)
        if outputs != node.outputs:
            self._note("the shape of", number, record, "changed")
        if number in self._placement.overflown and node.forced is None:
            node.forced = ImperativeReason.TOO_MANY_SIBLINGS
            self._note("the attributes or inputs of", number, record, "keep changing")
        if record.location in self._graph.raised_locations and node.forced is None:
            node.forced = ImperativeReason.RAISED_BEFORE
            self._note("", number, record, "has raised before")
        node.inputs, node.outputs, node.record = inputs, outputs, record
        node.hits += 1

    def _merge_trip(self, number: int, record: OpRecord, slot: int | None) -> None:
        """What a trip is about a step that makes the variables of a loop itself does not say."""
        node = self._graph.nodes[number]
        if node.trip_slot is None and slot is not None:
            node.trip_slot = slot
            self._note("the trip of", number, record, "has a variable of its own")

    def _feed_what_varies_alike(self) -> None:
        """Feeds the constants of all nodes at places where one has turned out to vary.

        Another trip, or another depth of a recursion, runs the same code with numbers of its
        own. They would vary one after the other, and each cost a divergence.
        """
        graph = self._graph
        new = {(place, index) for place, index in self._varied if place} - graph.varying
        graph.varying |= new
        for number, node in enumerate(graph.nodes) if new else ():
            if node.is_imperative:
                continue
            inputs = self._fed_where_varying(node.record, node.inputs)
            if any(fed is not known for fed, known in zip(inputs, node.inputs)):
                node.inputs = inputs
                self._note("a constant of", number, node.record, "may change, as others do")

    def _fed_where_varying(
        self, record: OpRecord, inputs: tuple[NodeInput, ...]
    ) -> tuple[NodeInput, ...]:
        """Each gets a feed of its own: TensorFlow makes one tensor of all equal numbers."""
        graph = self._graph
        place = _place_of(record) if graph.varying else None
        fed = list(inputs)
        for index, source in enumerate(inputs):
            varies = (place, index) in graph.varying
            if varies and isinstance(source, Constant) and _is_number(source):
                fed[index] = Feed(source.spec, graph.new_group())
        return tuple(fed)

    def _can_feed(self, old: NodeInput, new: Joined) -> bool:
        """Says whether the join of an input could take what came from outside, if anything did.

        Whether the join took tensors from outside at all, `structure` has told; here, of which
        type they could be. A join takes what its input has been so far.
        """
        if new.external is None or not isinstance(old, (Joined, Output)):
            return True
        specs = [self._graph.nodes[o.node].outputs[o.output] for o in outputs_of(old)]
        if isinstance(old, Joined) and old.external is not None:
            specs.append(old.external.spec)
        return functools.reduce(TensorSpec.joined, specs).includes(new.external.spec)

    def _note(self, what: str, number: int, record: OpRecord, happened: str) -> None:
        self._changes.append(f"{what} op {number} {record.op_type} {happened}".strip())

    def _merge_input(self, old: NodeInput, ref: object) -> NodeInput:
        if isinstance(ref, VariableRef) or isinstance(old, Variable):
            return old
        if isinstance(ref, OutputRef):
            source = Output(self._placement.nodes[ref.node], ref.output)
            return _join_output(old, source)
        assert isinstance(ref, ExternalRef)
        if isinstance(old, Output):
            return Joined((old,), self._new_feed(ref))
        if isinstance(old, Joined):
            feed = self._new_feed(ref) if old.external is None else self._fed(old.external, ref)
            return Joined(old.sources, feed)
        return self._merge_external(old, ref)

    def _merge_external(self, old: Constant | Captured | Feed, ref: ExternalRef) -> NodeInput:
        external = self._trace.externals[ref.index]
        group = self._regroup(old.group, ref.index, isinstance(old, Feed))
        is_equal = isinstance(old, Constant) and external.value == old.value
        if is_equal and external.spec == old.spec:  # equal bytes are not yet an equal value
            return old._replace(group=group)
        if isinstance(old, Captured) and self._graph.is_same(old.tensor, external.tensor):
            return old._replace(group=group)
        return Feed(old.spec.joined(external.spec), group)

    def _fed(self, old: Feed, ref: ExternalRef) -> Feed:
        spec = old.spec.joined(self._trace.externals[ref.index].spec)
        return Feed(spec, self._regroup(old.group, ref.index, False))

    def _regroup(self, group: int, index: int, is_feed: bool) -> int:
        """Uses that were one tensor so far and are two now come apart."""
        keeper = self._ref_of_group.setdefault(group, index)
        if keeper != index:
            split = self._new_groups.get((group, index))
            if split is None:
                split = self._new_groups[group, index] = self._graph.new_group()
                if is_feed:
                    self._changes.append("two uses of one tensor came apart")
            group = split
        self._group_of_ref.setdefault(index, group)
        return group

    # ------------------------------------------------------------ new nodes

    def _add_node(self, record: OpRecord, trip_slot: int | None) -> None:
        # One that has never succeeded has results that nobody knows.
        raised = record.has_raised or record.location in self._graph.raised_locations
        inputs = tuple(map(self._first_input, record.inputs))
        self._graph.nodes.append(
            Node(
                key_of(record),
                variant_of(record, self._trace),
                record,
                self._fed_where_varying(record, inputs),
                record.outputs,
                ImperativeReason.RAISED_BEFORE if raised else None,
                trip_slot=trip_slot,
                may_raise=record.has_raised,
            )
        )

    def _first_input(self, ref: object) -> NodeInput:
        if isinstance(ref, OutputRef):
            return Output(self._placement.nodes[ref.node], ref.output)
        if isinstance(ref, VariableRef):
            return Variable(self._placement.slots[ref.slot])
        assert isinstance(ref, ExternalRef)
        external = self._trace.externals[ref.index]
        group = self._group_for(ref.index)
        if external.value is not None:
            return Constant(external.tensor, external.value, external.spec, group)
        if external.is_argument or not external.owns_memory:
            return Feed(external.spec, group)
        handle = self._graph.handle_id(external.tensor)
        return Captured(Weak(external.tensor), handle, external.spec, group)

    def _group_for(self, index: int) -> int:
        if index not in self._group_of_ref:
            self._group_of_ref[index] = self._graph.new_group()
        return self._group_of_ref[index]

    def _new_feed(self, ref: ExternalRef) -> Feed:
        return Feed(self._trace.externals[ref.index].spec, self._group_for(ref.index))

    # -------------------------------------------------------------- fetches

    def add_fetches(self) -> list[str]:
        nodes = self._placement.nodes
        new = {(nodes[n], o) for n, o in self._trace.fetches()} - self._graph.fetches
        self._graph.add_fetches(new)
        for (n, o), until in self._trace.kept_until.items():
            self._graph.kept_until.setdefault((nodes[n], o), set()).add(nodes[until])
        self._graph.shape_reads |= {(nodes[n], o) for n, o in self._trace.shape_reads()}
        return [f"a new fetch of op {min(new)[0]}"] if new else []


def _place_of(record: OpRecord) -> Hashable:
    """Where in the user's code an op is, whichever trip or depth it is in; None if nowhere."""
    if not isinstance(record.location, Location):
        return None
    points = [location.point for location in record.location.path]
    users = [depth for depth, point in enumerate(points) if point.is_user]
    return (record.op_type, *points[users[-1] :]) if users else None


def _is_number(source: Constant | Feed) -> bool:
    """Whether it is floating-point: integers are axes, shapes and indices, too."""
    return dtypes.as_dtype(source.spec.dtype).is_floating


def _join_output(old: NodeInput, source: Output) -> NodeInput:
    known = outputs_of(old)
    if source in known:
        return old
    if isinstance(old, Joined):
        external = old.external
    elif isinstance(old, Output):
        external = None
    else:
        assert isinstance(old, (Constant, Captured, Feed))
        external = Feed(old.spec, old.group)
    return Joined(tuple(sorted((*known, source))), external)
