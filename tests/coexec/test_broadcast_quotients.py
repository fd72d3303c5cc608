"""A broadcast tensor that is divided by a number is divided first, with the same bits."""

import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import assert_matches_eager

pytestmark = pytest.mark.timeout(120)


def means(x, n):
    return tf.reduce_mean(tf.sin(x)) + tf.reduce_sum(tf.reduce_mean(x * x, [0]))


def variance(x, n):
    return tf.reduce_sum(tf.nn.moments(x, [0, 1])[1] * tf.constant([1.0, 2.0, 3.0]))


def broadcast(x, n):
    whole = tf.broadcast_to(x[:1], [4, 7, 3])
    return tf.reduce_sum(whole / (0.3 * n)) + tf.reduce_max(whole)


def not_a_number(x, n):
    return tf.reduce_sum(tf.broadcast_to(x[0, 0], [5, 3]) / tf.constant([1.0, 0.0, 7.0]))


def divided_by_zero(x, n):
    return tf.reduce_sum(tf.broadcast_to(tf.nn.relu(x[0, 0]), [5, 3]) / tf.constant(0.0), 0)


def tiny(x, n):
    return tf.broadcast_to(x[0] * 1e-38, [5, 7, 3]) / 1000.0


PROGRAMS = (means, variance, broadcast, not_a_number, divided_by_zero, tiny)


def make(program, wrap):
    rng = np.random.default_rng(0)
    count = iter(range(1, 100))

    @wrap
    def step(x, n):
        with tf.GradientTape() as tape:
            tape.watch(x)
            result = program(x, n)
        return result, tape.gradient(result, x)

    return lambda: step(tf.constant(rng.standard_normal((6, 7, 3)), tf.float32), next(count))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_bits_are_eagers(program):
    (function,) = assert_matches_eager(lambda wrap: make(program, wrap), 8)
    assert function.stats().co_executed_steps > 2


def test_mean_is_divided_before_it_is_broadcast():
    (function,) = assert_matches_eager(lambda wrap: make(means, wrap), 6)
    definition = function.built_graph.generated.lowered.definition
    makers = {node.name: node for node in definition.node_def}
    quotients = [node for node in definition.node_def if node.op == "RealDiv"]
    dividends = [makers[node.input[0].split(":")[0]].op for node in quotients]
    assert quotients and "BroadcastTo" not in dividends, dividends
