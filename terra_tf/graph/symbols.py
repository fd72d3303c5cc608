"""Small things that the generator builds graphs from."""

from __future__ import annotations

from typing import Any

from terra_tf._tf_internals import dtypes, ops, tensor_shape


def scalar() -> Any:
    """Returns an int32 constant, for a signal that carries no value."""
    return ops.convert_to_tensor(0, dtype=dtypes.int32)


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
