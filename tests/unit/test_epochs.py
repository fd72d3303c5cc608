"""Where a step is cut, so that what Python runs on the spot sees what eager would show it."""

import collections
from typing import NamedTuple

import pytest
import tensorflow as tf

from terra_tf.errors import ImperativeReason
from terra_tf.graph.epochs import kept_over_epochs, plan_epochs, writes_variable
from terra_tf.trace.merging import merge
from terra_tf.trace.op_classes import DENSE_WRITES, IN_PLACE_WRITES, READS
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import TraceBuilder, make_trace_graph

CALLBACK = ImperativeReason.PYTHON_CALLBACK
FUNCTION = ImperativeReason.NO_OP_DEFINITION
ITERATOR = ImperativeReason.DATASET_ITERATOR
WAYS = (["read w"], ["read v"])
STATEFUL = ImperativeReason.STATEFUL_OP
RESOURCE = ImperativeReason.RESOURCE_OP


handle_of = collections.defaultdict(lambda: tf.constant(0.0))  # a variable's, by its letter


class Step(TraceBuilder):
    """A step over variables that are named by letters; each method runs one op."""

    def __init__(self):
        super().__init__()
        self.slots = {}

    def on(self, op_type, variable, *inputs, **fields):
        if variable not in self.slots:
            self.slots[variable] = self.variable(handle_of[variable])
        return self.op(op_type, self.slots[variable], *inputs, **fields)

    def read(self, variable):
        return self.on("ReadVariableOp", variable)

    def assign(self, variable):
        return self.on("AssignVariableOp", variable, self.constant(1.0), outputs=[])

    def scatter(self, variable):
        return self.on("ResourceScatterAdd", variable, self.constant(1.0), outputs=[])

    def compute(self):
        return self.op("Neg", self.feed(1.0))

    def python(self, reason=CALLBACK, variable=None):
        if variable is not None:
            return self.on("Python", variable, imperative=reason)
        return self.op("Python", self.feed(1.0), imperative=reason)


def run(*actions):
    """Return the trace of a step; each action is a method's name and its arguments."""
    step = Step()
    for name, *args in actions:
        getattr(step, name)(*args)
    return step.trace


def first_nodes(graph):
    """Return the first nodes of the levels that begin an epoch, level by level."""
    plan = plan_epochs(graph)
    assert list(plan.starts) == sorted(set(plan.starts))
    return [[b.nodes[0] for b in plan.cases.levels[level].blocks] for level in plan.starts]


def starts(*actions):
    """Return the ops at which epochs start in a step that always takes the same way."""
    trace, graph = run(*actions), make_trace_graph()
    merge(graph, trace)
    check_trace_graph(graph, [trace])
    return [node for (node,) in first_nodes(graph)]


def test_step_without_ops_is_one_epoch():
    assert starts() == []


def test_step_that_python_leaves_alone_is_one_epoch():
    actions = [("read", "w"), ("compute",), ("assign", "w"), ("read", "w"), ("assign", "w")]
    assert starts(*actions) == []


# ------------------------------------------------------ ops that reach anything


@pytest.mark.parametrize("reason", [CALLBACK, FUNCTION])
@pytest.mark.parametrize("use", ["read", "assign", "scatter"])
def test_op_that_reaches_anything_closes_an_epoch_that_used_a_variable(reason, use):
    assert starts((use, "w"), ("python", reason)) == [1]


@pytest.mark.parametrize("reason", [CALLBACK, FUNCTION])
def test_op_that_reaches_anything_comes_before_later_uses(reason):
    assert starts(("compute",), ("python", reason), ("read", "w")) == [1]
    assert starts(("compute",), ("python", reason), ("compute",)) == []


def test_second_callback_closes_nothing_if_no_variable_was_used_in_between():
    assert starts(("read", "w"), ("python",), ("compute",), ("python",)) == [1]


def test_each_callback_after_a_use_starts_an_epoch():
    actions = [("read", "w"), ("python",), ("assign", "w"), ("python",), ("read", "w"), ("python",)]
    assert starts(*actions) == [1, 3, 5]


