"""One transformer block trained to reproduce a fixed target: layer norm, attention, dropout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.programs.program import Program, make_update, normal_batches, normal_variable


class _Block:
    """Pre-norm encoder block with dropout after attention and after the feed-forward layer."""

    def __init__(self, rng: np.random.Generator, width: int, num_heads: int, dropout: float):
        self.width, self.num_heads, self.dropout = width, num_heads, dropout
        self.query, self.key, self.value, self.out = (
            normal_variable(rng, width, width) for _ in range(4)
        )
        self.expand = normal_variable(rng, width, 4 * width)
        self.contract = normal_variable(rng, 4 * width, width)
        self.gains = [tf.Variable(tf.ones(width)) for _ in range(2)]
        self.biases = [tf.Variable(tf.zeros(width)) for _ in range(2)]
        matrices = [self.query, self.key, self.value, self.out, self.expand, self.contract]
        self.variables = matrices + self.gains + self.biases

    def __call__(self, h: tf.Tensor) -> tf.Tensor:
        h = h + tf.nn.dropout(self._attend(self._normalize(h, 0)), self.dropout)
        a = tf.nn.gelu(tf.einsum("btd,df->btf", self._normalize(h, 1), self.expand))
        return h + tf.nn.dropout(tf.einsum("btf,fd->btd", a, self.contract), self.dropout)

    def _normalize(self, h: tf.Tensor, index: int) -> tf.Tensor:
        mean, variance = tf.nn.moments(h, [-1], keepdims=True)
        return tf.nn.batch_normalization(
            h, mean, variance, self.biases[index], self.gains[index], 1e-6
        )

    def _attend(self, a: tf.Tensor) -> tf.Tensor:
        q, k, v = (self._heads(a, weight) for weight in (self.query, self.key, self.value))
        scores = tf.einsum("bthd,bshd->bhts", q, k) / (self.width // self.num_heads) ** 0.5
        mixed = tf.einsum("bhts,bshd->bthd", tf.nn.softmax(scores), v)
        return tf.einsum("btd,de->bte", tf.reshape(mixed, tf.shape(a)), self.out)

    def _heads(self, a: tf.Tensor, weight: tf.Variable) -> tf.Tensor:
        batch, length, _ = a.shape
        projected = tf.einsum("btd,de->bte", a, weight)
        return tf.reshape(projected, [batch, length, self.num_heads, -1])


def make(
    wrap: Callable,
    *,
    width: int = 64,
    batch: int = 8,
    length: int = 32,
    num_heads: int = 4,
    dropout: float = 0.1,
    optimizer: str = "sgd",
    learning_rate: float = 0.01,
    num_batches: int = 4,
    seed: int = 3,
) -> Program:
    """Build the program on float32[batch, length, width]; `num_heads` must divide `width`."""
    tf.random.set_seed(seed)
    rng = np.random.default_rng(seed)
    block = _Block(rng, width, num_heads, dropout)
    update, state = make_update(optimizer, block.variables, learning_rate)
    batches = normal_batches(rng, num_batches, batch, length, width)
    target = tf.constant(rng.standard_normal((batch, length, width)).astype(np.float32))

    @wrap
    def train_step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.math.squared_difference(block(x), target))
        update(tape.gradient(loss, block.variables))
        return loss

    return Program(
        step=lambda i: train_step(batches[i % num_batches]),
        variables=block.variables + state,
        function=train_step,
    )
