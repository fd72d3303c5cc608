"""Whose Python runs in the steps of a profile: the program's, TensorFlow's, Keras', this package's.

A thread looks at the stack of the stepping thread about once in a millisecond. A sample is of whose
frame is innermost; frames of NumPy and of Python's own library count as their caller's. Native code
has no frame: a replayed call is this package's, an op that Python runs itself is TensorFlow's.

The interpreter hands the GIL over only between bytecodes, so the shares are estimates. With fewer
than some hundred samples they are rough ones.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

from terra_tf import _native
from terra_tf.runtime import swapped_code
from terra_tf.trace.code_origin import is_package_file, is_user_file

PROGRAM, TENSORFLOW, KERAS, TERRA = "program", "tensorflow", "keras", "terra_tf"
WAITING = "waiting"
_INTERVAL_S = 0.001
_SWITCH_INTERVAL_S = 0.0005
_STOP_TIMEOUT_S = 10.0
_KERAS = re.compile(r"[/\\](?:site|dist)-packages[/\\](?:keras|tf_keras)[/\\]")
_TENSORFLOW = re.compile(r"[/\\](?:site|dist)-packages[/\\]tensorflow[/\\]")

_latest: weakref.WeakKeyDictionary[Any, dict[str, float]] = weakref.WeakKeyDictionary()


def shares_of(function: Any) -> dict[str, float]:
    """Returns whose Python ran in a function's steps when it was profiled last, or {}."""
    return dict(_latest.get(function, {}))


class PythonSampler:
    """Samples the stacks of threads that are in a step.

    The GIL guards which threads those are (a lock could stay with a thread that is interrupted);
    only the sampling thread touches the counts between `start` and `stop`.
    """

    def __init__(self) -> None:
        self._stepping: dict[int, Any] = {}  # thread -> its function
        self._counts: dict[Any, collections.Counter[str]] = {}
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="terra-sampler", daemon=True)
        self._switch_interval_s = sys.getswitchinterval()

    def start(self) -> None:
        """Begins to sample."""
        sys.setswitchinterval(min(self._switch_interval_s, _SWITCH_INTERVAL_S))
        self._thread.start()

    def stop(self) -> None:
        """Ends, and keeps what was found for `shares_of`."""
        self._has_ended.set()
        self._thread.join(_STOP_TIMEOUT_S)
        sys.setswitchinterval(self._switch_interval_s)
        for function, counts in self._counts.items():
            _latest[function] = _shares(counts)

    @contextlib.contextmanager
    def watch(self, function: Any) -> Iterator[None]:
        """Around a step on this thread."""
        thread = threading.get_ident()
        outer = self._stepping.get(thread)
        try:
            self._stepping[thread] = function
            yield
        finally:
            if outer is None:
                self._stepping.pop(thread, None)
            else:
                self._stepping[thread] = outer

    def total(self) -> dict[str, float]:
        """Returns the shares over all functions."""
        counts = sum(self._counts.values(), collections.Counter())
        return _shares(counts)

    def _run(self) -> None:
        waiting_thread = _native.load().module.waiting_thread
        while not self._has_ended.wait(_INTERVAL_S):
            frames = sys._current_frames()
            waiting = waiting_thread()
            for thread, function in list(self._stepping.items()):
                if thread in frames:
                    owner = WAITING if thread == waiting else owner_of(frames[thread])
                    self._counts.setdefault(function, collections.Counter())[owner] += 1
            del frames


def _shares(counts: collections.Counter[str]) -> dict[str, float]:
    return {owner: counts[owner] / counts.total() for owner in sorted(counts)}


def owner_of(frame: FrameType | None) -> str:
    """Returns whose code a stack is in."""
    while frame is not None:
        owner = _owner_of_code(frame.f_code)
        if owner:
            return owner
        frame = frame.f_back
    return PROGRAM


@functools.lru_cache(maxsize=4096)
def _owner_of_code(code: Any) -> str:
    """Whose a code object is; empty for NumPy's and for Python's own library."""
    name = code.co_filename
    if swapped_code.is_swapped(code) or is_package_file(name):
        return TERRA
    if _KERAS.search(name):
        return KERAS
    if _TENSORFLOW.search(name):
        return TENSORFLOW
    return PROGRAM if is_user_file(name) else ""


def describe(shares: dict[str, float]) -> str:
    """Returns the shares for a person, largest first; empty if there are none."""
    names = {PROGRAM: "the program's", TENSORFLOW: "TensorFlow's", KERAS: "Keras'"}
    names |= {TERRA: "terra_tf's", WAITING: "waiting"}
    largest_first = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{100 * share:.0f} % {names[owner]}" for owner, share in largest_first)
