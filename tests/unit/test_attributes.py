"""Canonical attributes: two calls of an op are equal just when they mean the same."""

import numpy as np
import pytest
import tensorflow as tf

from terra_tf import _tf_internals
from terra_tf._tf_internals import dtypes, execute, op_def_registry, pywrap_tfe, tensor_shape
from terra_tf.trace.attributes import canonical_attributes, freeze, is_seeded, result_attributes

_VECTOR, _MATRIX = np.float32([1.0, 2.0]), np.float32([[1.0, 2.0], [3.0, 4.0]])
_IMAGE = np.ones([1, 4, 4, 1], np.float32)
_FILTER = np.ones([2, 2, 1, 1], np.float32)

# One call for each kind of attribute: bool, int, float, string, type, shape, lists, functions.
CALLS = {
    "MatMul": lambda: tf.raw_ops.MatMul(a=_MATRIX, b=_MATRIX, transpose_a=True),
    "MatMul without attributes": lambda: tf.raw_ops.MatMul(a=_MATRIX, b=_MATRIX),
    "Cast": lambda: tf.raw_ops.Cast(x=_VECTOR, DstT=tf.int32),
    "LeakyRelu": lambda: tf.raw_ops.LeakyRelu(features=_VECTOR, alpha=0.1),
    "LeakyRelu with an int": lambda: tf.raw_ops.LeakyRelu(features=_VECTOR, alpha=1),
    "Conv2D": lambda: tf.raw_ops.Conv2D(
        input=_IMAGE, filter=_FILTER, strides=[1, 1, 1, 1], padding="SAME"
    ),
    "MaxPool": lambda: tf.raw_ops.MaxPool(
        input=_IMAGE, ksize=(1, 2, 2, 1), strides=[1, 2, 2, 1], padding="VALID"
    ),
    "Squeeze": lambda: tf.raw_ops.Squeeze(input=_IMAGE, axis=[0]),
    "Squeeze of everything": lambda: tf.raw_ops.Squeeze(input=_IMAGE),
    "ConcatV2": lambda: tf.raw_ops.ConcatV2(values=[_VECTOR, _VECTOR], axis=0),
    "Pack": lambda: tf.raw_ops.Pack(values=[_VECTOR, _VECTOR], axis=1),
    "Unpack": lambda: tf.raw_ops.Unpack(value=_MATRIX, num=2),
    "Split": lambda: tf.raw_ops.Split(axis=0, value=_VECTOR, num_split=2),
    "AddN": lambda: tf.raw_ops.AddN(inputs=[_VECTOR] * 3),
    "IdentityN": lambda: tf.raw_ops.IdentityN(input=[_VECTOR, np.int32(1)]),
    "StridedSlice": lambda: tf.raw_ops.StridedSlice(
        input=_VECTOR, begin=[0], end=[1], strides=[1], shrink_axis_mask=1
    ),
    "Einsum": lambda: tf.raw_ops.Einsum(inputs=[_MATRIX, _MATRIX], equation="ij,jk->ik"),
    "Sum": lambda: tf.raw_ops.Sum(input=_MATRIX, axis=[0], keep_dims=True),
    "ArgMax": lambda: tf.raw_ops.ArgMax(input=_VECTOR, dimension=0, output_type=tf.int32),
    "FusedBatchNormV3": lambda: tf.raw_ops.FusedBatchNormV3(
        x=_IMAGE, scale=[1.0], offset=[0.0], mean=[], variance=[], epsilon=1e-3
    ),
    "EnsureShape": lambda: tf.raw_ops.EnsureShape(input=_VECTOR, shape=[None]),
    "VarHandleOp": lambda: tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[2, 3]),
    "RandomUniform": lambda: tf.raw_ops.RandomUniform(shape=[2], dtype=tf.float32, seed=1, seed2=2),
    "CheckNumerics": lambda: tf.raw_ops.CheckNumerics(tensor=_VECTOR, message="in the middle"),
    "Bucketize": lambda: tf.raw_ops.Bucketize(input=_VECTOR, boundaries=[0.5, 1.5]),
    "StringFormat": lambda: tf.raw_ops.StringFormat(inputs=[_VECTOR], template="%s", summarize=5),
}


# Nothing to infer: both routes give the same attributes.
WITHOUT_INFERRED = ("VarHandleOp",)


