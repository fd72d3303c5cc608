"""Which node of a TraceGraph each op of a trace is, and when it is a new one: a sibling."""

import pytest
import tensorflow as tf

from terra_tf._tf_internals import dtypes
from terra_tf.config import config
from terra_tf.errors import ImperativeReason
from terra_tf.trace.merging import merge, mismatch
from terra_tf.trace.trace_graph import Constant, Feed, MergeKind, Output, Variable
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import (
    TraceBuilder,
    last_path,
    make_trace_graph,
    merge_all,
    merge_each,
    spec,
    types_of,
)

W, B, C = (tf.constant(0.0) for _ in range(3))
UNKNOWN_RANK = spec()._replace(shape=None)


def trace_of(rows=2, **fields):
    """Make a trace of one op with a feed and a result of some shape."""
    b = TraceBuilder()
    b.op("Op", b.feed([1.0] * rows), outputs=[spec(rows)], **fields)
    return b.trace


# ------------------------------------------------------------------- variables


def reads(*handles, lines=None):
    """Make a trace that reads variables, each at a line of its own."""
    b, slots = TraceBuilder(), {}
    for line, handle in zip(lines or range(len(handles)), handles, strict=True):
        slot = slots.get(id(handle)) or b.variable(handle)
        slots[id(handle)] = slot
        b.op("ReadVariableOp", slot, location=line)
    return b.trace


def slots_of(graph, nodes):
    return [graph.nodes[node].inputs[0].slot for node in nodes]


def test_variable_with_a_place_of_its_own_gets_a_sibling_elsewhere():
    """The last read is of `w` or of `b`, which both are read before."""
    graph, result = merge_all(reads(W, B, W), reads(W, B, B))
    assert result.kind is MergeKind.NEW_PATH
    assert [path.nodes for path in graph.paths] == [(0, 1, 2), (0, 1, 3)]
    assert slots_of(graph, range(4)) == [0, 1, 0, 1]
    assert graph.nodes[2].key == graph.nodes[3].key
    assert all(slot.captured for slot in graph.variables)


def test_unknown_variable_takes_the_place_of_one_that_is_absent():
    graph, result = merge_all(reads(W), reads(B))
    assert (result.kind, result.detail) == (MergeKind.GENERALIZED, "another variable")
    assert (len(graph.nodes), graph.variables[0].captured) == (1, False)


def test_unknown_variable_does_not_take_the_place_of_one_that_is_present():
    graph, result = merge_all(reads(W, W), reads(W, B))
    assert result.kind is MergeKind.NEW_PATH
    assert slots_of(graph, range(3)) == [0, 0, 1]
    assert all(slot.captured for slot in graph.variables)


def test_new_path_keeps_what_its_variables_are():
    graph, _ = merge_all(reads(W, B, lines=[0, 1]), reads(B, C, lines=[2, 3]))
    assert slots_of(graph, range(4)) == [0, 1, 1, 2]
    assert [slot.handle is handle for slot, handle in zip(graph.variables, (W, B, C))] == [True] * 3


# ---------------------------------------------------------------------- shapes


def test_other_shapes_get_siblings_of_static_shape():
    graph, results = merge_each(*map(trace_of, (2, 3, 4, 5)))
    assert {result.kind for result in results} == {MergeKind.NEW_PATH}
    assert [node.outputs for node in graph.nodes] == [(spec(rows),) for rows in (2, 3, 4, 5)]


def test_too_many_shapes_become_one_that_is_unknown():
    graph, results = merge_each(*map(trace_of, (2, 3, 4, 5, 6, 7)))
    assert results[4].kind is MergeKind.GENERALIZED
    assert results[5].kind is MergeKind.COVERED
    assert [node.outputs for node in graph.nodes] == [(spec(n),) for n in (-1, 3, 4, 5)]
    (source,) = graph.nodes[0].inputs
    assert source.spec == spec(-1)


