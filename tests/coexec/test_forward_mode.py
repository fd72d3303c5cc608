"""Forward accumulators: what they run at each op are ops of the step, with eager's bits.

An accumulator calls a function of TensorFlow's at each op that a tangent goes through; TensorFlow
makes one for each type and shape. It is an op of the graph like other functions.
"""

import subprocess
import sys

import numpy as np
import programs
import pytest
import tensorflow as tf

from terra_tf.runtime import gradient_markers
from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(180)

NUM_CALLS = 9
LATE = 6
Accumulator = tf.autodiff.ForwardAccumulator


def program(body):
    """A program of `body(variables, x, tangent, n)` on new inputs in each call."""

    def make(wrap):
        rng = np.random.default_rng(7)
        variables = [
            tf.Variable(programs.normal(rng, 4, 4, scale=0.3)),
            tf.Variable(programs.normal(rng, 4, scale=0.3)),
        ]
        inputs, calls = np.random.default_rng(3), [0]
        function = wrap(lambda x, tangent, n: body(variables, x, tangent, n))

        def step():
            x, tangent = (tf.constant(programs.normal(inputs, 3, 4)) for _ in range(2))
            calls[0] += 1
            return function(x, tangent, calls[0])

        return Program(step, variables)

    return make


def run(body, num_calls=NUM_CALLS):
    (function,) = assert_matches_eager(program(body), num_calls)
    return function


def assert_delegated(body, num_traces=3):
    """Everything is an op of the graph, once TensorFlow has made its functions."""
    function = run(body)
    stats = function.stats()
    assert not stats.fallbacks, function.explain()
    assert not stats.imperative_ops, function.explain()
    assert stats.traced_steps <= num_traces, function.explain()
    assert stats.co_executed_steps >= NUM_CALLS - num_traces, function.explain()


def layer(variables, x):
    weight, bias = variables
    return tf.tanh(x @ weight + bias)


def test_product_with_a_tangent_of_an_input():
    def body(variables, x, tangent, n):
        with Accumulator(x, tangent) as accumulator:
            y = layer(variables, x)
            z = tf.reduce_sum(y * y)
        variables[1].assign_add(0.01 * tf.reduce_mean(accumulator.jvp(y), 0))
        return y, accumulator.jvp(y), accumulator.jvp(z), accumulator.jvp(tangent)

    assert_delegated(body)


def test_product_with_tangents_of_variables():
    def body(variables, x, tangent, n):
        tangents = [tf.ones_like(v) * 0.5 for v in variables]
        with Accumulator(variables, tangents) as accumulator:
            y = layer(variables, x) * tf.reshape(variables[1], [1, -1])
        variables[0].assign_sub(0.1 * tf.matmul(x, accumulator.jvp(y), transpose_a=True))
        return accumulator.jvp(y)

    assert_delegated(body)


def test_hessian_times_vector():
    """Forward over back: the gradient's ops have tangents."""

    def body(variables, x, tangent, n):
        weight, _ = variables
        with Accumulator(weight, tf.ones_like(weight)) as accumulator:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(variables, x) ** 2)
            slope = tape.gradient(loss, weight)
        weight.assign_sub(0.01 * (slope + 0.1 * accumulator.jvp(slope)))
        return loss, slope, accumulator.jvp(slope)

    assert_delegated(body)


