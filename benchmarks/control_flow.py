"""What control flow in Python costs: branches, a long loop, a loop of another length every call.

Every contestant sees the same choices, lengths and inputs in the same order. Outputs are compared
with eager's over the calls that let terra see every way, and only then anything is timed, in turns
as in `step_times`. A section says which ratio is asked for; missing it is no failure, leaving the
graph in a timed call is.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import terra_tf as terra
from benchmarks.programs.program import normal_batches, normal_variable
from benchmarks.report import Section
from benchmarks.timing import Sampler, compare, interleave, per_step, speedups

_NUM_BRANCHES = 8
_NUM_TRIPS = 100
_MIN_LENGTH, _MAX_LENGTH = 5, 30
_LEARNING_RATE = 0.01
_NUM_CHECKED_BRANCH_CALLS = 80
# 256 ways are taken at random: after so many calls nearly all of them have been, and what
# `tape.gradient` does on each is known.
_NUM_SETTLING_BRANCH_CALLS = 1500
_NUM_CHECKED_LOOP_CALLS = 8
_NUM_ROUNDS_OF_LENGTHS = 3
_CALLS_PER_TURN = 5
_NUM_WARMUP_TURNS = 2

Step = Callable[[int], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to run a program.

    step: runs call `i`, with the choices and inputs of that number, and returns a tensor.
    function: what the decorator returned; for terra it has `.stats()`.
    variable: one that every step changes, to be read at the end of a turn; or None.
    reference: the contestant whose outputs these must be.
    """

    step: Step
    function: Any
    variable: tf.Variable | None = None
    reference: str = "eager"


def branches(*, num_steps: int, training: bool) -> Section:
    """Compare a step of 8 two-way branches, chosen at random, to the same one always going one way.

    Both run the very same Python; the straight one is told the same choices in every call.
    """
    make = functools.partial(_branching_step, training=training)
    contestants = {
        "eager": make(lambda function: function, is_random=True),
        "eager_straight": make(lambda function: function, is_random=False),
        "terra": make(terra.function, is_random=True),
        "terra_straight": make(terra.function, is_random=False, reference="eager_straight"),
    }
    section = _measure(
        "branches_training" if training else "branches",
        f"{_NUM_BRANCHES} two-way branches of 4 ops each, "
        + ("with gradients" if training else "forward only"),
        contestants,
        num_checked=_NUM_CHECKED_BRANCH_CALLS,
        num_settling=_NUM_SETTLING_BRANCH_CALLS,
        num_steps=num_steps,
        notes=[
            "asked: branches_over_straight at most 1.15",
            f"terra has run {_NUM_SETTLING_BRANCH_CALLS} calls before any is timed",
        ],
    )
    return _with_ratio(section, "branches_over_straight", "terra", "terra_straight")


def long_loop(*, num_steps: int, reads: bool) -> Section:
    """Run a Python loop of 100 trips of 5 ops; with `reads`, Python reads a value in each trip."""
    make = functools.partial(_looping_step, reads=reads)
    contestants = {"eager": make(lambda function: function), "terra": make(terra.function)}
    if not reads:
        contestants["tf_function"] = make(tf.function)
    return _measure(
        "loop_with_reads" if reads else "loop",
        f"a loop of {_NUM_TRIPS} trips of 5 ops, " + ("each read" if reads else "none read"),
        contestants,
        num_checked=_NUM_CHECKED_LOOP_CALLS,
        num_steps=num_steps,
        notes=[f"asked: terra at least {'1.3x' if reads else '2x'}"],
    )


