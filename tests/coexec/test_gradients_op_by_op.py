"""Gradients replayed op by op: another tape records them, or Python computes a part of them.

Each program is compared with eager bit for bit, with either side held up at random and without.
"""

import pytest
import tensorflow as tf
from nested_gradient_programs import (
    REPLAYED,
    net,
    new_variables,
    numbers,
    of_slopes,
    penalty,
    squares,
    train,
)

import terra_tf as terra
from terra_tf.testing import find_difference, freeze

pytestmark = pytest.mark.timeout(180)

NUM_CALLS = 20


# ---------------------------------- programs in which a tape may connect what it must not


def equal_scalars(v):
    """TensorFlow has one handle for all scalars of a value; a tape watches one of them."""
    watched = tf.constant(2.0)

    def step(x, y, i):
        with tf.GradientTape() as outer:
            outer.watch(watched)
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(watched * tf.sin(x) ** 2.0 * tf.constant(2.0)) / 2.0
            slope = inner.gradient(z, x)
            loss = tf.reduce_sum(slope**2.0) * 2.0
        return loss, outer.gradient(loss, watched)

    return step


def shapes_on_the_tape(v):
    """In which order an outer tape goes back depends on shapes that gradient functions take."""

    def step(x, y, i):
        with tf.GradientTape() as outer:
            outer.watch(x)
            h = tf.sin(x @ v[0])
            with tf.GradientTape() as inner:
                inner.watch(h)
                z = tf.reshape(h * h, [-1]) * tf.reshape(h, [-1]) + tf.reduce_sum(h)
            slope = inner.gradient(z, h)
            if i > 8 and i % 3:
                with tf.GradientTape():
                    y = y + 1.0
            if i % 5 == 4:
                slope = tf.reshape(tf.reshape(slope, [-1]) * 0.5, tf.shape(slope)) + slope
            loss = tf.reduce_sum(slope * h * tf.reduce_mean(y))
        return outer.gradient(loss, [x, v[0]])

    return step


def shapes_of_before(v):
    """The inner gradient takes a shape that the forward pass has computed."""

    def step(x, y, i):
        with tf.GradientTape() as outer:
            outer.watch(x)
            wide = tf.concat([y, y], axis=1)
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.broadcast_to(tf.reduce_mean(x, 1, keepdims=True), tf.shape(wide)) * wide
                z = tf.tile(z, tf.shape(x)[:1] * 0 + [2, 1])
            slope = inner.gradient(z, x)
            if i > 8 and i % 2:
                with tf.GradientTape():
                    pass
            loss = tf.reduce_sum(slope * slope * x)
        return loss, outer.gradient(loss, x)

    return step


def marked_as_zeros(v):
    """A gradient function leaves out what is given as zeros that TensorFlow has marked."""
    labels = tf.nn.softmax(tf.constant(numbers(4, 3, 4)))
    given = [tf.zeros([3, 4]), tf.constant(numbers(6, 3, 4))]

    def step(x, y, i):
        x, y = x[:1] + tf.zeros([3, 1]), y[:1] + tf.zeros([3, 1])
        second = given[0] if i < 6 else given[i % 2]
        slopes = []
        for is_taped in (False, True):
            with tf.GradientTape(persistent=True) as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    results = tf.raw_ops.SoftmaxCrossEntropyWithLogits(
                        features=net(v, x), labels=labels
                    )
                if is_taped:
                    slopes += inner.gradient(results, [x], output_gradients=[y[:, 0], second])
            if not is_taped:
                slopes += inner.gradient(results, [x], output_gradients=[y[:, 0], second])
        return slopes, outer.gradient(slopes[1], x)

    return step


CONNECTED = [equal_scalars, shapes_on_the_tape, shapes_of_before, marked_as_zeros]


# ---------------------------------------- programs in which others' Python has to run, or looks on


def users_gradient(v):
    @tf.custom_gradient
    def scaled(h):
        def gradient(upstream):
            return upstream * (2.0 if float(tf.reduce_sum(upstream)) > 0.0 else 0.5)

        return h * 1.0, gradient

    def score(x, y, i):
        return tf.reduce_sum(scaled(net(v, x)))

    return of_slopes(v, score, lambda slope, x, y: tf.reduce_sum(slope * slope))


