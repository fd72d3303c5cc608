"""The paper's ten programs do under Terra what they do eagerly, and fare as expected.csv says.

The fast tests compare every program under Terra with eager, bit for bit, and a few under
`tf.function`; the slow one runs the whole command and compares every status.
"""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import terra_tf as terra
from benchmarks.measuring import Spec, measure
from benchmarks.programs.paper import PAPER_PROGRAMS

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPECTED = ROOT / "benchmarks" / "expected.csv"
NUM_STEPS = 5
# One that tf.function freezes, one whose NumPy it cannot run, and one with a library call.
FAST_FAILURES = ("dropblock", "faster_rcnn", "bert_cls")


def read_expected():
    """Return {(program, mode): status} at size tiny."""
    with EXPECTED.open(newline="", encoding="utf-8") as file:
        return {(row["program"], row["mode"]): row["status"] for row in csv.DictReader(file)}


def run_eagerly(function):
    return function


def run_tiny(name, wrap):
    """Run a few steps; return the program and its losses."""
    program = PAPER_PROGRAMS[name].make(wrap, "tiny")
    return program, [float(program.step(i)) for i in range(NUM_STEPS)]


@pytest.mark.parametrize("name", PAPER_PROGRAMS)
def test_program_under_terra_is_eager_bit_for_bit(name):
    eager, eager_losses = run_tiny(name, run_eagerly)
    program, losses = run_tiny(name, terra.function)
    terra.synchronize()
    assert losses == eager_losses
    assert np.all(np.isfinite(losses)) and len(set(losses)) > 1
    assert program.python_state() == eager.python_state()
    for found, expected in zip(program.variables, eager.variables, strict=True):
        assert found.numpy().tobytes() == expected.numpy().tobytes(), expected.name
    assert program.function.stats().steps == NUM_STEPS


@pytest.mark.parametrize("name", FAST_FAILURES)
def test_program_that_tf_function_cannot_run_is_told_apart(name):
    events = []
    spec = Spec(name, "tiny", ("eager", "tf_function"), steps=1, warmup_steps=0)
    measure(spec, events.append)
    statuses = {event["mode"]: event["status"] for event in events if event["event"] == "failed"}
    assert statuses == {"tf_function": read_expected()[name, "tf_function"]}


def test_expected_has_a_line_for_every_program_and_mode():
    modes = ("eager", "tf_function", "tf_function_xla", "terra")
    expected = read_expected()
    assert list(expected) == [(name, mode) for name in PAPER_PROGRAMS for mode in modes]
    assert {expected[name, mode] for name in PAPER_PROGRAMS for mode in ("eager", "terra")} == {
        "ok"
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PAPER_PROGRAMS)
def test_command_gives_the_expected_statuses(name, tmp_path):
    path = tmp_path / "records.json"
    arguments = ["--size=tiny", f"--programs={name}", "--steps=10", f"--json={path}"]
    arguments.append("--modes=eager,tf_function,tf_function_xla,terra")
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert path.exists(), done.stdout + done.stderr
    records = {record["mode"]: record for record in json.loads(path.read_text())["records"]}
    expected = read_expected()
    statuses = {mode: record["status"] for mode, record in records.items()}
    assert statuses == {mode: expected[name, mode] for mode in statuses}, done.stdout
    assert records["terra"]["co_executed_share"] == 1.0, done.stdout
    assert records["terra"]["loss_max_abs_diff"] == 0.0, done.stdout
