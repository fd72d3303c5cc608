"""A convolutional classifier from raw operations: fused batch norm, moving averages, dropout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.programs.program import (
    Program,
    label_batches,
    make_update,
    normal_batches,
    normal_variable,
)

_MOMENTUM = 0.9


def make(
    wrap: Callable,
    *,
    size: int = 32,
    channels: int = 8,
    batch: int = 16,
    num_classes: int = 10,
    dropout: float = 0.3,
    optimizer: str = "sgd",
    learning_rate: float = 0.01,
    num_batches: int = 4,
    seed: int = 7,
) -> Program:
    """Build the program on float32[batch, size, size, 3] images; `size` must be even."""
    tf.random.set_seed(seed)
    rng = np.random.default_rng(seed)
    kernel = normal_variable(rng, 3, 3, 3, channels)
    gain, bias = tf.Variable(tf.ones(channels)), tf.Variable(tf.zeros(channels))
    moving_mean = tf.Variable(tf.zeros(channels), trainable=False)
    moving_variance = tf.Variable(tf.ones(channels), trainable=False)
    head = normal_variable(rng, channels * (size // 2) ** 2, num_classes)
    trainable = [kernel, gain, bias, head]
    update, state = make_update(optimizer, trainable, learning_rate)
    images = normal_batches(rng, num_batches, batch, size, size, 3)
    labels = label_batches(rng, num_batches, num_classes, batch)

    def forward(x):
        h = tf.nn.conv2d(x, kernel, 1, "SAME")
        h, mean, variance = tf.compat.v1.nn.fused_batch_norm(h, gain, bias, is_training=True)
        moving_mean.assign(_MOMENTUM * moving_mean + (1 - _MOMENTUM) * mean)
        moving_variance.assign(_MOMENTUM * moving_variance + (1 - _MOMENTUM) * variance)
        h = tf.nn.max_pool2d(tf.nn.relu(h), 2, 2, "SAME")
        return tf.matmul(tf.nn.dropout(tf.reshape(h, [batch, -1]), dropout), head)

    @wrap
    def train_step(x, y):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, forward(x))
            loss = tf.reduce_mean(losses)
        update(tape.gradient(loss, trainable))
        return loss

    return Program(
        step=lambda i: train_step(images[i % num_batches], labels[i % num_batches]),
        variables=[*trainable, moving_mean, moving_variance, *state],
        function=train_step,
    )
