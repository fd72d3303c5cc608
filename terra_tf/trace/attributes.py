"""Canonical attributes: what two calls of an op must share to be the same op.

TensorFlow gives an op's attributes in two forms, by route (Python values of those that are
not inferred, or all of them). The canonical form is for equality only: a sorted tuple of
`(name, frozen value)` without the inferred attributes. The tape and the graph get the
caller's own values.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Hashable
from typing import Any

import numpy as np

from terra_tf._tf_internals import dtypes, inferred_attributes, op_def_registry, tensor_shape

_MAX_FLOAT = np.finfo(np.float64).max
SEED_NAMES = ("seed", "seed2")


@functools.cache
def is_seeded(op_type: str) -> bool:
    """Says whether the op draws random numbers from the attributes `seed` and `seed2`."""
    definition = op_def_registry.get(op_type)
    if definition is None:
        return False
    return set(SEED_NAMES) <= {attr.name for attr in definition.attr}


def freeze(value: Any) -> Hashable:
    """Returns a hashable stand-in that is equal just when the attribute values mean the same."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    if isinstance(value, dtypes.DType):
        return ("dtype", value.as_datatype_enum)
    if isinstance(value, tensor_shape.TensorShape):
        return ("shape", None if value.rank is None else tuple(value.as_list()))
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, (int, bytes, type(None))):
        return value
    if hasattr(value, "SerializeToString"):
        return ("proto", value.SerializeToString(deterministic=True))
    if hasattr(value, "name"):  # a function given as an attribute
        return ("function", value.name)
    return ("repr", repr(value))


def canonical_attributes(op_type: str, attrs: tuple, is_fast: bool) -> Hashable:
    """Returns the canonical form of a call's attribute tuple `(name, value, ...)`.

    Args:
      op_type: The op, or a function's name.
      attrs: As TensorFlow's entry points get them.
      is_fast: The route; unused by design, since both forms must meet here.

    Returns:
      A hashable value. Seeds of random ops are left out: they are fed.
    """
    del is_fast
    if isinstance(op_type, bytes):
        op_type = op_type.decode()
    left_out = set(inferred_attributes(op_type))
    if is_seeded(op_type):
        left_out.update(SEED_NAMES)
    pairs = {
        name: _freeze_typed(op_type, name, value)
        for name, value in zip(attrs[::2], attrs[1::2])
        if name not in left_out
    }
    return tuple(sorted(pairs.items()))


def result_attributes(op_type: str, attrs: tuple) -> Hashable:
    """Returns what of an op's attributes says how many results it has, and of which types.

    Args:
      op_type: A registered op.
      attrs: As TensorFlow's entry points get them.

    Returns:
      A hashable value, as `canonical_attributes` has it.
    """
    if isinstance(op_type, bytes):
        op_type = op_type.decode()
    names = _names_for_results(op_type)
    pairs = list(zip(attrs[::2], attrs[1::2]))
    telling = tuple(item for pair in pairs if pair[0] in names for item in pair)
    return canonical_attributes(op_type, telling, True)


@functools.cache
def _names_for_results(op_type: str) -> frozenset[str]:
    definition = op_def_registry.get(op_type)
    results = () if definition is None else definition.output_arg
    return frozenset(
        name for arg in results for name in (arg.type_attr, arg.type_list_attr, arg.number_attr)
    )


def _freeze_typed(op_type: str, name: str, value: Any) -> Hashable:
    """Freezes with the attribute's declared type in view: 1.0 may be written as 1.

    A value that is of another type is equal to itself only: TensorFlow looks at it, and may raise.
    """
    if value is None:
        value = _default_of(op_type, name)
    declared = _attribute_types(op_type).get(name, "")
    kind, is_list = declared.removeprefix("list(").removesuffix(")"), declared.startswith("list(")
    if not is_list:
        return _freeze_item(kind, value)
    if not isinstance(value, (list, tuple)):
        return ("not a list", freeze(value))
    return tuple(_freeze_item(kind, item) for item in value)


def _freeze_item(kind: str, value: Any) -> Hashable:
    if kind == "bool" and isinstance(value, bool):
        return ("bool", bool(value))
    if kind == "int" and isinstance(value, numbers.Integral):
        return int(value)
    if kind == "float" and isinstance(value, (int, float, np.integer, np.floating)):
        return ("float", float(value).hex()) if abs(value) < _MAX_FLOAT else freeze(value)
    if kind == "type":
        return _freeze_type(value)
    if kind == "shape" and isinstance(value, (list, tuple)):
        return _freeze_shape(value)
    return (f"no {kind}", freeze(value)) if kind in ("bool", "int", "float") else freeze(value)


def _freeze_type(value: Any) -> Hashable:
    try:
        return ("dtype", dtypes.as_dtype(value).as_datatype_enum)
    except TypeError:
        return ("no dtype", freeze(value))


def _freeze_shape(value: Any) -> Hashable:
    try:
        return freeze(tensor_shape.as_shape(value))
    except (TypeError, ValueError):
        return ("no shape", freeze(value))


@functools.cache
def _attribute_types(op_type: str) -> dict[str, str]:
    definition = op_def_registry.get(op_type)
    return {} if definition is None else {attr.name: attr.type for attr in definition.attr}


@functools.cache
def _default_of(op_type: str, name: str) -> Any:
    """Returns the default that an attribute given as None has, where it is a simple value."""
    definition = op_def_registry.get(op_type)
    attrs = () if definition is None else definition.attr
    for attr in attrs:
        if attr.name != name or not attr.HasField("default_value"):
            continue
        kind = attr.default_value.WhichOneof("value")
        if kind in ("i", "b", "f", "s", "type"):
            return getattr(attr.default_value, kind)
        if kind == "list" and attr.type == "list(int)":
            return tuple(attr.default_value.list.i)
    return None
