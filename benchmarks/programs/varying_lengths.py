"""Self-attention over sequences whose length is another in each step, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.programs.program import Program, make_update, normal_variable


def make(
    wrap: Callable,
    *,
    width: int = 32,
    num_blocks: int = 2,
    shortest: int = 5,
    longest: int = 30,
    learning_rate: float = 1e-2,
    num_batches: int = 200,
    seed: int = 0,
) -> Program:
    """Build the program: float32[length, width], each item foretold by those before."""
    rng = np.random.default_rng(seed)
    blocks = [
        [normal_variable(rng, width, width, scale=0.2) for _ in range(5)] for _ in range(num_blocks)
    ]
    variables = [variable for block in blocks for variable in block]
    update, state = make_update("sgd", variables, learning_rate)
    lengths = rng.integers(shortest, longest + 1, num_batches)
    sequences = [
        tf.constant(rng.standard_normal((length, width)).astype(np.float32)) for length in lengths
    ]

    def attend(x, query, key, value):
        q, k, v = x @ query, x @ key, x @ value
        scores = tf.matmul(q, k, transpose_b=True) / tf.sqrt(float(width))
        seen = tf.linalg.band_part(tf.ones_like(scores), -1, 0)
        return tf.nn.softmax(scores - 1e9 * (1.0 - seen)) @ v

    @wrap
    def train_step(x):
        with tf.GradientTape() as tape:
            h, wanted = x[:-1], x[1:]
            for query, key, value, up, down in blocks:
                h = h + attend(h, query, key, value)
                h = h + tf.nn.relu(h @ up) @ down
                h = h - tf.reduce_mean(h, axis=-1, keepdims=True)
            loss = tf.reduce_mean(tf.square(h - wanted))
        update(tape.gradient(loss, variables))
        return loss

    return Program(
        step=lambda i: train_step(sequences[i % num_batches]),
        variables=variables + state,
        function=train_step,
    )
