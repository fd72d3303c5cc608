"""A Keras convolutional classifier: batch norm, dropout, SGD with momentum."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.program import Program, label_batches, normal_batches


def _make_model(size: int, channels: tuple[int, ...], dropout: float, num_classes: int):
    layers = keras.layers
    model = keras.Sequential([layers.Input((size, size, 3))])
    for num_filters in channels:
        model.add(layers.Conv2D(num_filters, 3, padding="same"))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dropout(dropout))
    model.add(layers.Dense(num_classes))
    return model


def make(
    wrap: Callable,
    *,
    size: int = 32,
    channels: tuple[int, ...] = (16, 32),
    batch: int = 16,
    num_classes: int = 10,
    dropout: float = 0.3,
    learning_rate: float = 1e-2,
    num_batches: int = 4,
    seed: int = 0,
) -> Program:
    """Build the program on float32[batch, size, size, 3] images with int64[batch] labels."""
    keras.utils.set_random_seed(seed)
    model = _make_model(size, channels, dropout, num_classes)
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    optimizer.build(model.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rng = np.random.default_rng(seed)
    images = normal_batches(rng, num_batches, batch, size, size, 3)
    labels = label_batches(rng, num_batches, num_classes, batch)

    @wrap
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = cross_entropy(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return Program(
        step=lambda i: train_step(images[i % num_batches], labels[i % num_batches]),
        variables=[variable.value for variable in model.variables + optimizer.variables],
        function=train_step,
    )
