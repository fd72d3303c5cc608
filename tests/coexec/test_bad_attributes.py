"""A wrong attribute is TensorFlow's to complain of: the exception, and its text, are eager's."""

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra

raw = tf.raw_ops
IMAGE, FILTER = tf.ones([1, 4, 4, 1]), tf.ones([2, 2, 1, 1])
MATRIX, ROW = tf.ones([2, 2]), tf.constant([1.0, 2.0])
GOOD_CALLS = 8

# An op of one attribute; a good value; values that are wrong, or look as if they were.
SWEEP = {
    "squeeze, list(int)": (
        lambda v: raw.Squeeze(input=IMAGE, axis=v),
        [0],
        ["0", 0, 0.0, [0.0], ["0"], "a", [None], [[0]], [7], [2**70], {"a": 1}, np.array([0])],
    ),
    "tf.squeeze": (
        lambda v: tf.squeeze(IMAGE, axis=v),
        0,
        ["0", 0.0, 1.5, [0.5], "a", [None], 7, 2**70],
    ),
    "max_pool2d, list(int) from a scalar": (
        lambda v: tf.nn.max_pool2d(IMAGE, ksize=v, strides=1, padding="SAME"),
        2,
        ["2", "a", 2.0, 1.5, [2, "2"], [1, 2, 3], 0, -1, None],
    ),
    "padding, a string of some": (
        lambda v: tf.nn.max_pool2d(IMAGE, ksize=2, strides=1, padding=v),
        "SAME",
        ["same", "OTHER", 3, None, b"SAME", ["SAME"], 1.0],
    ),
    "Conv2D's strides": (
        lambda v: raw.Conv2D(input=IMAGE, filter=FILTER, strides=v, padding="SAME"),
        [1, 1, 1, 1],
        [1, "1111", ["1", "1", "1", "1"], [1, 1, 1], [1.0, 1, 1, 1], [1, 0, 0, 1], None, (1,) * 4],
    ),
    "Conv2D's paddings": (
        lambda v: raw.Conv2D(
            input=IMAGE, filter=FILTER, strides=[1] * 4, padding="EXPLICIT", explicit_paddings=v
        ),
        [0, 0, 1, 1, 1, 1, 0, 0],
        # None shorter than eight: of those TensorFlow reads eight all the same, and may crash.
        ["0", [0, 0, "1", 1, 1, 1, 0, 0]],
    ),
    "unstack's number": (
        lambda v: tf.unstack(MATRIX, num=v),
        2,
        ["2", "a", 2.0, 1.5, 3, -1, [2], True],
    ),
    "Unpack, int": (
        lambda v: raw.Unpack(value=MATRIX, num=2, axis=v),
        0,
        ["0", 0.0, 0.5, None, [0], False, 5, 2**70, np.int64(0), np.float32(0)],
    ),
    "Split, int": (
        lambda v: raw.Split(axis=0, value=MATRIX, num_split=v),
        2,
        ["2", 2.0, 0, -1, 3, None, [2]],
    ),
    "Cast, type": (
        lambda v: raw.Cast(x=ROW, DstT=v),
        tf.int32,
        ["abc", "int32", 3, 999, None, 1.5, [tf.int32], np.int32, int, Ellipsis],
    ),
    "tf.cast": (lambda v: tf.cast(ROW, v), tf.int32, ["abc", None, 3.5, [tf.int32], 999]),
    "tf.zeros": (
        lambda v: tf.zeros([2], v),
        tf.float32,
        ["abc", None, 1.5, tf.string, tf.resource],
    ),
    "MatMul, bool": (
        lambda v: raw.MatMul(a=MATRIX, b=MATRIX, transpose_a=v),
        True,
        ["True", "", 1, 0, 2, 1.0, None, [], [True], np.bool_(True)],
    ),
    "Sum, bool": (
        lambda v: raw.Sum(input=MATRIX, axis=0, keep_dims=v),
        False,
        ["a", 0, 1, None, [0], 0.0],
    ),
    "LeakyRelu, float": (
        lambda v: raw.LeakyRelu(features=ROW, alpha=v),
        1.0,
        ["1.0", "a", 1, True, None, [1.0], 1j, float("nan"), float("inf"), 2**2000],
    ),
    "LRN, int": (
        lambda v: raw.LRN(input=IMAGE, depth_radius=v),
        5,
        ["5", 5.0, None, -1, [5]],
    ),
    "Placeholder-like shape": (
        lambda v: raw.EnsureShape(input=ROW, shape=v),
        [2],
        ["2", 2, [2.0], ["2"], [3], [-2], None, [None], (2,), tf.TensorShape([2]), [[2]]],
    ),
    "Empty's shape of a variable": (
        lambda v: raw.VariableShape(input=tf.Variable(ROW).handle, out_type=v),
        tf.int32,
        ["abc", tf.int64, tf.float32, None],
    ),
    "AsString": (
        lambda v: raw.AsString(input=ROW, precision=v),
        2,
        ["2", 2.0, None, [2], -3],
    ),
    "tf.one_hot": (
        lambda v: tf.one_hot([0, 1], 2, axis=v),
        -1,
        ["-1", -1.0, 5, [0], "a"],
    ),
    "tf.argmax": (
        lambda v: tf.argmax(MATRIX, output_type=v),
        tf.int64,
        ["abc", tf.float32, None, 1.5],
    ),
    "data_format": (
        lambda v: tf.nn.bias_add(MATRIX, ROW, data_format=v),
        "N...C",
        ["a", 3, None, "NCHW"],
    ),
    "tf.random.uniform": (
        lambda v: tf.shape(tf.random.uniform([2], seed=v)),
        None,
        ["a", 1.5, [1], 2**70],
    ),
    "RandomUniform's seeds": (
        lambda v: tf.shape(raw.RandomUniform(shape=[2], dtype=tf.float32, seed=v, seed2=v)),
        0,
        ["a", "0", None, [0], 0.0],
    ),
    "einsum": (
        lambda v: raw.Einsum(inputs=[MATRIX, MATRIX], equation=v),
        "ij,jk->ik",
        ["a", 3, None, b"ij,jk->ik", "ij,jk->kl"],
    ),
    "StridedSlice's masks": (
        lambda v: raw.StridedSlice(input=ROW, begin=[0], end=[1], strides=[1], begin_mask=v),
        0,
        ["0", 0.0, None, [0], 1],
    ),
}
CASES = [(name, value) for name, (_, _, values) in SWEEP.items() for value in values]


