"""Functions of TensorFlow's as ops of the graph.

Eager runs `f(x)` as a function of its own: Grappler rewrites its body, whatever the step's graph
may not have rewritten. So the graph calls it, as it is, with the options that eager calls it with:

    op __inference_f_12(x, w)  ->  StatefulPartitionedCall(f=a copy that nobody may inline, x, w)

A copy, since TensorFlow inlines a function that does not say no; and with it of all functions
below, so that the graph outlives the program's. Shapes of results are those of the body, inferred
from the shapes of the inputs.
"""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import (
    atomic_function,
    attr_value_pb2,
    dtypes,
    function_def_to_graph,
    function_pb2,
    handle_shape_and_type,
    op_def_registry,
    ops,
)
from terra_tf.errors import ImperativeReason, UndelegableOpError
from terra_tf.graph.lean_graph import apply_op
from terra_tf.graph.loops import CannotRollError
from terra_tf.graph.symbols import static_shape
from terra_tf.trace.function_facts import definition_of, functions_of
from terra_tf.trace.op_classes import is_fallible
from terra_tf.trace.trace_graph import Node, Variable

_RESOURCE = dtypes.resource.as_datatype_enum
_serial = itertools.count()
_NEVER_FAIL = frozenset({"NoOp", "Placeholder"})


class FunctionCalls:
    """Builds the calls of one generated function.

    Args:
      emitter: Where ops go.
    """

    def __init__(self, emitter: Any) -> None:
        self._emitter = emitter
        self._copies: dict[Any, Any] = {}  # (name, types of variables) -> AtomicFunction
        self._bodies: dict[Any, Any] = {}  # (name, shapes) -> FuncGraph

    def emit(self, index: int, node: Node, values: list) -> list:
        """Adds the call that the node is; returns its outputs."""
        emitter, name = self._emitter, node.record.op_type
        if emitter.scope.nearest("trip") is not None:
            raise CannotRollError(None, "a function of TensorFlow's is called in it")
        definition = definition_of(name)
        if definition is None:  # it is gone: whoever calls this again calls another one
            raise UndelegableOpError(index, ImperativeReason.NO_OP_DEFINITION)
        variables = [source for source in node.inputs if isinstance(source, Variable)]
        types = [emitter.graph.variables[source.slot].type for source in variables]
        handles = tuple(handle_shape_and_type(each) for each in types)
        taken = [each for each in definition.signature.input_arg if each.type == _RESOURCE]
        if None in handles or len(handles) != len(taken):
            raise UndelegableOpError(index, ImperativeReason.RESOURCE_OP)
        body = self._body(name, definition, values)
        epoch = emitter.scope.epoch
        gate = [] if epoch.gate is None else [epoch.gate]
        attributes = dict(zip(node.record.attrs[::2], node.record.attrs[1::2]))
        with ops.control_dependencies(gate):
            call = apply_op(
                "StatefulPartitionedCall",
                args=values,
                Tout=[result.type for result in definition.signature.output_arg],
                f=attr_value_pb2.NameAttrList(name=self._copy(name, definition, handles)),
                config_proto=attributes.get("config_proto", b""),
                executor_type=attributes.get("executor_type", ""),
            )
        for tensor, inner in zip(call.outputs, body.outputs, strict=True):
            tensor.set_shape(inner.shape)
        if variables:
            epoch.reads.append(call)
        if any(_may_fail(operation) for operation in body.get_operations()):
            emitter.note_fallible(call)
        return list(call.outputs)

    def _body(self, name: str, definition: Any, values: list) -> Any:
        shapes = [value.shape for value in values]
        key = (name, tuple(map(str, shapes)))
        if key not in self._bodies:
            with ops.init_scope():
                self._bodies[key] = function_def_to_graph.function_def_to_graph(
                    definition, input_shapes=shapes
                )
        return self._bodies[key]

    def _copy(self, name: str, definition: Any, handles: tuple) -> str:
        """Registers a copy of a function for variables of these types; returns the copy's name."""
        key = (name, handles)
        if key not in self._copies:
            told = _with_handles(definition, handles)
            copy = self._copies[key] = _Copier().copy(name, told, is_called=True)
            self._emitter.out.called_functions.append(copy)
        ops.get_default_graph()._add_function_recursive(self._copies[key])
        return tf.compat.as_str(self._copies[key].name)


def _with_handles(definition: Any, handles: tuple) -> Any:
    """Returns a copy that says of each variable's handle what eager says when it calls.

    Without that Grappler would not know the shapes of what is computed of variables, and would
    leave as it is what it rewrites in eager: sums, in another order.
    """
    copy = function_pb2.FunctionDef()
    copy.CopyFrom(definition)
    arguments = enumerate(copy.signature.input_arg)
    positions = (position for position, argument in arguments if argument.type == _RESOURCE)
    for position, (dtype, shape) in zip(positions, handles, strict=True):
        attributes = copy.arg_attr[position].attr
        attributes["_handle_dtypes"].list.type.append(dtype)
        attributes["_handle_shapes"].list.shape.append(static_shape(shape).as_proto())
    return copy


class _Copier:
    """Copies a function and all that it calls, under new names."""

    def __init__(self) -> None:
        self._copies: dict[str, Any] = {}

    def copy(self, name: str, definition: Any, is_called: bool = False) -> Any:
        """Returns a registered copy. One that the graph itself calls stays a call."""
        copy = function_pb2.FunctionDef()
        copy.CopyFrom(definition)
        copy.signature.name = f"terra_{next(_serial)}_{name}"
        if is_called:
            copy.attr["_noinline"].b = True
            copy.attr["_nospecialize"].b = True
        for inner in functions_of(definition):
            if inner not in self._copies:
                self._copies[inner] = self.copy(inner, definition_of(inner))
        names = {inner: tf.compat.as_str(each.name) for inner, each in self._copies.items()}
        for node in copy.node_def:
            node.op = names.get(node.op, node.op)
            for value in node.attr.values():
                functions = [value.func] if value.HasField("func") else value.list.func
                for function in functions:
                    function.name = names[function.name]
        registered = atomic_function.from_function_def(copy, None)
        registered._children = list(self._copies.values())
        return registered


def _may_fail(operation: Any) -> bool:
    if operation.type in _NEVER_FAIL:
        return False
    if op_def_registry.get(operation.type) is None:
        return True
    constants = frozenset(i for i, t in enumerate(operation.inputs) if t.op.type == "Const")
    input_dtypes = tuple(tensor.dtype.as_datatype_enum for tensor in operation.inputs)
    is_static = all(tensor.shape.is_fully_defined() for tensor in operation.inputs)
    return is_fallible(operation.type, input_dtypes, constants, is_static)
