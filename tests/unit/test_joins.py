"""How a path decides joined inputs: which rule is found, and what the rule then covers."""

from terra_tf.errors import ImperativeReason
from terra_tf.trace.joins import Rule, resolve_joins
from terra_tf.trace.merging import merge, mismatch
from terra_tf.trace.structure import structure_of
from terra_tf.trace.trace_graph import Feed, Joined, MergeKind, Output
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import (
    Line,
    TraceBuilder,
    merge_all,
    merge_each,
    spec,
)


def branches(is_true, x_is_outside=False):
    """y = f(x) if c else g(x); use(y)"""
    b = TraceBuilder()
    x = b.feed([1.0, 2.0]) if x_is_outside else b.op("Start", b.feed([1.0, 2.0]), location=0)
    y = b.op("F", x, location=1) if is_true else b.op("G", x, location=2)
    b.op("Use", y, location=3)
    return b.trace


def only_join(graph):
    (join,) = structure_of(graph).joins.of_input.values()
    return join


# ---------------------------------------------------------------------- LATEST


def test_branches_are_joined_by_what_has_run_last():
    graph, result = merge_all(branches(True), branches(False))
    assert result.kind is MergeKind.NEW_PATH
    join = only_join(graph)
    assert graph.nodes[2].inputs == (Joined((Output(1, 0), Output(3, 0)), None),)
    assert (join.node, join.position, join.rule, join.external) == (2, 0, Rule.LATEST, None)
    assert structure_of(graph).joins.webs[join.web] == (Output(1, 0), Output(3, 0))
    assert not join.needs_message


def optional(*taken, num_layers=3):
    """for i in range(num_layers): if taken: x = layer(x)"""
    b = TraceBuilder()
    x = b.op("Start", b.feed([1.0, 2.0]), location=100)
    for layer in range(num_layers):
        if layer in taken:
            x = b.op("Layer", x, location=layer)
    b.op("End", x, location=101)
    return b.trace


def test_web_covers_inputs_that_were_never_seen():
    graph, _ = merge_all(optional(0, 1, 2), optional(0, 2), optional(1))
    assert mismatch(graph, optional(2)) is None  # its input was that of layers 1 and 2 so far
    assert mismatch(graph, optional(0, 1)) is None
    rules = {join.rule for join in structure_of(graph).joins.of_input.values()}
    assert rules == {Rule.LATEST}


def test_input_of_one_producer_follows_the_rule_of_its_web():
    graph, _ = merge_all(optional(0, 1, 2), optional(0, 2))
    first = structure_of(graph).joins.of_input
    assert isinstance(graph.nodes[2].inputs[0], Output)
    assert first[2, 0].rule is Rule.LATEST


def test_web_leaves_out_what_is_of_another_type():
    def make(is_true, is_wide):
        b = TraceBuilder()
        x = b.feed([1.0, 2.0])
        wide = b.op("Wide", x, outputs=[spec(7)], location=0)
        y = b.op("F", x, location=1) if is_true else b.op("G", x, location=2)
        b.op("Use", y, location=3)
        b.op("Measure", wide if is_wide else y, outputs=[spec()], location=4)
        return b.trace

    graph, _ = merge_all(make(True, True), make(False, True), make(True, False))
    use = next(join for join in structure_of(graph).joins.of_input.values() if join.node == 2)
    assert structure_of(graph).joins.webs[use.web] == (Output(1, 0), Output(4, 0))


def test_type_of_a_join_includes_all_its_sources():
    def make(rows, line):
        b = TraceBuilder()
        y = b.op("Unique", b.feed([1.0, 2.0]), outputs=[spec(rows, 3)], location=line)
        b.op("Use", y, outputs=[spec()], location=9)
        return b.trace

    graph, _ = merge_all(make(2, 0), make(-1, 0), make(2, 1))
    assert only_join(graph).spec == spec(-1, 3)


# -------------------------------------------------------------------- outside


def sometimes_outside(is_outside, rows=2):
    b = TraceBuilder()
    x = b.feed([1.0] * rows)
    y = x if is_outside else b.op("F", x, location=0)
    b.op("Use", y, outputs=[spec()], location=1)
    return b.trace


