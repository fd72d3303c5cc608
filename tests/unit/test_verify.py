"""Every invariant of a TraceGraph has a message of its own when it breaks."""

import dataclasses
import re

import pytest
import tensorflow as tf

from terra_tf.errors import ImperativeReason, InternalError
from terra_tf.trace.joins import Rule
from terra_tf.trace.merging import merge
from terra_tf.trace.structure import structure_of
from terra_tf.trace.trace_graph import Constant, Feed, Joined, Output, Path, Variable
from terra_tf.trace.verify import check_merged, check_trace_graph
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


def replace_source(graph, node, position, source, path=0):
    """Change what an input was on a stored path."""
    old = list(graph.paths)[path]
    rows = [list(row) for row in old.sources]
    rows[old.nodes.index(node)][position] = source
    new = Path(old.nodes, tuple(map(tuple, rows)))
    graph.paths = {new if known is old else known: last for known, last in graph.paths.items()}


def make_branches():
    """Make a graph of A, then B or D, then C, which takes what the branch gave."""
    graph = make_trace_graph()
    for branch in ("B", "D"):
        b = TraceBuilder()
        y = b.op(branch, b.op("A", b.feed([1.0, 2.0]), location=0), location=branch)
        b.op("C", y, location=1)
        merge(graph, b.trace)
    check_trace_graph(graph)
    return graph


def assert_refused(graph, invariant, message, traces=()):
    pattern = re.escape(f"a TraceGraph is broken ({invariant}): ") + ".*" + re.escape(message)
    with pytest.raises(InternalError, match=pattern) as caught:
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


# -------------------------------------------------------------------- records


def test_key_that_does_not_fit_its_record_is_refused():
    graph = make_graph()
    graph.nodes[1].key = graph.nodes[1].key._replace(op_type="Sub")
    assert_refused(graph, "record", "the key of op 1 Mul names Sub")


def test_key_of_other_attributes_is_refused_unless_they_keep_changing():
    graph = make_graph()
    graph.nodes[1].key = graph.nodes[1].key._replace(attributes=("a",))
    assert_refused(graph, "record", "the key of op 1 Mul names Mul with ('a',)")
    graph.nodes[1].forced = ImperativeReason.TOO_MANY_SIBLINGS
    check_trace_graph(graph)


def test_op_with_other_inputs_than_recorded_is_refused():
    graph = make_graph()
    graph.nodes[1].inputs = graph.nodes[1].inputs[:1]
    message = "op 1 Mul has 1 inputs, its record 2, and its counts (-1, -1) make 2"
    assert_refused(graph, "record", message)


def test_op_whose_outputs_are_narrower_than_recorded_is_refused():
    graph = make_graph()
    graph.nodes[1].outputs = (spec(7),)
    assert_refused(graph, "record", "of op 1 Mul do not include its record's")


# --------------------------------------------------------------------- inputs


@pytest.mark.parametrize("output", [(17, 0), (-1, 0), (1, 1), (1, -1)])
@pytest.mark.parametrize("is_joined", [True, False])
def test_input_from_an_output_that_does_not_exist_is_refused(output, is_joined):
    graph, source = make_graph(), Output(*output)
    joined = Joined(tuple(sorted((Output(0, 0), source))), None)
    replace_input(graph, 2, 0, joined if is_joined else source)
    node, number = output
    message = f"input 0 of op 2 Mul is output {number} of op {node}, which does not exist"
    assert_refused(graph, "input", message)


def test_join_out_of_order_is_refused():
    graph = make_graph()
    replace_input(graph, 2, 0, Joined((Output(1, 0), Output(0, 0)), None))
    assert_refused(graph, "input", "input 0 of op 2 Mul joins")


@pytest.mark.parametrize("joined", [Joined((Output(1, 0),), None), Joined((), Feed(spec(2), 1))])
def test_join_of_a_single_source_is_refused(joined):
    graph = make_graph()
    replace_input(graph, 2, 0, joined)
    assert_refused(graph, "input", "input 0 of op 2 Mul joins 1 sources")


