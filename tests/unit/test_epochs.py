"""Where a step is cut, so that what Python runs on the spot sees what eager would show it."""

import pytest
import tensorflow as tf

from terra_tf.errors import ImperativeReason
from terra_tf.graph.epochs import epoch_starts, is_imperative, writes_variable
from terra_tf.trace.op_classes import DENSE_WRITES, IN_PLACE_WRITES, READS
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import TraceBuilder, make_trace_graph

CALLBACK = ImperativeReason.PYTHON_CALLBACK
FUNCTION = ImperativeReason.NO_OP_DEFINITION
ITERATOR = ImperativeReason.DATASET_ITERATOR
STATEFUL = ImperativeReason.STATEFUL_OP
RESOURCE = ImperativeReason.RESOURCE_OP


class Step(TraceBuilder):
    """A step over variables that are named by letters; each method runs one op."""

    def __init__(self):
        super().__init__()
        self.slots = {}

    def on(self, op_type, variable, *inputs, **fields):
        if variable not in self.slots:
            self.slots[variable] = self.variable(tf.constant(0.0))
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


def starts(*actions):
    """Return where epochs start; each action is a method's name and its arguments."""
    step = Step()
    for name, *args in actions:
        getattr(step, name)(*args)
    graph = make_trace_graph()
    graph.merge(step.trace)
    check_trace_graph(graph, [step.trace])
    return epoch_starts(graph)


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


# --------------------------------------------------------------------- queries


def node_of(**fields):
    step = Step()
    step.on(fields.pop("op_type", "ReadVariableOp"), "w", **fields)
    graph = make_trace_graph()
    graph.merge(step.trace)
    return graph.nodes[0]


def test_op_is_imperative_by_its_record_or_because_it_is_forced_to_be():
    node = node_of()
    assert not is_imperative(node)
    node.forced = ImperativeReason.RAISED_BEFORE
    assert is_imperative(node)
    assert is_imperative(node_of(imperative=STATEFUL))


def test_op_that_raised_on_a_variable_closes_the_epoch():
    step = Step()
    for action in (step.read, step.assign, step.read):
        action("w")
    graph = make_trace_graph()
    graph.merge(step.trace)
    assert epoch_starts(graph) == []
    graph.nodes[1].forced = ImperativeReason.RAISED_BEFORE
    assert epoch_starts(graph) == [1]


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
    graph.merge(step.trace)
    assert not writes_variable(graph.nodes[0])
