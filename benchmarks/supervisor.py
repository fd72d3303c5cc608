"""Run the measurement of a program in a process of its own, and survive what it does.

A mode that hangs is killed with its process, and one that crashes takes its process along; either
is noted, and the program is measured anew without that mode. Ctrl-C ends the process and keeps what
had been told until then. No TensorFlow in here: the parent stays small and can always be stopped.
"""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.records import Measurement

Watch = Callable[[Mapping[str, Any]], None]
MakeCommand = Callable[[str, int], list[str]]

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LOG_CHARACTERS = 300
_GRACE_S = 0.5


class StepTimeoutError(Exception):
    """No event came within the time that a step may take."""


class Supervisor:
    """Measures programs, one process each.

    Args:
      timeout_s: how long a step (or the building of a program) may take before the mode is killed.
      watch: is called with every event.
      make_command: returns the command line of a worker for the text of a spec and the file
        descriptor of its events; tests bring their own.
    """

    def __init__(
        self,
        timeout_s: float,
        watch: Watch = lambda event: None,
        make_command: MakeCommand | None = None,
    ):
        self._timeout_s, self._watch = timeout_s, watch
        self._make_command = make_command or _worker_command
        self.is_interrupted = False

    def measure(self, settings: Mapping[str, Any]) -> list[Measurement]:
        """Measure one program; return a measurement for each mode that was begun, in order.

        Args:
          settings: the fields of a `benchmarks.measuring.Spec`.
        """
        program, size, modes = (settings[key] for key in ("program", "size", "modes"))
        finished: dict[str, Measurement] = {}
        left = list(modes)
        while left and not self.is_interrupted:
            found = {mode: Measurement(program, size, mode) for mode in left}
            culprit = self._run({**settings, "modes": left}, found)
            if culprit is None:
                finished.update(found)
                break
            finished[culprit] = found[culprit]
            # Without eager there is nothing to compare with.
            left = [] if culprit == "eager" else [mode for mode in left if mode != culprit]
        return [finished[mode] for mode in modes if mode in finished and _is_begun(finished[mode])]

    def _run(self, settings: Mapping[str, Any], found: dict[str, Measurement]) -> str | None:
        """Run a worker; return the mode that hung or crashed it, if one did."""
        current = "eager"
        is_done = False
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            process, pipe = self._start(settings, log)
            try:
                for event in _read_events(pipe, self._timeout_s):
                    current = event.get("mode", current)
                    if "mode" in event:
                        found[current].add(event)
                    self._watch(event)
                    if event["event"] == "done":
                        is_done = True
                        break
            except StepTimeoutError:
                error = f"a step took more than {self._timeout_s:g} s and was killed"
                found[current].add({"event": "failed", "status": "timeout", "error": error})
                return current
            except KeyboardInterrupt:
                self.is_interrupted = True
                return None
            finally:
                _end(process)
                os.close(pipe)
            if is_done:
                return None
            error = _describe_death(process.returncode, log)
            found[current].add({"event": "failed", "status": "error", "error": error})
            return current

    def _start(self, settings: Mapping[str, Any], log: Any) -> tuple[subprocess.Popen, int]:
        """Start a worker in a session of its own: a Ctrl-C is for the parent alone."""
        pipe, pipe_of_worker = os.pipe()
        try:
            process = subprocess.Popen(
                self._make_command(json.dumps(settings), pipe_of_worker),
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[pipe_of_worker],
                start_new_session=True,
            )
        finally:
            os.close(pipe_of_worker)
        return process, pipe


def _worker_command(spec_text: str, file_descriptor: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.worker", spec_text, str(file_descriptor)]


def _is_begun(measurement: Measurement) -> bool:
    return bool(measurement.steps) or measurement.status != "ok"


def _read_events(pipe: int, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Yield events as they come, until the worker closes its end.

    Raises:
      StepTimeoutError: if none comes for `timeout_s`.
    """
    unfinished = b""
    while True:
        deadline_s = time.monotonic() + timeout_s
        while not select.select([pipe], [], [], 0.5)[0]:
            if time.monotonic() > deadline_s:
                raise StepTimeoutError
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return
        *lines, unfinished = (unfinished + chunk).split(b"\n")
        yield from (json.loads(line) for line in lines)


def _end(process: subprocess.Popen) -> None:
    """Wait a moment for a worker that has closed its pipe, then kill it: it has nothing to tidy."""
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:  # Also at a second Ctrl-C: the worker is in a session of its own and would live on.
        process.kill()
        process.wait()


def _describe_death(return_code: int, log: Any) -> str:
    """Return how a worker ended before it was done, with the end of what it printed."""
    log.seek(0)
    last_words = " ".join(log.read()[-_LOG_CHARACTERS:].split())
    how = f"exit status {return_code}"
    if return_code < 0:
        how = signal.Signals(-return_code).name
    return f"the process died ({how}): {last_words}" if last_words else f"the process died ({how})"
