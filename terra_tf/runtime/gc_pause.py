"""Less garbage collection for a while: where many objects are made, and most of them are kept.

Python looks through all of a program's objects again and again then, and finds nothing: that was a
quarter of the time of merging and building, and a third of recording. The user's Python runs in a
recorded step, and may leave garbage; so there the collector only looks more rarely.

An exception from outside may come in the very line that turns the collector on again. So whoever
ends a step, and whoever begins one, looks whether it was left off. Guarded by the co-execution
lock.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# In a recorded step: new objects between two collections, which take about ten milliseconds each;
# and none of the oldest objects, TensorFlow's among them, which take a third of a second.
_RELAXED = (50_000, 10, 1_000_000)

_is_paused = False
_thresholds: tuple[int, int, int] | None = None  # the program's own, while they are relaxed


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Turns the collector off in a `with` block, if the program has it on."""
    global _is_paused
    if not gc.isenabled():
        yield
        return
    try:
        _is_paused = True
        gc.disable()
        yield
    finally:
        _turn_on()


def relax_gc() -> None:
    """Lets the collector look more rarely until `end_pause`, if the program has it on."""
    global _thresholds
    own = gc.get_threshold()
    if _thresholds is None and 0 < own[0] < _RELAXED[0]:
        _thresholds = own
        gc.set_threshold(*_RELAXED)


def end_pause() -> None:
    """The collector is as the program has it, if a pause has ended or was left before its end."""
    global _thresholds
    _turn_on()
    if _thresholds is not None:
        if gc.get_threshold() == _RELAXED:  # else the program has set others meanwhile
            gc.set_threshold(*_thresholds)
        _thresholds = None


def _turn_on() -> None:
    global _is_paused
    if _is_paused:
        gc.enable()
        _is_paused = False
