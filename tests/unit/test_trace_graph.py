"""What merging traces makes of a TraceGraph. After every merge the invariants are checked.

Of nodes and their inputs, mostly. Forks are in test_many_paths, which node an op becomes in
test_placing, how joined inputs are decided in test_joins.
"""

import pytest
import tensorflow as tf

from terra_tf._tf_internals import dtypes
from terra_tf.errors import ImperativeReason
from terra_tf.trace.dump import dump
from terra_tf.trace.merging import merge, mismatch
from terra_tf.trace.trace_graph import (
    Captured,
    Constant,
    Feed,
    MergeKind,
    Output,
    Variable,
)
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import (
    Line,
    TraceBuilder,
    make_trace_graph,
    merge_all,
    merge_each,
    spec,
)


def trace_of(*inputs, **fields):
    """Make a trace of one op; each input is a function of the builder."""
    b = TraceBuilder()
    b.op("Op", *(make(b) for make in inputs), **fields)
    return b.trace


def external(tensor, **fields):
    return lambda b: b.external(tensor, **fields)


def constant(value):
    return lambda b: b.constant(value)


def feed(value):
    return lambda b: b.feed(value)


def variable(handle):
    return lambda b: b.variable(handle)


# ------------------------------------------------------------- the first trace


def test_first_trace_is_a_new_path():
    _, result = merge_all(trace_of(feed(1.0)))
    assert result.kind is MergeKind.NEW_PATH
    assert result.detail == "1 ops where none were known"


def test_first_trace_decides_what_inputs_are():
    tensor, handle = tf.constant([1.0]), tf.constant(0.0)
    b = TraceBuilder()
    y = b.op("First", b.variable(handle), b.constant(2.0), b.captured(tensor), b.feed(3.0))
    b.op("Second", y, b.external(tf.constant(4.0), owns_memory=False))
    graph, _ = merge_all(b.trace)
    kinds = [[type(source) for source in node.inputs] for node in graph.nodes]
    assert kinds == [[Variable, Constant, Captured, Feed], [Output, Feed]]
    assert graph.variables[0].captured
    assert graph.nodes[1].inputs[0] == (0, 0)
    assert graph.nodes[0].key == ("First", (), Line(0))


def test_small_argument_is_a_feed_and_never_a_constant():
    graph, _ = merge_all(trace_of(feed(1.0)))
    (source,) = graph.nodes[0].inputs
    assert source.spec == spec()
    assert isinstance(source, Feed)


def test_empty_trace_is_covered_by_an_empty_graph():
    b = TraceBuilder()
    _, result = merge_all(b.trace)
    assert result.kind is MergeKind.COVERED


# -------------------------------------------------------------------- covered


def test_equal_trace_is_covered():
    tensor = tf.constant([1.0])
    inputs = (constant(2.0), external(tensor), feed(3.0))
    graph, result = merge_all(trace_of(*inputs), trace_of(*inputs))
    assert result.kind is MergeKind.COVERED
    assert [type(source) for source in graph.nodes[0].inputs] == [Constant, Captured, Feed]
    assert (graph.num_traces, graph.nodes[0].hits) == (2, 2)


def test_equal_value_in_another_tensor_stays_a_constant():
    graph, result = merge_all(trace_of(constant(2.0)), trace_of(constant(2.0)))
    assert result.kind is MergeKind.COVERED
    assert isinstance(graph.nodes[0].inputs[0], Constant)


def test_feed_of_another_value_is_covered():
    _, result = merge_all(trace_of(feed(2.0)), trace_of(feed(3.0)))
    assert result.kind is MergeKind.COVERED


def test_op_at_another_line_is_another_node():
    first, second = (trace_of(feed(1.0), location=where) for where in ("if", "else"))
    graph, result = merge_all(first, second)
    assert result.kind is MergeKind.NEW_PATH
    assert result.detail == "op 0 was not known there"
    assert [node.key.location for node in graph.nodes] == ["if", "else"]


# ---------------------------------------------------------------- generalized


