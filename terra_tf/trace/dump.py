"""A TraceGraph as text, the same at every run of the same program.

    TraceGraph: 3 ops, 2 traces, 1 fetch, 0 shape reads
      var0: f32[4], captured
      feed0: f32[2,4]
    0 ReadVariableOp(var0) -> f32[4]  tape; train.py:7 in step
    1 Mul(feed0, %0.0) -> f32[2,4]  tape; train.py:7 in step
    2 Sum(%1.0, const[0]=i32 [0 1]) -> f32[]  tape; fetched 0; train.py:8 in step

`%1.0` is output 0 of op 1. Feeds, constants and captured tensors are numbered by first use;
uses with the same number were one tensor in every trace.
"""

from __future__ import annotations

import collections
import os
import re
from typing import Any

import numpy as np

from terra_tf._tf_internals import dtypes, handle_shape_and_type
from terra_tf.trace.records import OpRecord, TensorSpec
from terra_tf.trace.trace_graph import (
    Captured,
    Constant,
    Feed,
    NodeInput,
    Output,
    TraceGraph,
    Variable,
)

_MAX_VALUES = 8
_KIND_NAMES = {Feed: "feed", Captured: "captured", Constant: "const"}
_SHORT_NAMES = (
    ("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i"), ("complex", "c"),
    ("string", "str"),
)  # fmt: skip


def dump(graph: TraceGraph) -> str:
    """Returns a TraceGraph as deterministic text, one line an op; see the module's docstring.

    Reads the values of constants. The graph's owner must hold its lock.
    """
    return "\n".join(_Dump(graph).lines())


class _Dump:
    def __init__(self, graph: TraceGraph) -> None:
        self._graph = graph
        self._numbers = _number_by_first_use(graph)

    def lines(self) -> list[str]:
        return [
            self._header(),
            *self._variable_lines(),
            *self._external_lines(),
            *map(self._node_line, range(len(self._graph.nodes))),
        ]

    def _header(self) -> str:
        graph = self._graph
        counts = (
            _count(len(graph.nodes), "op"),
            _count(graph.num_traces, "trace"),
            _count(len(graph.fetches), "fetch"),
            _count(len(graph.shape_reads), "shape read"),
        )
        return f"TraceGraph: {', '.join(counts)}"

    def _variable_lines(self) -> list[str]:
        lines = []
        for slot, variable in enumerate(self._graph.variables):
            spec = handle_shape_and_type(variable.handle)
            type_ = "of unknown type" if spec is None else _type(TensorSpec(*spec))
            lines.append(f"  var{slot}: {type_}, {'captured' if variable.captured else 'bound'}")
        return lines

    def _external_lines(self) -> list[str]:
        """Feeds and captured tensors with their types; a constant's type is with its value."""
        lines: dict[str, None] = {}
        for node in self._graph.nodes:
            for source in node.inputs:
                if isinstance(source, (Feed, Captured)):
                    lines[f"  {self._input(source)}: {_type(source.spec)}"] = None
        return sorted(lines, key=_natural)

    def _node_line(self, index: int) -> str:
        node = self._graph.nodes[index]
        inputs = ", ".join(map(self._input, node.inputs))
        outputs = ", ".join(map(_type, node.outputs)) or "nothing"
        notes = "; ".join(self._marks(index))
        return f"{index} {node.record.op_type}({inputs}) -> {outputs}  {notes}".rstrip()

    def _input(self, source: NodeInput) -> str:
        if isinstance(source, Output):
            return f"%{source.node}.{source.output}"
        if isinstance(source, Variable):
            return f"var{source.slot}"
        name, number = _KIND_NAMES[type(source)], self._numbers[type(source), source.group]
        if isinstance(source, Constant):
            return f"{name}[{number}]={_value(source)}"
        return f"{name}{number}"

    def _marks(self, index: int) -> list[str]:
        graph, node = self._graph, self._graph.nodes[index]
        record = node.record
        marks = []
        why_imperative = record.imperative or node.forced
        if why_imperative is not None:
            marks.append(f"imperative({why_imperative})")
        if record.under_tape:
            marks.append("tape")
        if record.forward_node is not None:
            marks.append(f"gradient of {record.forward_node}")
        for what, outputs in (("fetched", graph.fetches), ("shape read", graph.shape_reads)):
            marks += [f"{what} {output}" for owner, output in sorted(outputs) if owner == index]
        return marks + _source_line(record)


def _number_by_first_use(graph: TraceGraph) -> dict[tuple[type, int], int]:
    """Groups are numbered anew at every merge, so their own numbers mean nothing to a reader."""
    numbers: dict[tuple[type, int], int] = {}
    used: collections.Counter[type] = collections.Counter()
    for node in graph.nodes:
        for source in node.inputs:
            if isinstance(source, (Output, Variable)):
                continue
            kind = type(source)
            if (kind, source.group) not in numbers:
                numbers[kind, source.group] = used[kind]
                used[kind] += 1
    return numbers


def _type(spec: TensorSpec) -> str:
    if spec.shape is None:
        return f"{_dtype(spec.dtype)}[*]"
    dims = ",".join("?" if dim == -1 else str(dim) for dim in spec.shape)
    return f"{_dtype(spec.dtype)}[{dims}]"


def _dtype(dtype: int) -> str:
    name = dtypes.as_dtype(dtype).name
    for long, short in _SHORT_NAMES:
        if name.startswith(long):
            return short + name[len(long) :]
    return name


def _value(constant: Constant) -> str:
    value: Any = np.asarray(constant.tensor.numpy())
    text = " ".join(map(str, value.ravel()[:_MAX_VALUES]))
    if value.size > _MAX_VALUES:
        text += " ..."
    return f"{_dtype(constant.spec.dtype)} {text if value.ndim == 0 else f'[{text}]'}"


def _source_line(record: OpRecord) -> list[str]:
    if record.location is None:
        return []
    frame = record.location.user_frame()
    return [f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.function}"]


def _natural(text: str) -> list:
    """Sorts feed10 after feed9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"
