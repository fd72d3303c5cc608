"""Every way to look at a variable, before and after it was changed in the same step."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)
NUM_STEPS = 16


def rows(i, num_rows=3):
    return tf.constant(np.random.default_rng(i).normal(size=[num_rows, 4]).astype(np.float32))


def some_rows(i):
    return rows(i, 2 + i % 3)


def program(step, variables, make_argument=rows):
    """Return the program that calls `step` with another argument each time."""
    numbers = itertools.count()
    return Program(lambda: step(make_argument(next(numbers))), variables)


def table():
    return tf.Variable(tf.reshape(tf.range(12.0), [3, 4]))


def make_gathers_of_a_changed_variable(wrap):
    weight = table()

    @wrap
    def step(x):
        weight.assign_add(x)
        return weight.gather_nd([[0, 1], [2, 2]]), weight.sparse_read([0, 2])

    return program(step, [weight])


def make_gathers_of_as_many_as_data_says(wrap):
    weight = table()

    @wrap
    def step(x):
        indices = tf.where(x[:, 0] > 0.0)[:, 0]
        before = weight.sparse_read(indices)
        weight.assign_add(x)
        after = weight.sparse_read(indices), weight.gather_nd(indices[:, tf.newaxis])
        return before, after, tf.shape(before)

    return program(step, [weight])


def make_gathers_of_unknown_length(wrap):
    weight = table()

    @wrap
    def step(x):
        indices = tf.range(tf.shape(x)[0]) % 3
        read = weight.sparse_read(indices)
        gathered = weight.gather_nd(indices[:, tf.newaxis])
        return read.shape.as_list(), read * 2.0, gathered.shape.as_list(), gathered

    return program(step, [weight], some_rows)


def make_batches_of_gathers(wrap):
    weight = tf.Variable(tf.reshape(tf.range(24.0), [2, 4, 3]))

    @wrap
    def step(x):
        indices = tf.cast(tf.abs(x[:2, : 1 + x.shape[0] % 3]) * 10.0, tf.int32) % 4
        before = tf.gather(weight, indices, batch_dims=1)
        weight.assign(weight * 1.1)
        return before, before.shape.as_list(), tf.gather(weight, indices, batch_dims=1)

    return program(step, [weight], some_rows)


def make_shape_of_a_variable_of_any_shape(wrap):
    weight = tf.Variable([1.0, 2.0], shape=tf.TensorShape(None))

    @wrap
    def step(x):
        before = tf.raw_ops.VariableShape(input=weight.handle, out_type=tf.int64)
        weight.assign(x * 2.0)
        between = tf.raw_ops.VariableShape(input=weight.handle)
        zeros = tf.zeros(between)
        weight.assign(x[0])
        after = tf.raw_ops.VariableShape(input=weight.handle)
        return before, between, zeros, after, weight + 1.0

    return program(step, [weight], some_rows)


def make_shape_of_a_growing_variable(wrap):
    """TensorFlow's gradient of a gather asks for the variable's shape."""
    weight = tf.Variable(tf.ones([5, 4]), shape=tf.TensorShape([None, 4]))

    @wrap
    def step(x):
        if x[0, 0] > 0.0:
            weight.assign(tf.concat([weight, x[:1]], 0))
        with tf.GradientTape() as tape:
            read = tf.gather(weight, [0, 2])
            loss = tf.reduce_sum(read * read)
        gradient = tape.gradient(loss, weight)
        return loss, tf.convert_to_tensor(gradient), gradient.dense_shape

    return program(step, [weight])


def make_writes_in_place(wrap):
    weight, counts = tf.Variable(tf.ones([4, 2])), tf.Variable(tf.fill([4], 100))

    @wrap
    def step(x):
        weight.scatter_div(tf.IndexedSlices(tf.abs(x[:1, :2]) + 1.0, [1]))
        counts.scatter_div(tf.IndexedSlices(tf.cast(tf.abs(x[0, :1]), tf.int32) + 1, [2]))
        indices = tf.where(x[:, 0] > 0.0)
        weight.scatter_nd_add(indices, tf.ones([tf.shape(indices)[0], 2]))
        weight.scatter_nd_update([[0], [1]], tf.ones([2, 2]))
        weight[1:3].assign(x[:2, :2])
        return weight + 0.0, counts + 0

    return program(step, [weight, counts])


MAKERS = [
    make_gathers_of_a_changed_variable,
    make_gathers_of_as_many_as_data_says,
    make_gathers_of_unknown_length,
    make_batches_of_gathers,
    make_shape_of_a_variable_of_any_shape,
    make_shape_of_a_growing_variable,
    make_writes_in_place,
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_variable_is_seen_as_eager_sees_it(make):
    (step,) = assert_matches_eager(make, NUM_STEPS)
    assert step.stats().co_executed_steps >= 6
