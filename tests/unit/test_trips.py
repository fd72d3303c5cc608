"""Trips of loops over variables: each variable has its trip, whatever trips a step leaves out.

The traces are made by real loops, so that their locations are real ones.
"""

import itertools
import random
import sys

import pytest

from terra_tf.config import config
from terra_tf.trace.location import LocationTracker
from terra_tf.trace.trace_graph import MergeKind
from tests.unit.synthetic_traces import TraceBuilder, last_path, merge_each


class Handle:
    """Stands in for a variable's handle."""


HANDLES = [Handle() for _ in range(60)]
OPS_PER_LAYER = 3


class Step:
    """A step that is being traced: ops get the locations of the lines that run them."""

    def __init__(self):
        self.builder = TraceBuilder()
        self._tracker = LocationTracker()
        self._tracker.begin(sys._getframe(2))
        self._slots = {}

    def op(self, op_type, *inputs):
        location = self._tracker.locate(sys._getframe(1))
        self._tracker.note_op(op_type)
        return self.builder.op(op_type, *inputs, location=location)

    def variable(self, number):
        if number not in self._slots:
            self._slots[number] = self.builder.variable(HANDLES[number])
        return self._slots[number]


def trace_layers(numbers, has_norm=False):
    """A loop over layers: read a variable, multiply, activate."""
    step = Step()
    x = step.op("Start", step.builder.feed([1.0, 2.0]))
    for number in numbers:
        if has_norm:
            x = step.op("Norm", x)
        weight = step.op("ReadVariableOp", step.variable(number))
        x = step.op("MatMul", x, weight)
        x = step.op("Tanh", x)
    step.op("End", x)
    return step.builder.trace


def trace_updates(numbers):
    """A loop over gradients, made before it, and the variables that they are for."""
    step = Step()
    x = step.builder.feed([1.0, 2.0])
    gradients = {0: None}
    if 1 in numbers:
        gradients[1] = step.op("GradientOf1", x)
    if 2 in numbers:
        gradients[2] = step.op("GradientOf2", x)
    if 3 in numbers:
        gradients[3] = step.op("GradientOf3", x)
    for number in numbers:
        change = step.op("Mul", gradients[number])
        step.op("AssignSub", step.variable(number), change)
    return step.builder.trace


def test_layers_that_are_left_out_are_known_when_they_come_back():
    graph, results = merge_each(
        trace_layers([0, 1, 2, 3]), trace_layers([1, 3]), trace_layers([0, 3])
    )
    assert len(graph.nodes) == 2 + 4 * OPS_PER_LAYER
    assert [result.kind for result in results[1:]] == [MergeKind.NEW_PATH] * 2  # ways, no ops
    graph, _ = merge_each(trace_layers([0, 1, 2, 3]), trace_layers([1, 3]))
    assert last_path(graph).nodes == (0, 4, 5, 6, 10, 11, 12, 13)


def test_a_layer_that_comes_late_is_new_and_moves_no_other():
    graph, _ = merge_each(trace_layers([1, 3]), trace_layers([0, 1, 2, 3]))
    assert len(graph.nodes) == 2 + 4 * OPS_PER_LAYER


def test_every_subset_needs_each_layer_once():
    subsets = [s for n in range(2, 5) for s in itertools.combinations(range(4), n)]
    random.Random(3).shuffle(subsets)
    graph, _ = merge_each(*map(trace_layers, subsets))
    assert len(graph.nodes) == 2 + 4 * OPS_PER_LAYER


def test_what_a_trip_begins_with_is_counted():
    """The cursor takes the norm before it can know the layer."""
    graph, _ = merge_each(trace_layers([0, 1, 2], True), trace_layers([0, 2], True))
    norms = [n for n, node in enumerate(graph.nodes) if node.record.op_type == "Norm"]
    assert len(norms) == 3
    assert [n for n in last_path(graph).nodes if n in norms] == norms[:2]


def test_a_gradient_tells_the_trip_before_its_variable():
    graph, _ = merge_each(
        trace_updates([1, 2, 3]), trace_updates([2, 3]), trace_updates([3]), trace_updates([1, 3])
    )
    assert len(graph.nodes) == 3 * 3


def test_a_variable_in_every_trip_tells_nothing():
    graph, _ = merge_each(trace_layers([0] * 3), trace_layers([0] * 5), trace_layers([0] * 2))
    assert len(graph.nodes) == 2 + 5 * OPS_PER_LAYER


def test_one_trip_alone_takes_another_variable_in_place_of_its_own():
    graph, _ = merge_each(trace_layers([0]), trace_layers([1]))
    assert len(graph.nodes) == 2 + OPS_PER_LAYER
    assert [variable.captured for variable in graph.variables] == [False]


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0], [2, 1, 0]])
def test_another_order_stays_acyclic(order):
    graph, _ = merge_each(trace_layers([0, 1, 2]), trace_layers(order), trace_layers([0, 1, 2]))
    assert graph.topological_order() is not None


def test_new_variables_without_end_share_trips_at_last():
    with config.override(max_siblings=6):
        graph, _ = merge_each(*(trace_layers([n, n + 1, n + 2]) for n in range(0, 60, 3)))
    assert len(graph.nodes) <= 2 + 9 * OPS_PER_LAYER
