"""Cuts a step into epochs: stretches whose effects are committed together.

Within an epoch every write of a variable is held back until Python has validated it. A new
epoch has to begin before

- an imperative op that can reach a variable which the graph uses, or might reach any (a
  Python callback, a stateful function): the graph's uses before it must have happened, and
  those after it must not have;
- an imperative op that may read variables unseen (a dataset iterator), once the epoch has
  written one;
- a use of a variable after an in-place write of it: the write is done in place, so there is
  no new value to hand on;
- a function that reads a variable itself, after any write of it.

An epoch begins with a level of the case assignment, on every path: a path that does not pass
the op that needs it closes an epoch early, which is always right. Where the op is in the middle
of a block, the block is cut there.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools

from terra_tf.errors import ImperativeReason
from terra_tf.trace.case_assignment import BasicBlock, CaseAssignment, assign_cases
from terra_tf.trace.function_facts import is_function
from terra_tf.trace.op_classes import IN_PLACE_WRITES, READS
from terra_tf.trace.placing import FUNCTION
from terra_tf.trace.structure import cuts_of
from terra_tf.trace.trace_graph import Node, TraceGraph, Variable

_REACHES_ANYTHING = frozenset(
    {ImperativeReason.PYTHON_CALLBACK, ImperativeReason.NO_OP_DEFINITION}
)


@dataclasses.dataclass(frozen=True, slots=True)
class EpochPlan:
    """The switch-cases of a graph, and where its epochs begin.

    Attributes:
      cases: Every op that needs an epoch of its own is the first of its block.
      starts: The levels that begin an epoch, but for the first epoch; ascending.
    """

    cases: CaseAssignment
    starts: tuple[int, ...]


@dataclasses.dataclass(slots=True)
class _Open:
    """What the epoch under way has done to variables."""

    used: set[int] = dataclasses.field(default_factory=set)
    written: set[int] = dataclasses.field(default_factory=set)
    changed: dict[int, int] = dataclasses.field(default_factory=dict)  # slot -> nodes
    changed_in_place: dict[int, int] = dataclasses.field(default_factory=dict)  # slot -> nodes

    def copy(self) -> _Open:
        return _Open(
            set(self.used), set(self.written), dict(self.changed), dict(self.changed_in_place)
        )

    def absorb(self, other: _Open) -> None:
        self.used |= other.used
        self.written |= other.written
        for mine, others in (
            (self.changed, other.changed),
            (self.changed_in_place, other.changed_in_place),
        ):
            for slot, nodes in others.items():
                mine[slot] = mine.get(slot, 0) | nodes


def plan_epochs(graph: TraceGraph) -> EpochPlan:
    """Returns the graph's switch-cases, cut where epochs have to begin."""
    cuts = cuts_of(graph)
    while True:
        cases = assign_cases(len(graph.nodes), graph.edges(), cuts)
        walk = _Walk(graph, cases)
        cut = walk.run()
        if cut is None:
            return EpochPlan(cases, tuple(walk.starts))
        cuts.add(cut)


def kept_over_epochs(
    graph: TraceGraph, cases: CaseAssignment, starts: tuple[int, ...]
) -> set[tuple[int, int]]:
    """Returns the outputs that Python still held, on some traced way, when an epoch later began."""

    def epoch_of(node: int) -> int:
        return bisect.bisect_right(starts, cases.level_of(node))

    return {
        (node, output)
        for (node, output), lasts in graph.kept_until.items()
        if not graph.nodes[node].is_imperative
        and any(epoch_of(last) > epoch_of(node) for last in lasts)
    }


def why_imperative(node: Node) -> ImperativeReason | None:
    """Returns why Python runs this op itself, or None if it does not."""
    return node.record.imperative or node.forced


def writes_variable(node: Node) -> bool:
    """Says whether a delegated node changes the variables among its inputs."""
    op_type = node.record.op_type
    return bool(slots_of(node)) and op_type not in READS and not is_function(op_type)