def test_changed_constant_becomes_a_feed():
    graph, result = merge_all(trace_of(constant(2.0)), trace_of(constant(3.0)))
    assert result.kind is MergeKind.GENERALIZED
    assert result.detail == "Constant of op 0 Op changed"
    assert isinstance(graph.nodes[0].inputs[0], Feed)


def test_constants_that_differ_in_sign_of_zero_only_are_different():
    graph, result = merge_all(trace_of(constant([0.0])), trace_of(constant([-0.0])))
    assert result.kind is MergeKind.GENERALIZED
    assert isinstance(graph.nodes[0].inputs[0], Feed)


def test_nan_is_a_constant_equal_to_itself():
    _, result = merge_all(trace_of(constant(float("nan"))), trace_of(constant(float("nan"))))
    assert result.kind is MergeKind.COVERED


def test_changed_capture_becomes_a_feed():
    first, second = (trace_of(external(tf.constant([1.0]))) for _ in range(2))
    graph, result = merge_all(first, second)
    assert result.kind is MergeKind.GENERALIZED
    assert result.detail == "Captured of op 0 Op changed"
    assert isinstance(graph.nodes[0].inputs[0], Feed)


def test_feed_stays_a_feed_when_its_value_is_an_old_one_again():
    traces = [trace_of(constant(value)) for value in (2.0, 3.0, 2.0, 2.0)]
    graph, result = merge_all(*traces)
    assert result.kind is MergeKind.COVERED
    assert isinstance(graph.nodes[0].inputs[0], Feed)


def test_changed_variable_becomes_bound():
    old, new = tf.constant(0.0), tf.constant(0.0)
    graph, result = merge_all(trace_of(variable(old)), trace_of(variable(new)))
    assert result.kind is MergeKind.GENERALIZED
    assert result.detail == "another variable"
    assert not graph.variables[0].captured
    assert graph.variables[0].handle is new


def test_bound_variable_is_covered_whatever_it_is():
    handles = [tf.constant(0.0) for _ in range(3)]
    graph, result = merge_all(*(trace_of(variable(handle)) for handle in handles))
    assert result.kind is MergeKind.COVERED
    assert not graph.variables[0].captured


def test_first_variable_does_not_become_captured_again():
    first, second = tf.constant(0.0), tf.constant(0.0)
    graph, _ = merge_all(*(trace_of(variable(handle)) for handle in (first, second, first)))
    assert not graph.variables[0].captured


def test_two_uses_of_one_feed_are_one_group():
    b = TraceBuilder()
    x = b.feed(1.0)
    b.op("Op", x, x, b.feed(1.0))
    graph, _ = merge_all(b.trace, b.trace)
    one, other, third = (source.group for source in graph.nodes[0].inputs)
    assert one == other != third


def test_feed_group_splits_when_its_uses_come_apart():
    def make(is_one):
        b = TraceBuilder()
        x = b.feed(1.0)
        b.op("Op", x, x if is_one else b.feed(1.0))
        return b.trace

    graph, result = merge_all(make(True), make(False))
    assert result.kind is MergeKind.GENERALIZED
    assert result.detail == "two uses of one tensor came apart"
    assert len({source.group for source in graph.nodes[0].inputs}) == 2


def test_two_feed_groups_stay_two_when_they_were_one_tensor_once():
    def make(is_one):
        b = TraceBuilder()
        x = b.feed(1.0)
        b.op("Op", x, x if is_one else b.feed(1.0))
        return b.trace

    graph, result = merge_all(make(False), make(True))
    assert result.kind is MergeKind.COVERED
    assert len({source.group for source in graph.nodes[0].inputs}) == 2


def test_constants_that_come_apart_with_equal_values_are_covered():
    def make(is_one):
        b = TraceBuilder()
        x = b.constant(1.0)
        b.op("Op", x, x if is_one else b.constant(1.0))
        return b.trace

    _, result = merge_all(make(True), make(False))
    assert result.kind is MergeKind.COVERED


