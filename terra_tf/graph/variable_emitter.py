"""Variables in the generated function: reads, dense writes as SSA values, in-place writes.

A dense write gives the variable a new value within the epoch; the commit assigns the last one.
An in-place write waits for the commit.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import handle_shape_and_type, node_def_pb2, ops
from terra_tf.errors import ImperativeReason, UndelegableOpError
from terra_tf.graph.emitter import Emitter
from terra_tf.graph.epochs import slots_of, writes_variable
from terra_tf.graph.folding import is_constant
from terra_tf.graph.lean_graph import apply_op
from terra_tf.graph.op_maker import arguments_of
from terra_tf.graph.scope import HeldWrite
from terra_tf.graph.symbols import is_handle, scalar, static_shape
from terra_tf.trace.op_classes import DENSE_WRITES, IN_PLACE_WRITES, INDEXED_WRITES
from terra_tf.trace.trace_graph import Node, TraceGraph, Variable


def dense_writes(graph: TraceGraph, nodes: tuple[int, ...]) -> set[int]:
    """Returns the slots that some of the nodes assign in the graph."""
    slots: set[int] = set()
    for number in nodes:
        node = graph.nodes[number]
        if not node.is_imperative and node.record.op_type in DENSE_WRITES:
            slots |= slots_of(node)
    return slots


def _shape_rule(node: Node, dtype: int) -> bytes | None:
    """Returns a NodeDef by whose shape function the cursor can tell whether a write fits."""
    op_type = node.record.op_type
    if op_type == "ResourceScatterDiv" or op_type not in DENSE_WRITES | INDEXED_WRITES:
        return None
    if "Nd" in op_type:
        return None  # how long index vectors are has to be known when the graph is built
    definition = node_def_pb2.NodeDef(name="write", op=op_type)
    definition.attr["dtype"].type = dtype
    return definition.SerializeToString()


class VariableEmitter:
    """Builds the ops of nodes with a variable among their inputs.

    Args:
      emitter: Where ops go.
      is_last_use: Says of (slot, node) in the main line whether nothing later uses the variable.
    """

    def __init__(self, emitter: Emitter, is_last_use: Any) -> None:
        self._emitter = emitter
        self._graph = emitter.graph
        self._is_last_use = is_last_use

    def emit(self, index: int, node: Node, values: list) -> list:
        """Adds a node's op; returns its outputs."""
        op_type = node.record.op_type
        variable = node.inputs[0]
        assert isinstance(variable, Variable)
        slot = variable.slot
        if handle_shape_and_type(self._graph.variables[slot].type) is None:
            raise UndelegableOpError(index, ImperativeReason.RESOURCE_OP)
        if writes_variable(node):
            main = self._emitter.main
            if self._emitter.scope is not main and slot not in main.handles:
                raise UndelegableOpError(index, ImperativeReason.BRANCH_VARIABLE)
            self._check_write(index, node, slot, values)
            self._emitter.out.written_slots.add(slot)
        if op_type == "ReadVariableOp":
            value = self.read(slot)
            is_static = value.shape.is_fully_defined()
            return [value if is_static else apply_op("Identity", input=value).outputs[0]]
        if op_type in DENSE_WRITES:
            self._write_dense(index, op_type, slot, values[1])
            return []
        if op_type in IN_PLACE_WRITES:
            self._write_in_place(index, node, slot, values)
            return []
        if op_type in ("ResourceGather", "ResourceGatherNd"):
            return self._gather(index, node, slot, values)
        assert op_type == "VariableShape", op_type  # which the variable changes with its value
        out_type = arguments_of(node.record, values).get("out_type")
        return [apply_op("Shape", input=self.read(slot), out_type=out_type).outputs[0]]

    def read(self, slot: int) -> Any:
        """Returns the variable's value as of here."""
        epoch = self._emitter.scope.epoch
        if slot not in epoch.values:
            spec = handle_shape_and_type(self._graph.variables[slot].type)
            with ops.control_dependencies([] if epoch.gate is None else [epoch.gate]):
                op = self._emitter.read_held(slot, spec[0]) or apply_op(
                    "ReadVariableOp", resource=self._emitter.handle(slot), dtype=spec[0]
                )
            epoch.reads.append(op)
            op.outputs[0].set_shape(static_shape(spec[1]))
            epoch.values[slot] = op.outputs[0]
        return epoch.values[slot]

    def _check_write(self, index: int, node: Node, slot: int, values: list) -> None:
        """A write that might not fit would fail after the commit: it is no op for the graph."""
        spec = handle_shape_and_type(self._graph.variables[slot].type)
        variable = None if spec is None else spec[1]
        values = values[1:]
        folded = self._emitter.out.folded
        is_static = all(value.shape.is_fully_defined() for value in values)
        if node.record.op_type in DENSE_WRITES:
            is_assign = node.record.op_type == "AssignVariableOp"
            if is_assign and variable is None and not node.record.attribute("validate_shape"):
                return  # a variable of any shape takes any value
            is_static = is_static and tuple(values[0].shape.as_list()) == variable
        if node.record.op_type == "ResourceStridedSliceAssign":
            bounds = node.inputs[1:4]
            is_static = is_static and all(is_constant(s, folded) for s in bounds)
        if node.record.op_type == "ResourceScatterDiv":
            is_static = is_static and values[-1].dtype.is_floating
        if not is_static and variable is not None and -1 not in variable:
            rule = _shape_rule(node, spec[0])
            if rule is not None:
                self._emitter.out.shape_rules[index] = rule
                return
        if not is_static or variable is None or -1 in variable:
            raise UndelegableOpError(index, ImperativeReason.DYNAMIC_WRITE)

    def _write_dense(self, index: int, op_type: str, slot: int, value: Any) -> None:
        epoch = self._emitter.scope.epoch
        if op_type == "AssignVariableOp":
            epoch.values[slot] = apply_op("Identity", input=value).outputs[0]
            epoch.changed.add(slot)
            return
        if slot not in epoch.changed and self._is_last_use(slot, index):
            # Nobody looks at the new value: keep the delta, change the variable in place.
            epoch.held_back.append(HeldWrite(slot, op_type, {"value": value}, {}))
            return
        arithmetic = "AddV2" if op_type == "AssignAddVariableOp" else "Sub"
        epoch.values[slot] = apply_op(arithmetic, x=self.read(slot), y=value).outputs[0]
        epoch.changed.add(slot)

    def _write_in_place(self, index: int, node: Node, slot: int, values: list) -> None:
        arguments = arguments_of(node.record, values)
        is_indexed = node.record.op_type in INDEXED_WRITES
        if is_indexed and not self._has_range(index, node, values):
            arguments["indices"] = self._check_indices(node, slot, arguments["indices"])
        tensors, attrs, handle = {}, {}, "resource"
        for name, value in arguments.items():
            if isinstance(value, tf.Tensor) and is_handle(value):
                handle = name
            elif isinstance(value, tf.Tensor):
                tensors[name] = value
            else:
                attrs[name] = value
        held = HeldWrite(slot, node.record.op_type, tensors, attrs, handle)
        self._emitter.scope.epoch.held_back.append(held)

    def _has_range(self, index: int, node: Node, values: list) -> bool:
        is_in_loop = self._emitter.scope.nearest("trip") is not None
        return self._emitter.fallibility.has_range(index, node, values, is_in_loop)

    def _check_indices(self, node: Node, slot: int, indices: Any) -> Any:
        spec = handle_shape_and_type(self._graph.variables[slot].type)
        limits = [spec[1][0]]
        if "Nd" in node.record.op_type:
            limits = list(spec[1][: indices.shape.as_list()[-1]])
        operation = apply_op("Terra>CheckIndices", indices=indices, limits=limits)
        self._emitter.note_fallible(operation)
        return operation.outputs[0]

    def _gather(self, index: int, node: Node, slot: int, values: list) -> list:
        epoch, arguments = self._emitter.scope.epoch, arguments_of(node.record, values)
        if slot in epoch.values:
            indices = arguments["indices"]
            if node.record.op_type == "ResourceGatherNd":
                operation = apply_op("GatherNd", params=epoch.values[slot], indices=indices)
            else:
                batch_dims = int(arguments.get("batch_dims") or 0)
                axis = scalar(batch_dims)
                operation = apply_op(
                    "GatherV2",
                    params=epoch.values[slot],
                    indices=indices,
                    axis=axis,
                    batch_dims=batch_dims,
                )
        else:
            with ops.control_dependencies([] if epoch.gate is None else [epoch.gate]):
                operation = apply_op(node.record.op_type, **arguments)
            epoch.reads.append(operation)
        if not self._has_range(index, node, values):
            self._emitter.note_fallible(operation)
        return list(operation.outputs)
