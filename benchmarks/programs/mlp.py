"""A multi-layer perceptron from raw operations; dropout, batch norm and Adam on request."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.programs.program import Program, make_update, normal_batches, normal_variable

_MOMENTUM = 0.9


class _Layer:
    """One dense layer: affine map, optional batch norm, ReLU, optional dropout."""

    def __init__(self, rng: np.random.Generator, width: int, batch_norm: bool, dropout: float):
        self.dropout = dropout
        self.weight = normal_variable(rng, width, width)
        self.bias = tf.Variable(tf.zeros(width))
        self.trainable = [self.weight, self.bias]
        self.moving: list[tf.Variable] = []
        if batch_norm:
            self.gain = tf.Variable(tf.ones(width))
            self.moving = [
                tf.Variable(tf.zeros(width), trainable=False),
                tf.Variable(tf.ones(width), trainable=False),
            ]
            self.trainable.append(self.gain)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        h = tf.matmul(x, self.weight)
        h = self._normalize(h) if self.moving else h + self.bias
        h = tf.nn.relu(h)
        return tf.nn.dropout(h, self.dropout) if self.dropout else h

    def _normalize(self, h: tf.Tensor) -> tf.Tensor:
        moments = tf.nn.moments(h, [0])
        for moving, moment in zip(self.moving, moments, strict=True):
            moving.assign(_MOMENTUM * moving + (1 - _MOMENTUM) * moment)
        return tf.nn.batch_normalization(h, *moments, self.bias, self.gain, 1e-3)


def prepared(examples: np.ndarray, num_shuffles: int, seed: int) -> tf.Tensor:
    """Return a batch that NumPy has shuffled and scaled `num_shuffles` times, on the host."""
    rng = np.random.default_rng(seed)
    for _ in range(num_shuffles):
        examples = rng.permuted(examples, axis=0)
        examples = (examples - examples.mean()) / examples.std()
    return tf.constant(examples)


def make(
    wrap: Callable,
    *,
    depth: int = 6,
    width: int = 256,
    batch: int = 64,
    optimizer: str = "sgd",
    dropout: float = 0.0,
    batch_norm: bool = False,
    learning_rate: float = 0.01,
    num_batches: int = 4,
    num_shuffles: int = 0,
    seed: int = 0,
) -> Program:
    """Build the program: `depth` layers float32[width, width] on float32[batch, width].

    With `num_shuffles`, NumPy prepares each batch before its step.
    """
    tf.random.set_seed(seed)
    rng = np.random.default_rng(seed)
    layers = [_Layer(rng, width, batch_norm, dropout) for _ in range(depth)]
    trainable = [variable for layer in layers for variable in layer.trainable]
    moving = [variable for layer in layers for variable in layer.moving]
    update, state = make_update(optimizer, trainable, learning_rate)
    batches = normal_batches(rng, num_batches, batch, width)

    @wrap
    def train_step(x):
        with tf.GradientTape() as tape:
            h = x
            for layer in layers:
                h = layer(h)
            loss = tf.reduce_mean(tf.square(h - 1.0))
        update(tape.gradient(loss, trainable))
        return loss

    def step(i):
        x = batches[i % num_batches]
        return train_step(prepared(x.numpy(), num_shuffles, i) if num_shuffles else x)

    return Program(
        step=step,
        variables=trainable + moving + state,
        function=train_step,
    )
