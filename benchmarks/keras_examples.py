"""Examples of Keras in three modes: `python -m benchmarks.keras_examples [--only=ddim]`.

Each runs in processes of its own, the modes in turn. Prints a table and writes the same, with
versions and machine, to `benchmarks/results/`. Exits with 1 if a program fails, or prints other
numbers under Terra than eagerly.
"""

from __future__ import annotations

import datetime
import os
import pathlib
import re
import statistics
import subprocess
import sys

from absl import app, flags

from benchmarks import report
from benchmarks.timing import Timing, balanced_orders

_ROOT = pathlib.Path(__file__).parents[1]
_EXAMPLES = _ROOT / "examples" / "keras"
_MODES = ("stock", "eager", "terra")
_NAMES = sorted(
    path.stem for path in _EXAMPLES.glob("*.py") if "__main__" in path.read_text("utf-8")
)
_ONLY = flags.DEFINE_list("only", _NAMES, f"Which programs: some of {', '.join(_NAMES)}.")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Processes of each mode.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 8, "Of each program.", lower_bound=2)
_BATCHES = flags.DEFINE_integer("batches", 30, "Of an epoch.", lower_bound=1)
_JSON = flags.DEFINE_string(
    "json", None, "Where to write; by default benchmarks/results/keras-examples-<date>.json."
)
flags.register_validator("only", lambda names: set(names) <= set(_NAMES), "no such program")

# A program that trains twice says it twice; the second is what it is about.
_TIMES = re.compile(r"^\w+: ([\d.]+) s, later ([\d.]+) ms per batch$", re.MULTILINE)
_CANNOT = re.compile(r"^stock: (cannot .*)$", re.MULTILINE)


def measure(name: str, num_rounds: int) -> report.Section:
    """Return seconds per batch in later epochs, and of all epochs, by mode."""
    outputs: dict[str, list[str]] = {mode: [] for mode in _MODES}
    orders = balanced_orders(len(_MODES))
    for turn in range(num_rounds):
        for position in orders[turn % len(orders)]:
            outputs[_MODES[position]].append(_output(name, _MODES[position]))
    times = {mode: [_TIMES.findall(text) for text in texts] for mode, texts in outputs.items()}
    times = {mode: found for mode, found in times.items() if all(found)}
    cannot = _CANNOT.findall(outputs["stock"][0])
    is_equal = {_numbers(text) for text in outputs["terra"]} == {
        _numbers(text) for text in outputs["eager"]
    }
    return report.Section(
        name=name,
        what=f"a batch of later epochs; all of {_EPOCHS.value} epochs of {_BATCHES.value} batches",
        baseline="eager",
        timings={
            mode: Timing(tuple(1e-3 * float(one[-1][1]) for one in found))
            for mode, found in times.items()
        },
        findings={
            f"{mode}_total_s": statistics.median(sum(float(s) for s, _ in one) for one in found)
            for mode, found in times.items()
        },
        notes=[f"stock {cannot[0]}"] if cannot else [],
        failure=None if is_equal else "Terra's numbers are not eager's",
    )


def _output(name: str, mode: str) -> str:
    sizes = ["--epochs", str(_EPOCHS.value), "--batches", str(_BATCHES.value)]
    command = [sys.executable, str(_EXAMPLES / f"{name}.py"), "--mode", mode, *sizes]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "TERRA_WEIGH_COSTS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout


def _numbers(output: str) -> tuple[str, ...]:
    return tuple(line for line in output.splitlines() if line.startswith("{"))


def main(argv: list[str]) -> None:
    """Measure, print and write."""
    del argv
    load_before, sections = os.getloadavg()[0], []
    for name in _ONLY.value:
        sections.append(measure(name, _ROUNDS.value))
        print(report.to_table(sections[-1:]), end="\n\n", flush=True)
    now = datetime.datetime.now()
    path = pathlib.Path(_JSON.value or _ROOT / f"benchmarks/results/keras-examples-{now:%F}.json")
    report.write(path, report.to_json(sections, now))
    print(f"Written to {path}; the load was {load_before:.1f} before")
    sys.exit(any(section.failure is not None for section in sections))


if __name__ == "__main__":
    app.run(main)
