"""Branches read variables as of their epoch, and keep none of them alive."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_variables_of_branches_are_read_as_of_their_epoch(is_sparse):
    """Sparse updates make a variable one that reads have to copy."""

    def make(wrap):
        weights = [tf.Variable(tf.fill([3, 2], float(i))) for i in range(4)]

        @wrap
        def step(x, choices):
            with tf.GradientTape() as tape:
                for weight, choice in zip(weights, choices, strict=True):
                    if choice:
                        x = tf.tanh(x @ weight) @ tf.transpose(weight) + x
                loss = tf.reduce_sum(x)
            gradients = tape.gradient(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is None:
                    continue
                if is_sparse:
                    weight.scatter_sub(tf.IndexedSlices(0.1 * gradient[:1], [1]))
                else:
                    weight.assign_sub(0.1 * gradient)
            return loss, weights[0] * 1.0

        def run(i):
            choices = np.random.default_rng(i).integers(2, size=4).astype(bool).tolist()
            return [t.numpy() for t in step(tf.fill([2, 3], 0.1 * i), choices)]

        return step, run, weights

    _, run, weights = make(lambda function: function)
    expected = [run(i) for i in range(60)]
    step, run, terra_weights = make(terra.function)
    found = [run(i) for i in range(60)]
    terra.synchronize()
    for ours, eagers in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[0], eagers[0])
        np.testing.assert_array_equal(ours[1], eagers[1])
    for ours, eagers in zip(terra_weights, weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), eagers.numpy())
    assert step.stats().co_executed_steps > 30


def test_read_of_a_branch_keeps_its_value_when_the_variable_is_written_in_place():
    def make(wrap):
        table = tf.Variable(tf.zeros([4]))

        @wrap
        def step(choice):
            seen = table.read_value() if choice else tf.fill([4], -1.0)
            table.scatter_add(tf.IndexedSlices(tf.constant([1.0]), [2]))
            return seen

        return step, table

    step, table = make(terra.function)
    eager, eagers_table = make(lambda function: function)
    results, expected = ([f(i % 3 > 0) for i in range(24)] for f in (step, eager))
    np.testing.assert_array_equal(tf.stack(results), tf.stack(expected))
    np.testing.assert_array_equal(table, eagers_table)
    assert step.stats().co_executed_steps > 12


def test_variable_that_a_branch_reads_is_freed_with_the_program():
    def make_and_run():
        weight = tf.Variable(tf.ones([2]))

        @terra.function
        def step(x, choice):
            return x * weight if choice else x + 1.0

        for i in range(8):
            step(tf.ones([2]), i % 2 == 0)
        terra.synchronize()
        assert step.stats().co_executed_steps > 2
        return weakref.ref(weight), weakref.ref(weight.handle)

    variable, handle = make_and_run()
    gc.collect()
    assert variable() is None
    assert handle() is None
