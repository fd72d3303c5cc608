"""A TraceGraph as text, the same at every run of the same program.

    TraceGraph: 4 ops, 3 traces, 2 paths, 1 switch-case, 1 fetch, 0 shape reads
      var0: f32[4], captured
      feed0: f32[4]
    0 ReadVariableOp(var0) -> f32[4]  tape; train.py:7 in step
    1 Mul(feed0, %0.0) -> f32[4]  tape; train.py:8 in step
    switch-case 0: 1 block, or none
      block 0, after 1
        2 Neg(%1.0) -> f32[4]  tape; train.py:10 in step
    3 Sum(join(latest %1.0 | %2.0), const[0]=i32 0) -> f32[]  fetched 0; train.py:11 in step

`%1.0` is output 0 of op 1. Feeds, constants and captured tensors are numbered by first use;
uses with the same number were one tensor in every trace. Lines are in the order of the case
assignment: what every path passes stands at the margin, the alternatives of a switch-case below
its line, `or none` where a known path goes past all of them. A block's `after` are the ops that
ran right before it. What an input can be by path (`joins` has the rules):

    join(latest %3.0 | %7.0)              whichever of the two has run last
    join(latest %3.0 | outside feed1)     and if Python says so, a tensor from outside
    join(same as input 1 of 12)           whatever that input of op 12 was
    join(select %3.0 | %7.0)              Python says which
    join(any %3.0 | %7.0)                 of an op that Python runs itself
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from terra_tf._tf_internals import dtypes, handle_shape_and_type
from terra_tf.trace.case_assignment import BasicBlock, Level
from terra_tf.trace.joins import Join, Rule
from terra_tf.trace.records import OpRecord, TensorSpec
from terra_tf.trace.structure import structure_of
from terra_tf.trace.trace_graph import (
    START,
    Captured,
    Constant,
    Feed,
    Joined,
    NodeInput,
    Output,
    TraceGraph,
    Variable,
)

External = Constant | Captured | Feed

_MAX_VALUES = 8
_MAX_ALTERNATIVES = 6
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
        structure = structure_of(graph.snapshot())  # leaves what the graph keeps alone
        self._graph = graph
        self._cases = structure.cases
        self._joins = structure.joins.of_input
        self._webs = structure.joins.webs
        self._order = [n for level in self._cases.levels for b in level.blocks for n in b.nodes]
        self._numbers = number_by_first_use(self._inputs())
        self._at_marker: dict[Any, list[int]] = {}
        for number, node in enumerate(graph.nodes):
            self._at_marker.setdefault(node.record.marker, []).append(number)

    def lines(self) -> list[str]:
        return [
            self._header(),
            *self._variable_lines(),
            *self._external_lines(),
            *self._level_lines(),
        ]

    def _inputs(self) -> Iterator[NodeInput]:
        for number in self._order:
            yield from self._graph.nodes[number].inputs

    def _header(self) -> str:
        graph = self._graph
        counts = (
            count(len(graph.nodes), "op"),
            count(graph.num_traces, "trace"),
            count(len(graph.paths), "path"),
            count(self._cases.num_switch_cases, "switch-case"),
            count(len(graph.fetches), "fetch"),
            count(len(graph.shape_reads), "shape read"),
        )
        return f"TraceGraph: {', '.join(counts)}"

    def _variable_lines(self) -> list[str]:
        lines = []
        for slot, variable in enumerate(self._graph.variables):
            spec = handle_shape_and_type(variable.type)
            type_ = "of unknown type" if spec is None else type_text(TensorSpec(*spec))
            lines.append(f"  var{slot}: {type_}, {'captured' if variable.captured else 'bound'}")
        return lines

    def _external_lines(self) -> list[str]:
        """Feeds and captured tensors with their types; a constant's type is with its value."""
        lines: dict[str, None] = {}
        for source in self._inputs():
            external = external_of(source)
            if isinstance(external, (Feed, Captured)):
                lines[f"  {self._external(external)}: {type_text(external.spec)}"] = None
        return sorted(lines, key=_natural)

    # ---------------------------------------------------------------- levels

    def _level_lines(self) -> Iterator[str]:
        number = 0
        for level in self._cases.levels:
            if level.is_inline:
                yield from map(self._node_line, level.blocks[0].nodes)
            else:
                yield from self._switch_case_lines(number, level)
                number += 1

    def _switch_case_lines(self, number: int, level: Level) -> Iterator[str]:
        blocks = count(len(level.blocks), "block")
        yield f"switch-case {number}: {blocks}{'' if level.is_mandatory else ', or none'}"
        for block in level.blocks:
            yield f"  block {block.index}, after {_after(block)}"
            for node in block.nodes:
                yield f"    {self._node_line(node)}"

    # ----------------------------------------------------------------- nodes

    def _node_line(self, index: int) -> str:
        node = self._graph.nodes[index]
        inputs = ", ".join(self._input(index, i, source) for i, source in enumerate(node.inputs))
        outputs = ", ".join(map(type_text, node.outputs)) or "nothing"
        notes = "; ".join(self._marks(index))
        return f"{index} {node.record.op_type}({inputs}) -> {outputs}  {notes}".rstrip()

    def _input(self, node: int, position: int, source: NodeInput) -> str:
        join = self._joins.get((node, position))
        if join is not None:
            return self._join(join)
        if isinstance(source, Joined):
            return self._one_of("any", source.sources, source.external)
        if isinstance(source, Output):
            return f"%{source.node}.{source.output}"
        if isinstance(source, Variable):
            return f"var{source.slot}"
        return self._external(source)

    def _join(self, join: Join) -> str:
        if join.same is not None:
            node, position = join.same
            return f"join(same as input {position} of {node})"
        known = self._graph.nodes[join.node].inputs[join.position]
        outside = external_of(known) or join.external
        if join.rule is Rule.LATEST:
            return self._one_of("latest", self._webs[join.web], outside)
        return self._one_of("select", join.alternatives, outside)

    def _one_of(
        self, rule: str, outputs: tuple[Output, ...], external: External | None
    ) -> str:
        alternatives = [f"%{node}.{output}" for node, output in outputs]
        if len(alternatives) > _MAX_ALTERNATIVES:
            num_left_out = len(alternatives) - _MAX_ALTERNATIVES
            alternatives[_MAX_ALTERNATIVES - 1 : -1] = [f"... {num_left_out} more"]
        if external is not None:
            alternatives.append(f"outside {self._external(external)}")
        return f"join({rule} {' | '.join(alternatives)})"

    def _external(self, source: External) -> str:
        name, number = _KIND_NAMES[type(source)], self._numbers[type(source), source.group]
        if isinstance(source, Constant):
            return f"{name}[{number}]={value_text(source.tensor)}"
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
        if record.forward is not None:
            forward = " or ".join(map(str, self._at_marker.get(record.forward, ())))
            marks.append(f"gradient of {forward or 'an op outside'}")
        for what, outputs in (("fetched", graph.fetches), ("shape read", graph.shape_reads)):
            marks += [f"{what} {output}" for owner, output in sorted(outputs) if owner == index]
        return marks + _source_line(record)