def test_constants_that_come_apart_become_two_feeds():
    b = TraceBuilder()
    x = b.constant(1.0)
    b.op("Op", x, x)
    graph, result = merge_all(b.trace, trace_of(constant(2.0), constant(2.0)))
    assert result.kind is MergeKind.GENERALIZED
    assert len({source.group for source in graph.nodes[0].inputs}) == 2


@pytest.mark.parametrize("how", ["read", "keep"])
def test_new_fetch_grows_the_fetch_set(how):
    plain, other = trace_of(feed(1.0)), TraceBuilder()
    getattr(other, how)(other.op("Op", other.feed(1.0)))
    graph, result = merge_all(plain, other.trace)
    assert result.kind is MergeKind.GENERALIZED
    assert result.detail == "a new fetch of op 0"
    assert graph.fetches == {(0, 0)}


def test_fetch_set_never_shrinks():
    fetching = TraceBuilder()
    fetching.read(fetching.op("Op", fetching.feed(1.0)))
    graph, result = merge_all(fetching.trace, trace_of(feed(1.0)))
    assert result.kind is MergeKind.COVERED
    assert graph.fetches == {(0, 0)}


def test_shape_read_is_no_fetch():
    b = TraceBuilder()
    b.read(b.op("Op", b.feed(1.0)), shape_only=True)
    graph, _ = merge_all(b.trace)
    assert (graph.fetches, graph.shape_reads) == (set(), {(0, 0)})


def test_imperative_op_may_take_its_input_from_elsewhere():
    def make(from_op):
        b = TraceBuilder()
        y = b.op("Op", b.feed(1.0), outputs=[spec()])
        source = y if from_op else b.feed(2.0)
        b.op("Print", source, imperative=ImperativeReason.STATEFUL_OP, outputs=[])
        return b.trace

    graph, results = merge_each(make(True), make(False), make(True))
    assert [result.kind for result in results[1:]] == [MergeKind.COVERED] * 2
    assert (graph.num_traces, len(graph.nodes)) == (3, 2)


def test_imperative_op_may_have_other_attributes_every_time():
    """As a py_function has, with a token of its own at each call."""
    reason = ImperativeReason.PYTHON_CALLBACK
    traces = [trace_of(feed(1.0), canonical=(token,), imperative=reason) for token in range(3)]
    graph, result = merge_all(*traces)
    assert result.kind is MergeKind.COVERED
    assert graph.nodes[0].record.canonical == (2,)


# ------------------------------------------------------------------- new paths


def base(b):
    x = b.feed([1.0, 2.0])
    y = b.op("Neg", x, outputs=[spec(2)], canonical=("a",))
    w = b.op("ReadVariableOp", b.variable(WEIGHT), outputs=[spec(2)])
    return b, x, y, w


WEIGHT, BIAS = tf.constant(0.0), tf.constant(0.0)
UNARY = {"outputs": [spec(2)]}
# Last ops; each is another path than `Mul(y, w)`.
PATHS = {
    "no op": lambda b, x, y, w: None,
    "another type": lambda b, x, y, w: b.op("Add", y, w),
    "other attributes": lambda b, x, y, w: b.op("Mul", y, w, canonical=("t", 1)),
    "swapped inputs": lambda b, x, y, w: b.op("Mul", w, y),
    "an external input": lambda b, x, y, w: b.op("Mul", y, x),
    "a variable input": lambda b, x, y, w: b.op("Mul", y, b.variable(BIAS)),
    "more inputs": lambda b, x, y, w: b.op("Mul", y, w, w),
    "a list": lambda b, x, y, w: b.op("Mul", y, w, counts=(2,)),
    "another device": lambda b, x, y, w: b.op("Mul", y, w, device="/CPU:0"),
    "another dtype": lambda b, x, y, w: b.op("Mul", y, w, outputs=[spec(2, dtype=dtypes.int32)]),
    "more outputs": lambda b, x, y, w: b.op("Mul", y, w, outputs=[spec(2), spec(2)]),
    "imperative": lambda b, x, y, w: b.op("Mul", y, w, imperative=ImperativeReason.STATEFUL_OP),
    "a gradient": lambda b, x, y, w: b.op("Mul", y, w, forward=Line(0).id),
    "two ops": lambda b, x, y, w: b.op("Mul", b.op("Mul", y, w), w),
}


