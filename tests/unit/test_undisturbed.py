"""Calls in a thread of their own: results, errors, interrupted waits, no more threads."""

import signal
import threading
import time

import pytest

from terra_tf.runtime.undisturbed import FailedCallError, call_undisturbed


def test_it_returns_what_the_function_returns_from_another_thread():
    assert call_undisturbed(threading.get_ident) != threading.get_ident()
    assert call_undisturbed(max, 1, 2) == 2


def test_its_own_error_is_told_from_one_of_outside():
    with pytest.raises(FailedCallError, match="ZeroDivisionError: integer") as raised:
        call_undisturbed(lambda: 1 // 0)
    assert isinstance(raised.value.error, ZeroDivisionError)


def test_interrupted_wait_raises_at_once_and_the_call_ends():
    gate, ended = threading.Event(), threading.Event()

    def work():
        assert gate.wait(30)
        ended.set()

    def on_signal(number, frame):
        raise TimeoutError("time limit")

    before = signal.signal(signal.SIGALRM, on_signal)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="time limit"):
            call_undisturbed(work)
        assert time.monotonic() - start < 10
        assert not ended.is_set()
    finally:
        signal.signal(signal.SIGALRM, before)
        gate.set()
    assert ended.wait(30)


def test_without_threads_it_is_called_here(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert call_undisturbed(threading.get_ident) == threading.get_ident()
