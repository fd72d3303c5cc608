"""An op's error that the step itself catches is caught where eager catches it, at once."""

import contextlib
import itertools

import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)
NUM_STEPS = 16
BAD_STEPS = frozenset({7, 8, 12})  # long after the first graph was built


def program(step, variables):
    numbers = itertools.count()

    def run():
        i = next(numbers)
        return step(tf.constant(-1.0 if i in BAD_STEPS else 1.0 + i))

    return Program(run, variables)


def make_checked_logarithm(wrap):
    steps, caught = tf.Variable(0.0), []

    @wrap
    def step(x):
        steps.assign_add(1.0)
        y = tf.math.log(x)
        try:
            y = tf.debugging.check_numerics(y, "no logarithm")
            caught.append(False)
        except tf.errors.InvalidArgumentError:
            caught.append(True)
            steps.assign_add(100.0)
            y = tf.constant(0.0)
        steps.assign_sub(0.5)
        return y, steps + 0.0, list(caught)

    return program(step, [steps])


def make_gather_in_a_function_of_the_users(wrap):
    table = tf.Variable(tf.range(40.0))

    def look_up(x):
        return tf.gather(table, tf.cast(x, tf.int32))

    @wrap
    def step(x):
        try:
            y = look_up(x)
            table.assign_add(tf.ones([40]))
        except Exception as error:
            return type(error).__name__
        return y + table[0]

    return program(step, [table])


def make_try_in_each_trip(wrap):
    total = tf.Variable(0.0)

    @wrap
    def step(x):
        failed = []
        for trip in range(5):
            try:
                total.assign_add(tf.gather(tf.range(40.0), tf.cast(x, tf.int32) * (trip % 2)))
            except:  # noqa: E722
                failed.append(trip)
            total.assign_add(0.5)
        return total + 0.0, failed

    return program(step, [total])


def make_gradient_in_a_try(wrap):
    weight = tf.Variable(tf.ones([40, 2]))

    @wrap
    def step(x):
        try:
            with tf.GradientTape() as tape:
                rows = tf.gather(weight, [tf.cast(x, tf.int32)])
                loss = tf.reduce_sum(tf.debugging.check_numerics(tf.math.log(x) * rows, "bad"))
            gradient = tf.convert_to_tensor(tape.gradient(loss, weight))
            weight.assign_sub(0.01 * gradient)
        except (tf.errors.OpError, KeyError):
            weight.assign(weight * 0.5)
            return tf.constant(-1.0)
        return loss

    return program(step, [weight])


def make_suppressed(wrap):
    total = tf.Variable(0.0)

    @wrap
    def step(x):
        with contextlib.suppress(tf.errors.InvalidArgumentError):
            total.assign_add(tf.debugging.check_numerics(tf.math.log(x), "bad"))
            total.assign_add(10.0)
        return total + 1.0

    return program(step, [total])


MAKERS = [
    make_checked_logarithm,
    make_gather_in_a_function_of_the_users,
    make_try_in_each_trip,
    make_gradient_in_a_try,
    make_suppressed,
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_error_is_caught_where_eager_catches_it(make):
    (step,) = assert_matches_eager(make, NUM_STEPS)
    stats = step.stats()
    assert stats.co_executed_steps >= 4, str(step.explain())
    assert stats.imperative_ops


def test_op_in_a_try_that_cannot_catch_its_error_is_in_the_graph():
    def make(wrap):
        counts = {}

        @wrap
        def step(x):
            try:
                y = tf.gather(tf.range(40.0), tf.cast(x, tf.int32))
                counts["seen"] += 1
            except KeyError:
                counts["seen"] = 1
            finally:
                counts["left"] = counts.get("left", 0) + 1
            return y, dict(counts)

        numbers = itertools.count()
        return Program(lambda: step(tf.constant(float(next(numbers)))))

    (step,) = assert_matches_eager(make, 12)
    assert step.stats().imperative_ops == {}
    assert step.stats().co_executed_steps >= 8


def test_infallible_ops_in_a_try_are_in_the_graph():
    weight = np.ones([4, 4], np.float32)

    def make(wrap):
        @wrap
        def step(x):
            try:
                return tf.tanh(x @ weight) + 1.0
            except tf.errors.OpError:
                return None

        return Program(lambda: step(tf.ones([2, 4])))

    (step,) = assert_matches_eager(make, 12)
    assert step.stats().imperative_ops == {}
