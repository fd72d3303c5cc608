"""Pit the ways of running TensorFlow programs against each other, on the Terra paper's programs.

    python -m benchmarks --size=tiny
    python -m benchmarks --programs=gpt2,dcgan --modes=eager,terra --steps=100 --json=out.json

Each program runs in a process of its own. There every mode runs the same first steps, and its
losses and Python state are compared with eager's; a mode that differs is WRONG, one that raises an
error is shown with it, and neither is timed. The others take turns, step by step, until none of
them traces or builds anything any more, and then for --steps timed steps. Ctrl-C ends it and keeps
what was measured.

Exits with 1 if eager or terra is not right everywhere, with 130 after Ctrl-C.
"""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import app, flags
from tqdm import tqdm

from benchmarks import bar_chart, report
from benchmarks.comparison import Comparison, summarize, to_table
from benchmarks.names import MODE_NAMES, PROGRAM_NAMES, SIZE_NAMES
from benchmarks.supervisor import Supervisor

_EXIT_INTERRUPTED = 130

_PROGRAMS = flags.DEFINE_list(
    "programs", ["all"], f"What to run: all, or some of {', '.join(PROGRAM_NAMES)}."
)
_MODES = flags.DEFINE_list(
    "modes",
    ["eager", "tf_function", "terra"],
    f"How to run it: some of {', '.join(MODE_NAMES)}. eager always runs, to compare with.",
)
_SIZE = flags.DEFINE_enum(
    "size", "small", SIZE_NAMES, "tiny for a look, small for a CPU, paper (as published) for a GPU."
)
_STEPS = flags.DEFINE_integer("steps", 30, "Timed steps of each mode.", lower_bound=1)
_CHECK_STEPS = flags.DEFINE_integer(
    "check_steps", 15, "First steps, in which losses are compared with eager's.", lower_bound=1
)
_WARMUP_STEPS = flags.DEFINE_integer(
    "warmup_steps", 60, "The most steps to wait for quiet before timing.", lower_bound=0
)
_RELATIVE_TOLERANCE = flags.DEFINE_float(
    "relative_tolerance",
    1e-5,
    "How far the first loss may be from eager's, relative to it; doubles every step, up to 1e-2.",
)
_ABSOLUTE_TOLERANCE = flags.DEFINE_float(
    "absolute_tolerance", 1e-5, "What losses may differ by in addition."
)
_TIMEOUT_S = flags.DEFINE_float(
    "timeout_s", 300.0, "Seconds after which a step, or building a program, counts as hung."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, data, dropout and Python's choices.")
_JSON = flags.DEFINE_string("json", None, "Where to write records, versions and every sample.")
_PLOT = flags.DEFINE_string("plot", None, "Where to write a bar chart of the speedups, as PNG.")

flags.register_validator(
    _PROGRAMS,
    lambda names: names == ["all"] or (names and set(names) <= set(PROGRAM_NAMES)),
    f"programs are all, or some of {', '.join(PROGRAM_NAMES)}",
)
flags.register_validator(
    _MODES,
    lambda names: bool(names) and set(names) <= set(MODE_NAMES),
    f"modes are {', '.join(MODE_NAMES)}",
)


class Progress:
    """A bar for each program, moved by the events of its worker."""

    def __init__(self, program: str, num_modes: int, num_steps: int):
        total = num_modes * num_steps
        self._bar = tqdm(total=total, desc=program, unit="step", disable=None, leave=False)

    def show(self, event: Mapping[str, Any]) -> None:
        """Tell what is going on; only timed steps move the bar."""
        if event["event"] == "begin":
            self._bar.set_postfix_str(f"{event['phase']} {event['mode']}", refresh=True)
        elif event["event"] == "step" and event["phase"] == "timed":
            self._bar.update()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def compare() -> Comparison:
    """Measure what the flags say; after Ctrl-C, return what was measured until then."""
    modes = list(dict.fromkeys(["eager", *_MODES.value]))
    programs = PROGRAM_NAMES if _PROGRAMS.value == ["all"] else tuple(_PROGRAMS.value)
    settings = {
        "size": _SIZE.value,
        "modes": modes,
        "steps": _STEPS.value,
        "check_steps": _CHECK_STEPS.value,
        "warmup_steps": _WARMUP_STEPS.value,
        "relative_tolerance": _RELATIVE_TOLERANCE.value,
        "absolute_tolerance": _ABSOLUTE_TOLERANCE.value,
        "seed": _SEED.value,
    }
    comparison = Comparison(settings)
    for program in dict.fromkeys(programs):
        progress = Progress(program, len(modes), _STEPS.value)
        supervisor = Supervisor(_TIMEOUT_S.value, progress.show)
        try:
            comparison.measurements += supervisor.measure({**settings, "program": program})
        except KeyboardInterrupt:  # Between two events; what was told so far is lost here only.
            comparison.is_interrupted = True
        finally:
            progress.close()
        comparison.is_interrupted |= supervisor.is_interrupted
        shown = [record for record in comparison.records() if record.program == program]
        if shown:
            print(to_table(shown), end="\n\n", flush=True)
        if comparison.is_interrupted:
            break
    return comparison


def main(argv: list[str]) -> int:
    """Compare, print and write; return the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    absence = bar_chart.explain_absence() if _PLOT.value else None
    if absence:
        raise app.UsageError(absence)
    comparison = compare()
    records = comparison.records()
    print(summarize(records))
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        report.write(path, comparison.to_json(datetime.datetime.now()))
        print(f"Records and samples: {path}")
    if _PLOT.value and records:
        bar_chart.draw(records, pathlib.Path(_PLOT.value))
        print(f"Chart: {_PLOT.value}")
    if comparison.is_interrupted:
        print("Interrupted; what was measured is above.")
        return _EXIT_INTERRUPTED
    return int(any(r.status != "ok" for r in records if r.mode in ("eager", "terra")))


def run() -> None:
    """Run as a command: the console script `terra-bench`."""
    app.run(main)


if __name__ == "__main__":
    run()
