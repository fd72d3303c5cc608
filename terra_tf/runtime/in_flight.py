"""The steps that have returned to the user while their graph still runs.

A committed step whose ops cannot fail need not be waited for: it joins this queue, oldest
first, and is released when its graph has ended. Should a graph fail nevertheless, it and all
steps after it are run again, in order, on the thread that finds out.

Guarded by the GIL: every function here runs Python only, and waits release it with the queue in
a consistent state.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING

from terra_tf import _native

if TYPE_CHECKING:
    from terra_tf.runtime.session import StepSession

_queue: collections.deque[StepSession] = collections.deque()
_recovery = threading.RLock()  # held by the one thread that runs failed steps again
_recovering_thread: int | None = None


def add(session: StepSession) -> None:
    """Appends a committed step."""
    _queue.append(session)


def retire_finished() -> None:
    """Releases the oldest steps whose graphs have ended. Never waits for a graph."""
    if _recovering_thread == threading.get_ident():
        return
    while _queue and _queue[0].native.ended:
        _retire_oldest()


def settle(limit: int = 0) -> None:
    """Waits until at most `limit` steps are in flight.

    Raises:
      Exception: What an op of a failed step raised, once every step has been run again.
    """
    if _recovering_thread == threading.get_ident():
        return
    while len(_queue) > limit:
        _retire_oldest()


def settle_through(session: StepSession) -> bool:
    """Waits until `session` is not in flight any more, and its tensors have their values.

    Returns:
      False if this very thread is running failed steps again, which includes it.
    """
    if _recovering_thread == threading.get_ident():
        return False
    while session in _queue:
        _retire_oldest()
    with _recovery:  # another thread may be running it again
        return True


def num_in_flight() -> int:
    """Returns how many steps are in flight."""
    return len(_queue)


def forget_all() -> None:
    """Drops the queue, in a forked child that has no runner."""
    _queue.clear()


def _retire_oldest() -> None:
    oldest = _queue[0]
    oldest.await_end()
    if oldest.native.succeeded:
        # Another thread may have retired it while this one waited.
        if _queue and _queue[0] is oldest:
            _queue.popleft()
            oldest.release()
        return
    with _recovery:
        if oldest in _queue:
            _run_again()


def _run_again() -> None:
    """A graph has failed: the steps launched after it ran on a state that never came to be."""
    global _recovering_thread
    _recovering_thread = threading.get_ident()
    errors = []
    try:
        for session in reversed(_queue):
            session.native.cancel()
        for session in _queue:
            session.await_end()
        while _queue:
            error = _queue[0].replay_committed()
            if error is not None:
                errors.append(error)
            _queue.popleft().release()
        _native.load().module.runner_resume()
    finally:
        _recovering_thread = None
    if errors:
        raise errors[0]
