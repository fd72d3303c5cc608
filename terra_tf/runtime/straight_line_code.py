"""A graph of plain ops as a Python function that runs them one by one.

    FuncGraph -> source: one line for each op that the outputs depend on -> function

So that what TensorFlow would run as a function of its own is ops of the step like all others: each
line has a place of its own, and graphs that are alike have equal code.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from terra_tf._tf_internals import (
    NotOkStatusException,
    context,
    dtypes,
    inferred_attributes,
    op_def_registry,
    ops,
    pywrap_tfe,
    tensor_shape_pb2,
    tensor_util,
)
from terra_tf.trace.code_origin import GENERATED_FILE

# Stateful by their definition, but they only read.
_READS = frozenset({"ReadVariableOp", "VariableShape", "ResourceGather", "ResourceGatherNd"})
_FOLDED_TYPES = frozenset({dtypes.int32, dtypes.int64, dtypes.bool})
_MAX_FOLDED_ITEMS = 64


class NotStraightError(Exception):
    """The graph has an op that is more than its inputs and attributes.

    Attributes:
      has_effect: Whether running the same graph twice is not like running two that are alike.
    """

    def __init__(self, message: str, has_effect: bool = False) -> None:
        super().__init__(message)
        self.has_effect = has_effect


def straight_function(graph: Any) -> tuple[Callable[..., list], list]:
    """Returns a function of the graph's captured tensors that runs it, and these tensors.

    The function returns the graph's outputs. Nothing of the graph is kept.

    Args:
      graph: A finished FuncGraph that takes no arguments.

    Raises:
      NotStraightError: It calls functions, or has an effect.
    """
    check_has_no_effect(graph)
    writer = _Writer(graph)
    namespace = dict(writer.values, run=_run, constant=tf.constant)
    exec(_compiled(writer.source), namespace)
    return namespace["vectorized"], writer.captured


@functools.lru_cache(maxsize=256)
def _compiled(source: str) -> types.CodeType:
    """Returns the same code for the same source: ops are located by it."""
    return compile(source, GENERATED_FILE, "exec")


class _Writer:
    """Writes the source, and says what names in it stand for."""

    def __init__(self, graph: Any) -> None:
        self._names: dict[int, str] = {}  # by the id of a graph's tensor
        self.values: dict[str, Any] = {}
        self._lines: list[str] = []
        self.captured: list[Any] = []
        needed = _needed_ops(graph.outputs)
        for outside, inside in graph.captures:
            if inside.op in needed:
                self._names[id(inside)] = f"c{len(self.captured)}"
                self.captured.append(outside)
                del needed[inside.op]
        for operation in graph.get_operations():
            if operation in needed:
                self._add(operation, needed[operation])
        outputs = ", ".join(self._names[id(output)] for output in graph.outputs)
        self._lines.append(f"    return [{outputs}]")
        parameters = ", ".join(f"c{i}" for i in range(len(self.captured)))
        self.source = "\n".join([f"def vectorized({parameters}):", *self._lines, ""])

    def _add(self, operation: Any, value: Any) -> None:
        if value is not None:
            line = f"constant({self._name_value(value)})"
        else:
            _check_is_plain(operation)
            line = self._call(operation)
        result = f"t{len(self._lines)}"
        self._lines.append(f"    {result} = {line}")
        if value is not None or _returns_one_tensor(operation):
            self._names[id(operation.outputs[0])] = result
        else:
            for i, output in enumerate(operation.outputs):
                self._names[id(output)] = f"{result}[{i}]"

    def _call(self, operation: Any) -> str:
        arguments = [repr(operation.type), *self._inputs(operation)]
        inferred = inferred_attributes(operation.type)
        for attr in op_def_registry.get(operation.type).attr:
            if attr.name not in inferred:
                arguments += [repr(attr.name), self._attribute(operation, attr)]
        return f"run({', '.join(arguments)})"

    def _inputs(self, operation: Any) -> Iterable[str]:
        names = iter([self._names[id(tensor)] for tensor in operation.inputs])
        for arg in op_def_registry.get(operation.type).input_arg:
            if arg.number_attr:
                length = operation.get_attr(arg.number_attr)
            elif arg.type_list_attr:
                length = len(operation.get_attr(arg.type_list_attr))
            else:
                yield next(names)
                continue
            yield f"[{', '.join(next(names) for _ in range(length))}]"

    def _attribute(self, operation: Any, attr: Any) -> str:
        value = operation.get_attr(attr.name)
        if attr.type in ("func", "list(func)", "tensor", "list(tensor)"):
            raise NotStraightError(f"{operation.type} has the attribute {attr.name}")
        value = _for_python(value)
        if isinstance(value, (bool, int, bytes)) or value is None:
            return repr(value)
        return self._name_value(value)

    def _name_value(self, value: Any) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = value
        return name


def _run(op_type: str, *inputs_and_attributes: Any) -> Any:
    try:
        return pywrap_tfe.TFE_Py_FastPathExecute(
            context.context(), op_type, None, *inputs_and_attributes
        )
    except NotOkStatusException as error:
        ops.raise_from_not_ok_status(error, None)


def _needed_ops(outputs: list[Any]) -> dict[Any, Any]:
    """Returns the ops that are needed for the outputs, with their values where these are known."""
    needed: dict[Any, Any] = {}
    pending = [output.op for output in outputs]
    while pending:
        operation = pending.pop()
        if operation not in needed:
            needed[operation] = _known_value(operation)
            if needed[operation] is None:
                pending += [tensor.op for tensor in operation.inputs]
    return needed


def _known_value(operation: Any) -> Any:
    """Returns the value of an op, if it follows from constants and shapes and is small."""
    if operation.type == "Const":
        return tensor_util.MakeNdarray(operation.get_attr("value"))
    if len(operation.outputs) != 1:
        return None
    (output,) = operation.outputs
    size = output.shape.num_elements()
    if output.dtype not in _FOLDED_TYPES or size is None or size > _MAX_FOLDED_ITEMS:
        return None
    return tensor_util.constant_value(output)


def check_has_no_effect(graph: Any) -> None:
    """Raises NotStraightError for an op with an effect, also if no output depends on it."""
    for operation in graph.get_operations():
        definition = op_def_registry.get(operation.type)
        if definition is None:
            raise NotStraightError(f"{operation.type} is a function", has_effect=True)
        if definition.is_stateful and operation.type not in _READS:
            raise NotStraightError(f"{operation.type} has an effect", has_effect=True)


def _check_is_plain(operation: Any) -> None:
    if operation.type.startswith("Placeholder"):
        raise NotStraightError(f"{operation.name} is given no value")
    if operation.device:
        raise NotStraightError(f"{operation.type} is put on a device")


def _returns_one_tensor(operation: Any) -> bool:
    args = op_def_registry.get(operation.type).output_arg
    return len(args) == 1 and not args[0].number_attr and not args[0].type_list_attr


def _for_python(value: Any) -> Any:
    """Returns an attribute's value as TensorFlow's wrappers of ops give it."""
    if isinstance(value, tf.DType):
        return value.as_datatype_enum
    if isinstance(value, list):
        return [_for_python(item) for item in value]
    if isinstance(value, tensor_shape_pb2.TensorShapeProto):
        return None if value.unknown_rank else [dim.size for dim in value.dim]
    return value
