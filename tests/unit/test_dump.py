"""The text of a TraceGraph: readable, and the same at every run."""

import textwrap

import tensorflow as tf

from terra_tf._tf_internals import dtypes
from terra_tf.errors import ImperativeReason
from terra_tf.trace.dump import dump
from terra_tf.trace.merging import merge
from tests.unit.synthetic_traces import Line, TraceBuilder, make_trace_graph, spec

_MASK = tf.constant([1.0, 0.0, 1.0, 0.0])
_WEIGHT = tf.Variable(tf.zeros([4, 3])).handle
_STATE = tf.Variable(0, dtype=tf.int64).handle


def make_trace(scale=0.5, state=_STATE, rows=2):
    b = TraceBuilder()
    x = b.feed([[1.0] * 4] * 2)
    w = b.op("ReadVariableOp", b.variable(_WEIGHT), outputs=[spec(4, 3)], location=Line(7))
    masked = b.op("Mul", x, b.captured(_MASK), outputs=[spec(2, 4)], location=Line(7))
    product = b.op(
        "MatMul", masked, w, outputs=[spec(rows, 3)], location=Line(8), under_tape=True
    )
    b.op(
        "Split",
        b.constant(1, tf.int32),
        product,
        outputs=[spec(2, 1, dtype=dtypes.bfloat16), spec(2, 2, dtype=dtypes.bfloat16)],
        location=Line(9),
    )
    b.op("Mul", product, b.constant(scale), outputs=[spec(2, 3)], location=Line(10))
    b.op(
        "MatMulGrad", product, x, outputs=[spec(4, 3)], location=Line(11), forward_node=2
    )
    line = b.op(
        "Print", product, outputs=[spec(dtype=dtypes.string)],
        location=Line(12), imperative=ImperativeReason.STATEFUL_OP,
    )  # fmt: skip
    b.op("AssignVariableOp", b.variable(state), b.constant(list(range(40)), tf.int64),
         outputs=[], location=None)  # fmt: skip
    for output in ((3, 0), (3, 1), line):
        b.keep(output)
    b.trace.alive.add((3, 1))
    b.read(product, shape_only=True)
    b.keep(product)
    return b.trace


GOLDEN = """\
TraceGraph: 8 ops, 1 trace, 4 fetches, 1 shape read
  var0: f32[4,3], captured
  var1: i64[], captured
  captured0: f32[4]
  feed0: f32[2,4]
0 ReadVariableOp(var0) -> f32[4,3]  train.py:7 in step
1 Mul(feed0, captured0) -> f32[2,4]  train.py:7 in step
2 MatMul(%1.0, %0.0) -> f32[2,3]  tape; fetched 0; shape read 0; train.py:8 in step
3 Split(const[0]=i32 1, %2.0) -> bf16[2,1], bf16[2,2]  fetched 0; fetched 1; train.py:9 in step
4 Mul(%2.0, const[1]=f32 0.5) -> f32[2,3]  train.py:10 in step
5 MatMulGrad(%2.0, feed0) -> f32[4,3]  gradient of 2; train.py:11 in step
6 Print(%2.0) -> str[]  imperative(stateful_op); fetched 0; train.py:12 in step
7 AssignVariableOp(var1, const[2]=i64 [0 1 2 3 4 5 6 7 ...]) -> nothing"""


def test_text_of_a_first_trace():
    graph = make_trace_graph()
    merge(graph, make_trace())
    assert dump(graph) == GOLDEN


def test_text_after_a_merge_that_generalized():
    graph = make_trace_graph()
    merge(graph, make_trace())
    merge(graph, make_trace(scale=0.25, state=tf.Variable(0, dtype=tf.int64).handle, rows=5))
    graph.note_raised(Line(10))
    changed = set(dump(graph).splitlines()) - set(GOLDEN.splitlines())
    assert changed == set(
        textwrap.dedent("""\
        TraceGraph: 8 ops, 2 traces, 4 fetches, 1 shape read
          var1: i64[], bound
          feed1: f32[]
        2 MatMul(%1.0, %0.0) -> f32[?,3]  tape; fetched 0; shape read 0; train.py:8 in step
        4 Mul(%2.0, feed1) -> f32[2,3]  imperative(raised_before); train.py:10 in step
        7 AssignVariableOp(var1, const[1]=i64 [0 1 2 3 4 5 6 7 ...]) -> nothing
        """).splitlines()
    )


def test_text_of_unknown_rank_and_of_a_variable_of_unknown_type():
    b = TraceBuilder()
    b.op("Mystery", b.variable(tf.constant(0.0)), outputs=[spec()._replace(shape=None)],
         location=None)  # fmt: skip
    graph = make_trace_graph()
    merge(graph, b.trace)
    assert dump(graph).splitlines()[1:] == [
        "  var0: of unknown type, captured",
        "0 Mystery(var0) -> f32[*]",
    ]


def test_feeds_are_listed_in_the_order_of_their_numbers():
    b = TraceBuilder()
    for value in range(12):
        b.op("Neg", b.feed([float(value)] * (value + 1)), location=None)
    graph = make_trace_graph()
    merge(graph, b.trace)
    lines = dump(graph).splitlines()[1:13]
    assert lines == [f"  feed{i}: f32[{i + 1}]" for i in range(12)]


def test_text_of_an_empty_graph():
    assert dump(make_trace_graph()) == "TraceGraph: 0 ops, 0 traces, 0 fetches, 0 shape reads"
