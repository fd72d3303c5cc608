"""Cuts a step into epochs: stretches whose effects are committed together.

Within an epoch every write of a variable is held back until Python has validated it. A new
epoch has to begin before

- an imperative op that can reach a variable which the graph uses, or might reach any (a
  Python callback, a stateful function): the graph's uses before it must have happened, and
  those after it must not have;
- an imperative op that may read variables unseen (a dataset iterator), once the epoch has
  written one;
- a use of a variable after an in-place write of it: the write is done in place, so there is
  no new value to hand on.
"""

from __future__ import annotations

import dataclasses

from terra_tf.errors import ImperativeReason
from terra_tf.trace.op_classes import IN_PLACE_WRITES, READS
from terra_tf.trace.trace_graph import Node, TraceGraph, Variable

_REACHES_ANYTHING = frozenset(
    {ImperativeReason.PYTHON_CALLBACK, ImperativeReason.NO_OP_DEFINITION}
)


@dataclasses.dataclass(slots=True)
class _Open:
    """What the epoch under way has done to variables."""

    used: set[int] = dataclasses.field(default_factory=set)
    written: set[int] = dataclasses.field(default_factory=set)
    changed_in_place: set[int] = dataclasses.field(default_factory=set)


def epoch_starts(graph: TraceGraph) -> list[int]:
    """Returns the nodes before which a new epoch begins, in order."""
    last_use = {
        slot: index
        for index, node in enumerate(graph.nodes)
        if not is_imperative(node)
        for slot in _slots(node)
    }
    starts, open_epoch = [], _Open()
    for index, node in enumerate(graph.nodes):
        slots = _slots(node)
        used_later = {slot for slot, last in last_use.items() if last > index}
        if _must_close(node, slots, open_epoch, used_later):
            starts.append(index)
            open_epoch = _Open()
        if not is_imperative(node):
            _use(node, slots, open_epoch)
    return starts


def why_imperative(node: Node) -> ImperativeReason | None:
    """Returns why Python runs this op itself, or None if it does not."""
    return node.record.imperative or node.forced


def is_imperative(node: Node) -> bool:
    """Says whether Python runs this op itself."""
    return why_imperative(node) is not None


def writes_variable(node: Node) -> bool:
    """Says whether a delegated node changes the variables among its inputs."""
    return bool(_slots(node)) and node.record.op_type not in READS


def _slots(node: Node) -> set[int]:
    return {i.slot for i in node.inputs if isinstance(i, Variable)}


def _must_close(node: Node, slots: set[int], open_epoch: _Open, used_later: set[int]) -> bool:
    if not is_imperative(node):
        return bool(slots & open_epoch.changed_in_place)
    if slots & (open_epoch.used | used_later):
        return True
    reason = node.record.imperative
    if reason in _REACHES_ANYTHING:
        return bool(open_epoch.used or used_later)
    return reason is ImperativeReason.DATASET_ITERATOR and bool(open_epoch.written)


def _use(node: Node, slots: set[int], open_epoch: _Open) -> None:
    open_epoch.used |= slots
    if writes_variable(node):
        open_epoch.written |= slots
    if node.record.op_type in IN_PLACE_WRITES:
        open_epoch.changed_in_place |= slots
