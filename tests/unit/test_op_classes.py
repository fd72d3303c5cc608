"""What is believed of op types must agree with TensorFlow's definitions, and with its kernels."""

import numpy as np
import pytest
import tensorflow as tf

from terra_tf._tf_internals import dtypes, op_def_registry
from terra_tf.errors import ImperativeReason
from terra_tf.trace import op_classes
from terra_tf.trace.op_classes import (
    DENSE_WRITES,
    DEPENDS_ON_SHAPE_ONLY,
    IN_PLACE_WRITES,
    INDEXED_WRITES,
    READS,
    SAFE_STATEFUL,
    STATELESS_RANDOM,
    VARIABLE_OPS,
    imperative_reason,
    is_fallible,
)

FLOAT, INT, INT64, RESOURCE, VARIANT, STRING = (
    dtype.as_datatype_enum
    for dtype in (dtypes.float32, dtypes.int32, dtypes.int64, dtypes.resource, dtypes.variant,
                  dtypes.string)
)  # fmt: skip
NONE = frozenset()
LISTED = sorted(
    VARIABLE_OPS
    | set(STATELESS_RANDOM)
    | set(STATELESS_RANDOM.values())
    | SAFE_STATEFUL
    | DEPENDS_ON_SHAPE_ONLY
    | op_classes._INFALLIBLE
    | set(op_classes._INFALLIBLE_WITH_CONSTANTS)
    | op_classes._FLOAT_ONLY
)


@pytest.mark.parametrize("op_type", sorted(VARIABLE_OPS))
def test_variable_ops_take_the_variable_first_and_no_other_resource(op_type):
    arguments = op_def_registry.get(op_type).input_arg
    assert arguments[0].type == RESOURCE
    assert all(arg.type != RESOURCE for arg in arguments[1:])


def test_variable_ops_are_of_one_class_each():
    assert not READS & DENSE_WRITES
    assert not (READS | DENSE_WRITES) & IN_PLACE_WRITES
    assert INDEXED_WRITES < IN_PLACE_WRITES


@pytest.mark.parametrize("op_type", sorted(DENSE_WRITES | IN_PLACE_WRITES))
def test_writes_have_no_results(op_type):
    assert not op_def_registry.get(op_type).output_arg


def test_names_are_those_of_ops_that_exist():
    unknown = [op_type for op_type in LISTED if op_def_registry.get(op_type) is None]
    # These two are in no TensorFlow 2.21; nobody can call them.
    assert set(unknown) <= {"Erfcinv", "MatrixTranspose"}


# ----------------------------------------------------------- who runs an op


@pytest.mark.parametrize(
    ("op_type", "inputs", "outputs", "reason"),
    [
        ("MatMul", (FLOAT, FLOAT), (FLOAT,), None),
        ("ReadVariableOp", (RESOURCE,), (FLOAT,), None),
        ("AssignAddVariableOp", (RESOURCE, FLOAT), (), None),
        ("ResourceScatterAdd", (RESOURCE, INT, FLOAT), (), None),
        ("CheckNumerics", (FLOAT,), (FLOAT,), None),
        ("Assert", (dtypes.bool.as_datatype_enum, STRING), (), None),
        ("RandomUniform", (INT,), (FLOAT,), None),
        ("StringJoin", (STRING, STRING), (STRING,), None),
        ("__inference_f_7", (FLOAT,), (FLOAT,), ImperativeReason.NO_OP_DEFINITION),
        ("EagerPyFunc", (FLOAT,), (FLOAT,), ImperativeReason.PYTHON_CALLBACK),
        ("PyFunc", (FLOAT,), (FLOAT,), ImperativeReason.PYTHON_CALLBACK),
        ("PyFuncStateless", (FLOAT,), (FLOAT,), ImperativeReason.PYTHON_CALLBACK),
        ("IteratorGetNext", (RESOURCE,), (FLOAT,), ImperativeReason.DATASET_ITERATOR),
        ("TensorSliceDataset", (FLOAT,), (VARIANT,), ImperativeReason.DATASET_ITERATOR),
        ("OptionalGetValue", (VARIANT,), (FLOAT,), ImperativeReason.DATASET_ITERATOR),
        ("VarHandleOp", (), (RESOURCE,), ImperativeReason.RESOURCE_OP),
        ("ResourceApplyAdam", (RESOURCE,) * 3 + (FLOAT,) * 7, (), ImperativeReason.RESOURCE_OP),
        ("RngReadAndSkip", (RESOURCE, INT, INT64), (INT64,), ImperativeReason.RESOURCE_OP),
        ("TensorListReserve", (INT, INT), (VARIANT,), ImperativeReason.RESOURCE_OP),
        ("Identity", (VARIANT,), (VARIANT,), ImperativeReason.RESOURCE_OP),
        ("PrintV2", (STRING,), (), ImperativeReason.STATEFUL_OP),
        ("RandomShuffle", (FLOAT,), (FLOAT,), ImperativeReason.STATEFUL_OP),
        ("Multinomial", (FLOAT, INT), (INT64,), ImperativeReason.STATEFUL_OP),
        ("StatelessWhile", (FLOAT,), (FLOAT,), ImperativeReason.STATEFUL_OP),
        ("If", (FLOAT, FLOAT), (FLOAT,), ImperativeReason.STATEFUL_OP),
    ],
)
def test_reason_to_run_an_op_on_the_spot(op_type, inputs, outputs, reason):
    assert imperative_reason(op_type, inputs, outputs) is reason


