"""Raw ops that are given variables, and attributes that TensorFlow's fast path refuses."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(120)
raw = tf.raw_ops


def batch_norm(v, x):
    empty = tf.constant([])
    return raw.FusedBatchNormV2(
        x=x, scale=v, offset=v, mean=empty, variance=empty, is_training=True
    ).y


def slope_that_is_an_integer(v, x):
    return raw.LeakyRelu(features=v, alpha=2) + x


def integers_of_numpy(v, x):
    sizes = list(np.array([1, 2, 2, 1]))
    image = tf.reshape(v, [1, 2, 2, 1])
    first = raw.MaxPool(input=image, ksize=sizes, strides=sizes, padding="VALID")
    return first + raw.Squeeze(input=v, axis=list(np.array([], np.int64))) + x


def several_variables(v, x):
    joined = raw.ConcatV2(values=[v, tf.reshape(x, [-1])[:4], v], axis=0)
    return raw.AddN(inputs=[v, v, v * 2.0]) + joined[4:8]


def select(v, x):
    return raw.SelectV2(condition=x > 0, t=v, e=v * 2.0)


def failing_attribute(v, x):
    try:
        return raw.LeakyRelu(features=v, alpha="much")
    except TypeError as error:
        return str(error)


def program(wrap, compute, variable):
    numbers = itertools.count()
    plain = variable.value if isinstance(variable, keras.Variable) else variable

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            y = compute(variable, x)
            loss = tf.reduce_sum(tf.square(y)) if tf.is_tensor(y) else plain * 1.0
        plain.assign_sub(0.01 * tape.gradient(loss, plain))
        return y

    return Program(
        lambda: step(tf.random.stateless_normal([4, 6, 6, 4], [next(numbers), 1])), [plain]
    )


@pytest.mark.parametrize("kind", [tf.Variable, keras.Variable])
@pytest.mark.parametrize(
    "compute",
    [
        batch_norm,
        slope_that_is_an_integer,
        integers_of_numpy,
        several_variables,
        select,
        failing_attribute,
    ],
)
def test_a_raw_op_takes_a_variable(compute, kind):
    def make(wrap):
        return program(wrap, compute, kind(np.float32([0.5, -1.0, 2.0, 1.5])))

    (step,) = assert_matches_eager(make, num_steps=12)
    assert step.stats().co_executed_steps == 10
    assert step.stats().fallbacks == {}
    assert not step.stats().imperative_ops


class Norm:
    """A layer that makes its variables in its first call, as Sonnet's do."""

    scale = None

    def __call__(self, x):
        if self.scale is None:
            mean, _ = tf.nn.moments(x, [0, 1, 2])
            self.average = tf.Variable(tf.zeros_like(mean), trainable=False)
            self.scale, self.offset = tf.Variable(tf.ones([4])), tf.Variable(tf.zeros([4]))
            self.empty = tf.constant([])
        y, mean, _, _, _ = raw.FusedBatchNormV2(
            x=x,
            scale=self.scale,
            offset=self.offset,
            mean=self.empty,
            variance=self.empty,
            epsilon=1e-3,
        )
        self.average.assign_sub((self.average - mean) * 0.1)
        return tf.nn.relu(y)


def test_norms_that_are_made_in_the_first_call():
    def make(wrap):
        layers, numbers = [Norm() for _ in range(6)], itertools.count()

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                for layer in layers:
                    x = layer(x)
                loss = tf.reduce_mean(x**2)
            weights = [w for layer in layers for w in (layer.scale, layer.offset)]
            for w, g in zip(weights, tape.gradient(loss, weights), strict=True):
                w.assign_sub(0.1 * g)
            return loss

        return Program(
            lambda: step(tf.random.stateless_normal([4, 6, 6, 4], [next(numbers), 1]))
        )

    (step,) = assert_matches_eager(make, num_steps=16)
    before = step.stats()
    assert before.co_executed_steps == 13  # a graph of the first call, which is never again
    assert before.fallbacks == {}
    assert before.graph_builds == 1


