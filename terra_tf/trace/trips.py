"""Which trip of a loop an op belongs to.

A location counts the trips of a loop that ran any op, so it shifts when a loop leaves some of
its trips out:

    for layer in layers:
        if random() < 0.5: x = layer(x)

The second layer that runs may be the second of the model, or the seventh. Here a trip is told
by its *variable*: the first one that an op of the trip takes. If the graph has a trip for that
variable, the trip is that one; if it has none, and the trip that counting gives is another
variable's, it is a new one. Trips are counted on from there. Loops whose trips all take the
same variables (a recurrent cell), or none, are counted as ever.

This looks ahead, which the cursor cannot: where the nodes at the counted place do not fit, it
tries those of other such trips. So ops before the variable are taken to its trip only if their
inputs tell the trip as well, as a variable's gradient does. What a layer begins with (a norm of
what the layer before has made) stays where it is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from terra_tf.config import config
from terra_tf.trace.location_tree import Location, place_in_code
from terra_tf.trace.records import OpRecord, OutputRef, Trace, VariableRef
from terra_tf.trace.trace_graph import Node, Output, TraceGraph, Variable, outputs_of

_MAX_LOOKAHEAD = 500  # ops


class _Scope(NamedTuple):
    """A trip, as the trace counts it: these turns of loops of this call."""

    caller: Location
    depth: int
    turns: tuple[tuple[object, int], ...]

    def has(self, record: OpRecord) -> bool:
        location = record.location
        if not isinstance(location, Location) or len(location.path) <= self.depth:
            return False
        inner = location.path[self.depth]
        return inner.parent is self.caller and _turns(inner)[: len(self.turns)] == self.turns


_Trip = tuple[int, ...]  # the counters of the loops around an op


class _KnownTrips:
    """The trips of one loop that the graph knows to take a variable at one place.

    Attributes:
      of_slot: The variable's slot -> trip -> the nodes that take it there.
      slots_at: Trip -> slots, once for each node.
      last: The highest trip of the innermost loop, or -1.
      num_nodes: How many nodes there are.
    """

    def __init__(self) -> None:
        self.of_slot: dict[int, dict[_Trip, list[int]]] = {}
        self.slots_at: dict[_Trip, list[int]] = {}
        self.last = -1
        self.num_nodes = 0

    def add(self, trip: _Trip, slot: int, number: int) -> None:
        """Adds a node."""
        self.of_slot.setdefault(slot, {}).setdefault(trip, []).append(number)
        self.slots_at.setdefault(trip, []).append(slot)
        self.last = max(self.last, trip[-1])
        self.num_nodes += 1


class Trips:
    """Settles the trips of one trace's ops, in order.

    Args:
      graph: What is known.
      trace: The whole step.
      slots: The trace's variable slot -> the graph's, so far.
      nodes: Op -> node, so far; numbers that the graph does not have are new nodes.
      is_free: Says of a node whether this step may still take it.
    """

    def __init__(
        self,
        graph: TraceGraph,
        trace: Trace,
        slots: Mapping[int, int],
        nodes: Sequence[int],
        is_free: Callable[[int], bool],
    ) -> None:
        self._graph = graph
        self._ops = trace.ops
        self._made = trace.made_variables  # another one in each step, so they tell no trip
        self._slots = slots
        self._nodes = nodes
        self._is_free = is_free
        self._scope: _Scope | None = None
        self._telling: int | None = None  # the op that takes the trip's variable first
        self._slot: int | None = None
        self._known: dict[object, list[int]] = {}
        self._trips_of: dict[tuple, _KnownTrips] = {}
        self._at: dict[object, list[int]] = {}
        for number, node in enumerate(graph.nodes):
            self._at.setdefault(node.key.location, []).append(number)
            place = place_in_code(node.key.location)
            if place is not None and node.record.forward is None and variables_of(node):
                self._known.setdefault((node.key.op_type, place), []).append(number)

    def settle(
        self, index: int, record: OpRecord, is_followed: bool
    ) -> tuple[OpRecord, int | None]:
        """Returns an op as it is in its trip, and the trace's slot that the trip is about.

        Args:
          index: Of the op in the trace.
          record: The op where counting has it.
          is_followed: Whether the cursor has said already which node it is.
        """
        if record.forward is not None or not isinstance(record.location, Location):
            return record, None
        # What takes the variable may do so in a loop of its own, over its arguments.
        scope = None if index == self._telling else self._begun_at(index)
        if scope is not None:
            self._begin(index, scope)
            is_at_its_place = is_followed
        elif self._scope is not None and self._scope.has(self._ops[index]):
            # What the cursor took before it met the variable may be of another trip.
            is_at_its_place = is_followed or index != self._telling
        else:
            self._scope = self._telling = self._slot = None
        if self._scope is None or self._telling is None or is_at_its_place:
            return record, self._slot
        moved = self._in_its_trip(record, self._scope, self._ops[self._telling])
        if index != self._telling and not self._is_told_by_dataflow(moved):
            moved = record
        return moved, self._slot

    def _is_told_by_dataflow(self, record: OpRecord) -> bool:
        """Says whether what an op takes of this step is of its trip only (see the module)."""
        nodes = [self._graph.nodes[n] for n in self._at.get(record.location, ())]
        sources = [
            Output(self._nodes[ref.node], ref.output)
            for ref in record.inputs
            if isinstance(ref, OutputRef)
        ]
        known = {o for node in nodes for source in node.inputs for o in outputs_of(source)}
        num_known = len(self._graph.nodes)
        return bool(sources) and all(s in known or s.node >= num_known for s in sources)

    def _begun_at(self, index: int) -> _Scope | None:
        """Returns the outermost trip that begins with an op, if one does."""
        location = self._ops[index].location
        before = self._ops[index - 1].location if index else None
        assert isinstance(location, Location)
        path_before = before.path if isinstance(before, Location) else ()
        for depth, here in enumerate(location.path):
            there = path_before[depth] if depth < len(path_before) else None
            if here is there:
                continue
            known: tuple = ()
            if there is not None and there.parent is here.parent:
                known = _turns(there) if there.point.info is here.point.info else ()
            turns = _turns(here)
            num_common = _num_common(turns, known)
            if num_common < len(turns):
                return _Scope(location.path[depth - 1], depth, turns[: num_common + 1])
        return None

    def _begin(self, index: int, scope: _Scope) -> None:
        """Looks for the variable that a trip is about."""
        self._scope, self._telling, self._slot = scope, None, None
        for number in range(index, min(index + _MAX_LOOKAHEAD, len(self._ops))):
            if not scope.has(self._ops[number]):
                return
            for ref in self._ops[number].inputs:
                if isinstance(ref, VariableRef) and ref.slot not in self._made:
                    self._telling, self._slot = number, ref.slot
                    return

    def _in_its_trip(self, record: OpRecord, scope: _Scope, telling: OpRecord) -> OpRecord:
        # None: the graph does not know the variable
        slot = None if self._slot is None else self._slots.get(self._slot)
        location = record.location
        assert isinstance(location, Location)
        here = location.path[scope.depth].level.counters[: len(scope.turns)]
        known = self._known_trips(telling, location, scope)
        own = {} if slot is None else known.of_slot.get(slot, {})
        if here in own or len(own) > 1:
            return record  # counted; or a variable that tells no trips apart
        free = [t for t, numbers in own.items() if any(map(self._is_free, numbers))]
        # One trip alone is not yet a loop over variables: another may come in its place.
        if here[-1] == 0 and len(known.of_slot) < 2:
            return record
        if free:
            trip = free[0]
        elif not own and self._is_taken(here, known):
            trip = (*here[:-1], 1 + known.last)
        else:
            return record
        return record._replace(location=_in_trip(location, scope, trip))

    def _is_taken(self, here: tuple[int, ...], known: _KnownTrips) -> bool:
        """Says whether a trip is another variable's, and a new one may be made."""
        slots = known.slots_at.get(here, [])
        are_captured = all(self._graph.variables[slot].captured for slot in slots)
        return bool(slots) and are_captured and known.num_nodes < config.max_siblings

    def _known_trips(
        self, telling: OpRecord, location: Location, scope: _Scope
    ) -> _KnownTrips:
        """Returns the trips of this loop that take a variable there."""
        outer = location.path[scope.depth].level.counters[: len(scope.turns) - 1]
        caller = location.path[scope.depth].parent
        place = place_in_code(telling.location)
        key = (telling.op_type, place, caller, scope.depth, len(scope.turns), outer)
        trips = self._trips_of.get(key)
        if trips is not None:
            return trips
        trips = self._trips_of[key] = _KnownTrips()
        for number in self._known.get((telling.op_type, place), ()):
            node = self._graph.nodes[number]
            inner = node.key.location.path[scope.depth]
            if inner.parent is caller:
                counters = inner.level.counters[: len(scope.turns)]
                if counters[:-1] == outer:
                    trips.add(counters, variables_of(node)[0], number)
        return trips


def variables_of(node: Node) -> list[int]:
    """Returns the variable slots among a node's inputs, in order."""
    return [source.slot for source in node.inputs if isinstance(source, Variable)]


def _turns(location: Location) -> tuple[tuple[object, int], ...]:
    """Returns the loops around a point of its own code, each with its trip."""
    info = location.point.info
    loops = info.loops_at(location.point.offset) if info is not None else ()
    return tuple(zip(loops, location.level.counters, strict=True))


def _num_common(some: tuple, others: tuple) -> int:
    pairs = list(zip(some, others, strict=False))
    return next((k for k, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _in_trip(location: Location, scope: _Scope, trip: tuple[int, ...]) -> Location:
    inner = location.path[scope.depth]
    counters = (*trip, *inner.level.counters[len(trip) :])
    moved = location.path[scope.depth - 1].callee(inner.point, counters, inner.level.ordinal)
    return moved.descend([level.point for level in location.path], scope.depth + 1)
