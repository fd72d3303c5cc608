"""The function that is generated of a graph with branches: its Cases, and what is in them."""

import collections

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf._tf_internals import context
from terra_tf.trace.verify import check_trace_graph

X = np.float32([1.0, 2.0, 3.0])
COMMUNICATION = ("Terra>Feed", "Terra>Fetch", "Terra>AwaitCommit", "Terra>CaseSelect")
WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatterAdd")
PLUMBING = ("Const", "Placeholder", "Identity", "NoOp")


class Branch:
    """One branch of a Case: a FuncGraph, or what a function's definition says of it."""

    def __init__(self, generated, name, case):
        definition = context.context().get_function_def(name)
        assert definition is not None, f"{name} is not registered"
        self.definition, self.case = definition, case
        self.types = [n.op for n in definition.node_def if n.op not in PLUMBING]
        self.outputs = [arg.name for arg in definition.signature.output_arg]

    def channels(self, op_type):
        return [n.attr["channel"].i for n in self.definition.node_def if n.op == op_type]

    @property
    def controls(self):
        """The types of the ops that run although nothing uses them."""
        type_of = {n.name: n.op for n in self.definition.node_def}
        return [type_of[name] for name in self.definition.control_ret.values()]


class Generated:
    """The graph of a function of `(x, case)` after its cases were traced, and questions to it."""

    def __init__(self, program, cases=(0, 1, 0, 1), make_argument=lambda: tf.constant(X)):
        self.step = terra.function(program)
        for case in cases:
            self.step(make_argument(), case)
        terra.synchronize()
        assert self.step.stats().phase == "co-execution", self.step.explain()
        self.built = self.step._last_entry.current_built
        check_trace_graph(self.built.trace_graph)
        self.generated = self.built.generated
        self.graph = self.generated.function.graph
        self.ops = self.graph.get_operations()
        self.cases = [
            (op, [Branch(self, f.name, op) for f in op.get_attr("branches")])
            for op in self.of("Case")
        ]

    def of(self, *types):
        return [op for op in self.ops if op.type in types]

    @property
    def branches(self):
        """The branches of the only Case."""
        ((_, branches),) = self.cases
        return branches

    def types(self):
        return collections.Counter(op.type for op in self.ops if op.type not in PLUMBING)


def ancestors(*ops):
    """Return the ops that run before any of these, by data or by control."""
    found, pending = set(), list(ops)
    while pending:
        op = pending.pop()
        for before in [*(tensor.op for tensor in op.inputs), *op.control_inputs]:
            if before not in found:
                found.add(before)
                pending.append(before)
    return found


def if_else(x, case):
    y = x * 2.0
    y = tf.tanh(y) if case else tf.exp(y)
    return tf.reduce_sum(y)


def optional(x, case):
    y = x * 2.0
    if case:
        y = tf.tanh(y)
    return y + 1.0


# ------------------------------------------------------------------------ Cases


def test_two_ways_are_a_case_of_two_branches_and_none_to_skip_it():
    generated = Generated(if_else)
    assert [branch.types for branch in generated.branches] == [["Exp"], ["Tanh"]]
    assert generated.types()["Mul"] == generated.types()["Sum"] == 1
    assert generated.step.stats().num_switch_cases == 1


def test_case_is_lowered():
    generated = Generated(if_else)
    ((case, _),) = generated.cases
    assert case.get_attr("_lower_using_switch_merge") is True


def test_decision_comes_by_a_channel_of_its_own():
    generated = Generated(if_else)
    ((case, branches),) = generated.cases
    select = case.inputs[0].op.inputs[0].op
    assert select.type == "Terra>CaseSelect"
    assert len(select.outputs[0].consumers()) == 1  # one thing to schedule when it comes
    assert select.get_attr("num_branches") == len(branches) == 2
    (level,) = generated.generated.case_channels
    assert select.get_attr("channel") == generated.generated.case_channels[level]
    assert not generated.generated.cases.levels[level].is_inline
    assert list(select.control_inputs) == []


