"""Which layers of a model run their Python in each batch, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from terra_tf.runtime.object_state import UnseenStateError, guard_of


def layers_with_python(model: Any) -> dict[str, str]:
    """Returns the layers of a model whose calls are not replayed: "name (class)" -> why.

    The model itself is among them, as the last one, if something in it is not Keras' own.
    """
    layers = [*reversed(model._flatten_layers(include_self=False)), model]
    return {_name(layer): why for layer, why in _with_reasons(layers)}


def _with_reasons(layers: list[Any]) -> Iterator[tuple[Any, str]]:
    for layer in layers:
        try:
            guard_of([layer])
        except UnseenStateError as error:
            yield layer, _reason(layer, str(error))


def _name(layer: Any) -> str:
    return f"{layer.name} ({type(layer).__name__})"


def _reason(layer: Any, unseen: str) -> str:
    if unseen == f"{type(layer).__name__} is a {type(layer).__name__}":
        return "its class is the program's own; what it calls is replayed"
    return f"{unseen}, and a change of it would go unseen"
