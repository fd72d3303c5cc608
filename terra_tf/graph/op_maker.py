"""Adds the ops of nodes to the graph that is being built.

TensorFlow's way to an op finds out its attributes from its inputs and checks each, which takes
longer than making the op does. Unrolled loops have the same op hundreds of times: of one *kind*,
which are an op type, attributes, and the inputs' types. The first of a kind goes TensorFlow's way;
the others take over the attributes that it has found.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from terra_tf._tf_internals import inferred_attributes, op_def_registry, ops
from terra_tf.graph.eager_kernels import apply_like_eager
from terra_tf.graph.lean_graph import Attributes, apply_op, are_symbolic, flat, inputs_of
from terra_tf.trace.records import OpRecord


def arguments_of(record: OpRecord, values: list) -> dict[str, Any]:
    """Returns an op's inputs and attributes by name.

    Args:
      record: What eager ran.
      values: Its inputs, flat.
    """
    position = 0
    arguments: dict[str, Any] = {}
    for arg, count in zip(op_def_registry.get(record.op_type).input_arg, record.counts):
        if count < 0:
            arguments[arg.name] = values[position]
            position += 1
        else:
            arguments[arg.name] = values[position : position + count]
            position += count
    inferred = inferred_attributes(record.op_type)
    for name, value in zip(record.attrs[::2], record.attrs[1::2]):
        if name not in inferred:
            arguments[name] = value
    return arguments


class OpMaker:
    """Makes the ops of one function.

    Args:
      keeps_bits: Whether TensorFlow must not merge ops where that changes the last bits.
    """

    def __init__(self, keeps_bits: bool) -> None:
        self._keeps_bits = keeps_bits
        self._attributes: dict[Hashable, Attributes] = {}  # by kind

    def make(self, record: OpRecord, values: list) -> Any:
        """Adds an op to the current graph; returns the graph's `Operation`."""
        arguments = arguments_of(record, values)
        kind = (record.op_type, record.canonical, record.counts)
        if self._keeps_bits:
            return apply_like_eager(record.op_type, arguments, lambda *op: self._apply(kind, *op))
        return self._apply(kind, record.op_type, arguments)

    def _apply(self, kind: Hashable, op_type: str, arguments: dict[str, Any]) -> Any:
        inputs = inputs_of(op_type, arguments)
        if not are_symbolic(inputs):
            return apply_op(op_type, **arguments)
        kind = (kind, tuple(tensor.dtype for tensor in flat(inputs)))
        attributes = self._attributes.get(kind)
        if attributes is not None:
            return ops.get_default_graph().add(op_type, inputs, attributes)
        operation = apply_op(op_type, **arguments)
        if _is_plain(op_type):
            found = operation.node_def.attr
            names = [attr.name for attr in op_def_registry.get(op_type).attr]
            self._attributes[kind] = [
                (name, found[name].SerializeToString()) for name in names if name in found
            ]
        return operation


def _is_plain(op_type: str) -> bool:
    """Says whether an op is told by its attributes: none is a function, which a graph must have."""
    return not any("func" in attr.type for attr in op_def_registry.get(op_type).attr)