def test_optional_block_is_a_branch_and_a_skip():
    generated = Generated(optional)
    assert [branch.types for branch in generated.branches] == [["Tanh"], []]


def test_each_level_of_nested_ways_is_a_case():
    def program(x, case):
        y = x * 2.0
        if case:
            y = tf.tanh(y)
            if case > 1:
                y = tf.sin(y)
            y = tf.exp(y)
        return y + 1.0

    generated = Generated(program, cases=(0, 1, 2, 0))
    types = [[branch.types for branch in branches] for _, branches in generated.cases]
    assert types == [[["Tanh"], []], [["Sin"], []], [["Exp"], []]]


def test_common_ops_only_make_no_case():
    generated = Generated(lambda x, case: x * 2.0)
    assert generated.cases == []
    assert generated.generated.case_channels == {}


def test_branches_take_the_same_inputs_and_give_the_same_outputs():
    weight = tf.Variable(X)

    def program(x, case):
        y, z = x * 2.0, x + 1.0
        y = tf.tanh(y) * z if case else tf.exp(y) + weight
        return y + z

    generated = Generated(program)
    ((case, branches),) = generated.cases
    for branch in branches:
        signature = branch.definition.signature
        assert [a.type for a in signature.input_arg] == [t.dtype for t in case.inputs[1:]]
        assert [a.type for a in signature.output_arg] == [t.dtype for t in case.outputs]


def test_branches_that_act_have_control_outputs():
    def program(x, case):
        y = x * 2.0
        if case:
            y = tf.tanh(y)
            float(y[0])
        return y + 1.0

    taken, skipped = Generated(program).branches
    assert "Terra>Fetch" in taken.controls
    assert skipped.controls == []


def test_every_case_is_a_control_output_of_the_function():
    generated = Generated(optional)
    assert set(generated.of("Case")) <= set(generated.graph.control_outputs)


# ------------------------------------------------------------------------ values


def test_static_shape_is_restored_behind_a_case():
    generated = Generated(if_else)
    ((case, _),) = generated.cases
    assert [tensor.shape for tensor in case.outputs] == [[3]]


def test_dimension_that_differs_by_branch_is_unknown_behind_it():
    """More shapes than get ops of their own; one of the branches has a static one."""

    def program(x, case):
        y = x * 2.0
        y = tf.tile(y, [case]) if case else tf.exp(y)
        return tf.tanh(y)

    case, (exp, tile, *_) = Generated(program, cases=[*range(7)] * 2).cases[0]
    assert (exp.types, tile.types) == (["Exp"], ["Terra>Feed", "Tile"])
    assert [tensor.shape.as_list() for tensor in case.outputs] == [[None]]


def test_value_that_nobody_else_uses_stays_in_its_branch():
    def program(x, case):
        y = x * 2.0
        if case:
            tf.exp(tf.tanh(y))
        return y + 1.0

    generated = Generated(program)
    ((case, _),) = generated.cases
    assert list(case.outputs) == []


def test_latest_producer_is_handed_on_by_the_branch_that_is_skipped():
    """`y` is Mul's or Tanh's: no message says which, the Case's output is it."""
    generated = Generated(optional)
    ((case, (_, skipped)),) = generated.cases
    assert generated.generated.join_channels == {}
    assert len(case.outputs) == 1
    assert skipped.definition.ret[skipped.outputs[0]]
    (add,) = (op for op in generated.of("AddV2"))
    assert case in ancestors(add)
    assert generated.of("Terra>Select") == []


