"""Small things that the generator builds graphs from."""

from __future__ import annotations

from typing import Any

from terra_tf._tf_internals import dtypes, handle_data_util, ops, tensor_shape
from terra_tf.graph.lean_graph import apply_op, serialized_constant


def scalar(value: int = 0) -> Any:
    """Returns an int32 constant; 0 is a signal that carries no value, too."""
    return constant(value, dtypes.int32)


def constant(value: Any, dtype: Any) -> Any:
    """Returns a constant of the current graph."""
    return ops.get_default_graph().constant(serialized_constant(value, dtype), dtype)


def identity(tensor: Any) -> Any:
    """Returns a tensor as the output of an op of the current graph."""
    result = apply_op("Identity", input=tensor).outputs[0]
    if is_handle(tensor) or tensor.dtype == dtypes.variant:
        handle_data_util.copy_handle_data(tensor, result)
    return result


def static_shape(dims: tuple | None) -> Any:
    """Returns the TensorShape of a trace's dimensions: None is an unknown rank, -1 a dimension."""
    if dims is None:
        return tensor_shape.TensorShape(None)
    return tensor_shape.TensorShape([None if d == -1 else d for d in dims])


def is_handle(tensor: Any) -> bool:
    """Says whether a symbolic tensor is a variable's handle."""
    return tensor.dtype == dtypes.resource


def unique(operations: list) -> list:
    """Returns the operations without repetitions, in order."""
    return list(dict.fromkeys(operations))


def common_shape(shapes: list) -> Any:
    """Returns the narrowest TensorShape that includes all of the given ones, at least one."""
    common = shapes[0]
    for shape in shapes[1:]:
        common = common.most_specific_compatible_shape(shape)
    return common


def have_equal_bytes(tensors: list[Any]) -> bool:
    """Says whether host tensors of one dtype have the same bytes."""
    with ops.init_scope():
        first, *others = (tensor.numpy() for tensor in tensors)
    return all(o.shape == first.shape and o.tobytes() == first.tobytes() for o in others)
