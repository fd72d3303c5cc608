"""`tf.custom_gradient` of the user's: its Python runs in every step, what is in it is replayed.

The Python of TensorFlow's around it does not run for plain tensors; what it does is done.
"""

import functools

import numpy as np
import programs
import pytest
import tensorflow as tf

from terra_tf.runtime import custom_gradients
from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(120)

NUM_CALLS = 10
LATE = 6


@pytest.fixture
def run_here(monkeypatch):
    """A list that grows by one with each custom gradient that does without TensorFlow's Python."""
    return programs.count_calls(monkeypatch, custom_gradients, "_run")


def run(body, num_calls=NUM_CALLS):
    """Compare `body(variables, x, n)` with eager; return the function and its counters."""

    def make(wrap):
        rng = np.random.default_rng(7)
        variables = [tf.Variable(programs.normal(rng, 4, scale=0.3)) for _ in range(2)]
        inputs, calls = np.random.default_rng(3), [0]
        function = wrap(lambda x, n: body(variables, x, n))

        def step():
            calls[0] += 1
            return function(tf.constant(programs.normal(inputs, 4)), calls[0])

        return Program(step, variables)

    (function,) = assert_matches_eager(make, num_calls)
    return function


def run_with_errors(body, error_type):
    """The same, where eager raises an error from call LATE on; return its messages."""
    messages = []

    def catching(variables, x, n):
        try:
            return body(variables, x, n)
        except error_type as error:
            messages.append(str(error))
            return messages[-1]

    function = run(catching)
    assert len(messages) == 2 * (NUM_CALLS - LATE + 1), messages
    assert function.stats().co_executed_steps >= LATE - 3, function.explain()
    return messages


def training(custom):
    """A step whose loss goes through `custom(x, variables)`."""

    def body(variables, x, n):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(custom(x, variables)) * tf.sin(x))
        gradients = tape.gradient(loss, [x, *variables])
        for variable, gradient in zip(variables, gradients[1:], strict=True):
            if gradient is not None:
                variable.assign_sub(0.01 * gradient)
        return loss, gradients[0]

    return body


@tf.custom_gradient
def soft(x):
    return tf.math.softplus(x), lambda upstream: upstream * tf.math.sigmoid(x)


@tf.custom_gradient
def product(x, y):
    def backward(upstream):
        return upstream * y * 1.5, upstream * x

    return x * y, backward


@tf.custom_gradient
def two(x):
    return (tf.sin(x), [tf.cos(x)]), lambda a, b: a * 2.0 + b * x


@tf.custom_gradient
def disconnected(x, y):
    return x + y, lambda upstream: (upstream, None)


@tf.custom_gradient
def of_an_object(x):
    return x * 3.0, functools.partial(tf.multiply, 2.0)