def masked(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            rows = tf.boolean_mask(x, tf.reduce_sum(y, axis=1) > 0.0)
            with tf.GradientTape() as inner:
                inner.watch(rows)
                z = tf.reduce_mean(net(v, rows) ** 2, axis=0)
            slope = inner.gradient(z, rows)
            loss = tf.reduce_sum(slope**2) / max(1, len(rows))
        train(v, outer.gradient(loss, v))
        return loss

    return step


def accumulator(v):
    inner = of_slopes(v, squares(v), lambda slope, x, y: tf.reduce_sum(slope**2))

    def step(x, y, i):
        with tf.autodiff.ForwardAccumulator(x, y) as forward:
            loss, slope = inner(x, y, i)
        return loss, forward.jvp(slope)

    return step


def read_in_between(v):
    def loss_of(slope, x, y):
        size = float(tf.norm(slope))
        return tf.reduce_sum(slope * (1.0 / size if size > 1.0 else 1.0))

    return of_slopes(v, squares(v), loss_of)


def stopped(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(net(v, x) ** 2)
            with outer.stop_recording():
                free = inner.gradient(z, x)
            loss = tf.reduce_sum(net(v, free))
        train(v, outer.gradient(loss, v))
        return loss

    return step


def given_up(v):
    """A tape under which the inner gradient raises, and is used again."""

    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(net(v, x) ** 2)
            slope = inner.gradient(z, x)
            try:
                inner.gradient(z, x)
            except RuntimeError:
                slope = slope * 0.5
            loss = tf.reduce_sum(slope)
        train(v, outer.gradient(loss, v))
        return loss

    return step


OTHERS = [users_gradient, masked, accumulator, read_in_between, stopped, given_up]
ALL = REPLAYED + CONNECTED + OTHERS


def inputs_of(i, num_rows=3):
    return tf.constant(numbers(10 + i, num_rows, 4)), tf.constant(numbers(90 + i, num_rows, 4))


def compare(program, num_rows=lambda i: 3, delays="", num_calls=NUM_CALLS):
    """Compare a program with eager; returns its function."""
    variables = [new_variables() for _ in range(2)]
    tf.random.set_seed(5)
    eager = program(variables[0])
    expected = []
    for i in range(num_calls):
        expected.append(freeze((eager(*inputs_of(i, num_rows(i)), i), variables[0])))
    tf.random.set_seed(5)
    function = terra.function(program(variables[1]))
    with terra.config.override(inject_delays=delays):
        for i in range(num_calls):
            got = freeze((function(*inputs_of(i, num_rows(i)), i), variables[1]))
            difference = find_difference(expected[i], got)
            assert not difference, f"call {i}: {difference}\n{function.explain()}"
    terra.synchronize()
    return function


def num_not_replayed(stats):
    reasons = stats.calls_not_replayed.items()
    return sum(number for text, number in reasons if text.startswith("GradientTape.gradient:"))


@pytest.mark.parametrize("program", REPLAYED, ids=lambda program: program.__name__)
def test_they_are_replayed(program):
    stats = compare(program, num_calls=2 * NUM_CALLS).stats()
    assert stats.co_executed_steps >= 25
    replayed = stats.calls_replayed["GradientTape.gradient"]
    assert replayed > num_not_replayed(stats), stats.calls_not_replayed


@pytest.mark.parametrize("delays", ["graph", "python"])
@pytest.mark.parametrize("program", ALL, ids=lambda program: program.__name__)
def test_eagers_bits_while_either_side_is_held_up(program, delays):
    compare(program, delays=delays)


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.__name__)
def test_shapes_that_change(program):
    compare(program, num_rows=lambda i: 2 + i % 3, num_calls=30)


def test_outer_tape_that_is_the_callers():
    variables = [new_variables() for _ in range(2)]

    def step_of(v):
        def step(x):
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(net(v, x) ** 2)
            return inner.gradient(z, x)

        return step

    eager, step = step_of(variables[0]), terra.function(step_of(variables[1]))
    for i in range(NUM_CALLS):
        gradients = []
        for v, function in zip(variables, (eager, step)):
            with tf.GradientTape() as outer:
                loss = tf.reduce_sum(function(inputs_of(i)[0]) ** 2)
            gradients.append(freeze(outer.gradient(loss, v)))
        assert not find_difference(*gradients), i


def test_watching_leaves_what_other_tapes_are_to_hear():
    """A tape that is new hears of a tensor at once; what is put off for others stays so."""
    stats = compare(penalty, num_calls=2 * NUM_CALLS).stats()
    assert stats.tape_ops_recorded < 5 * stats.co_executed_steps
