"""Single costs and whole steps: `python -m benchmarks.micro [--only=mlp,overlap] [--steps=N]`.

Prints a table and writes the same, with versions and machine, to `benchmarks/results/`.
Exits with 1 if a section failed, if outputs differ from eager's, or if terra fell back.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import app, flags

import terra_tf as terra
from benchmarks import control_flow, op_costs, replay_split, report, step_times, whose_python

_RESULTS = pathlib.Path(__file__).parent / "results"

# An MLP as in the speed target, a GPT as in the table of baselines, two Keras models, and a network
# that is differentiated by `batch_jacobian`.
_TRAINING_STEPS: dict[str, dict[str, Any]] = {
    "mlp": dict(program="mlp", sizes={}),
    "mlp_read_every_10": dict(program="mlp", sizes={}, read_every=10),
    "gpt64x2": dict(program="gpt", sizes={"width": 64, "batch": 2}),
    "keras_mlp": dict(program="keras_mlp", sizes={}),
    "keras_cnn": dict(program="keras_cnn", sizes={}),
    "pinn": dict(program="pinn", sizes={}),
    "varying_lengths": dict(program="varying_lengths", sizes={}),
}
_OP_COSTS = {
    "off_overhead": op_costs.off_overhead,
    "matched_op": op_costs.matched_op,
    "matched_op_with_tape": op_costs.matched_op_with_tape,
    "replayed_call": op_costs.replayed_call,
    "replayed_call_with_tape": op_costs.replayed_call_with_tape,
}
_CONTROL_FLOW = {
    "branches": functools.partial(control_flow.branches, training=False),
    "branches_training": functools.partial(control_flow.branches, training=True),
    "loop": functools.partial(control_flow.long_loop, reads=False),
    "loop_with_reads": functools.partial(control_flow.long_loop, reads=True),
    "rnn": functools.partial(control_flow.dynamic_rnn, training=False),
    "rnn_training": functools.partial(control_flow.dynamic_rnn, training=True),
}
_SPLIT = [f"split_{name}" for name in ("mlp", "gpt64x2", "keras_mlp", "keras_cnn")]
# Where Grappler may do to the arithmetic what it does in tf.function, at the price of eager's bits.
_ARITHMETIC = "gpt64x2_arithmetic"
_NAMES = [
    *_OP_COSTS, *_TRAINING_STEPS, _ARITHMETIC, "small_parts", "batch_preparation", "overlap",
    *_SPLIT, *_CONTROL_FLOW,
]  # fmt: skip

_ONLY = flags.DEFINE_list("only", _NAMES, "The sections to run.")
_STEPS = flags.DEFINE_integer(
    "steps", 300, "Timed steps per contestant, but for costs of single ops.", lower_bound=1
)
_JSON = flags.DEFINE_string(
    "json", None, "Where to write the report; by default benchmarks/results/micro-<date>.json."
)

flags.register_validator(
    "only", lambda names: set(names) <= set(_NAMES), f"sections are {', '.join(_NAMES)}"
)


def _sections(num_steps: int) -> dict[str, Callable[[], report.Section]]:
    training_steps = {
        name: functools.partial(step_times.training_step, name, num_steps=num_steps, **arguments)
        for name, arguments in _TRAINING_STEPS.items()
    }
    training_steps[_ARITHMETIC] = functools.partial(
        _with_arithmetic, training_steps["gpt64x2"], _ARITHMETIC
    )
    overlap = functools.partial(step_times.overlap, num_steps=num_steps)
    ways = {
        name: functools.partial(run_section, num_steps=num_steps)
        for name, run_section in _CONTROL_FLOW.items()
    }
    prepared = functools.partial(step_times.batch_preparation, num_steps=num_steps)
    parts = functools.partial(whose_python.small_parts, num_steps=num_steps)
    others = {"small_parts": parts, "batch_preparation": prepared, "overlap": overlap}
    split = {
        name: functools.partial(
            replay_split.replay_split,
            name,
            **_TRAINING_STEPS[name.removeprefix("split_")],
            num_steps=num_steps,
        )
        for name in _SPLIT
    }
    return {**_OP_COSTS, **training_steps, **others, **split, **ways}


def _with_arithmetic(run_section: Callable[[], report.Section], name: str) -> report.Section:
    with terra.config.override(grappler_arithmetic=True):
        return dataclasses.replace(run_section(), name=name)


def _run(name: str, run_section: Callable[[], report.Section]) -> report.Section:
    try:
        return run_section()
    except Exception as error:  # One broken section must not cost the results of the others.
        failure = f"{type(error).__name__}: {error}"
        return report.Section(name=name, what="did not finish", failure=failure)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    tf.get_logger().setLevel("ERROR")
    sections = []
    for name, run_section in _sections(_STEPS.value).items():
        if name not in _ONLY.value:
            continue
        sections.append(_run(name, run_section))
        print(report.to_table(sections[-1:]), end="\n\n", flush=True)
    now = datetime.datetime.now()
    path = pathlib.Path(_JSON.value or _RESULTS / f"micro-{now:%Y-%m-%d}.json")
    report.write(path, report.to_json(sections, now))
    print(f"Written to {path}")
    sys.exit(any(section.failure is not None for section in sections))


if __name__ == "__main__":
    app.run(main)
