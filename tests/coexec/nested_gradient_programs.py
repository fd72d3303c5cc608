"""Programs whose steps take gradients under other tapes, or of which Python computes a part.

Each is a function of its variables that returns a step `step(x, y, i)`; call replay knows all of
their gradients.
"""

import keras
import numpy as np
import tensorflow as tf


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def new_variables():
    return [tf.Variable(numbers(1, 4, 8) * 0.5), tf.Variable(numbers(2, 8, 4) * 0.5)]


def net(variables, x):
    return tf.tanh(x @ variables[0]) @ variables[1]


def train(variables, gradients):
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(0.05 * gradient)


def of_slopes(v, score, loss_of):
    """A step that trains by the gradient of what `loss_of` makes of an inner gradient."""

    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = score(x, y, i)
            slope = inner.gradient(z, x)
            loss = loss_of(slope, x, y)
        train(v, outer.gradient(loss, v))
        return loss, slope

    return step


def squares(v):
    return lambda x, y, i: tf.reduce_sum(net(v, x) ** 2)


def penalty(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            between = x + tf.random.uniform([len(x), 1], seed=3) * (y - x)
            with tf.GradientTape() as inner:
                inner.watch(between)
                score = tf.reduce_sum(net(v, between))
            slope = tf.norm(inner.gradient(score, between), axis=1)
            loss = tf.reduce_mean(net(v, x)) + tf.reduce_mean((slope - 1.0) ** 2)
        train(v, outer.gradient(loss, v))
        return loss

    return step


def third_derivative(v):
    def step(x, y, i):
        with tf.GradientTape() as training:
            with tf.GradientTape() as second:
                second.watch(x)
                with tf.GradientTape() as first:
                    first.watch(x)
                    u = tf.reduce_sum(net(v, x) ** 2)
                slope = first.gradient(u, x)
                total = tf.reduce_sum(slope * y)
            bend = second.gradient(total, x)
            loss = tf.reduce_mean(bend**2) + tf.reduce_mean(slope)
        train(v, training.gradient(loss, v))
        return loss, bend

    return step


def inner_steps(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            fast = list(v)
            for _ in range(1 + i % 3):
                with tf.GradientTape() as inner:
                    inner.watch(fast)
                    loss = tf.reduce_mean((net(fast, x) - y) ** 2)
                slopes = inner.gradient(loss, fast)
                fast = [w - 0.1 * slope for w, slope in zip(fast, slopes)]
            loss = tf.reduce_mean((net(fast, y) - x) ** 2)
        train(v, outer.gradient(loss, v))
        return loss

    return step


def persistent(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape(persistent=True) as inner:
                inner.watch([x, y])
                a = net(v, x) * y
                b = tf.reduce_sum(a * a)
            loss = tf.reduce_sum(inner.gradient(b, x) * inner.gradient(a, y))
            loss += tf.reduce_mean(inner.gradient(b, v[0]))
        train(v, outer.gradient(loss, v))
        return loss

    return step


def given_gradients(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = net(v, x)
            loss = tf.reduce_sum(inner.gradient(z, x, output_gradients=y * 2.0) ** 2)
        train(v, outer.gradient(loss, v))
        return loss

    return step


def given_from_outside(v):
    """Only the gradient's ops take what is the same for a while."""
    given = [tf.constant(numbers(8, 3, 4)[:1] * scale) for scale in (1.0, 1.0, 0.5)]

    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(net(v, x), axis=0, keepdims=True)
            slope = inner.gradient(z, x, output_gradients=given[0 if i < 10 else i % 3])
            loss = tf.reduce_sum(slope**2)
        train(v, outer.gradient(loss, v))
        return loss, slope

    return step


def unconnected(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch([x, y])
                z = tf.reduce_sum(tf.sin(x @ v[0]))
            slopes = inner.gradient(z, [x, y, v[1], v[0]])
            loss = tf.reduce_sum(slopes[0]) + tf.reduce_sum(slopes[3] ** 2)
        assert slopes[1] is None and slopes[2] is None
        train(v[:1], outer.gradient(loss, v[:1]))
        return loss

    return step


def kept_gradients(v):
    kept = []

    def loss_of(slope, x, y):
        kept.append(slope)
        return tf.reduce_sum(slope * tf.reduce_sum(kept[0]))

    step = of_slopes(v, lambda x, y, i: tf.reduce_sum(net(v, x)), loss_of)
    return lambda x, y, i: (step(x, y, i), kept[-2:])


def outer_now_and_then(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(net(v, x) if i % 2 else tf.sin(net(v, x)))
            slope = inner.gradient(z, x)
            loss = tf.reduce_sum(slope * slope)
        if i % 3:
            train(v, outer.gradient(loss, v))
        return loss

    return step


def one_or_two_tensors(v):
    def step(x, y, i):
        y = x if i % 4 == 1 else y
        with tf.GradientTape() as outer:
            outer.watch([x, y])
            with tf.GradientTape() as inner:
                inner.watch([x, y])
                z = tf.reduce_sum(net(v, x) * tf.tanh(y))
            slopes = inner.gradient(z, [x, y])
            loss = tf.reduce_sum(slopes[0] * slopes[1])
        return slopes, outer.gradient(loss, [x, y, v[0]])

    return step


def factor_from_outside(v):
    factors = [tf.constant(0.5), tf.constant(0.5), tf.constant(0.25), tf.Variable(0.1)]

    def score(x, y, i):
        return tf.reduce_mean(net(v, x) * factors[0 if i < 8 else i % 4])

    return of_slopes(v, score, lambda slope, x, y: tf.reduce_sum(slope**2))


def watched_late(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                h = tf.tanh(x @ v[0])
                before = tf.reduce_sum(h)
                inner.watch(h)
                z = tf.reduce_sum((h @ v[1]) ** 2) + before
            slope = inner.gradient(z, h)
            loss = tf.reduce_sum(slope * h)
        train(v, outer.gradient(loss, v))
        return loss, slope

    return step


def keras_layers(v):
    keras.utils.set_random_seed(3)
    layers = [
        keras.layers.Dense(8, activation="silu"),
        keras.layers.LayerNormalization(),
        keras.layers.Dense(4, activation="softplus"),
    ]
    model = keras.Sequential(layers)
    model.build([None, 4])
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)

    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = model(x)
            slope = inner.gradient(z, x)
            loss = tf.reduce_mean((slope - y) ** 2)
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(outer.gradient(loss, weights), weights))
        return loss

    return step


def embedded(v):
    table = tf.Variable(numbers(5, 6, 4))

    def step(x, y, i):
        ids = tf.constant([i % 6, 2, (i + 1) % 6])
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                rows = tf.nn.embedding_lookup(table, ids)
                z = tf.reduce_sum(net(v, rows) ** 2)
            slope = inner.gradient(z, rows)
            loss = tf.reduce_sum(slope**2)
        gradients = outer.gradient(loss, [table, *v])
        train(v, gradients[1:])
        return loss, tf.convert_to_tensor(gradients[0])

    return step


def tape_in_each_trip(v):
    def step(x, y, i):
        total = tf.constant(0.0)
        for _ in range(12 + i % 3):
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    z = tf.reduce_sum(net(v, x))
                slope = inner.gradient(z, x)
                loss = tf.reduce_mean(slope**2)
            train(v, outer.gradient(loss, v))
            x = x + 0.1 * slope
            total += loss
        return total, x

    return step


def writes_in_between(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(net(v, x) ** 2)
            v[0].assign(v[0] * 0.9)
            slope = inner.gradient(z, x)
            v[1].assign_add(0.01 * tf.ones_like(v[1]))
            loss = tf.reduce_sum(net(v, slope))
        train(v, outer.gradient(loss, v))
        return loss

    return step


def value_of_the_trip_before(v):
    """In each trip the inner gradient takes what the same op made in the trip before, too."""

    def step(x, y, i):
        h, total = tf.tanh(x @ v[0]), tf.constant(0.0)
        for _ in range(11 + i % 3):
            before = h
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    h = tf.tanh(before * 0.5 + y @ v[0])
                    inner.watch(h)
                    z = tf.reduce_sum(h * before * h)
                slope = inner.gradient(z, h)
                loss = tf.reduce_mean(slope * slope)
            train(v[:1], outer.gradient(loss, v[:1]))
            total += loss
        return total, h

    return step


def records_itself(v):
    def step(x, y, i):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            z = tf.reduce_sum(net(v, x) ** 2)
            slope = tape.gradient(z, x)
            loss = tf.reduce_sum(slope * slope)
        train(v, tape.gradient(loss, v))
        return loss, slope

    return step


def after_another_gradient(v):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.5)
    optimizer.build(v)

    def step(x, y, i):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(v, x) - y) ** 2)
        plain = tape.gradient(loss, v)
        optimizer.apply_gradients(zip(plain, v))
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(plain)
                z = tf.reduce_sum(net(plain, x) * net(v, y))
            slopes = inner.gradient(z, plain)
            penalty = tf.add_n([tf.reduce_sum(slope**2) for slope in slopes])
        optimizer.apply_gradients(zip(outer.gradient(penalty, v), v))
        return loss, penalty

    return step


def of_a_few_rows(v):
    """No tape around it; Python reshapes the indices, which are small."""
    table = tf.Variable(numbers(5, 6, 4))

    def step(x, y, i):
        ids = tf.constant([i % 6, 2, (i + 1) % 6])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(net(v, tf.gather(table, ids)) ** 2)
        gradients = tape.gradient(loss, [table, *v])
        train(v, gradients[1:])
        table.scatter_sub(tf.IndexedSlices(0.1 * gradients[0].values, gradients[0].indices))
        return loss, table.read_value(), gradients[0].indices

    return step


REPLAYED = [
    of_a_few_rows, value_of_the_trip_before, records_itself, after_another_gradient, penalty,
    third_derivative, inner_steps, persistent, given_gradients, given_from_outside, unconnected,
    kept_gradients, outer_now_and_then, one_or_two_tensors, factor_from_outside, watched_late,
    keras_layers, embedded, tape_in_each_trip, writes_in_between,
]  # fmt: skip