def outcome(function, *args):
    """Returns the values, or the exception's type and text."""
    try:
        results = tf.nest.flatten(function(*args))
        return "returns", [(r.dtype, r.numpy().tolist()) for r in results]
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}-{v!r}"[:50] for n, v in CASES])
def test_bad_attribute_is_refused_as_in_eager(name, value):
    run, good, _ = SWEEP[name]
    expected, fine = repr(outcome(run, value)), repr(outcome(run, good))
    assert "'returns'" in fine, fine

    first = terra.function(lambda v: run(v))
    assert [repr(outcome(first, value)) for _ in range(4)] == [expected] * 4

    later = terra.function(lambda v: run(v))
    found = [repr(outcome(later, good)) for _ in range(GOOD_CALLS)]
    assert later.stats().co_executed_steps == GOOD_CALLS - 2, later.explain()
    found += [repr(outcome(later, value)) for _ in range(2)] + [repr(outcome(later, good))]
    assert found == [fine] * GOOD_CALLS + [expected] * 2 + [fine]


def test_bad_attribute_comes_after_what_the_step_did_before():
    weight, seen = tf.Variable(0.0), []

    @terra.function
    def step(axis):
        weight.assign_add(1.0)
        seen.append(len(seen))
        result = tf.unstack(MATRIX * 2.0, axis=0, num=axis)
        weight.assign_add(10.0)
        return result

    for _ in range(GOOD_CALLS):
        step(2)
    with pytest.raises(TypeError, match=r"Expected int for argument 'num' not '2'\."):
        step("2")
    assert weight.numpy() == GOOD_CALLS * 11 + 1 and seen == list(range(GOOD_CALLS + 1))
    assert step.stats().fallbacks == {"attributes_changed": 1}