def test_gradient_of_a_product():
    """Back over forward, through the functions that the accumulator has called."""

    def body(variables, x, tangent, n):
        with tf.GradientTape() as tape:
            with Accumulator(x, tangent) as accumulator:
                y = layer(variables, x)
            loss = tf.reduce_sum(accumulator.jvp(y) ** 2)
        gradients = tape.gradient(loss, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(0.01 * gradient)
        return loss

    assert_delegated(body)


def test_accumulators_in_each_other():
    def body(variables, x, tangent, n):
        with Accumulator(x, tangent) as outer:
            with Accumulator(x, tangent) as inner:
                y = tf.reduce_sum(layer(variables, x) ** 3)
            first = inner.jvp(y)
        variables[1].assign_add(tf.zeros([4]) + 0.01 * first)
        return first, outer.jvp(y), outer.jvp(first)

    stats = run(body).stats()
    assert not stats.fallbacks
    assert stats.co_executed_steps >= NUM_CALLS - 3


@pytest.mark.parametrize("depth", [2, 3])
def test_accumulators_in_each_other_have_eagers_bits(depth):
    """The outer one's functions call the inner one's, which a graph would optimize together."""

    def body(variables, x, tangent, n):
        weight, bias = variables

        def tangent_of(level, point):
            if level == 0:
                h = tf.nn.softplus(point @ weight + bias)
                return tf.reduce_sum(tf.tanh(h * point) / (1.0 + tf.exp(-h)) ** 3, axis=1)
            with Accumulator(point, tangent * level) as accumulator:
                value = tangent_of(level - 1, point)
            return accumulator.jvp(value)

        return tangent_of(depth, x), n

    function = run(body, 12)
    stats = function.stats()
    assert not stats.fallbacks, function.explain()
    assert stats.co_executed_steps >= 8, function.explain()
    assert set(stats.imperative_ops) > set(), function.explain()


def test_loops_and_branches_under_one():
    def body(variables, x, tangent, n):
        with Accumulator(x, tangent) as accumulator:
            y = x
            for _ in range(3):
                y = layer(variables, y)
            if n % 2:
                y = y * tf.reshape(variables[1], [1, 4])
            shape = tf.shape(y)
            z = tf.reshape(tf.stop_gradient(y) + y, [shape[0] * shape[1]])
        return accumulator.jvp(z), accumulator.jvp(y)

    function = run(body, 14)
    stats = function.stats()
    assert stats.phase == "co-execution", function.explain()
    assert not stats.imperative_ops, function.explain()
    assert sum(stats.fallbacks.values()) <= 1, function.explain()


def test_one_that_comes_late():
    """After steps without one: the tape has not been told of anything yet, and a new way begins."""

    def body(variables, x, tangent, n):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(variables, x)
            if n >= LATE:
                with Accumulator(y, tangent) as accumulator:
                    z = tf.sin(y) * y
                y = z + accumulator.jvp(z)
            loss = tf.reduce_sum(y)
        return tape.gradient(loss, [x, *variables])

    function = run(body, 14)
    stats = function.stats()
    assert stats.fallbacks == {"new_path": 1}, function.explain()
    assert stats.phase == "co-execution" and not stats.imperative_ops, function.explain()


@pytest.mark.parametrize("is_first", [True, False])
def test_one_that_is_open_around_the_calls(is_first):
    def make(wrap):
        weight = tf.Variable([[0.5, 0.2], [0.1, 0.3]])
        function = wrap(lambda x: tf.reduce_sum(tf.tanh(x @ weight) ** 2, 1))
        calls = [0]

        def step():
            calls[0] += 1
            x = tf.constant([[0.1 * calls[0], 1.0]])
            if not is_first and calls[0] < 4:
                return function(x)
            with Accumulator(x, tf.ones_like(x)) as accumulator:
                y = function(x)
                z = function(x + y)
            return y, accumulator.jvp(y), accumulator.jvp(z)

        return Program(step, [weight])

    (function,) = assert_matches_eager(make, 10)
    stats = function.stats()
    assert stats.phase == "co-execution" and not stats.imperative_ops, function.explain()


def test_one_that_is_older_than_the_hooks():
    """A function that is imported and decorated under an accumulator."""
    script = """
import tensorflow as tf
x, tangent = tf.constant([1.0, 2.0]), tf.constant([0.5, 1.0])
def body():
    return tf.reduce_sum(tf.tanh(x * x))
with tf.autodiff.ForwardAccumulator(x, tangent) as accumulator:
    expected = float(accumulator.jvp(body()))
    try:
        import terra_tf as terra
        function = terra.function(body)
    except Exception as error:
        print(type(error).__name__, error)
        raise SystemExit
    for _ in range(6):
        assert float(accumulator.jvp(function())) == expected
    print(function.stats().phase, function.stats().imperative_ops)
with tf.GradientTape() as tape:
    tape.watch(x)
    y = function()
print(float(tf.reduce_sum(tape.gradient(y, x) * tangent)) - expected < 1e-6)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.splitlines() == ["co-execution {}", "True"], done.stdout + done.stderr


def test_accumulator_that_a_later_step_asks():
    """What it has is kept over the step's end, as tensors that the program holds."""

    def make(wrap):
        held = []

        @wrap
        def function(x):
            accumulator = Accumulator(x, tf.ones_like(x))
            with accumulator:
                y = x * x
            held.append((accumulator, y))
            if len(held) > 1:
                earlier, of = held.pop(0)
                return earlier.jvp(of) + y
            return y

        calls = [0]

        def step():
            calls[0] += 1
            return function(tf.constant([1.0 * calls[0], 2.0]))

        return Program(step, [])

    (function,) = assert_matches_eager(make, 10)
    assert function.stats().co_executed_steps > 0, function.explain()


def test_op_without_a_gradient_raises_as_eager_does():
    def body(variables, x, tangent, n):
        try:
            with Accumulator(x, tangent) as accumulator:
                y = layer(variables, x)
                if n >= LATE:
                    y = tf.raw_ops.NextAfter(x1=y, x2=y)
                    y = tf.raw_ops.Igamma(a=tf.abs(y), x=tf.abs(y))
        except LookupError as error:
            return str(error)
        return accumulator.jvp(y)

    run(body, 12)


def test_custom_gradients_under_one():
    @tf.custom_gradient
    def doubled(x):
        return x * 2.0, lambda upstream: upstream * 2.0

    def body(variables, x, tangent, n):
        with Accumulator(x, tangent) as accumulator:
            y = tf.nn.silu(doubled(x) @ variables[0])
        return y, accumulator.jvp(y)

    function = run(body)
    assert not function.stats().fallbacks, function.explain()


def test_memory_is_eagers():
    """No tensor of an earlier step lives on, though zeros were made in each."""

    def body(variables, x, tangent, n):
        with Accumulator(x, tangent) as accumulator:
            y = layer(variables, x)
        return accumulator.jvp(y)

    function = run(body, 40)
    assert gradient_markers.thread_markers().last is None, function.explain()


def test_shapes_and_attributes_have_functions_of_their_own():
    """The functions are known by types and attributes, and a handle by the type behind it."""

    def body(variables, x, tangent, n):
        table = tf.Variable(tf.ones([2 + n % 3, 4]) * n)
        with Accumulator([x, table], [tangent, tf.ones_like(table)]) as accumulator:
            y = tf.matmul(x, variables[0], transpose_b=bool(n % 2))[: 1 + n % 2]
            z = tf.gather(table, [0, 1]) * tf.reduce_sum(x)
        return y, accumulator.jvp(y), accumulator.jvp(z)

    stats = run(body, 14).stats()
    assert stats.co_executed_steps >= 3, stats
