"""Ops of the package's own graphs are what TensorFlow would make of the same arguments."""

import numpy as np
import pytest
import tensorflow as tf

from terra_tf import _tf_internals
from terra_tf._tf_internals import attr_value_pb2, func_graph, handle_data_util, ops
from terra_tf.graph.lean_graph import LeanGraph, apply_op, serialized_constant

BRANCHES = [attr_value_pb2.NameAttrList(name="one"), attr_value_pb2.NameAttrList(name="two")]


def placeholders(*dtypes, shape=(3, 3)):
    return [tf.compat.v1.placeholder(dtype, shape) for dtype in dtypes]


def matmul(apply):
    a, b = placeholders(tf.float32, tf.float32)
    return apply("MatMul", a=a, b=b, transpose_b=True)


def pack(apply):
    return apply("Pack", values=placeholders(tf.int32, tf.int32), axis=1)


def identity_of_many(apply):
    return apply("IdentityN", input=placeholders(tf.int32, tf.float64))


def cast(apply):
    return apply("Cast", x=placeholders(tf.int32)[0], DstT=tf.float16)


def ensured_shape(apply):
    return apply("EnsureShape", input=placeholders(tf.float32)[0], shape=tf.TensorShape([3, None]))


def case(apply):
    (index,) = placeholders(tf.int32, shape=())
    arguments = {"input": placeholders(tf.bool, tf.string), "Tout": [tf.float32, tf.int64]}
    return apply("Case", branch_index=index, branches=BRANCHES, output_shapes=None, **arguments)


def value_that_is_no_tensor(apply):
    return apply("AddV2", x=placeholders(tf.float32)[0], y=2.0)


def after_others(apply):
    first, second = placeholders(tf.float32, tf.float32)
    with tf.control_dependencies([first.op]), tf.control_dependencies([second.op]):
        summed = apply("Neg", x=first)
        return apply("Mul", x=summed.outputs[0], y=first)


@pytest.mark.parametrize(
    "make",
    [
        matmul,
        pack,
        identity_of_many,
        cast,
        ensured_shape,
        case,
        value_that_is_no_tensor,
        after_others,
    ],
)
def test_an_op_is_what_tensorflow_makes_of_its_arguments(make):
    with func_graph.FuncGraph("f").as_default() as graph:
        for _ in range(2):  # the second has another name
            make(_tf_internals.apply_op)
        expected = [(op.node_def, list(op.outputs)) for op in graph.get_operations()]
    with LeanGraph("f").as_default() as graph:
        for _ in range(2):
            make(apply_op)
        found = [(op.node_def, list(op.outputs)) for op in graph.get_operations()]
    for (definition, outputs), (expected_definition, expected_outputs) in zip(
        found, expected, strict=True
    ):
        assert definition == expected_definition
        assert [t.dtype for t in outputs] == [t.dtype for t in expected_outputs]
        assert [str(t.shape) for t in outputs] == [str(t.shape) for t in expected_outputs]


@pytest.mark.parametrize(
    "value",
    [
        True,
        7,
        np.float32(-0.0),
        np.array(0.0, np.float32),
        np.array([1.5, np.nan], np.float64),
        np.array([], np.int64),
        np.zeros((2, 0), np.float32),
        np.arange(100),
        np.array([1 + 2j], np.complex64),
        np.array([b"a", b"bc"], object),
        b"text",
        [3, 4],
        tf.constant(1.0, tf.bfloat16).numpy(),
    ],
    ids=repr,
)
def test_a_constant_is_what_tensorflow_makes_of_it(value):
    dtype = tf.constant(value).dtype
    with func_graph.FuncGraph("f").as_default():
        expected = tf.constant(value, dtype).op.node_def
    graph = LeanGraph("f")
    for _ in range(2):
        constant = graph.constant(serialized_constant(value, dtype), dtype)
        assert constant.op.node_def.attr == expected.attr


def test_zeros_of_opposite_signs_are_two_constants():
    plus, minus = (serialized_constant(np.float32(zero), tf.float32) for zero in (0.0, -0.0))
    assert plus != minus


DTYPES = [
    *(tf.bfloat16, tf.bool, tf.complex64, tf.complex128, tf.float16, tf.float32, tf.float64),
    *(tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64),
    *(tf.string, tf.experimental.float8_e5m2, tf.experimental.float8_e4m3fn),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_a_scalar_that_says_nothing_is_made_once(dtype):
    with func_graph.FuncGraph("f").as_default():
        expected = tf.zeros((), dtype).op.node_def
    graph = LeanGraph("f")
    assert graph.zero(dtype) is graph.zero(dtype)
    assert graph.zero(dtype).op.node_def == expected


def inner_graph(outer):
    graph = LeanGraph("inner")
    graph.outer_graph = outer
    return graph


def test_what_is_used_of_an_outer_graph_is_captured_once():
    outer = LeanGraph("outer")
    with outer.as_default():
        (x,) = placeholders(tf.float32, shape=(2, None))
        inner = inner_graph(outer)
    with inner.as_default(), tf.control_dependencies([apply_op("NoOp")]):
        first, second = (apply_op("Neg", x=x) for _ in range(2))
    (placeholder,) = {operation.inputs[0].ref() for operation in (first, second)}
    assert placeholder.deref().graph is inner
    assert placeholder.deref().shape.as_list() == [2, None]
    assert not placeholder.deref().op.control_inputs
    ((external, internal),) = inner.captured.values()
    assert external is x and internal is placeholder.deref()
    assert inner.capture(internal) is internal


def test_a_captured_handle_says_what_its_variable_is():
    variable = tf.Variable(tf.zeros([2, 5]))
    outer = LeanGraph("outer")
    with outer.as_default():
        handle = outer.placeholder_for(variable.handle)
        inner = inner_graph(outer)
    with inner.as_default():
        read = apply_op("ReadVariableOp", resource=handle, dtype=tf.float32)
    assert read.outputs[0].shape == [2, 5]
    assert handle_data_util.get_handle_data(read.inputs[0]).is_set


def test_a_tensor_of_an_inner_graph_cannot_be_used_outside():
    outer = LeanGraph("outer")
    with outer.as_default():
        inner = inner_graph(outer)
    with inner.as_default():
        (x,) = placeholders(tf.float32)
    with outer.as_default(), pytest.raises(ValueError, match="inside outer"):
        apply_op("Neg", x=x)


def test_an_op_that_cannot_be_is_an_error():
    with LeanGraph("f").as_default(), pytest.raises(ValueError, match="Dimensions must be equal"):
        a, b = placeholders(tf.float32)[0], placeholders(tf.float32, shape=(4, 4))[0]
        apply_op("MatMul", a=a, b=b)


def test_library_of_tensorflow_makes_ops_there_too():
    with LeanGraph("f").as_default() as graph:
        (x,) = placeholders(tf.float32)
        with tf.name_scope("scope"):
            y = tf.concat([x, x + 1.0], axis=0)
        assert ops.get_default_graph() is graph
    assert y.op.name == "scope/concat"
    names = [tensor.op.name for tensor in y.op.inputs]
    assert names == ["Placeholder", "scope/add", "scope/concat/axis"]
