"""Sixty small functions and layers of the user's own, and of Keras', in one training step.

Ten blocks call three functions and three layers each. Nothing in them takes long: what a step costs
is mostly Python's, and whose Python that is depends on who runs it.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.programs.program import Program, label_batches, normal_batches, normal_variable

_NUM_CLASSES = 10


def _gelu(x):
    return 0.5 * x * (1.0 + tf.tanh(0.79788456 * (x + 0.044715 * x * x * x)))


def _standardized(x, epsilon=1e-5):
    mean = tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + epsilon)


def _residual(x, update, *, scale):
    return x + scale * update


class _Linear(tf.Module):
    """A layer written with TensorFlow alone."""

    def __init__(self, rng: np.random.Generator, width: int) -> None:
        super().__init__()
        self.weight = normal_variable(rng, width, width)
        self.bias = tf.Variable(tf.zeros(width))

    def __call__(self, x):
        return tf.matmul(x, self.weight) + self.bias


class Gate(keras.layers.Layer):
    """A layer of the user's own, written with Keras."""

    def build(self, input_shape):
        self.gate = self.add_weight(shape=(input_shape[-1],), initializer="ones")

    def call(self, x):
        return x * keras.ops.sigmoid(self.gate)


class _Block:
    def __init__(self, rng: np.random.Generator, width: int) -> None:
        self.linear = _Linear(rng, width)
        self.gate = Gate()
        self.dense = keras.layers.Dense(width, activation="relu")

    def __call__(self, x, scale):
        h = _gelu(self.linear(_standardized(x)))
        return _residual(x, self.dense(self.gate(h)), scale=scale)

    def variables(self) -> list[tf.Variable]:
        own = [self.linear.weight, self.linear.bias]
        return own + [v.value for v in (*self.gate.weights, *self.dense.weights)]


def make(
    wrap: Callable,
    *,
    num_blocks: int = 10,
    width: int = 32,
    batch: int = 32,
    learning_rate: float = 1e-2,
    num_batches: int = 4,
    seed: int = 0,
) -> Program:
    """Build the program: float32[batch, width], sorted into ten classes."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    blocks = [_Block(rng, width) for _ in range(num_blocks)]
    head = normal_variable(rng, width, _NUM_CLASSES)
    batches = normal_batches(rng, num_batches, batch, width)
    labels = label_batches(rng, num_batches, _NUM_CLASSES, batch)
    for block in blocks:
        block(batches[0], 1.0)
    variables = [head, *(v for block in blocks for v in block.variables())]

    @wrap
    def train_step(x, y):
        with tf.GradientTape() as tape:
            for depth, block in enumerate(blocks):
                x = block(x, 1.0 / (1 + depth))
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, tf.matmul(x, head))
            loss = tf.reduce_mean(losses)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(learning_rate * gradient)
        return loss

    return Program(
        step=lambda i: train_step(batches[i % num_batches], labels[i % num_batches]),
        variables=variables,
        function=train_step,
    )