def test_input_that_sometimes_comes_from_outside_needs_a_message():
    graph, results = merge_each(sometimes_outside(False), sometimes_outside(True))
    assert results[1].detail == "a way from the start to op 1 Use"
    join = only_join(graph)
    assert (join.rule, join.needs_message) == (Rule.LATEST, True)
    assert join.external.spec == spec(2)


def test_order_of_finding_out_does_not_matter():
    graph, _ = merge_all(sometimes_outside(True), sometimes_outside(False))
    assert isinstance(graph.nodes[0].inputs[0], Joined)
    assert only_join(graph).needs_message


def test_constant_in_a_join_becomes_a_feed():
    def make(is_constant):
        b = TraceBuilder()
        y = b.constant([1.0, 2.0]) if is_constant else b.op("F", b.feed([1.0, 2.0]), location=0)
        b.op("Use", y, location=1)
        return b.trace

    graph, _ = merge_all(make(True), make(False), make(True))
    assert isinstance(graph.nodes[0].inputs[0].external, Feed)


def test_web_that_begins_outside_covers_its_other_users():
    """`x` is an argument, and any of three optional layers may be the first to take it."""

    def make(*layers):
        b = TraceBuilder()
        x = b.feed([1.0, 2.0])
        for layer in layers:
            x = b.op("Layer", x, location=layer)
        b.op("End", x, location=9)
        return b.trace

    graph, results = merge_each(make(0, 1, 2), make(1), make(0, 2), make(2))
    assert results[-1].kind is MergeKind.COVERED
    assert mismatch(graph, make(0, 1)) is None


def uses_twice(is_made, is_used_again, rows=2):
    """y = f(x) if c else x; use(y); if d: use_again(y or z)"""
    b = TraceBuilder()
    x = b.feed([1.0, 2.0])
    y = b.op("F", x, location=0) if is_made else x
    b.op("Use", y, outputs=[spec()], location=1)
    if is_used_again:
        again = y if is_made else b.feed([1.0] * rows)
        b.op("UseAgain", again, outputs=[spec()], location=2)
    return b.trace


def test_tensor_from_outside_may_come_where_one_of_its_web_did():
    _, results = merge_each(
        uses_twice(True, True), uses_twice(False, False), uses_twice(False, True)
    )
    assert results[-1].kind is MergeKind.COVERED


def test_tensor_from_outside_of_another_type_is_not_covered():
    """The join that could take it is of a narrower type, so the graph has to be built anew."""
    traces = [uses_twice(True, True), uses_twice(False, False), uses_twice(False, True, rows=3)]
    graph, results = merge_each(*traces)
    assert results[-1].kind is MergeKind.GENERALIZED
    assert results[-1].detail == "an input of op 2 UseAgain comes from outside too"
    assert structure_of(graph).joins.of_input[2, 0].spec == spec(-1)
    assert merge(graph, traces[-1]).kind is MergeKind.COVERED


# ------------------------------------------------------------------------ SAME


def with_gradient(is_true):
    """The gradient of `use` takes what `use` took, after `x` has been made anew."""
    b = TraceBuilder()
    x = b.op("Start", b.feed([1.0, 2.0]), location=0)
    y = b.op("F", x, location=1) if is_true else b.op("G", x, location=2)
    z = b.op("Use", y, location=3)
    again = b.op("F", z, location=4) if is_true else b.op("G", z, location=5)
    b.op("Use", again, location=6)
    b.op("UseGrad", z, y, location=7, forward=Line(3).id)
    return b.trace


def test_gradient_takes_the_same_as_its_forward_op():
    graph, _ = merge_all(with_gradient(True), with_gradient(False))
    joins = structure_of(graph).joins.of_input
    join = joins[5, 1]
    assert graph.nodes[5].record.op_type == "UseGrad"
    assert (join.rule, join.same, join.external) == (Rule.SAME, (2, 0), None)
    assert joins[2, 0].rule is Rule.LATEST
    assert not join.needs_message