# ------------------------------------------------------------ dataset iterators


def test_iterator_closes_an_epoch_that_has_written():
    assert starts(("assign", "w"), ("python", ITERATOR)) == [1]
    assert starts(("scatter", "w"), ("python", ITERATOR)) == [1]


def test_iterator_leaves_an_epoch_open_that_has_only_read():
    assert starts(("read", "w"), ("python", ITERATOR), ("assign", "w")) == []


# -------------------------------------------------- other ops that Python runs


@pytest.mark.parametrize("reason", [STATEFUL, RESOURCE, ImperativeReason.RANDOM_OP])
def test_op_that_reaches_no_variable_leaves_the_epoch_open(reason):
    assert starts(("assign", "w"), ("python", reason), ("read", "w")) == []


def test_imperative_use_of_a_variable_of_the_graph_closes_the_epoch():
    assert starts(("read", "w"), ("python", RESOURCE, "w")) == [1]


def test_imperative_use_closes_the_epoch_whichever_variable_it_has_used():
    """The op may write `v`; what the graph reads of `v` later is after the epoch."""
    assert starts(("read", "w"), ("python", RESOURCE, "v"), ("read", "v")) == [1]


def test_imperative_use_of_a_variable_that_only_python_uses_closes_nothing():
    assert starts(("assign", "w"), ("python", RESOURCE, "v"), ("python", RESOURCE, "v")) == []


def test_imperative_use_at_the_start_comes_before_later_uses():
    assert starts(("python", RESOURCE, "w"), ("read", "w")) == [0]
    assert starts(("python", RESOURCE, "w"), ("read", "v")) == []


# ------------------------------------------------------------- in-place writes


@pytest.mark.parametrize("use", ["read", "assign", "scatter"])
def test_use_after_an_in_place_write_starts_an_epoch(use):
    assert starts(("scatter", "w"), ("compute",), (use, "w")) == [2]


def test_in_place_write_after_other_uses_starts_none():
    assert starts(("read", "w"), ("assign", "w"), ("scatter", "w")) == []


def test_use_of_another_variable_after_an_in_place_write_starts_none():
    assert starts(("scatter", "w"), ("read", "v"), ("assign", "v")) == []


def test_in_place_writes_one_after_another_are_an_epoch_each():
    assert starts(("scatter", "w"), ("scatter", "w"), ("scatter", "w")) == [1, 2]


def test_closing_forgets_what_was_changed_in_place():
    assert starts(("scatter", "w"), ("python",), ("read", "w")) == [1]


# ---------------------------------------------------- what is held over an end


def held_over(kept_until, *actions):
    """Return what is held where an epoch begins, of outputs that are held until an op's entry."""
    trace, graph = run(*actions), make_trace_graph()
    trace.kept_until = kept_until
    merge(graph, trace)
    check_trace_graph(graph, [trace])
    plan = plan_epochs(graph)
    return kept_over_epochs(graph, plan.cases, plan.starts)


def test_only_what_is_held_at_the_first_op_of_a_later_epoch_is_held_over_its_beginning():
    actions = [("compute",), ("compute",), ("scatter", "w"), ("read", "w"), ("compute",)]
    kept_until = {(0, 0): 2, (1, 0): 3, (3, 0): 4}
    assert starts(*actions) == [3]
    assert held_over(kept_until, *actions) == {(1, 0)}


def test_what_python_has_made_itself_is_not_held_over_an_end():
    assert held_over({(1, 0): 2}, ("read", "w"), ("python", FUNCTION), ("read", "w")) == set()


def test_where_there_is_one_epoch_nothing_is_held_over_an_end():
    assert held_over({(0, 0): 2}, ("read", "w"), ("compute",), ("assign", "w")) == set()


def test_lifetimes_of_nodes_that_are_forgotten_are_forgotten():
    graph, traces = make_trace_graph(), [Ways().take("compute", *way, "assign v") for way in WAYS]
    for trace in traces:
        trace.kept_until = {(0, 0): 1, (1, 0): 2}
        merge(graph, trace)
    assert graph.kept_until == {(0, 0): {1, 3}, (1, 0): {2}, (3, 0): {2}}
    assert graph.compact(1) == 1
    check_trace_graph(graph)
    assert graph.kept_until == {(0, 0): {2}, (2, 0): {1}}


