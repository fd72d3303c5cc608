"""The tensors among a call's arguments: what its entry signature is made of."""

from __future__ import annotations

from typing import Any

from terra_tf._tf_internals import (
    BaseResourceVariable,
    CompositeTensor,
    EagerTensor,
    dtypes,
    nest,
)

_OF_OBJECTS = (dtypes.resource, dtypes.variant)


def find_tensors(value: Any) -> list[Any]:
    """Returns the eager tensors in nested tuples, lists, dicts and composite tensors, in order.

    A ragged or sparse tensor, an `IndexedSlices`, an extension type count as their component
    tensors. A variable is none: it is known by its handle when an op takes it. Nor are
    iterators and datasets, whose components are no values.
    """
    found: list[Any] = []
    _collect(value, found, set())
    return found


def _collect(item: Any, found: list[Any], seen: set[int]) -> None:
    if isinstance(item, EagerTensor):
        found.append(item)
    elif isinstance(item, (tuple, list, dict)):
        if id(item) not in seen:
            seen.add(id(item))
            for part in item.values() if isinstance(item, dict) else item:
                _collect(part, found, seen)
    elif isinstance(item, CompositeTensor) and not isinstance(item, BaseResourceVariable):
        for part in nest.flatten(item, expand_composites=True):
            if isinstance(part, EagerTensor) and part.dtype not in _OF_OBJECTS:
                found.append(part)
