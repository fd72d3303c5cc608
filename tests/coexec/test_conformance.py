"""The conformance cases, each the shape of a public complaint about tf.function, all pass."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUITE = pathlib.Path(os.environ.get("TERRA_CONFORMANCE", ROOT / "../shared/conformance")).resolve()
# A handful that between them train, raise, branch, draw, use threads and generators.
FAST_CASES = ["1", "33", "37", "63", "65", "67", "95", "119"]

needs_suite = pytest.mark.skipif(
    not (SUITE / "run.py").exists(),
    reason=f"no conformance suite in {SUITE}; set TERRA_CONFORMANCE to its directory",
)


def is_library_missing(row):
    return row["eager"].startswith("BAD") and "ModuleNotFoundError" in row["eager"]


def run_suite(output_dir, *cases, timeout_s):
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    arguments = ["--wrap", "terra_tf:function", "--modes", "eager", "--out", str(output_dir)]
    process = subprocess.run(
        [sys.executable, str(SUITE / "run.py"), *cases, *arguments],
        env=environment,
        cwd=output_dir,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    rows = json.loads((output_dir / "results.json").read_text())
    # Eager itself fails where a third-party library of a case is not installed.
    runnable = [row for row in rows if not is_library_missing(row)]
    assert runnable, process.stdout + process.stderr
    wrong = [row["case"] for row in runnable if row.get("user") != "OK"]
    assert not wrong, f"{wrong}\n{process.stdout}{process.stderr}"
    assert process.returncode == 0 or len(runnable) < len(rows)


@needs_suite
@pytest.mark.timeout(630)
def test_chosen_cases_are_right(tmp_path):
    run_suite(tmp_path, *FAST_CASES, timeout_s=600)


@pytest.mark.slow
@needs_suite
@pytest.mark.timeout(1830)
def test_every_case_is_right(tmp_path):
    run_suite(tmp_path, timeout_s=1800)
