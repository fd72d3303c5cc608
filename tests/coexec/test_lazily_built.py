"""Programs that make their variables in the first call, as lazily built layers do."""

import itertools
import random

import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(120)
NUM_LAYERS = 5


class Layer:
    """A residual layer whose weight is made when it is called first."""

    def __init__(self):
        self.weight = None

    def __call__(self, x):
        if self.weight is None:
            self.weight = tf.Variable(0.3 * tf.random.stateless_normal([x.shape[-1], 4], [1, 2]))
        return x + tf.tanh(x @ self.weight)


def with_random_depth(layers, step, rng):
    return [layer for layer in layers if step == 0 or rng.random() < 0.6]


def with_a_layer_dropped_once(layers, step, rng):
    return layers[1:] if step > 12 else layers


def with_layers_added(layers, step, rng):
    return layers[max(0, NUM_LAYERS - 1 - step // 10) :]


def make_training(wrap, choose):
    layers = [Layer() for _ in range(NUM_LAYERS)]
    steps, rng = itertools.count(), random.Random(0)

    @wrap
    def step(x):
        chosen = choose(layers, next(steps), rng)
        with tf.GradientTape() as tape:
            for layer in chosen:
                x = layer(x)
            loss = tf.reduce_mean((x - 1.0) ** 2)
        weights = [layer.weight for layer in chosen]
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.1 * gradient)
        return loss

    batches = np.random.default_rng(0).standard_normal((8, 3, 4)).astype(np.float32)
    calls = itertools.count()
    return Program(lambda: step(tf.constant(batches[next(calls) % 8])))


@pytest.mark.parametrize(
    "choose", [with_random_depth, with_a_layer_dropped_once, with_layers_added]
)
def test_lazily_built_layers_settle_as_others_do(choose):
    (step,) = assert_matches_eager(lambda wrap: make_training(wrap, choose), num_steps=70)
    stats = step.stats()
    assert stats.phase == "co-execution"
    assert stats.co_executed_steps >= 48
    assert stats.graph_builds <= 6


def test_variables_of_the_first_call_are_not_advised_against():
    (step,) = assert_matches_eager(
        lambda wrap: make_training(wrap, with_a_layer_dropped_once), num_steps=10
    )
    explanation = step.explain()
    made = [op for op in explanation.imperative_ops if op.op_type == "VarHandleOp"]
    assert made and not any(op.in_every_step for op in made)
    assert not any("VarHandleOp" in sentence for sentence in explanation.advice)
    assert "What Python runs itself in some steps:\n  VarHandleOp" in str(explanation)
    assert "in every step" not in str(explanation)
