"""Writes the part of a step that was co-executed down as a trace, so that recording can go on."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.trace.records import (
    External,
    ExternalRef,
    OutputRef,
    Trace,
    VariableRef,
)
from terra_tf.trace.trace_graph import Captured, Constant, Feed, Output, Variable


def prefix_trace(built: BuiltGraph, session: Any, stop: int) -> Trace:
    """Returns the trace of nodes 0 to `stop` of a co-executed step, with this step's tensors."""
    return _Prefix(built, session).make(stop)


class _Prefix:
    def __init__(self, built: BuiltGraph, session: Any) -> None:
        self._built = built
        self._session = session
        self._trace = Trace()
        self._groups: dict[int, int] = {}

    def make(self, stop: int) -> Trace:
        graph = self._built.trace_graph
        num_variables = 0
        for node in graph.nodes[:stop]:
            inputs = tuple(self._reference(source) for source in node.inputs)
            slots = [ref.slot + 1 for ref in inputs if isinstance(ref, VariableRef)]
            num_variables = max([num_variables, *slots])
            self._trace.ops.append(dataclasses.replace(node.record, inputs=inputs))
        for slot in range(num_variables):
            handle = self._session.variable(slot)
            self._trace.variables.append(graph.variables[slot].handle if handle is None else handle)
        self._trace.alive = {(n, o) for n, o in graph.fetches if n < stop}
        return self._trace

    def _reference(self, source: Any) -> Any:
        if isinstance(source, Output):
            return OutputRef(*source)
        if isinstance(source, Variable):
            return VariableRef(source.slot)
        index = self._groups.get(source.group)
        if index is None:
            index = self._groups[source.group] = len(self._trace.externals)
            self._trace.externals.append(self._external(source))
        return ExternalRef(index)

    def _external(self, source: Any) -> External:
        if isinstance(source, Constant):
            return External(source.tensor, source.spec, source.value, False, True)
        if isinstance(source, Captured):
            return External(source.tensor, source.spec, None, False, True)
        assert isinstance(source, Feed)
        slot = self._built.feed_slots.get(source.group)
        tensor = None if slot is None else self._session.feed(slot)
        if tensor is None:  # only an imperative op has seen it, and nothing depends on which it was
            tensor = tf.constant(0)
        return External(tensor, source.spec, None, True, True)

