"""Keeps Ctrl-C out of the moments in which a step is neither here nor there.

Divergence, replay and the retiring of a step must run to their end, or tensors stay pending and
writes are lost. They are bounded, since what they wait for has been cancelled or committed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Holds SIGINT's handler back until the block has ended. A no-op outside the main thread."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])
