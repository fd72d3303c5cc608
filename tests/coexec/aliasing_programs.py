"""Programs of three arguments, each used by ops that take several of them at once.

What they have in common: their result tells apart which argument is which object, in whatever
order ops, library calls, gradients, loops and joins look at them.
"""

import numpy as np
import tensorflow as tf

import terra_tf as terra

CAPTURED = tf.constant([[0.5, -1.0], [2.0, 0.25]])
STATE = tf.Variable(tf.zeros([2, 2]))


def product_and_sum(a, b, c):
    return tf.matmul(a, b) + c


def chained_products(a, b, c):
    return (a * b) - (b * c)


def concatenated(a, b, c):
    return tf.concat([a, b, c], 0)


def summed_and_stacked(a, b, c):
    return tf.add_n([a, b]) * tf.stack([a, c])[0]


def raw_ops(a, b, c):
    product = tf.raw_ops.Mul(x=tf.convert_to_tensor(a), y=tf.convert_to_tensor(b))
    return tf.raw_ops.ConcatV2(values=[product, tf.convert_to_tensor(c)], axis=0)


def selected(a, b, c):
    return tf.where(tf.greater(a, b), b, c)


def clipped(a, b, c):
    return tf.clip_by_value(a, tf.minimum(b, c), tf.maximum(b, c))


def operators(a, b, c):
    return (a - b) / (1.0 + tf.abs(c))


def contracted(a, b, c):
    return tf.einsum("ij,jk,kl->il", a, b, c)


def nested_lists(a, b, c):
    return [tf.reduce_sum(tf.multiply(x, y)) for x, y in [[a, b], [c, a], [b, c]]]


def loop_over_arguments(a, b, c):
    total = tf.zeros([2, 2])
    for x in (a, b, c):
        total = total * 0.5 + x * b
    return total


def rolled_loop(a, b, c):
    total = tf.zeros([2, 2])
    for _ in range(8):
        total = tf.tanh(total * a + b) - c * a
    return total


def joined(a, b, c):
    h = a * c
    if float(tf.reduce_sum(a)) > float(tf.reduce_sum(b)):
        h = b
    return tf.maximum(h, c) - h * b


def gradient(a, b, c):
    x = tf.convert_to_tensor(a)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.tanh(x @ b) * c)
    return tape.gradient(loss, x)


def two_gradients(a, b, c):
    a, b, c = map(tf.convert_to_tensor, (a, b, c))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([a, b])
        loss = tf.reduce_sum(a * c) + tf.reduce_sum(tf.exp(b) * c)
    return tape.gradient(loss, [a, b])


def jacobian(a, b, c):
    """Not among `PROGRAMS`: TensorFlow's own has other last bits (docs/limits.md)."""
    x = tf.convert_to_tensor(a)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(tf.sin(x) * b, axis=1) + tf.convert_to_tensor(c)[:, 0]
    return tape.jacobian(y, x)


def written(a, b, c):
    STATE.assign(tf.convert_to_tensor(a) * 0.5)
    STATE.assign_add(b * c)
    return STATE * a


def with_a_captured_tensor(a, b, c):
    return tf.concat([CAPTURED * a, tf.maximum(CAPTURED, b), tf.matmul(CAPTURED, c)], 0)


@terra.pure
def _declared(a, b, c):
    return tf.tanh(a * b) + tf.matmul(c, a)


def declared_pure(a, b, c):
    return _declared(a, b, c)


def sliced_rows(a, b, c):
    return tf.stack([a[0], b[1], c[0]]) * tf.gather(a, [1]) + tf.convert_to_tensor(c)[1]


def read_in_between(a, b, c):
    first = tf.add(a, b)
    scale = float(tf.reduce_max(first))
    return tf.multiply(first, c) * scale + tf.subtract(c, b)


def composite(a, b, c):
    ragged = tf.RaggedTensor.from_row_splits(tf.reshape(a, [4]), [0, 1, 4])
    other = ragged.with_values(tf.reshape(b, [4]) + tf.reshape(c, [4]))
    return (ragged * other).to_tensor()


PROGRAMS = [
    product_and_sum, chained_products, concatenated, summed_and_stacked, raw_ops, selected,
    clipped, operators, contracted, nested_lists, loop_over_arguments, rolled_loop, joined,
    gradient, two_gradients, written, with_a_captured_tensor, declared_pure,
    sliced_rows, read_in_between, composite,
]  # fmt: skip


def a_tensor(value):
    """A tensor of its own."""
    return tf.constant(value)


def an_array(value):
    """A NumPy array, which becomes a tensor anew for each op."""
    return np.array(value)


def a_variable(value):
    """A variable, which each op reads."""
    return tf.Variable(value)


KINDS = [a_tensor, an_array, a_variable]
