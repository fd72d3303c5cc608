"""Programs whose path never changes co-execute from the third step on, and nobody can tell."""

import functools

import numpy as np
import programs
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import Program, assert_co_executing, assert_matches_eager, run_program

pytestmark = pytest.mark.timeout(180)

RAW = [programs.make_raw_mlp, programs.make_raw_cnn, programs.make_raw_transformer]
KERAS = [programs.make_keras_mlp, programs.make_keras_cnn, programs.make_keras_transformer]
CASES = [(make, optimizer) for make in RAW + KERAS for optimizer in ("sgd", "adam")]
NUM_STEPS = 12
NUM_WARM_UP_STEPS = 5


def name(case):
    make, optimizer = case
    return f"{make.__name__.removeprefix('make_')}-{optimizer}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_training_equals_eager(case):
    make, optimizer = case
    (train,) = assert_matches_eager(functools.partial(make, optimizer=optimizer), NUM_STEPS)
    stats = train.stats()
    assert stats.steps == NUM_STEPS
    assert stats.graph_builds == 1
    assert stats.traced_steps + stats.co_executed_steps == NUM_STEPS
    assert stats.co_executed_steps >= NUM_STEPS - NUM_WARM_UP_STEPS
    # Adam makes its variables in the first call, which is a way of its own.
    assert stats.num_switch_cases <= (case[1] == "adam")


@pytest.mark.parametrize("case", CASES, ids=name)
def test_steady_state_delegates_every_op(case):
    make, optimizer = case
    functions = []
    program = make(lambda f: functions.append(terra.function(f)) or functions[0], optimizer)
    before = programs.warm_up(functions[0], program.step, NUM_WARM_UP_STEPS)
    losses = [program.step() for _ in range(5)]
    assert_co_executing(functions[0], after=before)
    assert all(float(loss) == float(loss) for loss in losses)


@pytest.mark.parametrize("make", RAW, ids=lambda make: make.__name__)
def test_raw_training_traces_twice_and_builds_once(make):
    run = run_program(make, terra.function, NUM_STEPS)
    stats = run.functions[0].stats()
    assert (stats.traced_steps, stats.co_executed_steps, stats.graph_builds) == (
        2,
        NUM_STEPS - 2,
        1,
    )
    assert stats.fallbacks == {}
    assert stats.imperative_ops == {}


@pytest.mark.parametrize("make", RAW, ids=lambda make: make.__name__)
def test_losses_read_only_at_the_end_equal_eager(make):
    assert_matches_eager(make, NUM_STEPS, read_at_end=True)


def test_division_by_a_constant_rounds_as_eager_does():
    """Grappler's constant folding multiplies by the reciprocal, which rounds differently."""

    def make(wrap):
        rng = np.random.default_rng(0)
        divide = wrap(lambda x: x * 2.0 / tf.constant(6.0))
        return lambda: divide(tf.constant(programs.normal(rng, 1000)))

    assert_matches_eager(make, 5)


def test_gradient_of_a_mean_over_a_length_that_is_no_power_of_two_is_exact():
    def make(wrap):
        rng = np.random.default_rng(0)
        weight = tf.Variable(programs.normal(rng, 16, 16))

        @wrap
        def train(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.reduce_mean(x @ weight, axis=1) ** 2)
            weight.assign_sub(0.05 * tape.gradient(loss, weight))
            return loss

        return Program(lambda: train(tf.constant(programs.normal(rng, 8, 6, 16))), [weight])

    assert_matches_eager(make, NUM_STEPS)
