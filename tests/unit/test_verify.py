"""Every invariant of a TraceGraph has a message of its own when it breaks."""

import re

import pytest
import tensorflow as tf

from terra_tf.errors import InternalError
from terra_tf.trace.merging import merge
from terra_tf.trace.trace_graph import Constant, Feed, Output, Variable
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import TraceBuilder, make_trace_graph, spec

_WEIGHT = tf.constant(1.0)
_BIAS = tf.constant(2.0)
_MASK = tf.constant([1.0, 0.0])


def make_trace(feed=(1.0, 2.0), scale=0.5, mask=_MASK, weight=_WEIGHT, rows=2):
    """x * w * scale * mask + b + x"""
    b = TraceBuilder()
    x = b.feed(feed)
    w = b.op("ReadVariableOp", b.variable(weight))
    product = b.op("Mul", x, w)
    scaled = b.op("Mul", product, b.constant(scale))
    masked = b.op("Mul", scaled, b.captured(mask))
    bias = b.op("ReadVariableOp", b.variable(_BIAS))
    total = b.op("AddN", masked, bias, x, counts=(3,), outputs=[spec(rows)])
    b.read(total)
    b.read(product, shape_only=True)
    return b.trace


def make_graph():
    graph = make_trace_graph()
    merge(graph, make_trace())
    return graph


def replace_input(graph, node, position, source):
    inputs = list(graph.nodes[node].inputs)
    inputs[position] = source
    graph.nodes[node].inputs = tuple(inputs)


def assert_refused(graph, message, traces=()):
    with pytest.raises(InternalError, match=re.escape(message)) as caught:
        check_trace_graph(graph, traces)
    assert caught.value.code == "TERRA-TRACE-GRAPH"


def test_merged_traces_are_accepted():
    traces = [make_trace(), make_trace(), make_trace(feed=(3.0, 4.0), scale=0.25, rows=3)]
    graph = make_trace_graph()
    for count, trace in enumerate(traces, start=1):
        merge(graph, trace)
        check_trace_graph(graph, traces[:count])
    assert graph.num_traces == 3


def test_empty_graph_is_accepted():
    graph = make_trace_graph()
    check_trace_graph(graph)
    assert graph.nodes == []


@pytest.mark.parametrize("node", [2, 3, 17, -1])
def test_input_from_a_later_op_is_refused(node):
    graph = make_graph()
    replace_input(graph, 2, 0, Output(node, 0))
    message = f"input 0 of op 2 Mul is output 0 of op {node}, which does not come before it"
    assert_refused(graph, message)


@pytest.mark.parametrize("output", [1, -1])
def test_input_from_an_output_that_does_not_exist_is_refused(output):
    graph = make_graph()
    replace_input(graph, 2, 0, Output(1, output))
    assert_refused(graph, f"input 0 of op 2 Mul is output {output} of op 1, which has 1")


def test_variable_slot_that_does_not_exist_is_refused():
    graph = make_graph()
    replace_input(graph, 0, 0, Variable(2))
    assert_refused(graph, "input 0 of op 0 ReadVariableOp is variable 2 of 2")


def test_variables_first_used_out_of_order_are_refused():
    graph = make_graph()
    replace_input(graph, 0, 0, Variable(1))
    replace_input(graph, 4, 0, Variable(0))
    message = "op 0 ReadVariableOp uses variable 1 before variable 0 is used"
    assert_refused(graph, message)


def test_variable_that_no_op_uses_is_refused():
    graph = make_graph()
    replace_input(graph, 4, 0, Variable(0))
    assert_refused(graph, "no op uses variable 1 of 2")


def test_feed_group_with_two_types_is_refused():
    graph = make_graph()
    replace_input(graph, 5, 2, Feed(spec(7), graph.nodes[1].inputs[0].group))
    assert_refused(graph, "input 2 of op 5 AddN and input 0 of op 1 Mul are of one group, but")


def test_feed_group_of_a_constant_is_refused():
    graph = make_graph()
    replace_input(graph, 5, 2, Feed(spec(), graph.nodes[2].inputs[1].group))
    assert_refused(graph, "input 2 of op 5 AddN and input 1 of op 2 Mul are of one group, but")


