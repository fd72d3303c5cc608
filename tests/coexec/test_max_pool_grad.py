"""The graph's own kernel for `MaxPoolGrad` gives the bits of TensorFlow's."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf._tf_internals import context, execute
from terra_tf.testing import assert_matches_eager

pytestmark = pytest.mark.timeout(120)

WINDOWS = [(2, 2), (3, 3), (1, 2), (5, 1)]
STRIDES = [(1, 1), (2, 2), (3, 1)]
SHAPES = [(1, 7, 9, 3), (3, 8, 8, 16), (2, 5, 13, 21)]


def normal(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def special(rng, shape):
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 1.0], np.float32)
    return rng.choice(values, shape)


KINDS = {
    "normal": (normal, normal),
    "ties": (lambda rng, shape: np.maximum(np.round(normal(rng, shape)), 0.0), normal),
    "special": (special, special),
    "negative zeros": (lambda rng, shape: np.full(shape, -0.0, np.float32), special),
}


def ours(images, gradient, attributes):
    attrs = itertools.chain.from_iterable(attributes.items())
    inputs = [tf.constant(images), tf.constant(gradient)]
    return execute.execute(b"Terra>MaxPoolGrad", 1, inputs, tuple(attrs), context.context())[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_bits_are_those_of_tensorflows(padding, kind):
    terra.function(lambda: None)  # loads the library
    rng = np.random.default_rng(0)
    for window, stride, shape in itertools.product(WINDOWS, STRIDES, SHAPES):
        attributes = dict(ksize=[1, *window, 1], strides=[1, *stride, 1], padding=padding)
        images = KINDS[kind][0](rng, shape)
        pooled = tf.raw_ops.MaxPool(input=images, **attributes)
        gradient = KINDS[kind][1](rng, pooled.shape)
        expected = tf.raw_ops.MaxPoolGrad(
            orig_input=images, orig_output=pooled, grad=gradient, **attributes
        )
        found = ours(images, gradient, attributes)
        assert found.numpy().tobytes() == expected.numpy().tobytes(), (attributes, shape)


@pytest.mark.parametrize(
    "images, gradient, ksize",
    [
        ((1, 4, 4, 2), (1, 2, 2, 3), [1, 2, 2, 1]),
        ((1, 4, 4, 2), (2, 2, 2, 2), [1, 2, 2, 1]),
        ((1, 4, 4, 2), (1, 2, 2, 2), [1, 2, 2, 2]),
        ((4, 4, 2), (1, 2, 2, 2), [1, 2, 2, 1]),
        ((1, 1, 1, 2), (1, 1, 1, 2), [1, 2, 2, 1]),
    ],
)
def test_wrong_shapes_are_refused(images, gradient, ksize):
    terra.function(lambda: None)
    attributes = dict(ksize=ksize, strides=[1, 2, 2, 1], padding="VALID")
    with pytest.raises(tf.errors.InvalidArgumentError):
        ours(np.zeros(images, np.float32), np.zeros(gradient, np.float32), attributes)


POOLINGS = {
    "2 by 2": (tf.float32, lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), True),
    "overlapping": (tf.float32, lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"), True),
    "float64": (tf.float64, lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), False),
    "float16": (tf.float16, lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), False),
    "explicit": (
        tf.float32,
        lambda x: tf.nn.max_pool2d(x, 2, 2, [[0, 0], [1, 1], [0, 1], [0, 0]]),
        False,
    ),
}


@pytest.mark.parametrize("dtype, pool, is_ours", POOLINGS.values(), ids=POOLINGS)
@pytest.mark.parametrize("is_known", [True, False])
def test_in_a_step(dtype, pool, is_ours, is_known):
    def make(wrap):
        rng = np.random.default_rng(0)
        weight = tf.Variable(tf.cast(normal(rng, (1, 1, 4, 5)), dtype))

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                y = pool(tf.nn.relu(tf.nn.conv2d(x, weight, 1, "SAME")))
                loss = tf.reduce_mean(y * y)
            weight.assign_sub(tape.gradient(loss, weight))
            return loss

        def run():
            size = 8 if is_known else int(rng.integers(6, 12))
            return step(tf.cast(normal(rng, (2, size, 7, 4)), dtype)), weight

        return run

    with terra.config.override(max_exact_shapes=1):
        built = assert_matches_eager(make, 8)[-1]
        assert built.stats().co_executed_steps > 0
        assert built.stats().num_fetches <= 2 + (not is_known)  # the weight, and the loss
        definition = built.built_graph.generated.lowered.definition
    assert ("Terra>MaxPoolGrad" in {node.op for node in definition.node_def}) is is_ours