@pytest.mark.parametrize("rows", [2, 3, 4, 5])
def test_known_shape_goes_to_the_sibling_that_has_it(rows):
    graph, _ = merge_all(*map(trace_of, (2, 3, 4, 5)))
    assert merge(graph, trace_of(rows)).kind is MergeKind.COVERED
    assert last_path(graph).nodes == (rows - 2,)


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (spec(2, 3), spec(4, 3), spec(-1, 3)),
        (spec(2, 3), spec(4, 5), spec(-1, -1)),
        (spec(2, 3), spec(6), UNKNOWN_RANK),
        (spec(), spec(1), UNKNOWN_RANK),
        (UNKNOWN_RANK, spec(1), UNKNOWN_RANK),
        (spec(0), spec(5), spec(-1)),
    ],
)
def test_shape_that_depends_on_data_becomes_unknown_at_once(first, second, merged):
    def make(output):
        b = TraceBuilder()
        b.op("Unique", b.feed([1.0, 2.0]), outputs=[output])
        return b.trace

    graph, result = merge_all(make(first), make(second), make(first), make(second))
    assert result.kind is MergeKind.COVERED
    assert len(graph.nodes) == 1
    assert graph.nodes[0].outputs == (merged,)
    assert graph.nodes[0].record.outputs == (second,)


def test_shape_that_follows_from_data_before_becomes_unknown_too():
    def make(rows):
        b = TraceBuilder()
        y = b.op("Unique", b.feed([1.0, 2.0]), outputs=[spec(rows)])
        b.op("Neg", y, outputs=[spec(rows)])
        return b.trace

    graph, result = merge_all(make(1), make(2))
    assert result.kind is MergeKind.GENERALIZED
    assert result.detail == "the shape of op 0 Unique changed"
    assert [node.outputs for node in graph.nodes] == [(spec(-1),)] * 2


def test_shapes_after_an_input_of_another_shape_get_siblings_too():
    def make(rows):
        b = TraceBuilder()
        y = b.op("Neg", b.feed([1.0] * rows), outputs=[spec(rows)])
        b.op("Exp", y, outputs=[spec(rows)])
        return b.trace

    graph, _ = merge_all(make(2), make(3))
    assert [path.nodes for path in graph.paths] == [(0, 1), (2, 3)]


def test_constant_that_decides_a_shape_makes_a_sibling():
    def make(rows):
        b = TraceBuilder()
        b.op("Fill", b.constant([rows], tf.int32), outputs=[spec(rows)])
        return b.trace

    graph, _ = merge_all(make(2), make(3))
    assert [node.outputs for node in graph.nodes] == [(spec(2),), (spec(3),)]
    assert all(isinstance(node.inputs[0], Constant) for node in graph.nodes)


def test_constant_of_equal_bytes_and_another_shape_is_another_value():
    """Once there are too many siblings of shapes, it joins the first of them."""

    def make(*shape):
        b = TraceBuilder()
        b.op("Sum", b.constant([0.0] * 4 if not shape else tf.zeros(shape)), outputs=[spec()])
        return b.trace

    shapes = [(4,), (1, 4), (4, 1), (2, 2), (1, 1, 4)]
    graph, result = merge_all(*(make(*shape) for shape in shapes))
    assert result.kind is MergeKind.GENERALIZED
    assert graph.nodes[0].inputs == (Feed(UNKNOWN_RANK, graph.nodes[0].inputs[0].group),)


# ----------------------------------------------------------- too many siblings


def test_op_whose_attributes_keep_changing_becomes_imperative():
    with config.override(max_siblings=3):
        graph, results = merge_each(*(trace_of(canonical=(i,)) for i in range(6)))
    assert [result.kind for result in results[:3]] == [MergeKind.NEW_PATH] * 3
    assert results[3].kind is MergeKind.GENERALIZED
    assert results[3].detail == "the attributes or inputs of op 0 Op keep changing"
    assert [result.kind for result in results[4:]] == [MergeKind.COVERED] * 2
    forced = [node.forced for node in graph.nodes]
    assert forced == [ImperativeReason.TOO_MANY_SIBLINGS, None, None]


def test_other_lines_do_not_count_as_siblings():
    with config.override(max_siblings=3):
        graph, _ = merge_all(*(trace_of(location=line) for line in range(6)))
    assert [node.forced for node in graph.nodes] == [None] * 6


def test_op_that_keeps_taking_other_variables_becomes_imperative():
    handles = [tf.constant(0.0) for _ in range(6)]
    traces = [reads(*handles, handle) for handle in handles]  # each has a place of its own
    with config.override(max_siblings=3):
        graph, results = merge_each(*traces, *traces)
    assert [result.kind for result in results[6:]] == [MergeKind.COVERED] * 6
    reasons = [node.forced for node in graph.nodes]
    assert reasons == [None] * 6 + [ImperativeReason.TOO_MANY_SIBLINGS, None, None]
    assert all(slot.captured for slot in graph.variables)


