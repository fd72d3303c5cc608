"""Calls that are replayed where ways meet: what an op of theirs takes differs by path."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(120)


def make_model():
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.25, seed=3),
            keras.layers.Dense(4, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    model.build([None, 4])
    return model


def train_in_turns(flags, is_taped=True):
    """Compare training with eager whose flag differs by step; return the counters."""

    def make(wrap):
        numbers = itertools.count()
        model = make_model()
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        optimizer.build(model.trainable_variables)

        def train(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x, training=True) ** 2)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        @wrap
        def step(x, training):
            if training and is_taped:
                return train(x)
            return tf.reduce_mean(model(x, training=training) ** 2)

        def run():
            number = next(numbers)
            x = tf.random.stateless_normal([5, 4], [number, 1])
            return step(x, flags[number % len(flags)])

        return Program(run, [*model.variables, *optimizer.variables])

    (step,) = assert_matches_eager(make, num_steps=40)
    return step.stats()


@pytest.mark.parametrize("is_taped", [True, False])
@pytest.mark.parametrize(
    "flags",
    [[True, True, True, False], [False, True], [True] * 7 + [False]],
    ids=["every 4th", "turns", "every 8th"],
)
def test_layers_of_a_model_whose_flag_changes_are_replayed(flags, is_taped):
    stats = train_in_turns(flags, is_taped)
    assert "Layer.__call__: ways meet in it" not in stats.calls_not_replayed
    assert stats.calls_replayed["Layer.__call__"] > 20
    assert stats.co_executed_steps > 30


def test_layer_whose_ways_meet_inside_it():
    """One call, several ways through it: a record is of one way, whatever the others joined."""

    class Branching(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)
            self.way = 0

        def build(self, shape):
            self.dense.build(shape)
            self.built = True

        def call(self, x):
            h = self.dense(x)
            if self.way == 1:
                h = tf.tanh(h)
            elif self.way == 2:
                h = tf.nn.relu(h) + x
            return tf.reduce_sum(h * h, axis=-1) + tf.reduce_mean(h)

    def make(wrap):
        numbers = itertools.count()
        keras.utils.set_random_seed(3)
        layer = Branching()
        layer.build([None, 4])
        order = np.random.default_rng(0).integers(3, size=60)

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x))
            for variable in layer.trainable_variables:
                variable.assign_sub(0.01 * tape.gradient(loss, variable))
                break
            return loss

        def run():
            number = next(numbers)
            layer.way = int(order[number])
            return step(tf.random.stateless_normal([5, 4], [number, 1]))

        return Program(run, layer.variables)

    (step,) = assert_matches_eager(make, num_steps=60)
    assert step.stats().co_executed_steps > 40


def test_functions_whose_argument_is_decided_by_the_path():
    """`tf.nn.moments` hands its own results on; its argument is one of two tensors."""

    def make(wrap):
        numbers = itertools.count()
        weight = tf.Variable(tf.random.stateless_normal([4, 4], [1, 2]))

        @wrap
        def step(x, is_even):
            h = tf.tanh(x @ weight) if is_even else tf.sigmoid(x) * 2.0
            mean, variance = tf.nn.moments(h, [0])
            y = tf.nn.batch_normalization(h, mean, variance, None, None, 1e-3)
            return tf.clip_by_norm(y, 1.0), mean

        def run():
            number = next(numbers)
            x = tf.random.stateless_normal([5, 4], [number, 1])
            return step(x, number % 3 != 0)

        return Program(run, [weight])

    (step,) = assert_matches_eager(make, num_steps=40)
    stats = step.stats()
    assert not any("ways meet" in why for why in stats.calls_not_replayed)
    assert stats.calls_replayed["tf.nn.moments"] > 20
