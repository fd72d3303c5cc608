"""The steps that have returned to the user while their graph still runs.

A committed step whose ops cannot fail need not be waited for: it joins this queue, oldest
first, and is released when its graph has ended. Should a graph fail nevertheless, it and all
steps after it are run again, in order, on the thread that finds out.

Guarded by the GIL: every function here runs Python only, and waits release it with the queue in
a consistent state.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from terra_tf import _native

if TYPE_CHECKING:
    from terra_tf.runtime.session import StepSession

_queue: collections.deque[StepSession] = collections.deque()


def add(session: StepSession) -> None:
    """Appends a committed step."""
    _queue.append(session)


def retire_finished() -> None:
    """Releases the oldest steps whose graphs have ended. Never waits for a graph."""
    while _queue and _queue[0].native.ended:
        _retire_oldest()


def settle(limit: int = 0) -> None:
    """Waits until at most `limit` steps are in flight.

    Raises:
      Exception: What an op of a failed step raised, once every step has been run again.
    """
    while len(_queue) > limit:
        _retire_oldest()


def settle_through(session: StepSession) -> None:
    """Waits until `session` is not in flight any more."""
    while session in _queue:
        _retire_oldest()


def num_in_flight() -> int:
    """Returns how many steps are in flight."""
    return len(_queue)


def forget_all() -> None:
    """Drops the queue, in a forked child that has no runner."""
    _queue.clear()


def _retire_oldest() -> None:
    oldest = _queue[0]
    oldest.await_end()
    # Another thread may have retired it while this one waited.
    if not _queue or _queue[0] is not oldest:
        return
    if oldest.native.succeeded:
        _queue.popleft()
        oldest.release()
        return
    _run_again()


def _run_again() -> None:
    """A graph has failed: the steps launched after it ran on a state that never came to be."""
    failed = list(_queue)
    for session in reversed(failed):
        session.native.cancel()
    for session in failed:
        session.await_end()
    _native.load().module.runner_resume()
    errors = []
    for session in failed:
        if session in _queue:
            _queue.remove(session)
        error = session.replay_committed()
        if error is not None:
            errors.append(error)
    if errors:
        raise errors[0]
