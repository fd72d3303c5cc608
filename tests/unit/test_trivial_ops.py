"""Ops that hand their input on are no ops of the function; their bits are eager's all the same."""

import collections

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra

X = np.float32([[1.5, -0.0, 3.0], [np.nan, np.inf, -2.0]])
PLUMBING = {"Const", "Placeholder", "NoOp"}
NOTHING = {
    "identity": tf.identity,
    "stop_gradient": tf.stop_gradient,
    "reshape": lambda x: tf.reshape(x, [2, -1]),
    "sum over no axis": lambda x: tf.raw_ops.Sum(input=x, axis=np.zeros([0], np.int32)),
    "broadcast": lambda x: tf.raw_ops.BroadcastTo(input=x, shape=[2, 3]),
    "tile once": lambda x: tf.tile(x, [1, 1]),
}
OTHER_SHAPE = {
    "sum over one item": lambda x: tf.reduce_sum(x[:, None], 1),
    "sum that keeps one item": lambda x: tf.reduce_sum(tf.reshape(x, [6, 1]), 1, keepdims=True),
}
SOMETHING = {
    "sum": lambda x: tf.reduce_sum(x, 0),
    "reshape": lambda x: tf.reshape(x, [3, 2]),
    "tile": lambda x: tf.tile(x, [1, 2]),
    "broadcast": lambda x: tf.broadcast_to(x, [4, 2, 3]),
}


def run(change):
    """Returns the result under terra, eager's, and the kinds of ops in the graph."""
    step = terra.function(lambda x: change(x * 1.0))
    for _ in range(4):
        result = step(tf.constant(X))
    assert step.stats().phase == "co-execution"
    graph = step.built_graph.generated.function.graph
    types = collections.Counter(op.type for op in graph.get_operations())
    kernels = {t for t in types if t not in PLUMBING and not t.startswith("Terra>")}
    return result.numpy(), change(tf.constant(X) * 1.0).numpy(), kernels


@pytest.mark.parametrize("change", NOTHING.values(), ids=NOTHING)
def test_op_that_changes_nothing_is_not_in_the_graph(change):
    result, expected, kernels = run(change)
    np.testing.assert_array_equal(result.view(np.int32), expected.view(np.int32))
    assert kernels == {"Mul"}


@pytest.mark.parametrize("change", OTHER_SHAPE.values(), ids=OTHER_SHAPE)
def test_sum_of_single_items_is_a_reshape(change):
    result, expected, kernels = run(change)
    np.testing.assert_array_equal(result.view(np.int32), expected.view(np.int32))
    assert "Sum" not in kernels


@pytest.mark.parametrize("change", SOMETHING.values(), ids=SOMETHING)
def test_op_that_does_something_stays(change):
    result, expected, kernels = run(change)
    np.testing.assert_array_equal(result, expected)
    assert len(kernels) == 2


def test_two_reads_of_a_variable_are_one_and_both_are_fetched():
    w = tf.Variable([1.0, 2.0])

    @terra.function
    def step():
        first, second = w.read_value(), w.read_value()
        w.assign_add([1.0, 1.0])
        return first, second, w.read_value()

    for i in range(6):
        first, second, third = step()
        np.testing.assert_array_equal(first, [1.0 + i, 2.0 + i])
        np.testing.assert_array_equal(second, first)
        np.testing.assert_array_equal(third, first + 1.0)
    assert step.stats().phase == "co-execution"


def test_equal_constants_are_one_node_and_zeros_keep_their_sign():
    @terra.function
    def step(x):
        y = x * 0.5 + 0.5
        return y / tf.constant([0.0]), y / tf.constant([-0.0])

    for _ in range(4):
        plus, minus = step(tf.constant([3.0]))
    assert (float(plus[0]), float(minus[0])) == (np.inf, -np.inf)
    graph = step.built_graph.generated.function.graph
    assert sum(op.type == "Const" for op in graph.get_operations()) == 3


def test_shapes_that_vary_are_found_out_of_the_op_itself():
    """What is handed on of a tensor of unknown shape would be asked for another op's shape."""

    @terra.function
    def step(x):
        y = tf.stop_gradient(tf.tanh(tf.reshape(x, [-1, 2])))
        return tf.identity(y * 2.0)

    for size in (2, 4, 6, 8, 10, 12, 4, 14, 20):
        result = step(tf.ones([size]))
        assert result.shape == (size // 2, 2)
    assert step.stats().phase == "co-execution"
    assert step.stats().num_fetches == 1
