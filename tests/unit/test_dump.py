"""The text of a TraceGraph: readable, and the same at every run.

The expected texts of graphs with several paths are in golden/; TERRA_UPDATE_GOLDEN=1 writes them.
"""

import os
import pathlib
import re
import textwrap

import pytest
import tensorflow as tf

from terra_tf._tf_internals import dtypes
from terra_tf.errors import ImperativeReason
from terra_tf.trace.dump import dump
from terra_tf.trace.merging import merge
from tests.unit.synthetic_traces import Line, TraceBuilder, make_trace_graph, merge_all, spec

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
        "MatMulGrad", product, x, outputs=[spec(4, 3)], location=Line(11), forward=Line(8).id
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
TraceGraph: 8 ops, 1 trace, 1 path, 0 switch-cases, 4 fetches, 1 shape read
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
        TraceGraph: 8 ops, 2 traces, 1 path, 0 switch-cases, 4 fetches, 1 shape read
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


def test_types_without_a_short_name_have_their_own():
    b = TraceBuilder()
    b.op("Quantize", b.feed([1.0]), outputs=[spec(1, dtype=dtypes.qint8)])
    graph = make_trace_graph()
    merge(graph, b.trace)
    assert "qint8[1]" in dump(graph)


def test_text_of_an_empty_graph():
    expected = "TraceGraph: 0 ops, 0 traces, 0 paths, 0 switch-cases, 0 fetches, 0 shape reads"
    assert dump(make_trace_graph()) == expected


# ------------------------------------------------------------- several paths

GOLDEN_FILES = pathlib.Path(__file__).parent / "golden"
HEADS = [tf.Variable(tf.zeros([2])).handle for _ in range(2)]


def start(b):
    return b.op("Embed", b.feed([1.0, 2.0]), location=1, under_tape=True)


def straight():
    b = TraceBuilder()
    b.keep(b.op("Exp", b.op("Neg", start(b), location=2), location=3))
    return [b.trace]


def if_else():
    traces = []
    for is_true in (True, False):
        b = TraceBuilder()
        x = start(b)
        b.read(x)
        x = b.op("Neg", x, location=3) if is_true else b.op("Exp", x, location=5)
        b.keep(b.op("Sum", x, b.constant(0, tf.int32), outputs=[spec()], location=6))
        traces.append(b.trace)
    return traces


def optional_block():
    """The input of the block may come from outside; so may that of the op after it."""
    traces = []
    for is_taken in (True, False):
        b = TraceBuilder()
        x = b.feed([1.0, 2.0])
        y = b.op("Neg", x, location=2) if is_taken else x
        b.op("Exp", y, location=3)
        b.op("Print", y, location=4, outputs=[], imperative=ImperativeReason.STATEFUL_OP)
        traces.append(b.trace)
    return traces


def loop_with_two_trip_counts():
    traces = []
    for num_trips in (1, 3):
        b = TraceBuilder()
        x = start(b)
        for trip in range(num_trips):
            x = b.op("Cell", x, location=Line(3, (trip,)))
        b.keep(b.op("Sum", x, outputs=[spec()], location=4))
        traces.append(b.trace)
    return traces


def stochastic_depth():
    """Layers that are sometimes left out, and their gradients, which use what the layers used."""
    traces = []
    for layers in ([0, 1, 2], [1], [0, 2]):
        b = TraceBuilder()
        x = start(b)
        used = []
        for layer in layers:
            used.append((layer, x))
            x = b.op("Layer", x, location=Line(3, (layer,)), under_tape=True)
        x = b.op("Loss", x, location=4, under_tape=True)
        for layer, of_layer in reversed(used):
            forward = Line(3, (layer,)).id
            x = b.op("LayerGrad", x, of_layer, location=Line(5, (forward,)), forward=forward)
        b.keep(x)
        traces.append(b.trace)
    return traces


def best_of_several():
    """Ordinary aliasing: `if loss < best: best = h`, which no rule decides."""
    traces = []
    for best in (0, 1, 2):
        b = TraceBuilder()
        xs = [b.op("Try", b.feed([1.0, 2.0]), location=Line(3, (trip,))) for trip in range(3)]
        b.keep(b.op("Use", xs[best], location=6))
        traces.append(b.trace)
    return traces


def variable_siblings():
    """A step that uses the first or the second of two heads, both of which it decays."""
    traces = []
    for head in (0, 1):
        b = TraceBuilder()
        slots = [b.variable(handle) for handle in HEADS]
        for slot in slots:
            b.op("Decay", slot, outputs=[], location=len(b.trace.ops))
        w = b.op("ReadVariableOp", slots[head], location=7)
        b.keep(b.op("Mul", w, b.feed([1.0, 2.0]), location=8))
        traces.append(b.trace)
    return traces


PROGRAMS = (straight, if_else, optional_block, loop_with_two_trip_counts, stochastic_depth,
            best_of_several, variable_siblings)  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_text_of_several_paths(program):
    graph, _ = merge_all(*program())
    text = dump(graph) + "\n"
    path = GOLDEN_FILES / f"{program.__name__}.txt"
    if os.environ.get("TERRA_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_long_list_of_alternatives_is_shortened():
    traces = []
    for line in range(9):
        b = TraceBuilder()
        b.op("Use", b.op("Make", b.feed([1.0, 2.0]), location=line), location=99)
        traces.append(b.trace)
    graph, _ = merge_all(*traces)
    (inputs,) = re.findall(r"Use\((.*)\) ->", dump(graph))
    assert inputs == "join(latest %0.0 | %2.0 | %3.0 | %4.0 | %5.0 | ... 3 more | %9.0)"


def test_text_does_not_change_the_graph():
    graph, _ = merge_all(*if_else())
    graph.structure = None
    assert dump(graph) == dump(graph)
    assert graph.structure is None
