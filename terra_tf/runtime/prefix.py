"""What a co-executed step has done so far: the way it took, and the trace that it amounts to."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from terra_tf import _native
from terra_tf._tf_internals import handle_shape_and_type, unbound_handle
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.trace.records import (
    External,
    ExternalRef,
    OutputRef,
    TensorSpec,
    Trace,
    VariableRef,
)
from terra_tf.trace.trace_graph import Captured, Constant, Feed, Joined, Output, Variable


def input_of(
    built: BuiltGraph, session: Any, number: int, position: int, as_sent: bool = False
) -> Any:
    """Returns what an input was in this step: joined inputs are decided.

    Args:
      built: The graph that the step follows.
      session: The step's session.
      number: The node.
      position: Which of its inputs.
      as_sent: Whether to return the copy that was sent of a tensor whose bytes NumPy could
        change, not that tensor. A copy has the value, and not the identity.

    Returns:
      The graph's own description of it, or the very tensor where a joined input came from
      outside of the step; None where only an imperative op has seen it.
    """
    node = built.trace_graph.nodes[number]
    source = node.inputs[position]
    join = built.generated.joins.of_input.get((number, position))
    if join is not None:
        decided = session.decided(join.number, as_sent)
        return Output(*decided) if isinstance(decided, tuple) else decided
    return None if isinstance(source, Joined) else source


def prefix_trace(built: BuiltGraph, session: Any) -> Trace:
    """Returns the trace of what a co-executed step has done, with this step's tensors."""
    return _Prefix(built, session).make()


def _unbound_handle(spec: Any) -> Any:
    native = _native.load().module
    native.enter_nested()
    try:
        return unbound_handle(spec)
    finally:
        native.leave_nested()


class _Prefix:
    def __init__(self, built: BuiltGraph, session: Any) -> None:
        self._built = built
        self._session = session
        self._trace = Trace()
        self._externals: dict[Any, int] = {}
        self._slots: dict[int, int] = {}  # the graph's -> the trace's
        self._place: dict[int, int] = {}  # node -> its number in the trace

    def make(self) -> Trace:
        graph = self._built.trace_graph
        self._trace.followed = tuple(self._session.path)
        self._trace.generation = graph.generation
        raised = set(self._session.raised)
        for position, number in enumerate(self._session.path):
            node = graph.nodes[number]
            inputs = tuple(self._reference(number, i) for i in range(len(node.inputs)))
            self._place[number] = len(self._trace.ops)
            record = node.record._replace(inputs=inputs)
            if position in raised:
                record = record._replace(outputs=(), folded=(), placements=(), has_raised=True)
            self._trace.ops.append(record)
        self._trace.alive = {
            (self._place[n], o) for n, o in graph.fetches if n in self._place
        }
        return self._trace

    def _reference(self, number: int, position: int) -> Any:
        source = input_of(self._built, self._session, number, position)
        if isinstance(source, Output):
            if source.node in self._place:
                return OutputRef(self._place[source.node], source.output)
            # An imperative op, which takes what Python gives it: an output of another way here.
            assert self._built.trace_graph.nodes[number].record.imperative is not None
            source = None
        if isinstance(source, Variable):
            return VariableRef(self._slot(source.slot))
        identity = (number, position) if source is None else self._identity(number, source)
        index = self._externals.get(identity)
        if index is None:
            index = self._externals[identity] = len(self._trace.externals)
            self._trace.externals.append(self._external(number, position, source))
        return ExternalRef(index)

    def _identity(self, number: int, source: Any) -> Any:
        if isinstance(source, (Constant, Captured)):
            return source.group
        if isinstance(source, Feed):
            slot = self._built.feed_slot(number, source)
            tensor = None if slot is None else self._session.feed(slot)
            return source if tensor is None else id(tensor)
        return id(source)

    def _slot(self, slot: int) -> int:
        if slot not in self._slots:
            self._slots[slot] = len(self._trace.variables)
            handle = self._session.variable(slot)
            variable = self._built.trace_graph.variables[slot]
            if handle is None:  # only ops that Python runs itself have seen it
                handle = variable.handle
            if handle is None:
                handle = _unbound_handle(handle_shape_and_type(variable.type))
            self._trace.variables.append(handle)
        return self._slots[slot]

    def _external(self, number: int, position: int, source: Any) -> External:
        if isinstance(source, Constant):
            return External(source.tensor, source.spec, source.value, False, True)
        if isinstance(source, Captured):
            tensor = source.tensor
            if tensor is None:  # only an imperative op has had it, in another step
                tensor = tf.constant([0])
            return External(tensor, source.spec, None, False, True)
        join = self._built.generated.joins.of_input.get((number, position))
        if join is not None:
            return External(source, join.spec, None, True, True)
        assert source is None or isinstance(source, Feed)
        slot = None if source is None else self._built.feed_slot(number, source)
        tensor = None if slot is None else self._session.feed(slot)
        if tensor is None:  # only an imperative op has seen it, and nothing depends on which it was
            tensor = tf.constant([0])  # and no scalar: TensorFlow has one tensor for all of a value
        spec = self._spec(number, position) if source is None else source.spec
        return External(tensor, spec, None, True, True)

    def _spec(self, number: int, position: int) -> TensorSpec:
        """What an input of an imperative op may be, whichever it was."""
        nodes = self._built.trace_graph.nodes
        joined = nodes[number].inputs[position]
        if isinstance(joined, Output):
            return nodes[joined.node].outputs[joined.output]
        assert isinstance(joined, Joined)
        specs = [nodes[node].outputs[output] for node, output in joined.sources]
        if joined.external is not None:
            specs.append(joined.external.spec)
        return functools.reduce(TensorSpec.joined, specs)
