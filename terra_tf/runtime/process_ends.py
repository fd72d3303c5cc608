"""The ends of a process: interpreter exit, and fork.

Exit: what has returned to the user is waited for, then the GraphRunner's thread is joined while
TensorFlow's context still lives. Fork: before it, every step is settled, in flight or open, so
that the child holds no pending tensor; the child has no GraphRunner and starts off.
"""

from __future__ import annotations

import atexit
import logging
import os

from terra_tf import _native
from terra_tf.runtime import in_flight, interception
from terra_tf.runtime.gc_pause import end_pause

_logger = logging.getLogger("terra_tf")


_in_forked_child = False


_has_shut_down = False


def has_shut_down() -> bool:
    """Says whether the GraphRunner has ended because the interpreter exits."""
    return _has_shut_down


def in_forked_child() -> bool:
    """Says whether this process was forked from one that had this package loaded."""
    return _in_forked_child


def register() -> None:
    """Registers the handlers, once, when the package is imported."""
    atexit.register(_at_exit)
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def _at_exit() -> None:
    global _has_shut_down
    _has_shut_down = True
    if not interception.is_installed():
        return
    try:
        in_flight.settle()
    except Exception:
        _logger.exception("a step failed while the interpreter exited")
    finally:
        _native.load().module.runner_shutdown()


def _before_fork() -> None:
    if not interception.is_installed():
        return
    native = _native.load().module
    for session in native.live_controllers():
        session.on_conflict()


def _after_fork_in_child() -> None:
    global _in_forked_child
    _in_forked_child = True
    end_pause()  # of the thread that forked, or of another one: it goes on in the parent only
    if not interception.is_installed():
        return
    in_flight.forget_all()
    _native.load().module.after_fork_in_child()
