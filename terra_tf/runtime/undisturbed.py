"""Calls that nothing from outside interrupts.

TensorFlow's own Python enters and leaves graphs. An exception that is raised in between, by Ctrl-C
or by a signal handler with a time limit, leaves the thread inside a graph, and each later op of the
program is added to that. Python raises such exceptions in the main thread, or in the one that a
timeout library names. So what builds graphs runs in a thread that nobody knows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class FailedCallError(Exception):
    """The call itself raised, which is not what was raised in the thread that waits for it.

    Attributes:
      error: What it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error


class _Call(threading.Thread):
    def __init__(self, function: Callable[..., Any], args: tuple) -> None:
        super().__init__(name=f"terra-{function.__name__}")
        self._function, self._args = function, args
        self.result: Any = None
        self.error: Exception | None = None
        self._is_running = threading.Lock()
        self._is_running.acquire()

    def run(self) -> None:
        try:
            self.result = self._function(*self._args)
        except Exception as error:
            self.error = error
        finally:
            self._is_running.release()

    def wait(self) -> None:
        """Waits for the end. An interrupted `join` takes the thread for stopped (bpo-45274)."""
        self._is_running.acquire()


def call_undisturbed(function: Callable[..., T], *args: Any) -> T:
    """Calls a function in a thread of its own, and waits for it.

    Args:
      function: Must touch nothing that others change: if the wait is interrupted, the call goes on
        to its end beside whatever the program does next.
      *args: Its arguments.

    Raises:
      FailedCallError: The function raised.
      BaseException: Anything else was raised in this thread, from outside.
    """
    call = _Call(function, args)
    try:
        call.start()
    except RuntimeError:  # no more threads: at the interpreter's end, or at the system's limit
        call.run()
    else:
        call.wait()
    if call.error is not None:
        raise FailedCallError(call.error) from call.error
    return call.result