def test_variable_slot_that_does_not_exist_is_refused():
    graph = make_graph()
    replace_input(graph, 0, 0, Variable(2))
    assert_refused(graph, "input", "input 0 of op 0 ReadVariableOp is variable 2 of 2")


def test_constant_whose_tensor_has_changed_is_refused():
    graph = make_graph()
    constant = graph.nodes[2].inputs[1]
    assert isinstance(constant, Constant)
    replace_input(graph, 2, 1, constant._replace(tensor=tf.constant(9.0)))
    message = "input 1 of op 2 Mul is a constant whose tensor has another value than its bytes"
    assert_refused(graph, "input", message)


@pytest.mark.parametrize("node", [2, 3])
def test_source_that_runs_later_on_its_path_is_refused(node):
    graph = make_graph()
    replace_input(graph, 2, 0, Output(node, 0))
    replace_source(graph, 2, 0, Output(node, 0))
    message = f"op 2 Mul on path 0 is output 0 of op {node}, which does not come before it"
    assert_refused(graph, "input", message)


def test_source_of_another_branch_is_refused():
    graph = make_branches()
    replace_source(graph, 2, 0, Output(1, 0), path=1)
    message = "input 0 of op 2 C on path 1 is output 0 of op 1, which does not come before it"
    assert_refused(graph, "input", message)


# ---------------------------------------------------------------------- edges


def test_op_that_no_way_leads_to_is_refused():
    graph = make_branches()
    del graph.successors[0][3]
    assert_refused(graph, "reachable", "no way leads from the start to op 3 D")


def test_op_that_no_way_leads_from_is_refused():
    graph = make_branches()
    del graph.successors[3][2]
    assert_refused(graph, "reachable", "no way leads from op 3 D to the end")


@pytest.mark.parametrize("edge", [(0, 9), (9, 0), (-2, 0)])
def test_edge_to_nowhere_is_refused(edge):
    graph = make_branches()
    graph.successors.setdefault(edge[0], {})[edge[1]] = 1
    assert_refused(graph, "reachable", f"the edge {edge[0]} -> {edge[1]} leads nowhere")


def test_trace_that_gets_lost_is_refused():
    graph = make_branches()
    graph.successors[0][1] += 1
    assert_refused(graph, "flow", "traces that come to op 0 A: 2, and that leave it: 3")


def test_cycle_is_refused():
    graph = make_branches()
    for edge in ((1, 3), (3, 1)):
        graph.successors[edge[0]][edge[1]] = 1
    assert_refused(graph, "acyclic", "its edges have a cycle")


def test_fork_that_is_not_counted_is_refused():
    graph = make_branches()
    assert graph.num_forks == 1
    graph.num_forks = 2
    assert_refused(graph, "forks", "it has 1, and 2 are counted")


# ---------------------------------------------------------------------- paths


def test_path_without_its_edges_is_refused():
    graph = make_branches()
    graph.add_path(Path((), ()))
    graph.successors[-1].pop(-2)
    graph.num_forks -= 1
    assert_refused(graph, "path", "path 2 goes from -1 to -2, where no edge leads")


def test_path_that_does_not_tell_every_source_is_refused():
    graph = make_branches()
    path = next(iter(graph.paths))
    graph.paths = {Path(path.nodes, path.sources[:-1]): 1}
    assert_refused(graph, "path", "path 0 does not tell the sources of each op")


def test_source_that_its_node_does_not_know_is_refused():
    graph = make_graph()
    replace_input(graph, 2, 0, Output(0, 0))
    message = "op 2 Mul on path 0 is Output(node=1, output=0), and Output(node=0, output=0)"
    assert_refused(graph, "path", message)


def test_source_from_outside_that_its_node_does_not_know_is_refused():
    graph = make_branches()
    replace_source(graph, 2, 0, None, path=1)
    assert_refused(graph, "path", "input 0 of op 2 C on path 1 comes from outside, and is Joined")


