"""Graphs under construction to which ops are added without TensorFlow's detours.

TensorFlow's way to an op looks for device scopes, colocations, control flow of TensorFlow 1, tapes
and callbacks, keeps the Python stack, and finds out the attributes from the inputs. In the graphs
that this package builds there is none of these, and `runtime.step_locations` knows where ops come
from. Names and control dependencies are TensorFlow's own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from terra_tf import _tf_internals
from terra_tf._tf_internals import (
    SymbolicTensor,
    attr_value_pb2,
    dtypes,
    errors_impl,
    func_graph,
    handle_data_util,
    op_def_registry,
    ops,
    pywrap_tf_session,
    tensor_shape,
    tensor_util,
    value_to_attr_value,
)

Attributes = Iterable[tuple[str, bytes]]  # names and serialized AttrValues
_MAX_SMALL = 64  # bytes; a program has few such constants, many times
_HAVE_HANDLE_DATA = frozenset({dtypes.resource, dtypes.variant})


class LeanGraph(func_graph.FuncGraph):
    """A FuncGraph of this package.

    Attributes:
      captured: Of each tensor of a graph around this one that was used here, by its id: itself,
        and the placeholder that stands for it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.captured: dict[int, tuple[Any, Any]] = {}
        self._zeros: dict[Any, Any] = {}

    def add(
        self, op_type: str, inputs: Sequence[Any], attributes: Attributes, name: str | None = None
    ) -> Any:
        """Adds an op whose attributes are known; returns the `Operation`.

        Args:
          op_type: The op's type.
          inputs: A tensor for each argument, or a list where the argument is one.
          attributes: All that the op has and that have no default.
          name: What it is called if that is free, or the type; with a slash at the end, a name
            that is known to be free.
        """
        inputs = [
            [self.capture(each) for each in tensor]
            if isinstance(tensor, list)
            else self.capture(tensor)
            for tensor in inputs
        ]
        name = op_type if name is None else name
        name = name[:-1] if name.endswith("/") else self.unique_name(name)
        with self._c_graph.get() as c_graph:
            description = pywrap_tf_session.TF_NewOperation(c_graph, op_type, name)
        for tensor in inputs:
            if isinstance(tensor, list):
                outputs = [each._as_tf_output() for each in tensor]
                pywrap_tf_session.TF_AddInputList(description, outputs)
            else:
                pywrap_tf_session.TF_AddInput(description, tensor._as_tf_output())
        for before in self._all_before(inputs):
            pywrap_tf_session.TF_AddControlInput(description, before._c_op)
        for attribute, value in attributes:
            pywrap_tf_session.TF_SetAttrValueProto(description, attribute, value)
        try:
            added = pywrap_tf_session.TF_FinishOperation(description)
        except errors_impl.InvalidArgumentError as error:
            raise ValueError(error.message) from None
        operation = ops.Operation(added, SymbolicTensor)
        operation._init(self)
        self._record_op_seen_by_control_dependencies(operation)
        return operation

    def _all_before(self, inputs: list[Any]) -> list[Any]:
        if not self._control_dependencies_stack:
            return []
        makers = {tensor.op for tensor in flat(inputs)}
        return self._control_dependencies_for_inputs(makers)

    def _create_op_internal(
        self,
        op_type: str,
        inputs: list[Any],
        dtypes: Any = None,
        input_types: Any = None,
        name: str | None = None,
        attrs: Any = None,
        op_def: Any = None,
        compute_device: bool = True,
    ) -> Any:
        """Adds an op: TensorFlow's own library makes ops by this."""
        attributes = [(key, value.SerializeToString()) for key, value in (attrs or {}).items()]
        return self.add(op_type, _grouped(op_type, inputs, attrs), attributes, name)

    def capture(self, tensor: Any, name: str | None = None, shape: Any = None) -> Any:
        """Returns what stands for a tensor here: itself, or a placeholder."""
        if tensor.graph is self:
            return tensor
        known = self.captured.get(id(tensor))
        if known is None:
            self._check_is_outside(tensor)
            with self.control_dependencies(None):
                known = tensor, self.placeholder_for(tensor, name or tensor.op.name)
            self.captured[id(tensor)] = known
        return known[1]

    def _check_is_outside(self, tensor: Any) -> None:
        graph = tensor.graph
        while isinstance(graph, func_graph.FuncGraph):
            if graph is self:
                raise ValueError(f"{tensor!r} is of a graph inside {self.name}, which takes it")
            graph = graph.outer_graph

    def placeholder_for(self, tensor: Any, name: str = "Placeholder") -> Any:
        """Adds a placeholder of a tensor's type."""
        placeholder = self.placeholder(tensor.dtype, tensor.shape, name)
        if tensor.dtype in _HAVE_HANDLE_DATA:
            handle_data_util.copy_handle_data(tensor, placeholder)
        return placeholder

    def placeholder(self, dtype: Any, shape: Any, name: str = "Placeholder") -> Any:
        """Adds a placeholder."""
        dims = None if shape.rank is None else tuple(shape.as_list())
        attributes = (("dtype", _of_type(dtype)), ("shape", _of_shape(dims)))
        return self.add("Placeholder", (), attributes, name).outputs[0]

    def constant(self, value: bytes, dtype: Any, name: str = "Const") -> Any:
        """Adds a constant of what `serialized_constant` returned."""
        attributes = (("value", value), ("dtype", _of_type(dtype)))
        return self.add("Const", (), attributes, name).outputs[0]

    def zero(self, dtype: Any) -> Any:
        """Returns a scalar that says nothing, the same one each time."""
        if dtype not in self._zeros:
            with self.control_dependencies(None):
                self._zeros[dtype] = self.constant(_zero(dtype), dtype, "zeros")
        return self._zeros[dtype]