def test_later_use_that_no_web_decides_is_the_same_as_an_earlier_one():
    def make(best):
        b = TraceBuilder()
        x = b.feed([1.0, 2.0])
        tries = [b.op("Try", x, location=(0, i)) for i in range(2)]
        b.op("Use", tries[best], location=1)
        b.op("Report", tries[best], location=2)
        return b.trace

    graph, _ = merge_all(make(0), make(1))
    joins = structure_of(graph).joins.of_input
    assert [joins[key].rule for key in sorted(joins)] == [Rule.SELECT, Rule.SAME]
    assert joins[3, 0].same == (2, 0)
    assert [join.needs_message for join in joins.values()] == [True, False]


def test_nothing_is_known_of_an_input_whose_paths_are_all_forgotten():
    graph, _ = merge_all(with_gradient(True), with_gradient(False))
    graph.paths = {}
    joins = resolve_joins(graph).of_input
    assert Rule.SAME not in {join.rule for join in joins.values()}


# ---------------------------------------------------------------------- SELECT


def best_so_far(*improves):
    """for i in range(n): h = try(); if loss < best: best = h"""
    b = TraceBuilder()
    x = b.feed([1.0, 2.0])
    best = b.op("Start", x, location=99)
    for trip, is_better in enumerate(improves):
        tried = b.op("Try", x, location=Line(1, (trip,)))
        best = tried if is_better else best
    b.op("Use", best, location=100)
    return b.trace


def test_aliasing_is_told_by_python():
    graph, results = merge_each(
        best_so_far(True, False), best_so_far(False, True), best_so_far(False, False)
    )
    assert [result.kind for result in results] == [MergeKind.NEW_PATH] * 3
    assert results[1].detail == "op 3 Use: input 0 comes from elsewhere"
    join = only_join(graph)
    assert (join.rule, join.needs_message) == (Rule.SELECT, True)
    assert join.alternatives == (Output(0, 0), Output(1, 0), Output(2, 0))
    assert structure_of(graph).cases.num_switch_cases == 0
    assert merge(graph, best_so_far(True, True)).kind is MergeKind.COVERED


def test_rule_that_later_traces_contradict_is_given_up():
    graph, _ = merge_all(best_so_far(True), best_so_far(False))
    assert only_join(graph).rule is Rule.SELECT
    graph, _ = merge_all(branches(True), branches(False))
    assert only_join(graph).rule is Rule.LATEST
    b = TraceBuilder()
    x = b.op("Start", b.feed([1.0, 2.0]), location=0)
    y = b.op("F", x, location=1)
    b.op("G", x, location=2)
    b.op("Use", y, location=3)
    result = merge(graph, b.trace)
    check_trace_graph(graph, [b.trace, branches(True), branches(False)])
    assert result.kind is MergeKind.NEW_PATH
    assert only_join(graph).rule is Rule.SELECT


def test_select_may_be_from_outside_too():
    def make(best):
        b = TraceBuilder()
        x = b.feed([1.0, 2.0])
        tries = [b.op("Try", x, location=(0, i)) for i in range(2)]
        b.op("Use", [x, *tries][best], location=1)
        return b.trace

    graph, _ = merge_all(make(1), make(2), make(0))
    join = structure_of(graph).joins.of_input[2, 0]
    assert (join.rule, join.alternatives) == (Rule.SELECT, (Output(0, 0), Output(1, 0)))
    assert join.external is not None


# ------------------------------------------------------------------ imperative


def test_inputs_of_imperative_ops_need_no_rule():
    def make(is_true):
        b = TraceBuilder()
        y = b.op("F", location=1) if is_true else b.op("G", location=2)
        b.op("Print", y, location=3, imperative=ImperativeReason.STATEFUL_OP, outputs=[])
        return b.trace

    graph, _ = merge_all(make(True), make(False))
    assert isinstance(graph.nodes[1].inputs[0], Joined)
    assert structure_of(graph).joins.of_input == {}


def test_op_made_imperative_loses_its_joins():
    graph, _ = merge_all(branches(True), branches(False))
    assert only_join(graph).node == 2
    graph.force(2, ImperativeReason.RAISED_BEFORE)
    assert structure_of(graph).joins.of_input == {}
