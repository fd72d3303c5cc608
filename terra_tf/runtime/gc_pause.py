"""No garbage collection for a while: where many objects are made, and all of them are kept.

Python looks through all of a program's objects again and again then, and finds nothing: that was a
quarter of the time of merging and building.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Turns the collector off in a `with` block, if the program has it on."""
    was_enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if was_enabled:
            gc.enable()
