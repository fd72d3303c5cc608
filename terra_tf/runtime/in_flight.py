"""The steps that have returned to the user while their graph still runs.

A committed step whose ops cannot fail need not be waited for: it joins this queue, oldest
first, and is released when its graph has ended. Should a graph fail nevertheless, it and all
steps after it are run again, in order, on the thread that finds out.

Guarded by the GIL: every function here runs Python only, and waits release it with the queue in
a consistent state. An exception from outside may be raised at any line: what is done to a step
may be done again, and only then it leaves the queue.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from terra_tf import _native

if TYPE_CHECKING:
    from terra_tf.runtime.session import StepSession

_queue: collections.deque[StepSession] = collections.deque()
_errors: list[BaseException] = []  # of steps that were run again, not raised yet
_monitor: Any = None  # of the one thread that runs failed steps again


def add(session: StepSession) -> None:
    """Appends a committed step, unless it is there or was."""
    if not session.native.is_queued:
        if session not in _queue:
            _queue.append(session)
        session.native.set_is_queued()


def retire_finished() -> None:
    """Releases the oldest steps whose graphs have ended. Never waits for a graph."""
    if _is_recovering_here():
        return
    while _queue and _queue[0].native.ended:
        _retire_oldest()
    _raise_first(_take_errors())


def settle(limit: int = 0) -> None:
    """Waits until at most `limit` steps are in flight.

    Raises:
      Exception: What an op of a failed step raised, once every step has been run again.
    """
    _raise_first(drain(limit))


def drain(limit: int = 0) -> BaseException | None:
    """The same, but returns what is to be raised."""
    if _is_recovering_here():
        return None
    while len(_queue) > limit:
        _retire_oldest()
    return _take_errors()


def settle_through(session: StepSession) -> bool:
    """Waits until `session` is not in flight any more, and its tensors have their values.

    Returns:
      False if this very thread is running failed steps again, which includes it.

    Raises:
      Exception: What an op of a failed step raised.
    """
    if _is_recovering_here():
        return False
    _raise_first(drain_through(session))
    return True


def drain_through(session: StepSession) -> BaseException | None:
    """The same, but returns what is to be raised."""
    while session in _queue:
        _retire_oldest()
    return _recovery().run(_take_errors)  # another thread may be running it again


def forget_all() -> None:
    """Drops the queue, in a forked child that has no runner."""
    _queue.clear()


def _recovery() -> Any:
    global _monitor
    if _monitor is None:
        _monitor = _native.load().module.Monitor()
    return _monitor


def _is_recovering_here() -> bool:
    return _recovery().is_mine


def _take_errors() -> BaseException | None:
    """Returns the first error that nobody has raised yet; the others came of it."""
    first = _errors[0] if _errors else None
    _errors.clear()
    return first


def _raise_first(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _retire_oldest() -> None:
    oldest = _queue[0]
    oldest.await_end()
    if oldest.native.succeeded:
        oldest.release()
        # Another thread may have retired it while this one waited.
        if _queue and _queue[0] is oldest:
            _queue.popleft()
        return
    _recovery().run(_run_again, oldest)


def _run_again(failed: StepSession) -> None:
    """A graph has failed: the steps launched after it ran on a state that never came to be."""
    if failed not in _queue:
        return
    for session in reversed(_queue):
        session.native.cancel()
    for session in _queue:
        session.await_end()
    while _queue:
        oldest = _queue[0]
        error = oldest.replay_committed()
        if error is not None and not any(error is known for known in _errors):
            _errors.append(error)
        oldest.release()
        _queue.popleft()
    _native.load().module.runner_resume()