def dynamic_rnn(*, num_steps: int, training: bool) -> Section:
    """Run an RNN cell over another number of inputs, 5 to 30, in every call.

    tf.function comes twice: `tf_function_unrolled` loops over Python's `range`, and so is traced
    for every length; `tf_function_while` loops over `tf.range`.
    """
    make = functools.partial(_rnn_step, training=training)
    contestants = {
        "eager": make(lambda function: function),
        "terra": make(terra.function),
        "tf_function_unrolled": make(tf.function),
        "tf_function_while": make(tf.function, in_graph=True),
    }
    return _measure(
        "rnn_training" if training else "rnn",
        f"an RNN over {_MIN_LENGTH} to {_MAX_LENGTH} inputs, another number in every call, "
        + ("with gradients" if training else "forward only"),
        contestants,
        num_checked=_NUM_ROUNDS_OF_LENGTHS * (_MAX_LENGTH - _MIN_LENGTH + 1),
        num_steps=num_steps,
        notes=[
            "asked: terra at least 2x",
            "checked: the calls before anything is timed, tracing included: "
            f"{_NUM_ROUNDS_OF_LENGTHS} of each length",
        ],
    )


# --------------------------------------------------------------------- programs


def _branching_step(
    wrap: Callable, *, is_random: bool, training: bool, reference: str = "eager"
) -> Contestant:
    rng = np.random.default_rng(0)
    width, batch = 128, 64
    weights = [normal_variable(rng, width, width) for _ in range(2 * _NUM_BRANCHES)]
    biases = [normal_variable(rng, width) for _ in range(2 * _NUM_BRANCHES)]
    inputs = normal_batches(rng, 4, batch, width)

    def forward(x, choices):
        for j, is_first in enumerate(choices):
            if is_first:
                x = x + tf.tanh(tf.matmul(x, weights[j]) + biases[j])
            else:
                x = x - tf.tanh(tf.matmul(x, weights[-1 - j]) - biases[-1 - j])
        return tf.reduce_mean(tf.square(x))

    def train(x, choices):
        with tf.GradientTape() as tape:
            loss = forward(x, choices)
        _descend(tape, loss, weights + biases)
        return loss

    function = wrap(train if training else forward)
    fixed = tuple(j % 2 == 0 for j in range(_NUM_BRANCHES))

    def step(i):
        drawn = np.random.default_rng(i).integers(2, size=_NUM_BRANCHES).astype(bool).tolist()
        return function(inputs[i % len(inputs)], tuple(drawn) if is_random else fixed)

    return Contestant(step, function, None, reference)


def _looping_step(wrap: Callable, *, reads: bool) -> Contestant:
    rng = np.random.default_rng(0)
    width, batch = 32, 32
    weight, bias = normal_variable(rng, width, width), normal_variable(rng, width)
    inputs = normal_batches(rng, 4, batch, width)
    read: list[float] = []

    @wrap
    def loop(x):
        h = x
        for _ in range(_NUM_TRIPS):
            h = 0.9 * tf.tanh(tf.matmul(h, weight) + bias) + x
            if reads:
                read.append(float(h.numpy()[0, 0]))
        return tf.reduce_mean(h) + (sum(read) if reads else 0.0)

    def step(i):
        read.clear()
        return loop(inputs[i % len(inputs)])

    return Contestant(step, loop)


def _rnn_step(wrap: Callable, *, training: bool, in_graph: bool = False) -> Contestant:
    rng = np.random.default_rng(0)
    width, batch = 64, 32
    from_input, from_state = (normal_variable(rng, width, width) for _ in range(2))
    bias, head = tf.Variable(tf.zeros([width])), normal_variable(rng, width, 1)
    inputs = normal_batches(rng, 4, _MAX_LENGTH, batch, width)

    # AutoGraph makes a loop of the graph of `for` over a tensor, in tf.function only.
    def predict(x, length):
        h = tf.zeros([batch, width])
        for t in tf.range(length) if in_graph else range(length):
            h = tf.tanh(tf.matmul(x[t], from_input) + tf.matmul(h, from_state) + bias)
        return tf.matmul(h, head)

    def forward(x, length):
        return tf.reduce_mean(tf.square(predict(x, length) - 1.0))

    def train(x, length):
        with tf.GradientTape() as tape:
            loss = forward(x, length)
        _descend(tape, loss, [from_input, from_state, bias, head])
        return loss

    function = wrap(train if training else forward)

    def step(i):
        length = _length_of_call(i)
        return function(inputs[i % len(inputs)], tf.constant(length) if in_graph else length)

    return Contestant(step, function, bias if training else None)