def slots_of(node: Node) -> set[int]:
    """Returns the variable slots among a node's inputs."""
    return {i.slot for i in node.inputs if isinstance(i, Variable)}


def _reaches_anything(node: Node) -> bool:
    """Says whether Python may run something there that uses any variable."""
    is_any_function = is_any(node) and node.key.op_type == FUNCTION
    return is_any_function or node.record.imperative in _REACHES_ANYTHING


def is_any(node: Node) -> bool:
    """Says whether a node stands for ops of its type with any inputs, any number of them."""
    return node.forced is ImperativeReason.TOO_MANY_SIBLINGS


class _Walk:
    """Goes over the levels once; stops where a block has to be cut."""

    def __init__(self, graph: TraceGraph, cases: CaseAssignment) -> None:
        self._nodes = graph.nodes
        self._cases = cases
        self._graph = graph
        self.starts: list[int] = []
        self._last_level: dict[int, int] = {}  # slot -> the last level that uses it
        for number, node in enumerate(graph.nodes):
            if not node.is_imperative:
                for slot in slots_of(node):
                    level = cases.level_of(number)
                    self._last_level[slot] = max(self._last_level.get(slot, -1), level)

    @functools.cached_property
    def _ancestors(self) -> dict[int, int]:
        """Node -> the nodes that come before it on some traced way, as bits."""
        ancestors: dict[int, int] = dict.fromkeys(range(len(self._nodes)), 0)
        for node in self._graph.topological_order() or ():
            for successor in self._graph.successors.get(node, ()):
                if successor >= 0:
                    ancestors[successor] |= ancestors[node] | (1 << node)
        return ancestors

    def run(self) -> int | None:
        state = _Open()
        for number, level in enumerate(self._cases.levels):
            if any(self._must_close(block, 0, state) for block in level.blocks):
                self.starts.append(number)
                state = _Open()
            after = [state.copy() for _ in level.blocks]
            for block, of_block in zip(level.blocks, after):
                for position in range(len(block.nodes)):
                    if position > 0 and self._must_close(block, position, of_block):
                        return block.nodes[position]
                    self._use(block.nodes[position], of_block)
            for of_block in after:
                state.absorb(of_block)
        return None

    def _must_close(self, block: BasicBlock, position: int, state: _Open) -> bool:
        node = self._nodes[block.nodes[position]]
        slots = slots_of(node)
        if not node.is_imperative:
            # Only a way that was traced counts: the cursor refuses any other.
            is_call = is_function(node.record.op_type)
            changed = state.changed if is_call else state.changed_in_place
            before = self._ancestors[block.nodes[position]] if changed else 0
            return any(before & changed.get(slot, 0) for slot in slots)
        used_later = self._used_after(block, position)
        if slots & (state.used | used_later):
            return True
        takes_any = is_any(node) and bool(slots)
        if takes_any or _reaches_anything(node):
            return bool(state.used or used_later)
        is_iterator = node.record.imperative is ImperativeReason.DATASET_ITERATOR
        return is_iterator and bool(state.written)

    def _used_after(self, block: BasicBlock, position: int) -> set[int]:
        later = {slot for slot, level in self._last_level.items() if level > block.level}
        for number in block.nodes[position + 1 :]:
            if not self._nodes[number].is_imperative:
                later |= slots_of(self._nodes[number])
        return later

    def _use(self, number: int, state: _Open) -> None:
        node = self._nodes[number]
        if node.is_imperative:
            return
        slots = slots_of(node)
        state.used |= slots
        if not writes_variable(node):
            return
        state.written |= slots
        for slot in slots:
            state.changed[slot] = state.changed.get(slot, 0) | (1 << number)
            if node.record.op_type in IN_PLACE_WRITES:
                known = state.changed_in_place.get(slot, 0)
                state.changed_in_place[slot] = known | (1 << number)
