"""Steps that call `tf.function`s: those without an effect are ops of the graph."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from function_programs import batches, training, weight

from terra_tf.testing import Program, assert_co_executing, assert_matches_eager

pytestmark = pytest.mark.timeout(120)


def make_dense(wrap):
    w, b = weight(), tf.Variable(tf.zeros([6]))

    @tf.function
    def dense(x):
        return tf.nn.relu(tf.matmul(x, w) + b)

    return training(wrap, dense, [w, b])


def make_loop(wrap):
    w = weight()

    @tf.function
    def unroll(x):
        h = tf.zeros([4, 6])
        for _ in tf.range(3):
            h = tf.tanh(h @ w + x)
        return h

    return training(wrap, unroll, [w])


def make_branch(wrap):
    w = weight()

    @tf.function
    def choose(x):
        if tf.reduce_sum(x) > 0.0:
            return tf.tanh(x @ w)
        return x @ w

    return training(wrap, choose, [w])


def make_functions_in_functions(wrap):
    w, v = weight(), weight(1)

    @tf.function
    def inner(x, scale=2.0):
        return {"y": tf.tanh(x @ w) * scale}

    @tf.function
    def outer(x):
        return inner(x)["y"] + inner(x @ v, scale=0.5)["y"]

    return training(wrap, outer, [w, v])


def make_called_in_a_loop(wrap):
    weights = [weight(i) for i in range(4)]

    @tf.function
    def layer(x, w):
        return x + tf.tanh(x @ w)

    def model(x):
        for w in weights:
            x = layer(x, w)
        return x

    return training(wrap, model, weights)


def make_rewritten_by_grappler(wrap):
    """Eager has the bits of a function that Grappler has rewritten; so must the graph."""
    w = weight()

    @tf.function
    def statistics(x):
        y = x @ w
        mean = tf.reduce_mean(y, axis=0, keepdims=True)
        scaled = (y - mean) / 3.0 / (1.0 + tf.sqrt(tf.reduce_mean((y - mean) ** 2) + 1e-3))
        return scaled * 0.1 + scaled * 0.7 + tf.pow(scaled, 3.0) / 7.0

    return training(wrap, statistics, [w])


def make_sums_with_variables(wrap):
    """Grappler adds what has one shape first: it has to know those of variables."""
    w, v, scale = weight(), weight(1), tf.Variable(tf.ones([6]))

    @tf.function
    def mixed(x, b, gain):
        y = x + b + x @ w
        return y + gain + tf.tanh(y @ v) + tf.transpose(v)[:4]

    return training(wrap, lambda x: mixed(x, x[0], scale), [w, v, scale])


def make_other_variables_of_a_function(wrap):
    """One function, called with variables whose shapes are known, partly, or not at all."""
    shapes = {1: [6, 1], 6: [6, 6], 3: None, 5: [6, None], 4: [None, 4]}
    weights = [
        tf.Variable(0.3 * tf.random.stateless_normal([6, n], [n, 1]), shape=shapes[n])
        for n in shapes
    ]
    draw, bias = batches(), tf.Variable(tf.ones([1]))

    @tf.function
    def dense(x, w):
        return x[:, :1] + bias + x[:, 1:2] @ w[:1] + tf.reduce_sum(w)

    @wrap
    def step(x):
        return [dense(x, w) for w in weights]

    return Program(lambda: step(draw()), weights)


def make_gradient_in_the_function(wrap):
    w = weight()

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ w))
        return loss, tape.gradient(loss, w)

    draw = batches()

    @wrap
    def step(x):
        loss, change = gradient(x)
        w.assign_sub(0.1 * change)
        return loss

    return Program(lambda: step(draw()), [w])


def make_gradient_of_a_gradient(wrap):
    w = weight()

    @tf.function
    def critic(x):
        return tf.reduce_sum(tf.tanh(x @ w) ** 2, axis=1)

    def penalty(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = critic(x)
        return tf.norm(tape.gradient(y, x), axis=1) - 1.0

    return training(wrap, penalty, [w])


def make_integers(wrap):
    w, draw = weight(), batches()

    @tf.function(input_signature=[tf.TensorSpec([None, 6]), tf.TensorSpec([], tf.int32)])
    def top(x, k):
        return tf.math.top_k(x @ w, k=k)

    @wrap
    def step(x):
        values, indices = top(x, 2)
        w.assign_add(0.01 * tf.ones([6, 6]))
        return tf.reduce_sum(values), indices

    return Program(lambda: step(draw()), [w])


DELEGATED = [
    make_dense,
    make_loop,
    make_branch,
    make_called_in_a_loop,
    make_rewritten_by_grappler,
    make_sums_with_variables,
    make_other_variables_of_a_function,
    make_gradient_in_the_function,
    make_gradient_of_a_gradient,
    make_integers,
]


@pytest.mark.parametrize("make", DELEGATED)
def test_a_function_without_an_effect_is_an_op_of_the_graph(make):
    (step,) = assert_matches_eager(make, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    assert step.stats().fallbacks == {}
    assert_co_executing(step)


def test_a_function_that_calls_others_is_pythons_to_run():
    (step,) = assert_matches_eager(make_functions_in_functions, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    reasons = {op.reason for op in step.explain().imperative_ops}
    assert reasons == {"nested_functions"}


# No sums of three, and nothing that is used three times: TensorFlow begins an `AddN` in a function
# with whichever input is there first, and eager's own bits differ once in some thousand calls.
_UNARY = [
    tf.tanh, tf.nn.softplus, tf.sigmoid, tf.exp, tf.square, tf.nn.relu, tf.math.rsqrt,
    lambda x: x * 1.1 * 2.3, lambda x: x / 3.0, lambda x: tf.pow(x, 2.0), lambda x: x**3,
    lambda x: 1.0 / (tf.abs(x) - -1.5), lambda x: x * 3.0 - x * 5.0,
    lambda x: tf.transpose(tf.transpose(x)), lambda x: tf.reduce_mean(x) - x,
]  # fmt: skip


def random_function(rng, w, inner=()):
    """A function of float32[5, 6] of what Grappler likes to rewrite; it may call others."""
    chosen = [rng.integers(len(_UNARY)) for _ in range(4)]

    @tf.function
    def function(x, b):
        h = x @ w * 0.3 - b
        for number in chosen[:2]:
            h = _UNARY[number](tf.maximum(tf.abs(h), 0.1)) - h
        for called in inner:
            h = called(h * 0.5, b) * called(x, b) - h
        for number in chosen[2:]:
            h = _UNARY[number](tf.maximum(tf.abs(h) * 0.2, 0.1)) - h
        return tf.clip_by_value(h, -3.0, 3.0)

    return function


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_random_functions_have_eagers_bits(seed, depth):
    def make(wrap):
        rng = np.random.default_rng(seed)
        w, draw = weight(), batches()
        functions = [random_function(rng, w)]
        for _ in range(depth):
            functions.append(random_function(rng, w, functions[-1:]))

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(functions[-1](x, x[0]) * 1e-2)
            change = tape.gradient(loss, w)
            w.assign_sub(1e-2 * tf.clip_by_norm(change, 1.0))
            return loss, change

        return Program(lambda: step(draw()), [w])

    (step,) = assert_matches_eager(make, num_steps=8)
    assert step.stats().fallbacks == {}
    assert step.stats().co_executed_steps >= 5
    assert bool(step.stats().imperative_ops) == (depth > 0)


def adding(held):
    """A function whose sum may begin with any of its parts but those that are held elsewhere."""

    @tf.function(autograph=False)
    def function(x):
        parts = [tf.sin(x), tf.cos(x) * 100.0, tf.exp(x) * 1e-2, x, x / 7.0]
        return tf.add_n(parts), [parts[number] for number in held]

    return function


def test_a_sum_begins_with_the_part_that_eagers_does():
    """Which one that is, follows from who holds what, not from the order of the parts alone."""

    def make(wrap):
        draw = batches((5, 7))
        subsets = (itertools.combinations((0, 1, 2, 4), count) for count in range(5))
        functions = [adding(held) for held in itertools.chain(*subsets)]

        @wrap
        def step(x):
            # No one but the function holds the products.
            return [function(x * (1.0 + number)) for number, function in enumerate(functions)]

        return Program(lambda: step(draw()))

    (step,) = assert_matches_eager(make, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    assert_co_executing(step)
