"""What `benchmarks.coverage` runs in other processes: a probed case, and eager's results.

A *probed* case is a conformance case that runs for more calls than it asks for, and that writes
down, after every call, what its terra functions have counted:

    make, STEPS = probe("cases/case_01_print_side_effect.py", 24, "case_01_print_side_effect.jsonl")

Run as a program it makes eager's results. Those of a case come from a fork of one process that
has imported TensorFlow and nothing else: as good as a fresh process, and six seconds shorter.

    python -m benchmarks.coverage_case RUN.PY TIMEOUT_S CASE OUT [CASE OUT ...]
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

DEFAULT_STEPS = 12  # of a case that does not say, as in the suite's run.py
EXPLANATION_SUFFIX = ".explain.txt"
_POLL_S = 0.02


def load(path: pathlib.Path) -> Any:
    """Import a file under its own name, and leave no bytecode beside it."""
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def probe(case: str, num_steps: int | None, snapshots: str) -> tuple[Callable, int]:
    """Return a case's `make` and number of calls, with the counters written after every call.

    Args:
      case: The case's file.
      num_steps: How often to call it; None: as often as the case says.
      snapshots: A file that gets a JSON line for each call in which there was a terra function:
        the call's index, and the counters of every function made so far. After the last call,
        `explain()` of each goes into a file beside it.
    """
    module = load(pathlib.Path(case))
    num_steps = num_steps or int(getattr(module, "STEPS", DEFAULT_STEPS))

    def make(wrap: Callable) -> Callable:
        functions, num_calls = [], 0

        def wrap_and_keep(function: Callable) -> Any:
            wrapped = wrap(function)
            if hasattr(wrapped, "stats"):
                functions.append(wrapped)
            return wrapped

        step = module.make(wrap_and_keep)

        def probed_step() -> Any:
            nonlocal num_calls
            result = step()
            num_calls += 1
            if functions:
                _append_snapshot(pathlib.Path(snapshots), num_calls - 1, functions)
            if functions and num_calls == num_steps:
                _write_explanations(pathlib.Path(snapshots), functions)
            return result

        return probed_step

    return make, num_steps


def _append_snapshot(path: pathlib.Path, call: int, functions: Sequence[Any]) -> None:
    counted = [dataclasses.asdict(function.stats()) for function in functions]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"call": call, "functions": counted}) + "\n")


def _write_explanations(path: pathlib.Path, functions: Sequence[Any]) -> None:
    text = "\n\n".join(str(function.explain()) for function in functions)
    path.with_suffix(EXPLANATION_SUFFIX).write_text(text + "\n", encoding="utf-8")


def _run_in_fork(run: Any, case: str, out: str, timeout_s: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            run.worker(case, "eager", "-", out)
        finally:
            os._exit(1)
    deadline = time.monotonic() + timeout_s
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_S)


def main(argv: Sequence[str]) -> None:
    run_path, timeout_s, *jobs = argv
    run = load(pathlib.Path(run_path))
    # Only now, and only loaded: no op runs here, so that no thread of its is lost in a fork.
    importlib.import_module("tensorflow")
    for case, out in zip(jobs[::2], jobs[1::2]):
        _run_in_fork(run, case, out, float(timeout_s))


if __name__ == "__main__":
    main(sys.argv[1:])
