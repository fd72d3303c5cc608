"""How much of each conformance case runs in the graph.

    python -m benchmarks.coverage --conformance=PATH [--cases=01,03] [--out=benchmarks/coverage.csv]

Every case runs in its own process under `terra_tf.function`, for `--steps` calls: by default 24, or
96 where it takes more than a dozen to see every way it goes (or as many as the case asks for, where
eager itself raises, or disagrees with itself, in more of them). Its results are compared with
eager's by the suite's own `run.py`. The first half of the calls is warm-up, the second half is what
the shares are of. The CSV has a line per case:

    case, name          the number in the suite, and its name
    verdict             OK, WRONG, ERROR, TIMEOUT; NO_REFERENCE: eager does not run here
    calls               calls of the case's `step()`
    steps               steps of its terra functions in the second half of the calls
    co_executed         how many of those were matched and committed to their end
    co_executed_share   co_executed / steps; empty where no function ran a step
    delegated_share     mean over the co-executed steps of 1 - imperative ops / ops, both of the
                        function's current graph after the call; empty if none was co-executed
    traced              steps of the second half that were recorded from their start
    graph_builds        graphs built in all calls
    num_switch_cases    of the graphs in use at the end
    late_fallbacks      reason:count of the second half's steps that left the graph
    fallbacks           the same of all calls: why an entry gave up is often found here only
    imperative_ops      op type:count of the graphs in use at the end

Steps and counters are summed over the case's terra functions. A function that is called within
another's step has none of its own. Lines of cases that were not run stay in the CSV as they are.
Prints which cases are less than 90 % co-executed, and why. Exits with 1 if a verdict is not OK.
"""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from benchmarks import coverage_case
from benchmarks.coverage_report import Row, measure, read_rows, summarize, write_rows

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CSV = _ROOT / "benchmarks" / "coverage.csv"
_DEFAULT_STEPS = 24

# As the suite's run.py starts its workers.
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}

_CONFORMANCE = flags.DEFINE_string("conformance", None, "The suite's folder.", required=True)
_CASES = flags.DEFINE_list("cases", [], "Numbers of the cases to run; by default all.")
_OUT = flags.DEFINE_string("out", str(_CSV), "The CSV to write, or to bring up to date.")
_STEPS = flags.DEFINE_integer(
    "steps", None, "Calls of each case; by default as many as its line in coverage.csv has.",
    lower_bound=2,
)  # fmt: skip
_TIMEOUT_S = flags.DEFINE_float("timeout_s", 400.0, "Limit for each run of a case.")
_KEEP = flags.DEFINE_string("keep", None, "A folder for logs, counters and explain() texts.")


