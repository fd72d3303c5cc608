"""What programs with inner `tf.function`s share."""

import itertools

import tensorflow as tf

from terra_tf.testing import Program


def batches(shape=(4, 6)):
    numbers = itertools.count()
    return lambda: tf.random.stateless_normal(shape, [next(numbers), 3])


def weight(seed=0):
    return tf.Variable(0.3 * tf.random.stateless_normal([6, 6], [seed, 1]))


def training(wrap, function, variables):
    """A step that differentiates `function` and applies the gradients."""
    draw = batches()

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(function(x)))
        for v, g in zip(variables, tape.gradient(loss, variables), strict=True):
            v.assign_sub(0.1 * g)
        return loss

    return Program(lambda: step(draw()), variables)
