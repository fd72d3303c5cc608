"""Gradients of gradients: a tape calls gradient functions in eager's order.

The order follows from all that a tape was told, also from ops that no gradient goes through: the
shape that a reshape is given, an assignment. So one that is missing shows as a divergence, of the
first step in co-execution.
"""

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(180)

NUM_CALLS = 8
BATCH = 4


def draw(rng, *shape, scale=1.0):
    return tf.constant(programs.normal(rng, *shape, scale=scale))


def variables_of(*shapes):
    rng = np.random.default_rng(7)
    return [tf.Variable(programs.normal(rng, *shape, scale=0.3)) for shape in shapes]


def assert_never_diverges(body, variables, draw_input, num_calls=NUM_CALLS, num_traces=2):
    """Compare `body(variables, *inputs)` with eager; two traces and one graph have to do."""

    def make(wrap):
        own, rng = variables(), np.random.default_rng(3)
        function = wrap(lambda *inputs: body(own, *inputs))
        held = own.variables if isinstance(own, keras.Model) else own
        return Program(lambda: function(*draw_input(rng)), list(held))

    (function,) = assert_matches_eager(make, num_calls)
    stats = function.stats()
    assert not stats.fallbacks, function.explain()
    assert stats.traced_steps == num_traces, function.explain()
    assert stats.co_executed_steps == num_calls - num_traces, function.explain()
    return stats


def images(rng):
    return draw(rng, BATCH, 8, 8, 1), draw(rng, BATCH, 8, 8, 1)


def rows(rng):
    return draw(rng, BATCH, 6), draw(rng, BATCH, 6)


def descend(variables, gradients):
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(0.01 * gradient)


# ------------------------------------------------------------------ gradient penalties


def penalized(critic, num_trips=1):
    """A critic's steps, as of a Wasserstein GAN: its gradient's norm is to be one."""

    def body(variables, real, fake):
        for _ in range(num_trips):
            with tf.GradientTape() as tape:
                mixed = real + 0.3 * (fake - real)
                with tf.GradientTape() as inner:
                    inner.watch(mixed)
                    score = critic(variables, mixed)
                slope = inner.gradient(score, mixed)
                axes = list(range(1, len(slope.shape)))
                norm = tf.sqrt(tf.reduce_sum(tf.square(slope), axes) + 1e-6)
                loss = tf.reduce_mean(critic(variables, fake)) - tf.reduce_mean(
                    critic(variables, real)
                )
                loss += 10.0 * tf.reduce_mean((norm - 1.0) ** 2)
            descend(variables, tape.gradient(loss, variables))
        return loss

    return body


def convolving(variables, x):
    kernel, weight = variables
    h = tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME"))
    return tf.reshape(h, [BATCH, 64]) @ weight


def dense(variables, x):
    first, bias, second = variables
    return tf.nn.leaky_relu(x @ first + bias) @ second


def pooling(variables, x):
    kernel, weight = variables
    h = tf.nn.avg_pool2d(tf.nn.elu(tf.nn.conv2d(x, kernel, 1, "SAME")), 2, 2, "VALID")
    return tf.reshape(tf.transpose(h, [0, 3, 1, 2]), [BATCH, 64]) @ weight


CRITICS = {
    "convolution": (convolving, [(3, 3, 1, 4), (64, 1)], images),
    "dense": (dense, [(6, 8), (8,), (8, 1)], rows),
    "pooling": (pooling, [(3, 3, 1, 4), (64, 1)], images),
}


@pytest.mark.parametrize("num_trips", [1, 3])
@pytest.mark.parametrize("name", CRITICS)
def test_gradient_penalty(name, num_trips):
    critic, shapes, inputs = CRITICS[name]
    assert_never_diverges(penalized(critic, num_trips), lambda: variables_of(*shapes), inputs)