class Suite:
    """The conformance suite, run in a folder of its own.

    Args:
      path: The suite's folder, with `run.py` and `cases/`.
      work: Where probed cases, logs, results and counters go.
      timeout_s: Limit for each run of a case.
    """

    def __init__(self, path: pathlib.Path, work: pathlib.Path, timeout_s: float) -> None:
        self._run_path = path / "run.py"
        self._run: Any = coverage_case.load(self._run_path)
        self._run.OUT = str(work)
        self._work = work
        self._timeout_s = timeout_s
        self.cases = sorted((path / "cases").glob("case_*.py"), key=number_of)

    def find_references(
        self, cases: Sequence[pathlib.Path], num_steps: dict[str, int]
    ) -> dict[str, dict]:
        """Run eager twice, and return the results, by the case's name, of which it is sure.

        Cases that fail with their `num_steps` calls are tried with as many as they ask for. The
        probed case that is left behind is the one to run under terra.
        """
        found: dict[str, dict] = {}
        for is_own_number in (False, True):
            left = [case for case in cases if case.stem not in found]
            numbers = [None if is_own_number else num_steps[case.stem] for case in left]
            results = self._run_eager(list(map(self._write_probed, left, numbers)))
            first: Any
            second: Any
            for case, (first, second) in zip(left, results):
                agrees = first and second and self._run.exact(first["steps"], second["steps"])
                if agrees and first["exc"] is None and second["exc"] is None:
                    found[case.stem] = first
        return found

    def run_terra(self, case: pathlib.Path, reference: dict) -> tuple[Row, str]:
        """Run a case under terra; return its row, and how its results differ, if they do."""
        probed = self._work / case.name
        process, out, _ = self._run.launch(str(probed), "user", "terra_tf:function")
        result: dict[str, Any] | None = {"steps": [], "exc": ("ProcessDied", 0, "no result", "")}
        try:
            process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            result = None
        result = _unpickle(pathlib.Path(out)) or result
        verdict, detail, _ = self._run.verdict(self._run.meta(str(case)), reference, result)
        num_calls = len(reference["steps"])
        snapshots = self._read_snapshots(case, num_calls)
        measured = measure(snapshots) if snapshots else {}
        row = Row(number_of(case), name_of(case), verdict, calls=num_calls, **measured)
        return row, detail

    def _write_probed(self, case: pathlib.Path, num_steps: int | None) -> pathlib.Path:
        probed = self._work / case.name
        arguments = f"{str(case)!r}, {num_steps}, {str(self._snapshots_path(case))!r}"
        probed.write_text(
            f"from benchmarks.coverage_case import probe\n\nmake, STEPS = probe({arguments})\n",
            encoding="utf-8",
        )
        self._snapshots_path(case).unlink(missing_ok=True)
        return probed

    def _run_eager(self, cases: Sequence[pathlib.Path]) -> list[tuple[dict | None, dict | None]]:
        outs = [[case.with_suffix(f".eager{turn}.pkl") for turn in (1, 2)] for case in cases]
        jobs = []
        for case, turns in zip(cases, outs):
            for out in turns:
                out.unlink(missing_ok=True)
                jobs += [str(case), str(out)]
        if jobs:
            module = ["-m", "benchmarks.coverage_case"]
            subprocess.run(
                [sys.executable, *module, str(self._run_path), str(self._timeout_s), *jobs],
                cwd=_ROOT,
                env={**os.environ, **_ENVIRONMENT},
                check=True,
            )
        return [tuple(_unpickle(out) for out in turns) for turns in outs]

    def _snapshots_path(self, case: pathlib.Path) -> pathlib.Path:
        return self._work / f"{case.stem}.jsonl"

    def _read_snapshots(self, case: pathlib.Path, num_calls: int) -> list[list[dict]]:
        """Return the counters after each call; nothing unless all calls came to their end."""
        path = self._snapshots_path(case)
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_call = {line["call"]: line["functions"] for line in lines}
        has_ended = num_calls - 1 in by_call
        return [by_call.get(call, []) for call in range(num_calls)] if has_ended else []


def number_of(case: pathlib.Path) -> int:
    """Return 1 for `case_01_print_side_effect.py`."""
    return int(case.stem.split("_")[1])


def name_of(case: pathlib.Path) -> str:
    """Return "print_side_effect" for `case_01_print_side_effect.py`."""
    return case.stem.split("_", 2)[2]


def _unpickle(path: pathlib.Path) -> Any:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return pickle.load(file)


def _run_cases(suite: Suite, cases: Sequence[pathlib.Path]) -> list[Row]:
    recorded = read_rows(_CSV) if _CSV.exists() else {}
    num_steps = {}
    for case in cases:
        row = recorded.get(number_of(case))
        known = _DEFAULT_STEPS if row is None or row.calls == 0 else row.calls
        num_steps[case.stem] = _STEPS.value or known
    references = suite.find_references(cases, num_steps)
    rows = []
    for case in cases:
        if case.stem in references:
            row, detail = suite.run_terra(case, references[case.stem])
        else:
            row, detail = Row(number_of(case), name_of(case), "NO_REFERENCE", calls=0), ""
        rows.append(row)
        print(",".join(row.cells().values()), detail, flush=True)
    return rows


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    wanted = {int(number) for number in _CASES.value}
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(_KEEP.value or temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)
        suite = Suite(pathlib.Path(_CONFORMANCE.value).resolve(), work, _TIMEOUT_S.value)
        unknown = wanted - {number_of(case) for case in suite.cases}
        if unknown:
            raise app.UsageError(f"no such cases: {sorted(unknown)}")
        cases = [case for case in suite.cases if not wanted or number_of(case) in wanted]
        rows = _run_cases(suite, cases)
    out = pathlib.Path(_OUT.value)
    recorded = read_rows(out) if out.exists() else {}
    write_rows(out, {**recorded, **{row.case: row for row in rows}}.values())
    print(summarize(rows))
    print(f"Written to {out}")
    sys.exit(any(row.verdict != "OK" for row in rows))


if __name__ == "__main__":
    app.run(main)
