"""Ops of one kind share what TensorFlow found out about their attributes; others never do."""

import types

import pytest
import tensorflow as tf

from terra_tf.graph.lean_graph import LeanGraph
from terra_tf.graph.op_maker import OpMaker
from terra_tf.trace.attributes import canonical_attributes

FLOATS, DOUBLES = tf.float32, tf.float64


def record(op_type, counts, *attrs):
    canonical = canonical_attributes(op_type, attrs, True)
    return types.SimpleNamespace(op_type=op_type, counts=counts, attrs=attrs, canonical=canonical)


def inputs(*dtypes, shape=(3, 3)):
    return [tf.compat.v1.placeholder(dtype, shape) for dtype in dtypes]


def both_ways(keeps_bits, makes):
    """The ops' definitions with a maker of their own each, and with one for all."""
    found = []
    for makers in ([OpMaker(keeps_bits) for _ in makes], [OpMaker(keeps_bits)] * len(makes)):
        with LeanGraph("f").as_default():
            operations = [
                maker.make(a_record, inputs(*dtypes))
                for maker, (a_record, dtypes) in zip(makers, makes, strict=True)
            ]
            found.append([operation.node_def for operation in operations])
    return found


MATMUL = record("MatMul", (-1, -1), "transpose_a", False, "transpose_b", False)
TRANSPOSED = record("MatMul", (-1, -1), "transpose_a", True, "transpose_b", False)
PACK = record("Pack", (2,), "axis", 0)
PACK_INNER = record("Pack", (2,), "axis", 1)
CAST = record("Cast", (-1,), "DstT", FLOATS, "Truncate", False)
CAST_DOUBLE = record("Cast", (-1,), "DstT", DOUBLES, "Truncate", False)


@pytest.mark.parametrize("keeps_bits", [True, False])
@pytest.mark.parametrize(
    "makes",
    [
        [(MATMUL, [FLOATS] * 2)] * 3,
        [(MATMUL, [FLOATS] * 2), (TRANSPOSED, [FLOATS] * 2), (MATMUL, [FLOATS] * 2)],
        [(MATMUL, [FLOATS] * 2), (MATMUL, [DOUBLES] * 2), (MATMUL, [FLOATS] * 2)],
        [(PACK, [FLOATS] * 2), (PACK_INNER, [FLOATS] * 2), (PACK, [DOUBLES] * 2)] * 2,
        [(CAST, [DOUBLES]), (CAST, [tf.int32]), (CAST_DOUBLE, [tf.int32]), (CAST, [tf.int32])],
        [(record("AddN", (3,)), [FLOATS] * 3)] * 2 + [(record("AddN", (2,)), [FLOATS] * 2)] * 2,
    ],
    ids=["same", "attribute", "type", "list", "cast", "number"],
)
def test_ops_are_what_tensorflow_would_make_of_each(keeps_bits, makes):
    alone, together = both_ways(keeps_bits, makes)
    assert alone == together


def test_second_op_of_a_kind_goes_the_short_way(monkeypatch):
    asked = []
    apply_op = OpMaker.make.__globals__["apply_op"]

    def counting(op_type, **arguments):
        asked.append(op_type)
        return apply_op(op_type, **arguments)

    monkeypatch.setitem(OpMaker.make.__globals__, "apply_op", counting)
    with LeanGraph("f").as_default():
        maker = OpMaker(True)
        for _ in range(3):
            maker.make(MATMUL, inputs(FLOATS, FLOATS))
        assert asked == ["MatMul"]
        maker.make(MATMUL, inputs(FLOATS, FLOATS, shape=[2, 2]))  # a shape is no attribute
        assert asked == ["MatMul"]


def test_shapes_of_the_short_way_are_its_own():
    with LeanGraph("f").as_default():
        maker = OpMaker(True)
        results = [
            maker.make(MATMUL, inputs(FLOATS, FLOATS, shape=[n, n])).outputs[0] for n in (2, 3, 4)
        ]
    assert [tuple(result.shape) for result in results] == [(2, 2), (3, 3), (4, 4)]
