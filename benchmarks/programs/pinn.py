"""A physics-informed network: the loss has the network's jacobian in it (Raissi et al., 2019).

The residual is that of Burgers' equation without viscosity, u_t + u u_x = 0; u is 1 unknown at
points (t, x). The network is differentiated by `batch_jacobian`, and the loss through it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.programs.program import Program, make_update, normal_batches, normal_variable


def make(
    wrap: Callable,
    *,
    depth: int = 4,
    width: int = 32,
    batch: int = 128,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    num_batches: int = 4,
    seed: int = 0,
) -> Program:
    """Build the program: `depth` layers of tanh, float32[width, width], at float32[batch, 2]."""
    tf.random.set_seed(seed)
    rng = np.random.default_rng(seed)
    widths = [2, *[width] * depth, 1]
    kernels = [normal_variable(rng, *shape) for shape in itertools.pairwise(widths)]
    biases = [tf.Variable(tf.zeros(size)) for size in widths[1:]]
    trainable = [*kernels, *biases]
    update, state = make_update(optimizer, trainable, learning_rate)
    batches = normal_batches(rng, num_batches, batch, 2)

    def network(points):
        *hidden, last = zip(kernels, biases)
        for kernel, bias in hidden:
            points = tf.tanh(tf.matmul(points, kernel) + bias)
        return tf.matmul(points, last[0]) + last[1]

    @wrap
    def train_step(points):
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(points)
                u = network(points)
            slopes = inner.batch_jacobian(u, points)[:, 0]
            residual = slopes[:, 0] + u[:, 0] * slopes[:, 1]
            at_start = u[:, 0] + tf.sin(np.pi * points[:, 1])
            loss = tf.reduce_mean(tf.square(residual)) + tf.reduce_mean(tf.square(at_start))
        update(tape.gradient(loss, trainable))
        return loss

    return Program(
        step=lambda i: train_step(batches[i % num_batches]),
        variables=trainable + state,
        function=train_step,
    )
