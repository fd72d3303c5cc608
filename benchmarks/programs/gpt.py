"""A decoder-only transformer on random tokens, as measured in the table of baselines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.programs.program import Program, label_batches, make_update, normal_variable

_INIT_SCALE = 0.02
_MASKED = -1e9


class _Block:
    """Pre-norm block: causal self-attention, then a feed-forward layer four times as wide."""

    def __init__(self, rng: np.random.Generator, width: int, num_heads: int, length: int):
        self.width, self.num_heads, self.length = width, num_heads, length
        self.qkv = normal_variable(rng, width, 3 * width, scale=_INIT_SCALE)
        self.out = normal_variable(rng, width, width, scale=_INIT_SCALE)
        self.expand = normal_variable(rng, width, 4 * width, scale=_INIT_SCALE)
        self.contract = normal_variable(rng, 4 * width, width, scale=_INIT_SCALE)
        self.norms = [normal_variable(rng, width, scale=_INIT_SCALE) for _ in range(4)]
        self.mask = tf.constant(np.triu(np.full((length, length), _MASKED, np.float32), 1))
        self.variables = [self.qkv, self.out, self.expand, self.contract, *self.norms]

    def __call__(self, h: tf.Tensor) -> tf.Tensor:
        gain_1, bias_1, gain_2, bias_2 = self.norms
        h = h + self._attend(_layer_norm(h, gain_1, bias_1))
        a = tf.reshape(_layer_norm(h, gain_2, bias_2), [-1, self.width])
        a = tf.nn.gelu(tf.matmul(a, self.expand), approximate=True)
        return h + tf.reshape(tf.matmul(a, self.contract), [-1, self.length, self.width])

    def _attend(self, a: tf.Tensor) -> tf.Tensor:
        qkv = tf.matmul(tf.reshape(a, [-1, self.width]), self.qkv)
        q, k, v = [self._split_heads(part) for part in tf.split(qkv, 3, -1)]
        scores = tf.matmul(q, k, transpose_b=True) / np.sqrt(self.width // self.num_heads)
        mixed = tf.matmul(tf.nn.softmax(scores + self.mask), v)
        mixed = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, self.width])
        return tf.reshape(tf.matmul(mixed, self.out), [-1, self.length, self.width])

    def _split_heads(self, z: tf.Tensor) -> tf.Tensor:
        z = tf.reshape(z, [-1, self.length, self.num_heads, self.width // self.num_heads])
        return tf.transpose(z, [0, 2, 1, 3])


def _layer_norm(x: tf.Tensor, gain: tf.Variable, bias: tf.Variable) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-5) * (1 + gain) + bias


def make(
    wrap: Callable,
    *,
    width: int = 64,
    batch: int = 2,
    num_layers: int = 4,
    num_heads: int = 4,
    length: int = 64,
    vocabulary: int = 1000,
    optimizer: str = "sgd",
    learning_rate: float = 0.01,
    num_batches: int = 4,
    seed: int = 0,
) -> Program:
    """Build the program: next-token loss on int64[batch, length]; rows of the embedding scatter."""
    tf.random.set_seed(seed)
    rng = np.random.default_rng(seed)
    embedding = normal_variable(rng, vocabulary, width, scale=_INIT_SCALE)
    position = normal_variable(rng, length, width, scale=_INIT_SCALE)
    head = normal_variable(rng, width, vocabulary, scale=_INIT_SCALE)
    blocks = [_Block(rng, width, num_heads, length) for _ in range(num_layers)]
    trainable = [embedding, position, head, *(v for block in blocks for v in block.variables)]
    update, state = make_update(optimizer, trainable, learning_rate)
    tokens = label_batches(rng, num_batches, vocabulary, batch, length)

    @wrap
    def train_step(x, y):
        with tf.GradientTape() as tape:
            h = tf.gather(embedding, x) + position
            for block in blocks:
                h = block(h)
            logits = tf.matmul(tf.reshape(h, [-1, width]), head)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(y, [-1]), logits)
            loss = tf.reduce_mean(losses)
        update(tape.gradient(loss, trainable))
        return loss

    return Program(
        step=lambda i: train_step(tokens[i % num_batches], tokens[(i + 1) % num_batches]),
        variables=trainable + state,
        function=train_step,
    )