def test_choice_that_no_branch_decides_is_a_select_with_a_channel():
    def program(x, case):
        a, b = tf.tanh(x), tf.exp(x)
        y = a if case else b  # not `return (...) * 2.0`, which may be compiled into each branch
        return tf.multiply(y, 2.0)

    generated = Generated(program)
    (select,) = generated.of("Terra>Select")
    ((key, channel),) = generated.generated.join_channels.items()
    assert select.get_attr("channel") == channel
    assert generated.built.trace_graph.nodes[key[0]].record.op_type == "Mul"
    assert [tensor.op.type for tensor in select.inputs[1:]] == ["Tanh", "Exp"]
    assert (generated.cases, select.outputs[0].shape.as_list()) == ([], [3])


def test_value_from_outside_may_take_the_place_of_a_made_one():
    """`x` itself or its Tanh: the message is one or the other, and there is no feed."""

    def program(x, case):
        y = tf.tanh(x) if case else x
        return tf.multiply(y, 2.0)

    generated = Generated(program)
    (select,) = generated.of("Terra>Select")
    assert list(generated.generated.join_channels.values()) == [select.get_attr("channel")]
    assert generated.of("Terra>Feed") == []


# ------------------------------------------------------------------------- feeds


def fed_inside(x, case):
    y = tf.ones([3]) * 2.0
    if case:
        y = y + x
    return y - 1.0


def test_feed_is_in_the_branch_that_uses_it():
    generated = Generated(fed_inside)
    taken, skipped = generated.branches
    assert generated.of("Terra>Feed") == []
    ((_, place), channel), = generated.generated.feed_channels.items()
    assert taken.channels("Terra>Feed") == [channel]
    assert skipped.channels("Terra>Feed") == []
    assert generated.generated.place_of(place_node(generated, "AddV2")) == place


def place_node(generated, op_type):
    """Return the only node of a type."""
    nodes = generated.built.trace_graph.nodes
    (number,) = (n for n, node in enumerate(nodes) if node.record.op_type == op_type)
    return number


def test_tensor_used_in_two_branches_is_fed_in_each():
    def program(x, case):
        y = tf.ones([3]) * 2.0
        y = y + x if case else y - x
        return tf.exp(y)

    generated = Generated(program)
    assert [len(b.channels("Terra>Feed")) for b in generated.branches] == [1, 1]
    assert len(set(generated.generated.feed_channels.values())) == 2


def test_tensor_fed_in_the_main_line_before_is_not_fed_again():
    def program(x, case):
        y = x * 2.0
        if case:
            y = y + x
        return y - 1.0

    generated = Generated(program)
    assert len(generated.of("Terra>Feed")) == 1
    assert [b.channels("Terra>Feed") for b in generated.branches] == [[], []]


@pytest.mark.parametrize("uses_later", [False, True])
def test_main_line_waits_for_no_feed_that_a_path_never_binds(uses_later):
    def program(x, case):
        y = tf.ones([3]) * 2.0
        if case:
            y = y + x
        y = tf.exp(y)
        return y * x if uses_later else y

    generated = Generated(program)
    fed = {op.get_attr("channel") for op in generated.of("Terra>Feed")}
    inside = {c for branch in generated.branches for c in branch.channels("Terra>Feed")}
    places = generated.generated.feed_channels
    assert fed == {channel for (_, place), channel in places.items() if place is None}
    assert inside == {channel for (_, place), channel in places.items() if place is not None}
    assert (len(fed), len(inside)) == (int(uses_later), 1)


@pytest.mark.parametrize("in_branch", [False, True])
def test_each_channel_has_one_op(in_branch):
    weight = tf.Variable(X)

    def program(x, case):
        y = tf.tanh(x)
        if case:
            weight.assign_add(x)
            y = tf.random.shuffle(y) if in_branch else y * 2.0
            float(y[1])
        return (y if case else x) * tf.random.uniform([3])

    generated = Generated(program)
    found = [op.get_attr("channel") for op in generated.of(*COMMUNICATION, "Terra>Select")]
    for branch in generated.branches:
        for op_type in (*COMMUNICATION, "Terra>Select"):
            found += branch.channels(op_type)
    assert sorted(found) == list(range(generated.generated.num_channels))