def test_imperative_op_may_take_what_its_node_does_not_know():
    graph = make_graph()
    replace_input(graph, 2, 0, Output(0, 0))
    graph.nodes[2].forced = ImperativeReason.RAISED_BEFORE
    graph.structure = None
    check_trace_graph(graph)
    assert graph.nodes[2].is_imperative


# ------------------------------------------------------------------- siblings


def test_successors_that_differ_in_nothing_are_refused():
    graph = make_branches()
    graph.nodes[3] = dataclasses.replace(graph.nodes[1])
    message = "op 3 B and op 1, which both may follow op 0, differ in nothing"
    assert_refused(graph, "sibling", message)


# ----------------------------------------------------------------- structure


def test_structure_that_was_kept_too_long_is_refused():
    graph = make_graph()
    structure_of(graph)
    graph.add_path(Path((), ()))
    message = "as kept, it cannot follow a path: a way from the start to the end"
    assert_refused(graph, "structure", message)


def test_rules_that_never_end_are_refused():
    graph = make_branches()
    structure = structure_of(graph)
    (key,) = structure.joins.of_input
    same = dataclasses.replace(structure.joins.of_input[key], rule=Rule.SAME, same=key)
    joins = dataclasses.replace(structure.joins, of_input={key: same})
    graph.structure = dataclasses.replace(structure, joins=joins)
    graph.paths = {}
    message = "input 0 of op 2 is the same as (2, 0), which never ends"
    assert_refused(graph, "structure", message)


# -------------------------------------------------------------------- fetches


@pytest.mark.parametrize("output", [(9, 0), (1, 1), (-1, 0), (1, -1)])
def test_fetch_of_an_output_that_does_not_exist_is_refused(output):
    graph = make_graph()
    graph.fetches.add(output)
    node, number = output
    assert_refused(graph, "fetch", f"a fetch of output {number} of op {node}, which does not exist")


def test_shape_read_of_an_output_that_does_not_exist_is_refused():
    graph = make_graph()
    graph.shape_reads.add((6, 0))
    assert_refused(graph, "fetch", "a shape read of output 0 of op 6, which does not exist")


# --------------------------------------------------------------------- groups


def test_feed_group_with_two_types_is_refused():
    graph = make_graph()
    replace_input(graph, 5, 2, Feed(spec(7), graph.nodes[1].inputs[0].group))
    message = "input 2 of op 5 AddN and input 0 of op 1 Mul are of one group on path 0, but"
    assert_refused(graph, "group", message)


def test_group_of_two_constants_is_refused():
    b = TraceBuilder()
    b.op("Op", b.constant(1.0), b.constant(2.0))
    graph = make_trace_graph()
    merge(graph, b.trace)
    first, second = graph.nodes[0].inputs
    replace_input(graph, 0, 1, second._replace(group=first.group))
    message = "input 1 of op 0 Op and input 0 of op 0 Op are of one group on path 0, but"
    assert_refused(graph, "group", message)


def test_group_of_two_branches_may_have_two_types():
    """No trace passes both."""
    b, other = TraceBuilder(), TraceBuilder()
    b.op("Op", b.feed([1.0]), location=1)
    other.op("Op", other.feed([1.0, 2.0]), location=2)
    graph = make_trace_graph()
    merge(graph, b.trace)
    merge(graph, other.trace)
    replace_input(graph, 1, 0, Feed(spec(2), graph.nodes[0].inputs[0].group))
    check_trace_graph(graph)
    assert len({node.inputs[0].group for node in graph.nodes}) == 1


# --------------------------------------------------------------------- traces


def test_trace_of_another_path_is_refused():
    b = TraceBuilder()
    b.op("Neg", b.feed([1.0, 2.0]))
    message = "trace 0 cannot be executed: op 0 was not known there"
    assert_refused(make_graph(), "trace", message, [b.trace])


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
    assert_refused(make_graph(), "trace", message, [make_trace(**changes)])