def capture(monkeypatch, call):
    """Return `(op type, attributes)` of the op as each of TensorFlow's two routes gets it."""
    calls = {}
    run_fast, run = pywrap_tfe.TFE_Py_FastPathExecute, execute.execute

    def note_fast(context, op_type, name, *args):
        num_inputs = len(op_def_registry.get(op_type).input_arg)
        calls["fast"] = (op_type, args[num_inputs:])
        return run_fast(context, op_type, name, *args)

    def refuse_fast(*args):
        raise _tf_internals.core._FallbackException("not this way")

    def note(op_type, num_outputs, inputs, attrs, ctx, name=None):
        calls["other"] = (op_type, attrs)
        return run(op_type, num_outputs, inputs, attrs, ctx, name)

    with monkeypatch.context() as patch:
        patch.setattr(pywrap_tfe, "TFE_Py_FastPathExecute", note_fast)
        call()
        patch.setattr(pywrap_tfe, "TFE_Py_FastPathExecute", refuse_fast)
        patch.setattr(execute, "execute", note)
        call()
    return calls["fast"], calls["other"]


@pytest.mark.parametrize("name", CALLS)
def test_both_routes_give_the_same_canonical_form(monkeypatch, name):
    (fast_type, fast), (other_type, other) = capture(monkeypatch, CALLS[name])
    assert fast_type.encode() == other_type
    assert fast[::2] != other[::2] or fast_type in WITHOUT_INFERRED
    fast_form = canonical_attributes(fast_type, fast, True)
    other_form = canonical_attributes(other_type, other, False)
    assert fast_form == other_form
    assert hash(fast_form) == hash(other_form)


def form(op_type, **attrs):
    pairs = tuple(item for pair in attrs.items() for item in pair)
    return canonical_attributes(op_type, pairs, True)


def test_form_is_sorted_by_name():
    one = canonical_attributes("MatMul", ("transpose_a", True, "grad_a", False), True)
    other = canonical_attributes("MatMul", ("grad_a", False, "transpose_a", True), True)
    assert one == other
    assert [name for name, _ in one] == ["grad_a", "transpose_a"]


@pytest.mark.parametrize("value", [1, 1.0, np.bool_(True), "True", [True]])
def test_bool_attribute_is_a_bool(value):  # TensorFlow refuses all others
    for good in (True, False):
        assert form("MatMul", transpose_a=value) != form("MatMul", transpose_a=good)
    assert form("MatMul", transpose_a=value) == form("MatMul", transpose_a=value)


BAD = {
    "Unpack": ("num", 2, ["2", 2.0, [2], "a", 2j]),
    "LeakyRelu": ("alpha", 1.0, ["1.0", [1.0], 1j]),
    "Cast": ("DstT", tf.int32, ["abc", 999, [tf.int32], 1.5]),
    "Squeeze": ("axis", [1], ["1", 1, ["1"], [1.0], [[1]], {1: 1}, np.array([1])]),
    "EnsureShape": ("shape", [2], ["2", 2, ["2"], [2.5], [[2]], 2.0]),
}


@pytest.mark.parametrize("op_type", BAD)
def test_value_of_another_type_equals_itself_only(op_type):
    name, good, values = BAD[op_type]
    forms = [form(op_type, **{name: value}) for value in (good, *values)]
    assert len(set(forms)) == len(forms)
    assert forms == [form(op_type, **{name: value}) for value in (good, *values)]


@pytest.mark.parametrize("value", [1, True, np.int64(1)])
def test_int_attribute_is_one_whatever_says_so(value):
    assert form("Unpack", num=value) == form("Unpack", num=1)
    assert form("Unpack", num=value) != form("Unpack", num=2)


@pytest.mark.parametrize("value", [1, True, 1.0, np.float32(1.0)])
def test_float_attribute_is_one_whatever_says_so(value):
    assert form("LeakyRelu", alpha=value) == form("LeakyRelu", alpha=1.0)
    assert form("LeakyRelu", alpha=value) != form("LeakyRelu", alpha=1.5)


def test_float_attributes_differ_in_their_last_bit():
    assert form("LeakyRelu", alpha=0.1) != form("LeakyRelu", alpha=np.nextafter(0.1, 1.0))
    assert form("LeakyRelu", alpha=0.0) != form("LeakyRelu", alpha=-0.0)


def test_nan_attribute_equals_itself():
    nan = float("nan")
    assert form("LeakyRelu", alpha=nan) == form("LeakyRelu", alpha=np.float64("nan"))
    assert freeze(nan) == freeze(float("nan"))


@pytest.mark.parametrize("value", [0.5, float("nan"), 3, True, 1 + 2j])
def test_numpys_scalars_mean_what_pythons_do(value):
    assert freeze(np.asarray(value)[()]) == freeze(value)
    assert freeze(np.bool_(value)) != freeze(int(bool(value)))


def test_value_of_an_unknown_kind_is_told_by_its_text():
    assert freeze(slice(1, 2)) == freeze(slice(1, 2)) != freeze(slice(1, 3))


def test_infinities_differ():
    assert form("LeakyRelu", alpha=np.inf) != form("LeakyRelu", alpha=-np.inf)