def test_imperative_op_of_any_variable_binds_none_that_is_bound():
    """The op after it reads what it always read, so a slot stays one variable throughout."""
    handles = [tf.constant(0.0) for _ in range(4)]
    with config.override(max_siblings=2):
        traces = [reads(W, *handles, handle, W) for handle in handles]
        graph, _ = merge_all(*traces)
        other = reads(W, *handles, tf.constant(0.0), handles[0])
        assert mismatch(graph, other) is not None
        merge(graph, other)
        check_trace_graph(graph, [*traces, other])
    assert all(slot.captured for slot in graph.variables)


def test_lists_of_other_lengths_are_siblings():
    def make(length):
        b = TraceBuilder()
        xs = [b.op("Neg", b.feed([1.0, 2.0]), location=(1, i)) for i in range(length)]
        b.op("AddN", *xs, counts=(length,), location=2)
        return b.trace

    graph, _ = merge_all(make(1), make(2), make(3), make(2))
    added = [n for n, node in enumerate(graph.nodes) if node.record.op_type == "AddN"]
    assert [len(graph.nodes[n].inputs) for n in added] == [1, 2, 3]
    assert len(graph.nodes) == 6


# ---------------------------------------------------------------------- cycles


def in_order(*lines):
    b = TraceBuilder()
    x = b.feed([1.0, 2.0])
    for line in lines:
        b.op("ABCDEFGH"[line], x, location=line)
    return b.trace


def test_ops_in_opposite_orders_make_no_cycle():
    graph, results = merge_each(in_order(0, 1), in_order(1, 0), in_order(0, 1), in_order(1, 0))
    kinds = [result.kind for result in results]
    assert kinds == [MergeKind.NEW_PATH] * 2 + [MergeKind.COVERED] * 2
    assert types_of(graph) == ["A", "B", "A"]
    assert [path.nodes for path in graph.paths] == [(0, 1), (1, 2)]


def test_every_order_of_some_ops_makes_no_cycle():
    orders = [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0)]
    traces = [in_order(3, *order, 4) for order in orders]
    graph, _ = merge_all(*traces)
    assert [merge(graph, trace).kind for trace in traces] == [MergeKind.COVERED] * 6
    assert types_of(graph, last_path(graph).nodes) == ["D", "B", "C", "A", "E"]
    assert len(graph.nodes) <= 2 + 9


def test_ops_without_locations_are_aligned_and_make_no_cycle():
    def make(*types):
        b = TraceBuilder()
        for op_type in types:
            b.op(op_type, location=None)
        return b.trace

    graph, _ = merge_all(make("A", "B", "A"), make("A", "B", "A"), make("B", "A", "B", "B"))
    assert types_of(graph) == ["A", "B", "A", "B", "B"]


# ------------------------------------------------------------------- variants


@pytest.mark.parametrize(
    "fields",
    [
        {"device": "/CPU:0"},
        {"canonical": (1,)},
        {"imperative": ImperativeReason.STATEFUL_OP},
        {"forward": "marker"},
    ],
)
def test_op_of_another_nature_is_a_sibling(fields):
    graph, result = merge_all(trace_of(), trace_of(**fields))
    assert result.kind is MergeKind.NEW_PATH
    assert len(graph.nodes) == 2


def test_op_of_other_types_is_a_sibling():
    def make(dtype):
        b = TraceBuilder()
        type_ = spec(2, dtype=dtypes.as_dtype(dtype))
        y = b.op("Cast", b.feed([1, 2], dtype), outputs=[type_])
        b.op("Neg", y, outputs=[type_])
        return b.trace

    graph, _ = merge_all(make(tf.float32), make(tf.int32))
    assert [path.nodes for path in graph.paths] == [(0, 1), (2, 3)]
    assert graph.nodes[3].inputs == (Output(2, 0),)


def test_variable_where_a_tensor_was_is_a_sibling():
    def make(is_variable):
        b = TraceBuilder()
        b.op("Op", b.variable(W) if is_variable else b.feed(1.0))
        return b.trace

    graph, _ = merge_all(make(True), make(False))
    assert [type(node.inputs[0]) for node in graph.nodes] == [Variable, Feed]


def test_graph_is_not_changed_by_looking_for_a_mismatch():
    graph = make_trace_graph()
    merge(graph, trace_of())
    assert mismatch(graph, trace_of(3)) == "op 0 was not known there"
    assert (len(graph.nodes), len(graph.paths), graph.num_traces) == (1, 1, 1)
