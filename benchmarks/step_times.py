"""What a whole training step costs: eager, under tf.function, under terra.function.

Contestants take turns of ten steps, so that each runs as a training loop does; a turn ends when its
last loss and a variable have been read, so that no work is left over for the next one's turn.
The hook stays installed while eager runs: `op_costs.off_overhead` says what that costs it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import terra_tf as terra
from benchmarks.programs import PROGRAMS, Program, mlp
from benchmarks.report import Section
from benchmarks.timing import Sampler, compare, interleave, per_step

STEPS_PER_TURN = 10
_NUM_CHECKED_STEPS = 20
_NUM_WARMUP_TURNS = 2
_SLEEP_S = 0.03
_PREPARATION_S = 0.005


def _identity(function: Callable) -> Callable:
    return function


_WRAPS = {"eager": _identity, "tf_function": tf.function, "terra": terra.function}


def training_step(
    name: str, program: str, sizes: Mapping[str, Any], *, num_steps: int, read_every: int = 1
) -> Section:
    """Measure the steps of a program, its loss read every `read_every` steps.

    A contestant that raises is left out and reported; the others are measured all the same.
    """
    programs, losses, errors = _check(program, sizes)
    timings = interleave(
        {contestant: _turns(p, read_every) for contestant, p in programs.items()},
        num_turns=max(1, num_steps // STEPS_PER_TURN),
        num_warmup_turns=_NUM_WARMUP_TURNS,
    )
    comparisons = {
        contestant: compare(losses["eager"], losses[contestant])
        for contestant in programs
        if contestant != "eager"
    }
    if "terra" in programs:
        errors += _complaints(programs["terra"].function, comparisons["terra"].agrees)
        stats = dataclasses.asdict(programs["terra"].function.stats())
    else:
        stats = {}
    return Section(
        name=name,
        what=f"a step of {program}{dict(sizes) or ''}, loss read every {read_every}",
        timings=timings,
        comparisons=comparisons,
        details={"stats": stats, "read_every": read_every},
        failure="; ".join(errors) or None,
    )


def overlap(*, num_steps: int) -> Section:
    """Let Python sleep while the graph computes for about as long: the two should overlap."""
    num_products = _products_that_take(_SLEEP_S)
    steps: dict[str, Any] = {
        name: _sleeping_step(wrap, num_products)
        for name, wrap in _WRAPS.items()
        if name != "tf_function"
    }
    outputs = {name: [float(step()) for _ in range(8)] for name, step in steps.items()}
    samplers = {name: per_step(_reader(step), 1) for name, step in steps.items()}
    samplers["eager_no_sleep"] = per_step(lambda turn: _products(num_products).numpy(), 1)
    timings = interleave(samplers, num_turns=max(1, num_steps // 10), num_warmup_turns=3)
    comparison = compare(outputs["eager"], outputs["terra"])
    hidden_s = timings["eager"].median_s - timings["terra"].median_s
    return Section(
        name="overlap",
        what=f"{num_products} matrix products, and Python asleep for {_SLEEP_S * 1e3:.0f} ms",
        timings=timings,
        comparisons={"terra": comparison},
        findings={"hidden_ms": 1e3 * hidden_s},
        notes=["tf.function is left out: it would sleep while it traces, and never again"],
        details={"stats": dataclasses.asdict(steps["terra"].stats())},
        failure="; ".join(_complaints(steps["terra"], comparison.agrees)) or None,
    )


def batch_preparation(*, num_steps: int) -> Section:
    """Prepare each batch with NumPy for 5 ms outside of the step, while the graph may compute."""
    num_shuffles = _shuffles_that_take(_PREPARATION_S)
    sizes = {"num_shuffles": num_shuffles}
    section = training_step("batch_preparation", "mlp", sizes, num_steps=num_steps, read_every=10)
    medians = {name: timing.median_s for name, timing in section.timings.items()}
    if not {"terra", "tf_function"} <= set(medians):
        return section
    ratio = medians["terra"] / medians["tf_function"]
    return dataclasses.replace(section, findings={"terra_over_tf_function": ratio})


def _shuffles_that_take(duration_s: float) -> int:
    examples = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    durations = []
    for _ in range(9):
        start_s = time.perf_counter()
        mlp.prepared(examples, 4, 0)
        durations.append((time.perf_counter() - start_s) / 4)
    return max(1, round(duration_s / sorted(durations)[4]))


def _check(
    program: str, sizes: Mapping[str, Any]
) -> tuple[dict[str, Program], dict[str, list[float]], list[str]]:
    """Make and run every contestant; return those that ran, their losses, and the errors."""
    programs: dict[str, Program] = {}
    losses: dict[str, list[float]] = {}
    errors: list[str] = []
    for contestant, wrap in _WRAPS.items():
        try:
            made = PROGRAMS[program](wrap, **sizes)
            losses[contestant] = [float(made.step(i)) for i in range(_NUM_CHECKED_STEPS)]
            programs[contestant] = made
        except Exception as error:  # Whatever it is, it belongs in the report.
            if contestant == "eager":
                raise
            errors.append(f"{contestant} raised {type(error).__name__}: {error}")
    return programs, losses, errors


def _turns(program: Program, read_every: int) -> Sampler:
    smallest = min(program.variables, key=lambda variable: variable.shape.num_elements())

    def run_turn(turn: int) -> None:
        for i in range(turn * STEPS_PER_TURN, (turn + 1) * STEPS_PER_TURN):
            loss = program.step(i)
            if (i + 1) % read_every == 0:
                loss.numpy()
        loss.numpy()
        smallest.numpy()

    return per_step(run_turn, STEPS_PER_TURN)


def _complaints(function: Any, outputs_agree: bool) -> list[str]:
    stats = function.stats()
    complaints = []
    if not outputs_agree:
        complaints.append("terra's outputs differ from eager's")
    if stats.phase != "co-execution":
        complaints.append(f"terra is not co-executing: {stats}")
    return complaints


_MATRIX = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32) / 512**0.5


def _products(num_products: int) -> tf.Tensor:
    h = w = tf.constant(_MATRIX)
    for _ in range(num_products):
        h = tf.matmul(h, w)
    return tf.reduce_sum(h)


def _reader(step: Any) -> Callable[[int], Any]:
    return lambda turn: step().numpy()


def _sleeping_step(wrap: Callable, num_products: int) -> Callable[[], tf.Tensor]:
    @wrap
    def step():
        total = _products(num_products)
        time.sleep(_SLEEP_S)
        return total

    return step


def _products_that_take(seconds: float) -> int:
    """Return how many products of float32[512, 512] fill the time eagerly."""
    num_products = 16
    sample = per_step(lambda turn: _products(num_products).numpy(), num_products)
    product_s = interleave({"product": sample}, num_turns=5, num_warmup_turns=1)["product"].median_s
    return max(1, round(seconds / product_s))