@pytest.mark.parametrize("value", [tf.int32, "int32", np.int32, 3, dtypes.int32.as_datatype_enum])
def test_type_attribute_is_the_same_however_it_is_given(value):
    assert form("Cast", DstT=value) == form("Cast", DstT=tf.int32)
    assert form("Cast", DstT=value) != form("Cast", DstT=tf.int64)


@pytest.mark.parametrize("value", [[2, 3], (2, 3), tf.TensorShape([2, 3])])
def test_shape_attribute_is_the_same_however_it_is_given(value):
    assert form("VarHandleOp", shape=value) == form("VarHandleOp", shape=tf.TensorShape([2, 3]))
    others = [[3, 2], [2, None], [2, 3, 1], [], tf.TensorShape(None)]
    assert form("VarHandleOp", shape=value) not in [form("VarHandleOp", shape=s) for s in others]


def test_unknown_rank_differs_from_a_scalar():
    unknown = form("EnsureShape", shape=tf.TensorShape(None))
    assert unknown != form("EnsureShape", shape=[])
    assert unknown == form("EnsureShape", shape=tensor_shape.unknown_shape())


@pytest.mark.parametrize("value", [[1, 2], (1, 2), [np.int64(1), 2]])
def test_list_of_ints_is_the_same_however_it_is_given(value):
    assert form("MaxPool", ksize=value) == form("MaxPool", ksize=[1, 2])
    assert form("MaxPool", ksize=value) != form("MaxPool", ksize=[2, 1])


def test_string_attribute_is_the_same_as_bytes():
    assert form("Einsum", equation="ij->ji") == form("Einsum", equation=b"ij->ji")
    assert form("Einsum", equation="ij->ji") != form("Einsum", equation="ji->ij")


@pytest.mark.parametrize(
    ("op_type", "attrs"),
    [
        ("MatMul", {"T": tf.float32}),
        ("AddN", {"N": 3, "T": tf.float32}),
        ("IdentityN", {"T": [tf.float32]}),
    ],
)
def test_inferred_attributes_are_left_out(op_type, attrs):
    assert form(op_type, **attrs) == ()


@pytest.mark.parametrize("op_type", ["RandomUniform", "RandomStandardNormal", "RandomShuffle"])
def test_seeds_of_random_ops_are_left_out(op_type):
    assert is_seeded(op_type)
    assert form(op_type, seed=1, seed2=2) == form(op_type, seed=3, seed2=4) == ()


def test_other_attributes_of_random_ops_are_kept():
    one = form("RandomUniform", dtype=tf.float32, seed=1, seed2=2)
    assert one == form("RandomUniform", dtype=tf.float32, seed=5, seed2=6)
    assert one != form("RandomUniform", dtype=tf.float64, seed=1, seed2=2)


@pytest.mark.parametrize("op_type", ["MatMul", "StatelessRandomUniformV2", "no_such_op"])
def test_other_ops_are_not_seeded(op_type):
    assert not is_seeded(op_type)


def test_name_of_an_op_may_be_bytes():
    attrs = ("transpose_a", True)
    assert canonical_attributes(b"MatMul", attrs, False) == form("MatMul", transpose_a=True)


def test_attributes_of_a_function_are_frozen_as_they_are():
    attrs = ("executor_type", "", "config_proto", b"x")
    form_ = canonical_attributes("__inference_f_12", attrs, False)
    assert form_ == (("config_proto", b"x"), ("executor_type", b""))


def test_frozen_values_of_different_kinds_differ():
    values = [None, True, 1, 1.0, b"1", tf.int32, tf.TensorShape([1]), [1], [[1]],
              np.int32([1]), np.int64([1]), np.int64([[1]])]  # fmt: skip
    frozen = [freeze(value) for value in values]
    assert len(set(frozen)) == len(values)


def test_frozen_array_is_a_copy():
    array = np.array([1, 2])
    before = freeze(array)
    array[0] = 9
    assert freeze(array) != before


def test_function_attribute_is_its_name():
    class Function:
        name = "f"

    assert freeze(Function()) == ("function", "f")


def test_proto_attribute_is_its_contents():
    one, other = tf.compat.v1.AttrValue(i=1), tf.compat.v1.AttrValue(i=2)
    assert freeze(one) == freeze(tf.compat.v1.AttrValue(i=1)) != freeze(other)


def test_results_are_told_by_the_attributes_of_their_types():
    def telling(*dtypes_of_results, token):
        attrs = ("token", token, "Tin", [tf.int32], "Tout", list(dtypes_of_results))
        return result_attributes("EagerPyFunc", attrs)

    assert telling(tf.float32, token="a") == telling(tf.float32.as_datatype_enum, token="b")
    assert telling(tf.float32, token="a") != telling(tf.int32, token="a")
    assert telling(tf.float32, token="a") != telling(tf.float32, tf.float32, token="a")
    assert result_attributes("MatMul", ("transpose_a", True)) == ()
