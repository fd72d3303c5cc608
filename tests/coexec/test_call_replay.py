"""Library calls that are replayed: everything that may differ between two calls that look alike.

Each program's ops are the same in steps whose tapes, arguments or hidden state differ, so that
only the step's history can tell them apart.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hazards import (
    WIDTH,
    Counter,
    assert_like_eager,
    draw_inputs,
    make_weight,
    num_gradients,
    train_once,
)

import terra_tf
from terra_tf.testing import assert_co_executing

pytestmark = pytest.mark.timeout(60)


def test_gradient_of_a_straight_step_is_replayed_in_every_co_executed_step_but_the_first():
    def make(wrap):
        weight, draw = make_weight(), draw_inputs()
        train = wrap(train_once)
        return lambda: (train(draw(), weight), weight)

    stats = assert_like_eager(make)
    assert num_gradients(stats) == stats.co_executed_steps - 1
    # In the step that is followed, the tape holds axes that Python made: the gradient reads them.
    assert set(stats.calls_not_replayed) <= {
        "a gradient function: its Python reads a tensor from outside"
    }


def test_knob_turns_replay_off():
    weight, draw = make_weight(), draw_inputs()
    train = terra_tf.function(train_once)
    with terra_tf.config.override(replay_calls=False):
        for _ in range(6):
            train(draw(), weight)
    assert_co_executing(train)
    assert not train.stats().calls_replayed


def test_what_is_watched_decides_and_not_only_what_is_computed():
    def make(wrap):
        count, draw = Counter(), draw_inputs()

        @wrap
        def differentiate(x, y, watch_x, watch_y):
            with tf.GradientTape() as tape:
                if watch_x:
                    tape.watch(x)
                if watch_y:
                    tape.watch(y)
                z = x * y + x
            return tape.gradient(z, [x, y])

        def step():
            n = count.advance()
            return differentiate(draw(), draw(), n % 2 == 0, n % 3 == 0)

        return step

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_one_tensor_given_twice_is_another_call():
    def make(wrap):
        count, draw = Counter(), draw_inputs()

        @wrap
        def differentiate(x, y):
            with tf.GradientTape() as tape:
                tape.watch(x)
                z = x * tf.sin(y)
            return tape.gradient(z, [x, y])

        def step():
            x = draw()
            return differentiate(x, x if count.advance() % 3 == 2 else draw())

        return step

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_equal_constants_of_which_one_is_watched():
    def make(wrap):
        count = Counter()

        @wrap
        def differentiate(x, use_watched):
            watched, other = tf.constant(2.0), tf.constant(2.0)
            with tf.GradientTape() as tape:
                tape.watch(watched)
                z = x * (watched if use_watched else other)
            return tape.gradient(z, watched)

        return lambda: differentiate(tf.constant(3.0 + count.advance()), count.value % 2 == 0)

    assert_like_eager(make, 24)


def test_trainable_flag_of_a_variable_that_changes_between_steps():
    def make(wrap):
        weight, count, draw = make_weight(), Counter(), draw_inputs()

        @wrap
        def differentiate(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.tanh(x @ weight))
            return tape.gradient(loss, weight), [v is weight for v in tape.watched_variables()]

        def step():
            weight._trainable = count.advance() % 3 != 2
            return differentiate(draw())

        return step

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_output_gradients_that_were_a_constant_and_change():
    def make(wrap):
        count, draw = Counter(), draw_inputs()

        @wrap
        def differentiate(x, seed):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.sin(x)
            return tape.gradient(y, x, output_gradients=tf.fill([4, WIDTH], 1.0) * seed)

        @wrap
        def differentiate_scalar(x, number):
            seed = tf.constant(number)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(tf.sin(x))
            return tape.gradient(y, x, output_gradients=seed)

        def step():
            number = 2.0 if count.advance() % 5 == 4 else 1.0
            return differentiate(draw(), number), differentiate_scalar(draw(), number)

        return step

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_output_gradient_is_returned_as_it_is():
    @terra_tf.function
    def differentiate(x, seed):
        with tf.GradientTape() as tape:
            tape.watch(x)
        return tape.gradient(x, x, output_gradients=seed), seed, x * 2.0

    for _ in range(6):
        gradient, seed, _ = differentiate(tf.ones([2]), tf.constant([3.0, 4.0]))
        np.testing.assert_array_equal(gradient, seed)
    assert num_gradients(differentiate.stats()) > 0


def test_persistent_tape_and_several_gradients_of_one_step():
    def make(wrap):
        weight, draw, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def differentiate(x, twice):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(x)
                y = tf.sin(x @ weight)
                z = tf.reduce_sum(y * y)
            first = tape.gradient(z, [x, weight])
            second = tape.gradient(y, x) if twice else tape.gradient(z, x)
            return first, second, tape.gradient(z, tf.Variable(1.0, name="unconnected"))

        return lambda: differentiate(draw(), count.advance() % 2 == 0)

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_recording_that_is_stopped_at_times():
    def make(wrap):
        weight, draw, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def differentiate(x, stop):
            with tf.GradientTape() as tape:
                tape.watch(x)
                if stop:
                    with tape.stop_recording():
                        y = tf.sin(x @ weight)
                else:
                    y = tf.sin(x @ weight)
                z = y + x
            return tape.gradient(z, [x, weight])

        return lambda: differentiate(draw(), count.advance() % 3 == 1)

    assert_like_eager(make, 24)


@pytest.mark.parametrize("unconnected", ["none", "zero"])
def test_unconnected_gradients(unconnected):
    def make(wrap):
        weights, draw, count = [make_weight(), make_weight()], draw_inputs(), Counter()

        @wrap
        def differentiate(x, index, how):
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(tf.sin(x @ weights[0]))
            return tape.gradient(y, weights[index], unconnected_gradients=how)

        def step():
            n = count.advance()
            return differentiate(draw(), n % 2, unconnected if n % 3 else "none")

        return step

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_gradient_of_a_gather_is_slices():
    def make(wrap):
        table, draw = make_weight(), np.random.default_rng(0)

        @wrap
        def train(ids):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(table, ids) ** 2)
            gradient = tape.gradient(loss, table)
            assert isinstance(gradient, tf.IndexedSlices)
            table.scatter_sub(
                tf.IndexedSlices(0.1 * gradient.values, gradient.indices, gradient.dense_shape)
            )
            return loss, gradient

        return lambda: (train(tf.constant(draw.integers(0, WIDTH, [6]))), table)

    assert_like_eager(make)


def test_second_order_gradients_and_tapes_within_tapes():
    def make(wrap):
        draw = draw_inputs()

        @wrap
        def differentiate(x):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    y = tf.reduce_sum(tf.sin(x) * x)
                first = inner.gradient(y, x)
                z = tf.reduce_sum(first * first)
            return first, outer.gradient(z, x)

        return lambda: differentiate(draw())

    stats = assert_like_eager(make)
    assert num_gradients(stats) == 2 * stats.co_executed_steps - 3  # the outer one is learned twice


def test_two_tapes_at_once_that_are_used_in_either_order():
    def make(wrap):
        draw, count = draw_inputs(), Counter()

        @wrap
        def differentiate(x, y, swap):
            with tf.GradientTape() as a, tf.GradientTape() as b:
                a.watch(x)
                b.watch(y)
                z = tf.reduce_sum(tf.sin(x) * y)
            first, second = (b, a) if swap else (a, b)
            return first.gradient(z, [x, y]), second.gradient(z, [x, y])

        return lambda: differentiate(draw(), draw(), count.advance() % 2 == 0)

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_tape_that_was_made_outside_of_the_step():
    def make(wrap):
        draw = draw_inputs()

        @wrap
        def differentiate(tape, y, x):
            return tape.gradient(y, x), x + 1.0

        def step():
            x = draw()
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.sin(x)
            return differentiate(tape, y, x)

        return step

    stats = assert_like_eager(make)
    assert num_gradients(stats) == 0


def test_gradient_functions_of_the_user_always_run():
    def make(wrap):
        draw, seen = draw_inputs(), []

        @tf.custom_gradient
        def clip(x):
            def gradient(upstream):
                seen.append(len(seen))
                return tf.clip_by_value(upstream, -0.1 * len(seen), 0.1)

            return tf.identity(x), gradient

        @wrap
        def differentiate(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                z = tf.reduce_sum(clip(x) ** 2)
            return tape.gradient(z, x)

        return lambda: (differentiate(draw()), list(seen))

    stats = assert_like_eager(make)
    assert num_gradients(stats) == 0
    assert "GradientTape.gradient: it runs a gradient of the user's" in stats.calls_not_replayed


def test_attributes_of_an_op_that_python_runs_decide():
    def make(wrap):
        draw, count = draw_inputs(), Counter()

        @wrap
        def differentiate(x, scale):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.numpy_function(np.sin, [x], tf.float32) * x
                y = tf.py_function(lambda t: t * scale, [y], tf.float32)
            return tape.gradient(y, x)

        return lambda: differentiate(draw(), float(count.advance()))

    assert_like_eager(make)


def test_step_that_leaves_the_graph_after_a_replayed_gradient():
    def make(wrap):
        weight, draw, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def train(x, is_late):
            with tf.GradientTape() as tape:
                hidden = tf.tanh(x @ weight)
                loss = tf.reduce_sum(hidden**2)
            gradient = tape.gradient(loss, weight)
            if is_late:
                gradient = tf.clip_by_norm(gradient, 0.5) + tf.reduce_mean(hidden)
            weight.assign_sub(0.1 * gradient)
            return loss, gradient

        return lambda: (train(draw(), count.advance() % 7 == 6), weight)

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_gradients_of_many_paths():
    def make(wrap):
        weights = [make_weight() for _ in range(4)]
        draw, rng = draw_inputs(), np.random.default_rng(3)

        @wrap
        def train(x, chosen):
            with tf.GradientTape() as tape:
                for weight, is_chosen in zip(weights, chosen):
                    if is_chosen:
                        x = tf.tanh(x @ weight)
                loss = tf.reduce_sum(x * x)
            gradients = tape.gradient(loss, weights)
            for weight, gradient in zip(weights, gradients):
                if gradient is not None:
                    weight.assign_sub(0.1 * gradient)
            return loss, gradients

        return lambda: train(draw(), [bool(b) for b in rng.integers(0, 2, [4])])

    assert num_gradients(assert_like_eager(make, 60)) > 5


def test_lengths_that_vary():
    def make(wrap):
        weight, rng = make_weight(), np.random.default_rng(0)

        @wrap
        def train(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.softmax(x @ weight + tf.ones([1, WIDTH])) ** 2)
            gradient = tape.gradient(loss, weight)
            weight.assign_sub(gradient)
            return loss

        def step():
            length = int(rng.integers(1, 9))
            return train(tf.constant(rng.normal(size=[length, WIDTH]).astype("f"))), weight

        return step

    assert_like_eager(make, 60)


def test_gradients_that_outlive_their_step():
    def make(wrap):
        weight, draw, kept = make_weight(), draw_inputs(), []

        @wrap
        def differentiate(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.tanh(x @ weight))
            kept.append(tape.gradient(loss, weight))
            return loss

        def step():
            differentiate(draw())
            return sum(kept[-3:])

        return step

    assert num_gradients(assert_like_eager(make)) > 0


def test_error_of_an_op_inside_a_replayed_call():
    def make(wrap):
        count = Counter()

        @wrap
        def differentiate(x, bad):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.linalg.cholesky(x * tf.cast(bad, tf.float32) + tf.eye(3))
            return tape.gradient(y, x)

        def step():
            bad = tf.constant(-5.0 if count.advance() % 6 == 5 else 0.0)
            return differentiate(tf.eye(3), bad)

        return step

    assert_like_eager(make, 18)


KERAS_SOURCES = {
    "weights": lambda model, x: model.trainable_variables,
    "frozen too": lambda model, x: model.variables,
    "one unconnected": lambda model, x: [*model.trainable_variables, keras.Variable(1.0)],
    "with a tensor": lambda model, x: [model.layers[0].kernel, x],
    "their values": lambda model, x: [variable.value for variable in model.trainable_variables],
    "a tuple": lambda model, x: tuple(model.trainable_variables),
}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("sources", KERAS_SOURCES.values(), ids=KERAS_SOURCES)
def test_gradients_of_keras_variables(sources, policy):
    def make(wrap):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(8, activation="tanh", dtype=policy) for _ in range(2)]
        model, draw = keras.Sequential(layers), draw_inputs()
        model.build((None, 16))
        model.layers[1].trainable = False

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.cast(model(x), tf.float32) ** 2)
            return tape.gradient(loss, sources(model, x))

        return lambda: step(draw())

    stats = assert_like_eager(make)
    assert num_gradients(stats) > 4, stats.calls_not_replayed