def apply_op(op_type: str, **inputs_and_attrs: Any) -> Any:
    """Adds an op to the current graph; returns the graph's `Operation`.

    Attributes that are not given have their defaults, and those that follow from inputs do.
    """
    graph = ops.get_default_graph()
    facts = _facts_of(op_type)
    inputs = inputs_of(op_type, inputs_and_attrs)
    if not are_symbolic(inputs):
        return _tf_internals.apply_op(op_type, **inputs_and_attrs)
    attributes: dict[str, bytes] = {}
    for tensor, (_, type_attr, number_attr, type_list_attr) in zip(inputs, facts.inputs):
        if number_attr:
            attributes[number_attr] = _serialized("int", len(tensor))
        if type_list_attr:
            attributes[type_list_attr] = _of_types(tuple(each.dtype for each in tensor))
        elif type_attr:
            attributes[type_attr] = _of_type((tensor[0] if number_attr else tensor).dtype)
    for name, kind, default in facts.attributes:
        if name not in attributes:
            value = inputs_and_attrs.get(name)
            if value is None and default is not None:
                attributes[name] = default
            else:
                attributes[name] = _serialized(kind, value)
    return graph.add(op_type, inputs, attributes.items())


def inputs_of(op_type: str, arguments: Mapping[str, Any]) -> list[Any]:
    """Returns an op's inputs of its inputs and attributes by name."""
    return [arguments[name] for name, _, _, _ in _facts_of(op_type).inputs]


def are_symbolic(inputs: list[Any]) -> bool:
    """Says whether all inputs are tensors of graphs."""
    return all(isinstance(tensor, SymbolicTensor) for tensor in flat(inputs))


class _Facts(NamedTuple):
    """What an op's definition says.

    Attributes:
      inputs: Of each the name, and the attributes that follow from it: type, number, types.
      attributes: Of each the name, the kind, and the serialized default, if it has one.
    """

    inputs: list[tuple[str, str, str, str]]
    attributes: list[tuple[str, str, bytes | None]]


@functools.cache
def _facts_of(op_type: str) -> _Facts:
    definition = op_def_registry.get(op_type)
    return _Facts(
        [(a.name, a.type_attr, a.number_attr, a.type_list_attr) for a in definition.input_arg],
        [
            (
                attr.name,
                attr.type,
                attr.default_value.SerializeToString() if attr.HasField("default_value") else None,
            )
            for attr in definition.attr
        ],
    )


def serialized_constant(value: Any, dtype: Any) -> bytes:
    """Returns the attribute of a constant."""
    if not isinstance(value, np.ndarray | np.generic):
        return _of_scalar(value, dtype) if isinstance(value, int) else _of_value(value, dtype)
    if value.nbytes > _MAX_SMALL or value.dtype.kind not in "biufc":
        return _of_value(value, dtype)
    return _of_small(value.tobytes(), value.dtype, value.shape, dtype)


def _of_value(value: Any, dtype: Any) -> bytes:
    proto = tensor_util.make_tensor_proto(value, dtype=dtype)
    return attr_value_pb2.AttrValue(tensor=proto).SerializeToString()


@functools.lru_cache(4096)
def _of_scalar(value: int, dtype: Any) -> bytes:
    return _of_value(value, dtype)


@functools.lru_cache(4096)
def _of_small(data: bytes, numpy_dtype: Any, shape: tuple[int, ...], dtype: Any) -> bytes:
    return _of_value(np.frombuffer(data, numpy_dtype).reshape(shape), dtype)


def _serialized(kind: str, value: Any) -> bytes:
    if kind == "int":
        return attr_value_pb2.AttrValue(i=value).SerializeToString()
    return value_to_attr_value(value, kind, kind).SerializeToString()


@functools.cache
def _of_type(dtype: Any) -> bytes:
    return _serialized("type", dtype)


@functools.lru_cache(4096)
def _of_types(types: tuple[Any, ...]) -> bytes:
    return _serialized("list(type)", list(types))


@functools.lru_cache(4096)
def _of_shape(dims: tuple[int | None, ...] | None) -> bytes:
    return _serialized("shape", tensor_shape.TensorShape(dims))


@functools.cache
def _zero(dtype: Any) -> bytes:
    value = {dtypes.bool: False, dtypes.string: ""}.get(dtype, 0)
    return serialized_constant(value, dtype)


def flat(inputs: Iterable[Any]) -> Iterator[Any]:
    """Returns the tensors of inputs, some of which may be lists."""
    for tensor in inputs:
        if isinstance(tensor, list):
            yield from tensor
        else:
            yield tensor


def _grouped(op_type: str, inputs: list[Any], attrs: Mapping[str, Any]) -> list[Any]:
    """Returns inputs with a list where an argument is one."""
    grouped: list[Any] = []
    position = 0
    for _, _, number_attr, type_list_attr in _facts_of(op_type).inputs:
        if not number_attr and not type_list_attr:
            grouped.append(inputs[position])
            position += 1
            continue
        types = attrs[type_list_attr].list.type if type_list_attr else ()
        length = attrs[number_attr].i if number_attr else len(types)
        grouped.append(inputs[position : position + length])
        position += length
    return grouped