def test_constant_whose_tensor_has_changed_is_refused():
    graph = make_graph()
    constant = graph.nodes[2].inputs[1]
    assert isinstance(constant, Constant)
    replace_input(graph, 2, 1, constant._replace(tensor=tf.constant(9.0)))
    message = "input 1 of op 2 Mul is a constant whose tensor has another value than its bytes"
    assert_refused(graph, message)


@pytest.mark.parametrize("output", [(9, 0), (1, 1), (-1, 0), (1, -1)])
def test_fetch_of_an_output_that_does_not_exist_is_refused(output):
    graph = make_graph()
    graph.fetches.add(output)
    node, number = output
    assert_refused(graph, f"a fetch of output {number} of op {node}, which does not exist")


def test_shape_read_of_an_output_that_does_not_exist_is_refused():
    graph = make_graph()
    graph.shape_reads.add((6, 0))
    assert_refused(graph, "a shape read of output 0 of op 6, which does not exist")


def test_two_ops_with_one_key_are_refused():
    graph = make_graph()
    graph.nodes[2].key = graph.nodes[1].key
    assert_refused(graph, "op 2 Mul and op 1 have the same key")


def test_ops_without_locations_may_share_a_key():
    graph = make_graph()
    for node in graph.nodes:
        node.key = node.key._replace(location=None)
    check_trace_graph(graph)
    assert graph.nodes[1].key == graph.nodes[2].key


def test_key_that_does_not_fit_its_record_is_refused():
    graph = make_graph()
    graph.nodes[1].key = graph.nodes[1].key._replace(op_type="Sub")
    assert_refused(graph, "the key of op 1 Mul names Sub")


def test_op_with_other_inputs_than_recorded_is_refused():
    graph = make_graph()
    graph.nodes[1].inputs = graph.nodes[1].inputs[:1]
    assert_refused(graph, "op 1 Mul has 1 inputs, its record 2, and its counts (-1, -1) make 2")


def test_op_whose_outputs_are_narrower_than_recorded_is_refused():
    graph = make_graph()
    graph.nodes[1].outputs = (spec(7),)
    assert_refused(graph, "of op 1 Mul do not include its record's")


def test_forward_op_that_comes_later_is_refused():
    b = TraceBuilder()
    b.op("TanhGrad", b.feed([1.0]), forward_node=0)
    graph = make_trace_graph()
    merge(graph, b.trace)
    assert_refused(graph, "the forward op of op 0 TanhGrad is op 0, which does not come before it")


def test_trace_of_another_path_is_refused():
    b = TraceBuilder()
    b.op("Neg", b.feed([1.0, 2.0]))
    assert_refused(make_graph(), "trace 0 cannot be executed: 1 ops where 6 were known", [b.trace])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 2.0}, "input 1 of op 2 Mul is constant, and differs in trace 0"),
        ({"mask": tf.constant([1.0, 0.0])}, "input 1 of op 3 Mul is captured, and is another"),
        ({"weight": tf.constant(3.0)}, "variable 0 is captured, and is another one in trace 0"),
        ({"rows": 3}, "the outputs of op 5 AddN do not include those of trace 0"),
    ],
    ids=["constant", "captured", "variable", "shape"],
)
def test_trace_that_was_not_merged_is_refused(changes, message):
    assert_refused(make_graph(), message, [make_trace(**changes)])


def test_trace_that_needs_another_fetch_is_refused():
    trace = make_trace()
    trace.alive.add((2, 0))
    assert_refused(make_graph(), "trace 0 needs [(2, 0)], which the graph does not fetch", [trace])


def test_trace_in_which_a_feed_group_is_two_tensors_is_refused():
    trace = make_trace()
    other = TraceBuilder()
    other.trace = trace
    last = trace.ops[-1]
    again = other.feed((1.0, 2.0))
    trace.ops.pop()
    other.op("AddN", *last.inputs[:2], again, counts=(3,))
    message = "the group of input 2 of op 5 AddN is two tensors in trace 0"
    assert_refused(make_graph(), message, [trace])