def external_of(source: NodeInput) -> External | None:
    """Returns what an input is where it comes from outside of the step."""
    if isinstance(source, Joined):
        return source.external
    return None if isinstance(source, (Output, Variable)) else source


def number_by_first_use(inputs: Iterable[NodeInput]) -> dict[tuple[type, int], int]:
    """Groups are numbered by discovery, so their own numbers mean nothing to a reader."""
    numbers: dict[tuple[type, int], int] = {}
    used: collections.Counter[type] = collections.Counter()
    for external in map(external_of, inputs):
        if external is None:
            continue
        kind = type(external)
        if (kind, external.group) not in numbers:
            numbers[kind, external.group] = used[kind]
            used[kind] += 1
    return numbers


def _after(block: BasicBlock) -> str:
    return ", ".join("the start" if a == START else str(a) for a, _ in block.control_edges)


def type_text(spec: TensorSpec) -> str:
    """Returns a tensor's type, such as `f32[2,?]`."""
    if spec.shape is None:
        return f"{_dtype(spec.dtype)}[*]"
    dims = ",".join("?" if dim == -1 else str(dim) for dim in spec.shape)
    return f"{_dtype(spec.dtype)}[{dims}]"


def _dtype(dtype: Any) -> str:
    name = dtypes.as_dtype(dtype).name
    for long, short in _SHORT_NAMES:
        if name.startswith(long):
            return short + name[len(long) :]
    return name


def value_text(tensor: Any) -> str:
    """Returns a constant's type and first values."""
    value: Any = np.asarray(tensor.numpy())
    text = " ".join(map(str, value.ravel()[:_MAX_VALUES]))
    if value.size > _MAX_VALUES:
        text += " ..."
    return f"{_dtype(tensor.dtype)} {text if value.ndim == 0 else f'[{text}]'}"


def _source_line(record: OpRecord) -> list[str]:
    if record.location is None:
        return []
    frame = record.location.user_frame()
    return [f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.function}"]


def _natural(text: str) -> list:
    """Sorts feed10 after feed9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def count(number: int, noun: str) -> str:
    """Returns `1 op`, `2 ops`, `3 branches`, `4 epochs`."""
    plural = "es" if noun.endswith("ch") and noun != "epoch" else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"