PLAIN = {
    "of a tensor": lambda x, variables: soft(x),
    "of a variable": lambda x, variables: x * soft(variables[0]),
    "many": lambda x, variables: sum(soft(v * x) for v in variables * 4),
    "of two": lambda x, variables: product(x, variables[0]),
    "of two equal": lambda x, variables: product(x, x),
    "two results": lambda x, variables: (r := two(x * variables[0]))[0] + r[1][0],
    "one result unused": lambda x, variables: two(x * variables[1])[0],
    "none for one": lambda x, variables: disconnected(x, variables[0]),
    "an object's gradient": lambda x, variables: of_an_object(x * variables[0]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name, run_here):
    function = run(training(PLAIN[name]))
    stats = function.stats()
    assert run_here, function.explain()
    assert not stats.fallbacks and not stats.imperative_ops, function.explain()
    assert stats.co_executed_steps == NUM_CALLS - 2, function.explain()


def test_what_is_in_it_is_replayed():
    function = run(training(PLAIN["many"]), 20)
    replayed = function.stats().calls_replayed
    assert replayed["tf.math.softplus"] >= 8 * 12, function.explain()
    assert replayed["tf.sigmoid"] >= 8 * 12, function.explain()


def test_variables_that_it_uses():
    """They are found by watching; a replayed call says which it has used, too."""

    def body(variables, x, n):
        @tf.custom_gradient
        def scaled(y):
            def backward(upstream, variables=None):
                of_variables = [upstream * y * 0.5 for _ in variables]
                return upstream * 2.0, of_variables

            return tf.multiply(y, tf.tanh(variables[0])), backward

        return training(lambda x, _: scaled(x))(variables, x, n)

    function = run(body, 14)
    stats = function.stats()
    assert stats.calls_replayed["tf.tanh"] > 0, function.explain()
    assert not stats.fallbacks, function.explain()


def test_variables_without_an_argument_for_them():
    def body(variables, x, n):
        @tf.custom_gradient
        def forgetful(y):
            return y * variables[0], lambda upstream: upstream

        with tf.GradientTape():
            return forgetful(x) if n >= LATE else x

    assert "variables" in run_with_errors(body, TypeError)[0]


@pytest.mark.parametrize("number", [0, 2])
def test_another_number_of_gradients(number):
    def body(variables, x, n):
        @tf.custom_gradient
        def wrong(y):
            return y * 2.0, lambda upstream: [upstream] * (number if n >= LATE else 1)

        return training(lambda x, _: wrong(x))(variables, x, n)

    assert "gradients" in run_with_errors(body, ValueError)[0]


def test_gradient_of_a_gradient():
    def body(variables, x, n):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(soft(x * variables[0]) ** 2)
            slope = inner.gradient(y, x)
        return slope, outer.gradient(slope, x)

    function = run(body)
    assert not function.stats().fallbacks, function.explain()


def test_gradient_with_effects_and_reads():
    """Python of the user's runs in order: what it prints, reads, and how it branches."""
    seen = []

    def body(variables, x, n):
        @tf.custom_gradient
        def noting(y):
            seen.append(("forward", n))

            def backward(upstream):
                seen.append(("backward", round(float(tf.reduce_sum(upstream)), 5)))
                return upstream * (2.0 if float(y[0]) > 0.0 else 1.0)

            return y * 1.5, backward

        return training(lambda x, variables: noting(noting(x) * variables[0]))(variables, x, n)

    run(body, 16)
    half = len(seen) // 2
    assert seen[:half] == seen[half:] and half == 16 * 4


def test_slices_as_a_gradient():
    def body(variables, x, n):
        @tf.custom_gradient
        def looked_up(table):
            def backward(upstream):
                return tf.IndexedSlices(upstream, tf.constant([0, 2]), tf.constant([4]))

            return tf.gather(table, [0, 2]), backward

        with tf.GradientTape() as tape:
            table = variables[0] * 2.0
            loss = tf.reduce_sum(looked_up(table) ** 2)
        gradient = tape.gradient(loss, variables[0])
        variables[0].assign_sub(0.1 * gradient)
        return loss, gradient

    stats = run(body).stats()
    assert not stats.fallbacks and stats.co_executed_steps == NUM_CALLS - 2, stats


def test_without_a_tape_and_with_keywords():
    @tf.custom_gradient
    def scaled(x, factor=2.0):
        return x * factor, lambda upstream: upstream * factor

    @tf.custom_gradient
    def product(x, y):
        return x * y, lambda upstream: (upstream * y, upstream * x)

    def body(variables, x, n):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = scaled(x, factor=tf.constant(3.0)) + product(x, 4.0)
        return soft(x), scaled(x), product(x, 4.0), tape.gradient(y, x)

    stats = run(body).stats()
    assert not stats.fallbacks and stats.co_executed_steps == NUM_CALLS - 2, stats


def test_methods_and_a_structure():
    class Layer:
        def __init__(self):
            self.gain = 2.0

        @tf.custom_gradient
        def __call__(self, x):
            return {"y": x * self.gain}, lambda upstream: upstream * self.gain

    layer = Layer()

    def body(variables, x, n):
        layer.gain = 3.0 if n == LATE + 1 else 2.0
        return training(lambda x, variables: layer(x * variables[0])["y"])(variables, x, n)

    stats = run(body, 14).stats()
    assert stats.co_executed_steps >= 9, stats


def test_branches_between_them():
    def body(variables, x, n):
        def custom(x, variables):
            y = soft(x * variables[0])
            if n % 3 == 0:
                y = soft(y) + product(y, x)
            return soft(y)

        return training(custom)(variables, x, n)

    function = run(body, 24)
    stats = function.stats()
    assert stats.phase == "co-execution", function.explain()
    assert sum(stats.fallbacks.values()) <= 2, function.explain()
