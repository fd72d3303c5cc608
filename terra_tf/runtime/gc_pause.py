"""Less garbage collection for a while: where many objects are made, and most of them are kept.

Python looks through all of a program's objects again and again then, and finds nothing: that was a
quarter of the time of merging and building, and a third of recording. Only the thresholds are
changed, so that the collector is on or off as the program has it, and never off for good:

- While a trace is merged or a graph is built, only this package makes objects: it looks hardly
  ever.
- The user's Python runs in a recorded step, and may leave garbage: there it looks more rarely.

An exception from outside may come in the very line that sets them back, and a fork at any line. So
whoever ends a step, whoever begins one, and a forked child set them back if they are still this
module's. A program that sets thresholds meanwhile keeps those. Guarded by the co-execution lock.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

Thresholds = tuple[int, int, int]

# Numbers that no program uses, so that this module knows its own.
_HARDLY_EVER: Thresholds = (2_000_000_003, 10, 10)
# In a recorded step: new objects between two collections, which take some milliseconds each; and
# how many of these until the older ones are looked at, and until all, which takes 0.3 s and more.
_MORE_RARELY: Thresholds = (10_007, 10, 30)

_own: Thresholds = (700, 10, 10)  # the program's, when the collector was slowed down last


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Lets the collector look hardly ever in a `with` block."""
    try:
        _slow_down(_HARDLY_EVER)
        yield
    finally:
        end_pause()


def relax_gc() -> None:
    """Lets the collector look more rarely until `end_pause`."""
    _slow_down(_MORE_RARELY)


def end_pause() -> None:
    """The thresholds are the program's, however a pause has ended."""
    if gc.get_threshold() in (_HARDLY_EVER, _MORE_RARELY):
        gc.set_threshold(*_own)


def _slow_down(thresholds: Thresholds) -> None:
    global _own
    end_pause()
    now = gc.get_threshold()
    if 0 < now[0] < thresholds[0]:  # 0: the program has it off
        _own = now
        gc.set_threshold(*thresholds)
