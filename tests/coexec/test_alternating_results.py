"""Ops that Python runs itself, at one place with other inputs and results in other steps."""

import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)

STEPS = 40
X = [1.0, 2.0, 0.5]


def program(make_body):
    """A program of `body(x, is_usual)`; every third step is not usual."""

    def make(wrap):
        body, variables = make_body()
        calls = [0]

        @wrap
        def function(x):
            calls[0] += 1
            return body(x, calls[0] % 3 != 0)

        return Program(lambda: function(tf.constant(X)), variables)

    return make


def inner(body):
    return tf.function(body, autograph=False)


def numbers_of_results():
    one, two = inner(lambda x: (x * 3.0,)), inner(lambda x: (x * 2.0, x + 1.0))
    return lambda x, is_usual: tf.reduce_sum((two if is_usual else one)(x)[0] * 2.0), []


def dtypes_of_results():
    reals, integers = inner(lambda x: x * 2.0), inner(lambda x: tf.cast(x * 3.0, tf.int32))

    def body(x, is_usual):
        y = (reals if is_usual else integers)(x)
        return tf.reduce_sum(tf.cast(y, tf.float32) * 2.0)

    return body, []


def ranks_of_results():
    many, one = inner(lambda x: x * 2.0), inner(tf.reduce_sum)
    return lambda x, is_usual: tf.reduce_sum((many if is_usual else one)(x) * 2.0), []


def shapes_of_inputs():
    square = inner(lambda x: x * x)

    def body(x, is_usual):
        return tf.reduce_sum(square(np.ones([3 if is_usual else 2], np.float32)) * 2.0)

    return body, []


def dtypes_of_inputs():
    square = inner(lambda x: x * x)

    def body(x, is_usual):
        y = square(np.ones([3], np.float32 if is_usual else np.int32))
        return tf.reduce_sum(tf.cast(y, tf.float32) * x)

    return body, []


def attributes_of_a_py_function():
    def body(x, is_usual):
        dtype = tf.float32 if is_usual else tf.int32
        y = tf.py_function(lambda a: tf.cast(a * 2.0, dtype), [x], dtype)
        return tf.reduce_sum(tf.cast(y, tf.float32) * 2.0)

    return body, []


def datasets():
    integers = iter(tf.data.Dataset.range(1000))
    reals = iter(tf.data.Dataset.range(1000).map(lambda i: (tf.cast(i, tf.float32), i)))

    def body(x, is_usual):
        element = tf.nest.flatten(next(integers if is_usual else reals))[0]
        return tf.reduce_sum(tf.cast(element, tf.float32) * x)

    return body, []


def functions_under_a_tape():
    """The one keeps more for its gradient than the other."""
    w = tf.Variable([1.0, 2.0, 3.0])
    usual, other = inner(lambda x: x * w), inner(lambda x: tf.tanh(x) * w * w)

    def body(x, is_usual):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((usual if is_usual else other)(x) * w)
        gradient = tape.gradient(loss, w)
        w.assign_sub(0.01 * gradient)
        return loss, gradient

    return body, [w]


def function_traced_for_a_flag():
    w = tf.Variable([1.0, 2.0, 3.0])

    @tf.function
    def traced(x, flag):
        w.assign_add(0.001 * x)
        return x * w if flag else -x

    def body(x, is_usual):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(traced(x, is_usual) * w)
        w.assign_sub(0.1 * tape.gradient(loss, w))
        return loss

    return body, [w]


def variables_that_functions_capture():
    v, w = tf.Variable([1.0, 0.0, 3.0]), tf.Variable([1.0, 2.0, 3.0])
    usual, other = inner(lambda x: x * w), inner(lambda x: x * w * v)

    def body(x, is_usual):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((usual if is_usual else other)(x) * w)
        of_v, of_w = tape.gradient(loss, [v, w], unconnected_gradients="zero")
        w.assign_sub(0.1 * of_w)
        return loss, of_v

    return body, [v, w]


@pytest.mark.parametrize(
    "make_body",
    [
        numbers_of_results,
        dtypes_of_results,
        ranks_of_results,
        shapes_of_inputs,
        dtypes_of_inputs,
        attributes_of_a_py_function,
        datasets,
        functions_under_a_tape,
        function_traced_for_a_flag,
        variables_that_functions_capture,
    ],
)
def test_what_alternates_at_one_place_is_two_known_ways(make_body):
    (function,) = assert_matches_eager(program(make_body), STEPS)
    stats = function.stats()
    assert stats.phase == "co-execution"
    assert sum(stats.fallbacks.values()) <= 2  # each was new once, and what Python holds of it
    assert stats.co_executed_steps >= STEPS - 8, stats.fallbacks


def test_functions_in_turn_on_random_paths():
    """A way that was never traced is found by what the function returns, not by what follows."""

    def make(wrap):
        w, random = tf.Variable([1.0, 2.0, 3.0]), np.random.RandomState(0)
        functions = [
            inner(lambda x: x * w),
            inner(lambda x: tf.tanh(x) * w * w),
            inner(lambda x: tf.sin(x) * tf.exp(w) * w),
            inner(lambda x: -x),
        ]

        @wrap
        def function(x):
            with tf.GradientTape() as tape:
                for _ in range(2):
                    x = functions[random.randint(4)](x)
                loss = tf.reduce_sum(x * w)
            return loss, tape.gradient(loss, w)

        return Program(lambda: function(tf.constant(X)), [w])

    (function,) = assert_matches_eager(make, 60)
    stats = function.stats()
    assert stats.phase == "co-execution"
    assert "feed_changed" not in stats.fallbacks
    assert stats.co_executed_steps >= 36