def _length_of_call(i: int) -> int:
    """Return the length of call `i`: every round over all lengths has an order of its own."""
    num_lengths = _MAX_LENGTH - _MIN_LENGTH + 1
    order = np.random.default_rng(i // num_lengths).permutation(num_lengths)
    return _MIN_LENGTH + int(order[i % num_lengths])


def _descend(tape: tf.GradientTape, loss: tf.Tensor, variables: Sequence[tf.Variable]) -> None:
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        if gradient is not None:
            variable.assign_sub(_LEARNING_RATE * gradient)


# -------------------------------------------------------------------- measuring


def _measure(
    name: str,
    what: str,
    contestants: Mapping[str, Contestant],
    *,
    num_checked: int,
    num_steps: int,
    notes: Sequence[str],
    num_settling: int = 0,
) -> Section:
    """Check the contestants against eager over `num_checked` calls, then let them take turns.

    Before that, terra runs `num_settling` calls more, to have seen what there is to be seen.
    """
    outputs, checked_s = {}, {}
    for key, contestant in contestants.items():
        start_s = time.perf_counter()
        outputs[key] = [float(contestant.step(i)) for i in range(num_checked)]
        checked_s[f"{key}_checked_s"] = time.perf_counter() - start_s
    comparisons = {
        key: compare(outputs[contestant.reference], outputs[key])
        for key, contestant in contestants.items()
        if not key.startswith("eager")
    }
    for key, contestant in contestants.items():
        for i in range(num_checked, num_checked + num_settling) if key.startswith("terra") else ():
            contestant.step(i)
    before = _terra_stats(contestants)
    timings = interleave(
        {key: _turns(contestant, num_checked) for key, contestant in contestants.items()},
        num_turns=max(1, num_steps // _CALLS_PER_TURN),
        num_warmup_turns=_NUM_WARMUP_TURNS,
    )
    after = _terra_stats(contestants)
    failures = [
        f"{key}'s outputs differ from eager's" for key, c in comparisons.items() if not c.agrees
    ]
    failures += [_complaint(key, before[key], after[key]) for key in after]
    return Section(
        name=name,
        what=what,
        timings=timings,
        comparisons=comparisons,
        findings=checked_s,
        notes=notes,
        details={"stats": {key: dataclasses.asdict(stats) for key, stats in after.items()}},
        failure="; ".join(filter(None, failures)) or None,
    )


def _turns(contestant: Contestant, first_call: int) -> Sampler:
    def run_turn(turn: int) -> None:
        for i in range(turn * _CALLS_PER_TURN, (turn + 1) * _CALLS_PER_TURN):
            output = contestant.step(first_call + i)
        output.numpy()
        if contestant.variable is not None:
            contestant.variable.numpy()

    return per_step(run_turn, _CALLS_PER_TURN)


def _terra_stats(contestants: Mapping[str, Contestant]) -> dict[str, terra.Stats]:
    return {
        key: contestant.function.stats()
        for key, contestant in contestants.items()
        if key.startswith("terra")
    }


def _complaint(key: str, before: terra.Stats, after: terra.Stats) -> str:
    num_steps = after.steps - before.steps
    num_left = num_steps - (after.co_executed_steps - before.co_executed_steps)
    return f"{key} left its graph in {num_left} of {num_steps} timed calls" if num_left else ""


def _with_ratio(section: Section, name: str, slower: str, faster: str) -> Section:
    """Add how many times as long one contestant takes as another, by rounds."""
    ratio = speedups(section.timings, baseline=slower)[faster]
    return dataclasses.replace(section, findings={name: ratio, **section.findings})
