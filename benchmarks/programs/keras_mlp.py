"""A Keras perceptron in a custom training loop, with Adam."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.program import Program, normal_batches


def make(
    wrap: Callable,
    *,
    depth: int = 6,
    width: int = 256,
    batch: int = 64,
    learning_rate: float = 1e-3,
    num_batches: int = 4,
    seed: int = 0,
) -> Program:
    """Build the program: `depth` Dense layers of `width` units on float32[batch, width]."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(width, activation="relu") for _ in range(depth)]
    model = keras.Sequential([keras.layers.Input((width,)), *layers])
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(model.trainable_variables)
    batches = normal_batches(np.random.default_rng(seed), num_batches, batch, width)

    @wrap
    def train_step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - 1.0))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return Program(
        step=lambda i: train_step(batches[i % num_batches]),
        variables=[variable.value for variable in model.variables + optimizer.variables],
        function=train_step,
    )
