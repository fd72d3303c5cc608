"""`with terra_tf.keras.accelerated()`: every model that is trained or run in a block."""

from __future__ import annotations

import contextlib
import functools
import importlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from terra_tf.keras.acceleration import KINDS, accelerate, is_accelerated, restore, trainer_class


@contextlib.contextmanager
def accelerated() -> Iterator[None]:
    """Accelerates every Keras model that is trained, evaluated or asked to predict in a block.

    At its end each is restored, so that what it knew is gone; a model that was accelerated before
    stays so. Not for blocks that overlap in several threads: the class of Keras' models is changed
    meanwhile.
    """
    importlib.import_module("keras")
    models: list[weakref.ref] = []
    trainer = trainer_class()
    originals = {name: vars(trainer)[name] for name in map("make_{}_function".format, KINDS)}
    for name, original in originals.items():
        setattr(trainer, name, _accelerating(name, original, models))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(trainer, name, original)
        for model in models:
            if (found := model()) is not None:
                restore(found)


def _accelerating(name: str, original: Callable, models: list[weakref.ref]) -> Callable:
    """Returns a method that accelerates its model, which then has a function of ours there."""

    @functools.wraps(original)
    def make(self: Any, force: bool = False) -> Any:
        if is_accelerated(self):  # asked for Keras' own
            return original(self, force)
        accelerate(self)
        models.append(weakref.ref(self))
        return getattr(self, name)(force)

    return make