def make_path(last):
    b, *values = base(TraceBuilder())
    last(b, *values)
    return b.trace


JOINED = ("swapped inputs", "an external input")  # the same node, with an input that differs


@pytest.mark.parametrize("name", PATHS)
def test_other_path_is_added_to_what_was_there(name):
    known, other = make_path(lambda b, x, y, w: b.op("Mul", y, w)), make_path(PATHS[name])
    graph = make_trace_graph()
    merge(graph, known)
    assert mismatch(graph, other) is not None
    result = merge(graph, other)
    assert result.kind is MergeKind.NEW_PATH
    assert result.detail
    check_trace_graph(graph, [known, other])
    num_nodes = {"no op": 3, "two ops": 4}.get(name, 3 if name in JOINED else 4)
    assert (len(graph.nodes), len(graph.paths)) == (num_nodes, 2)
    assert merge(graph, known).kind is MergeKind.COVERED
    assert merge(graph, other).kind is MergeKind.COVERED
    assert (len(graph.nodes), len(graph.paths)) == (num_nodes, 2)


@pytest.mark.parametrize(
    "tensor", [tf.constant([1.0, 2.0]), tf.constant(1), tf.constant(1.0, tf.float64)]
)
def test_external_of_another_type_is_another_node(tensor):
    graph = make_trace_graph()
    merge(graph, trace_of(feed(1.0)))
    other = trace_of(external(tensor, is_argument=True))
    assert mismatch(graph, other) == "op 0 was not known there"
    merge(graph, other)
    check_trace_graph(graph, [trace_of(feed(1.0)), other])
    assert len(graph.nodes) == 2


def test_new_path_keeps_fetches_and_variables_of_the_old_one():
    b = TraceBuilder()
    b.keep(b.op("ReadVariableOp", b.variable(WEIGHT)))
    graph, _ = merge_all(b.trace, trace_of(feed(1.0)))
    assert graph.fetches == {(0, 0)}
    assert [(slot.handle is WEIGHT, slot.captured) for slot in graph.variables] == [(True, True)]


# ------------------------------------------------------------ raised locations


def test_raised_location_marks_its_op_in_this_path_and_in_later_ones():
    graph = make_trace_graph()
    merge(graph, trace_of(feed(1.0), location="try"))
    graph.note_raised("try")
    assert graph.nodes[0].forced
    merge(graph, trace_of(feed([1.0]), location="try"))
    merge(graph, trace_of(feed(1.0), location=Line(9), canonical=("a",)))
    assert [node.forced is not None for node in graph.nodes] == [True, True, False]


# ------------------------------------------------------------------- snapshots


def test_snapshot_is_not_changed_by_later_merges():
    graph, _ = merge_all(trace_of(constant(1.0), variable(WEIGHT)))
    snapshot = graph.snapshot()
    text = dump(snapshot)
    other = TraceBuilder()
    other.keep(other.op("Op", other.constant(2.0), other.variable(BIAS)))
    merge(graph, other.trace)
    graph.add_fetches({(0, 0)})
    graph.note_raised(Line(0))
    assert dump(snapshot) == text
    assert dump(graph) != text
    assert merge(snapshot, other.trace).kind is MergeKind.GENERALIZED


def test_fetched_bytes_are_counted_as_traced():
    b = TraceBuilder()
    b.keep(b.op("A", outputs=[spec(2, 3)]))
    b.keep(b.op("B", outputs=[spec(dtype=dtypes.float64)]))
    b.op("C", outputs=[spec(100)])
    graph, _ = merge_all(b.trace)
    assert graph.num_fetched_bytes == 2 * 3 * 4 + 8