# -------------------------------------------------------------------- branches


class Ways(Step):
    """A step over `w` and `v` in which the place of an op says which op it is."""

    def take(self, *names):
        for self.place in names:
            action, *rest = self.place.split()
            getattr(self, action)(*rest[: action in ("read", "assign", "scatter")])
        return self.trace

    def iterate(self):
        return self.python(ITERATOR)

    def op(self, *args, **fields):
        return super().op(*args, location=Place(self.place), **fields)


class Place(NamedTuple):
    """Stands in for a Location."""

    name: str


def starts_of_ways(*ways):
    """Return the names of the ops that begin epochs, level by level; a way is a list of names."""
    graph, traces = make_trace_graph(), [Ways().take(*way) for way in ways]
    for trace in traces:
        merge(graph, trace)
    check_trace_graph(graph)
    return [[graph.nodes[n].key.location.name for n in level] for level in first_nodes(graph)]


def test_use_after_a_write_in_one_branch_starts_an_epoch_for_every_path():
    way = ["compute", "scatter w", "read w"]
    assert starts_of_ways(way, ["compute", "read w"]) == [["read w"]]


def test_write_in_one_branch_and_use_in_the_other_starts_none():
    ways = [["compute", use, "assign v"] for use in ("scatter w", "read w")]
    assert starts_of_ways(*ways) == []


def test_callback_at_the_start_of_a_branch_starts_an_epoch_for_its_level():
    ways = ["read w", "python a", "compute"], ["read w", "assign v", "compute"]
    assert starts_of_ways(*ways) == [["python a", "assign v"]]


def test_block_is_cut_where_an_op_in_its_middle_needs_an_epoch():
    ways = ["compute a", "read w", "python a", "read w b"], ["compute a", "read w b"]
    assert starts_of_ways(*ways) == [["python a"]]


def test_iterator_closes_an_epoch_that_some_branch_may_have_written():
    way = ["compute", "assign w", "iterate"]
    assert starts_of_ways(way, ["compute", "iterate"]) == [["iterate"]]
    assert starts_of_ways(["compute", "read w", "iterate"], ["compute", "iterate"]) == []


def test_branches_of_one_level_begin_an_epoch_together():
    ways = [["compute", f"scatter {v}", f"read {v} {v}", "compute b"] for v in "wv"]
    assert starts_of_ways(*ways) == [["read w w", "read v v"]]


# --------------------------------------------------------------------- queries


def node_of(**fields):
    step = Step()
    step.on(fields.pop("op_type", "ReadVariableOp"), "w", **fields)
    graph = make_trace_graph()
    merge(graph, step.trace)
    return graph.nodes[0]


def test_op_is_imperative_by_its_record_or_because_it_is_forced_to_be():
    node = node_of()
    assert not node.is_imperative
    node.forced = ImperativeReason.RAISED_BEFORE
    assert node.is_imperative
    assert node_of(imperative=STATEFUL).is_imperative


def test_op_that_raised_on_a_variable_closes_the_epoch():
    step = Step()
    for action in (step.read, step.assign, step.read):
        action("w")
    graph = make_trace_graph()
    merge(graph, step.trace)
    assert first_nodes(graph) == []
    graph.force(1, ImperativeReason.RAISED_BEFORE)
    assert first_nodes(graph) == [[1]]


@pytest.mark.parametrize("op_type", sorted(DENSE_WRITES | IN_PLACE_WRITES))
def test_writes_are_writes(op_type):
    assert writes_variable(node_of(op_type=op_type))


@pytest.mark.parametrize("op_type", sorted(READS))
def test_reads_are_no_writes(op_type):
    assert not writes_variable(node_of(op_type=op_type))


def test_op_without_a_variable_writes_none():
    step = Step()
    step.compute()
    graph = make_trace_graph()
    merge(graph, step.trace)
    assert not writes_variable(graph.nodes[0])