def test_stateful_ops_are_delegated_only_if_listed():
    listed = VARIABLE_OPS | SAFE_STATEFUL | set(STATELESS_RANDOM)
    delegated = [
        name
        for name in dir(tf.raw_ops)
        if (definition := op_def_registry.get(name)) is not None
        and definition.is_stateful
        and imperative_reason(name, (FLOAT,), (FLOAT,)) is None
    ]
    assert set(delegated) <= listed
    assert "CheckNumerics" in delegated


@pytest.mark.parametrize(("stateful", "stateless"), STATELESS_RANDOM.items())
def test_stateless_twin_draws_from_key_and_counter(stateful, stateless):
    definition = op_def_registry.get(stateless)
    names = [arg.name for arg in definition.input_arg]
    extra = names[1:]
    assert extra[:3] == ["key", "counter", "alg"]
    assert names[:1] + extra[3:] == [arg.name for arg in op_def_registry.get(stateful).input_arg]
    assert not definition.is_stateful


# ------------------------------------------------------------ what can fail


@pytest.mark.parametrize("op_type", ["MatMul", "Relu", "Log", "RealDiv", "ReadVariableOp", "Pack"])
def test_float_arithmetic_cannot_fail(op_type):
    assert not is_fallible(op_type, (FLOAT, FLOAT), NONE)


@pytest.mark.parametrize(
    "op_type", ["CheckNumerics", "Assert", "Cholesky", "MatrixInverse",
                "SparseSoftmaxCrossEntropyWithLogits", "NoSuchOp"]
)  # fmt: skip
def test_ops_that_check_data_and_unknown_ones_can_fail(op_type):
    assert is_fallible(op_type, (FLOAT, INT), frozenset({0, 1}))


@pytest.mark.parametrize("op_type", ["FloorDiv", "FloorMod", "TruncateDiv", "Mod", "Div", "Pow"])
def test_integer_division_can_fail_and_float_division_cannot(op_type):
    assert is_fallible(op_type, (INT, INT), NONE)
    assert not is_fallible(op_type, (FLOAT, FLOAT), NONE)


@pytest.mark.parametrize(
    ("op_type", "num_inputs", "needed"),
    [
        ("Reshape", 2, {1}),
        ("GatherV2", 3, {1, 2}),
        ("ConcatV2", 4, {3}),
        ("ConcatV2", 3, {2}),
        ("Slice", 3, {1, 2}),
        ("StridedSlice", 4, {1, 2, 3}),
        ("Sum", 2, {1}),
        ("Fill", 2, {0}),
        ("Bucketize", 1, set()),
    ],
)
def test_op_cannot_fail_once_what_decides_is_constant(op_type, num_inputs, needed):
    inputs = (FLOAT,) * num_inputs
    assert not is_fallible(op_type, inputs, frozenset(needed))
    assert not is_fallible(op_type, inputs, frozenset(range(num_inputs)))
    for missing in needed:
        assert is_fallible(op_type, inputs, frozenset(needed - {missing}))


# Hostile inputs of the right type and shape for ops that are said to be infallible.
_BAD = np.float32([np.nan, np.inf, -np.inf, -1.0, 0.0])
_BAD_INTS = np.int32([-(2**31), -1, 0, 2**31 - 1, 33])


def _with_each(values, *op_types):
    return [(op_type, values) for op_type in op_types]


@pytest.mark.parametrize(
    ("op_type", "values"),
    _with_each(_BAD, "Sqrt", "Log", "Log1p", "Acos", "Acosh", "Atanh", "Lgamma", "Digamma", "Rsqrt",
               "Erfinv", "Ndtri", "Reciprocal", "IsFinite", "Sign")
    + _with_each(_BAD_INTS, "Abs", "Neg", "Sign", "Square", "Invert"),
)  # fmt: skip
def test_infallible_unary_op_takes_hostile_values(op_type, values):
    assert not is_fallible(op_type, (dtypes.as_dtype(values.dtype).as_datatype_enum,), NONE)
    assert getattr(tf.raw_ops, op_type)(x=values).shape == values.shape


_FLOAT_PAIRS = ("Div", "RealDiv", "FloorDiv", "FloorMod", "Mod", "Pow", "Atan2", "Xdivy", "Xlogy",
                "DivNoNan", "MulNoNan", "TruncateDiv", "TruncateMod", "SquaredDifference", "Igamma",
                "NextAfter")  # fmt: skip
_INT_PAIRS = ("Add", "AddV2", "Sub", "Mul", "Maximum", "Minimum", "LeftShift", "RightShift",
              "BitwiseAnd")  # fmt: skip


@pytest.mark.parametrize(
    ("op_type", "values"), _with_each(_BAD, *_FLOAT_PAIRS) + _with_each(_BAD_INTS, *_INT_PAIRS)
)
def test_infallible_binary_op_takes_hostile_values(op_type, values):
    enum = dtypes.as_dtype(values.dtype).as_datatype_enum
    arguments = [arg.name for arg in op_def_registry.get(op_type).input_arg]
    first, second = np.meshgrid(values, values)
    result = getattr(tf.raw_ops, op_type)(**dict(zip(arguments, (first, second), strict=True)))
    assert not is_fallible(op_type, (enum, enum), NONE)
    assert result.shape == first.shape


def test_ops_with_constant_indices_take_hostile_data():
    data = np.full([3, 4], np.nan, np.float32)
    tf.raw_ops.GatherV2(params=data, indices=[0, 2], axis=0)
    tf.raw_ops.TopKV2(input=data, k=2)
    tf.raw_ops.OneHot(indices=_BAD_INTS, depth=3, on_value=1.0, off_value=0.0)
    tf.raw_ops.ArgMax(input=data, dimension=1)
    tf.raw_ops.Bucketize(input=data, boundaries=[0.0])
    assert not is_fallible("OneHot", (INT, INT, FLOAT, FLOAT), frozenset({1}))