def test_trace_that_needs_another_fetch_is_refused():
    trace = make_trace()
    trace.alive.add((2, 0))
    message = "trace 0 needs [(2, 0)], which the graph does not fetch"
    assert_refused(make_graph(), "trace", message, [trace])


def test_trace_in_which_a_feed_group_is_two_tensors_is_refused():
    trace = make_trace()
    other = TraceBuilder()
    other.trace = trace
    last = trace.ops[-1]
    again = other.feed((1.0, 2.0))
    trace.ops.pop()
    other.op("AddN", *last.inputs[:2], again, counts=(3,))
    message = "the group of input 2 of op 5 AddN is two tensors in trace 0"
    assert_refused(make_graph(), "trace", message, [trace])


def test_trace_whose_op_has_raised_is_accepted():
    """Of its results nobody knows anything."""
    graph, trace = make_graph(), make_trace()
    last = trace.ops[-1]
    trace.ops[-1] = last._replace(outputs=(), has_raised=True)
    trace.materializations.clear()
    merge(graph, trace)
    check_trace_graph(graph, [trace])
    check_merged(graph, trace)
    assert graph.nodes[-1].may_raise


def assert_merge_refused(graph, trace, message):
    with pytest.raises(InternalError, match=re.escape(message)):
        check_merged(graph, trace)


def test_trace_that_was_merged_is_accepted_where_it_was_put():
    graph = make_graph()
    trace = make_trace(feed=(3.0, 4.0), scale=0.25, rows=3, weight=tf.constant(7.0))
    merge(graph, trace)
    check_merged(graph, trace)
    assert graph.num_traces == 2


def test_merge_that_forgets_a_value_is_refused():
    graph, trace = make_graph(), make_trace(scale=0.25)
    merge(graph, trace)
    known = graph.nodes[2].inputs[1]
    constant = make_graph().nodes[2].inputs[1]
    replace_input(graph, 2, 1, constant._replace(group=known.group))
    assert_merge_refused(graph, trace, "input 1 of op 2 Mul is constant, and differs in the trace")


def test_merge_that_forgets_an_op_is_refused():
    graph, trace = make_graph(), make_trace()
    graph.last_path = Path(graph.last_path.nodes[:-1], graph.last_path.sources[:-1])
    assert_merge_refused(graph, trace, "the trace has 6 ops, and its path 5")


def test_merge_that_takes_one_variable_for_two_is_refused():
    b, graph = TraceBuilder(), make_trace_graph()
    weight = b.variable(_WEIGHT)
    b.op("ReadVariableOp", weight)
    b.op("ReadVariableOp", weight)
    merge(graph, b.trace)
    check_merged(graph, b.trace)
    graph.variables.append(dataclasses.replace(graph.variables[0]))
    replace_input(graph, 1, 0, Variable(1))
    message = "input 0 of op 1 ReadVariableOp is variable 1, and 0 elsewhere in the trace"
    assert_merge_refused(graph, b.trace, message)


def test_merge_that_takes_a_variable_for_a_tensor_is_refused():
    graph, trace = make_graph(), make_trace()
    feed = graph.nodes[1].inputs[0]
    replace_input(graph, 0, 0, feed)
    assert_merge_refused(graph, trace, "input 0 of op 0 ReadVariableOp is Feed")


def test_op_of_any_number_of_inputs_may_have_had_more():
    graph = make_graph()
    graph.nodes[5].inputs = graph.nodes[5].inputs[:2]
    assert_refused(graph, "record", "op 5 AddN has 2 inputs, its record 3")
    graph.nodes[5].forced = ImperativeReason.TOO_MANY_SIBLINGS
    graph.structure = None
    check_trace_graph(graph)
    assert len(graph.nodes[5].inputs) == 2


def test_path_that_does_not_tell_every_source_of_an_op_is_refused():
    graph = make_branches()
    path = next(iter(graph.paths))
    graph.paths = {Path(path.nodes, (*path.sources[:-1], ())): 1}
    assert_refused(graph, "path", "path 0 does not tell the source of each input of op 2")
