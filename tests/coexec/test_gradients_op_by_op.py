"""Gradients replayed op by op: another tape records them, or Python computes a part of them.

Each program is a function of its variables that returns a step `step(x, y, i)`; it is compared with
eager bit for bit, with the graph held up at random and without.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import find_difference, freeze

pytestmark = pytest.mark.timeout(180)

NUM_CALLS = 20


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def new_variables():
    return [tf.Variable(numbers(1, 4, 8) * 0.5), tf.Variable(numbers(2, 8, 4) * 0.5)]


def net(variables, x):
    return tf.tanh(x @ variables[0]) @ variables[1]


def train(variables, gradients):
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(0.05 * gradient)


# ------------------------------------------------ programs whose inner gradients are replayed


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

    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(net(v, x))
            slope = inner.gradient(z, x)
            kept.append(slope)
            loss = tf.reduce_sum(slope * tf.reduce_sum(kept[0]))
        train(v, outer.gradient(loss, v))
        return loss, kept[-2:]

    return step


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

    def step(x, y, i):
        factor = factors[0 if i < 8 else i % 4]
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_mean(net(v, x) * factor)
            loss = tf.reduce_sum(inner.gradient(z, x) ** 2) / factor
        train(v, outer.gradient(loss, v))
        return loss

    return step


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

    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(scaled(net(v, x)))
            slope = inner.gradient(z, x)
            loss = tf.reduce_sum(slope * slope)
        train(v, outer.gradient(loss, v))
        return loss

    return step


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
    def step(x, y, i):
        with tf.autodiff.ForwardAccumulator(x, y) as forward:
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    z = tf.reduce_sum(net(v, x) ** 2)
                slope = inner.gradient(z, x)
                loss = tf.reduce_sum(slope**2)
            train(v, outer.gradient(loss, v))
        return loss, forward.jvp(slope)

    return step


def read_in_between(v):
    def step(x, y, i):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = tf.reduce_sum(net(v, x) ** 2)
            slope = inner.gradient(z, x)
            size = float(tf.norm(slope))
            loss = tf.reduce_sum(slope * (1.0 / size if size > 1.0 else 1.0))
        train(v, outer.gradient(loss, v))
        return loss, size

    return step


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