def test_gradient_penalty_through_batch_normalization():
    def make_critic():
        keras.utils.set_random_seed(5)
        return keras.Sequential([
            keras.layers.Input([8, 8, 1]),
            keras.layers.Conv2D(4, 3, strides=2, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.LeakyReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ])  # fmt: skip

    def body(model, real, fake):
        with tf.GradientTape() as tape:
            mixed = real + 0.3 * (fake - real)
            with tf.GradientTape() as inner:
                inner.watch(mixed)
                score = model(mixed, training=True)
            slope = inner.gradient(score, mixed)
            norm = tf.sqrt(tf.reduce_sum(tf.square(slope), [1, 2, 3]) + 1e-6)
            loss = tf.reduce_mean(model(fake, training=True)) + tf.reduce_mean((norm - 1.0) ** 2)
        descend(
            model.trainable_variables, tape.gradient(loss, model.trainable_variables)
        )
        return loss

    assert_never_diverges(body, make_critic, images)


def test_shapes_that_only_python_knows():
    """Where the batch varies, Python computes the shapes: tapes are told of that, too."""

    def critic(variables, x):
        kernel, weight = variables
        h = tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME"))
        return tf.reshape(h, [tf.shape(h)[0], 64]) @ weight

    sizes = iter([2, 3, 4, 5, 6, 7, 2, 8, 9, 10, 11, 12, 13, 3, 14, 15] * 2)

    def make(wrap):
        variables, rng = variables_of((3, 3, 1, 4), (64, 1)), np.random.default_rng(3)
        function = wrap(lambda *inputs: penalized(critic)(variables, *inputs))

        def step():
            size = next(sizes)
            return function(*(draw(rng, size, 8, 8, 1) for _ in range(2)))

        return Program(step, variables)

    (function,) = assert_matches_eager(make, 16)
    stats = function.stats()
    assert stats.co_executed_steps > 0, function.explain()
    assert "new_path" not in stats.fallbacks, function.explain()


# ------------------------------------------------------------------ other nests


def test_learning_to_learn():
    """A gradient through the steps of an inner optimizer, as in MAML."""

    def forward(weights, x):
        first, second = weights
        return tf.reshape(tf.tanh(x @ first), [BATCH, 2, 4]) @ second

    def body(variables, support, query):
        with tf.GradientTape() as outer:
            fast = [tf.convert_to_tensor(v) for v in variables]
            for _ in range(2):
                with tf.GradientTape() as inner:
                    inner.watch(fast)
                    loss = tf.reduce_mean(forward(fast, support) ** 2)
                slopes = inner.gradient(loss, fast)
                fast = [w - 0.1 * g for w, g in zip(fast, slopes, strict=True)]
            loss = tf.reduce_mean((forward(fast, query) - 1.0) ** 2)
        descend(variables, outer.gradient(loss, variables))
        return loss

    assert_never_diverges(body, lambda: variables_of((6, 8), (4, 3)), rows)


def test_hessian_times_vector():
    def body(variables, x, vector):
        (weight,) = variables
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(tf.reshape(tf.sin(x @ weight), [BATCH * 3, 2]) ** 3)
            slope = inner.gradient(y, x)
            along = tf.reduce_sum(slope * vector)
        return outer.gradient(along, x), slope

    assert_never_diverges(body, lambda: variables_of((6, 6)), rows)


def test_third_derivative():
    def body(variables, x, _):
        (weight,) = variables
        with tf.GradientTape() as first:
            first.watch(x)
            with tf.GradientTape() as second:
                second.watch(x)
                with tf.GradientTape() as third:
                    third.watch(x)
                    y = tf.reduce_sum(tf.reshape(tf.tanh(x @ weight), [-1]) ** 2)
                a = third.gradient(y, x)
                flat = tf.reduce_sum(tf.reshape(a, [-1]) ** 2)
            b = second.gradient(flat, x)
        c = first.gradient(b, x)
        descend(variables, [tf.transpose(c) @ c])
        return y, a, b, c

    assert_never_diverges(body, lambda: variables_of((6, 6)), rows)


def test_several_targets_and_writes_on_the_tape():
    """Targets come in an order that follows from the numbers of all ops before them."""

    def body(variables, x, y):
        first, second = variables
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                targets = []
                for k in range(14):
                    h = tf.tanh(x @ first) * (1.0 + k)
                    second.assign_add(0.01 * h[:, :6])
                    targets.append(tf.reshape(h, [-1]) * tf.reshape(second, [-1])[0])
            slope = inner.gradient(targets[::3], x)
            loss = tf.reduce_sum(slope * y)
        first.assign_sub(0.01 * outer.gradient(loss, first))
        return loss

    assert_never_diverges(body, lambda: variables_of((6, 6), (BATCH, 6)), rows)
