"""No garbage collection for a while: where many objects are made, and all of them are kept.

Python looks through all of a program's objects again and again then, and finds nothing: that was a
quarter of the time of merging and building.

An exception from outside may come in the very line that turns the collector on again. So whoever
ends a step, and whoever begins one, looks whether it was left off. Guarded by the co-execution
lock.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_is_paused = False


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
        end_pause()


def end_pause() -> None:
    """Turns the collector on if a pause has ended, or was left before its end."""
    global _is_paused
    if _is_paused:
        gc.enable()
        _is_paused = False
