"""Every invariant of a plan has a message of its own when it breaks."""

import dataclasses
import re

import pytest
import tensorflow as tf

from terra_tf.errors import InternalError
from terra_tf.graph.generated_graph import EpochChannels
from terra_tf.runtime.plan_tables import (
    InputKind,
    NodeKind,
    PlanInput,
    PlanJoin,
    PlanLevel,
    PlanNode,
    PlanTables,
    PlanVariable,
)
from terra_tf.runtime.plan_verify import check_plan
from terra_tf.runtime.plan_ways import NoWayError, Ways
from terra_tf.trace.joins import Rule
from terra_tf.trace.trace_graph import Output, Path
from tests.unit.synthetic_plans import (
    FETCH,
    FLOAT,
    JOINED,
    NEGATED,
    PRODUCTS,
    PYTHON,
    RESOURCE,
    WRITE,
    change,
    change_input,
    change_node,
    made,
    make_loop,
    make_plan,
    result,
)


def assert_refused(tables, invariant, message):
    pattern = re.escape(f"a plan is broken ({invariant}): ") + ".*" + re.escape(message)
    with pytest.raises(InternalError, match=pattern) as caught:
        check_plan(tables)
    assert caught.value.code == "TERRA-PLAN"


@pytest.mark.parametrize("make", [make_plan, make_loop])
def test_whole_plans_are_accepted(make):
    tables = make()
    check_plan(tables)
    assert len(tables.nodes) >= 6


def test_plan_of_a_step_without_ops_is_accepted():
    tables = PlanTables([], [], [EpochChannels(0, 0)], 1, [], True)
    check_plan(tables)
    assert Ways(tables).follow(Path((), ())) == {}


# -------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (change_input(JOINED, 0, made(9)), "input 0 of op 3 Sum, an op, is 9 of 6"),
        (change_input(JOINED, 0, made(1, 1)), "an output of op 1, is 1 of 1"),
        (change_input(JOINED, 1, PlanInput(InputKind.CONSTANT, 1)), "constant, is 1 of 1"),
        (change_input(JOINED, 0, PlanInput(InputKind.JOIN, -1)), "join, is -1 of 1"),
        (change_input(PRODUCTS, 0, PlanInput(InputKind.FEED, 1)), "feed, is 1 of 1"),
        (change_input(PRODUCTS, 0, PlanInput(InputKind.CAPTURED, 0)), "captured, is 0 of 0"),
        (change_input(FETCH, 0, PlanInput(InputKind.VARIABLE, 1)), "variable, is 1 of 1"),
        (change_input(PYTHON, 0, PlanInput(InputKind.RESOURCE, 1)), "resource, is 1 of 1"),
        (change_node(NEGATED, level=4), "the level of op 2 Neg is 4 of 4"),
        (change_node(NEGATED, successors=[6]), "what follows op 2 Neg is 6 of 6"),
        (change_node(PRODUCTS, next=6), "what comes next to op 1 Mul is 6 of 6"),
        (change_node(NEGATED, outputs=[result(webs=[1])]), "a web of op 2 Neg is 1 of 1"),
        (change_node(NEGATED, outputs=[result(same_as_input=1)]), "op 2 Neg returns is 1 of 1"),
        (change("joins", make_plan(), 0, web=1), "the web of join 0 is 1 of 1"),
        (change("joins", make_plan(), 0, rule=Rule.SAME, same=1), "join 0 is the same as is 1"),
        (change("joins", make_plan(), 0, alternatives=[(1, 1)]), "output of op 1, is 1 of 1"),
        (change("variables", make_plan(), 0, variable=1), "the number of variable 0 is 1 of 1"),
        (change("levels", make_plan(), 3, epoch=2), "the epoch of level 3 is 2 of 2"),
        (dataclasses.replace(make_plan(), first_nodes=[6]), "a first op is 6 of 6"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused(tables, message):
    assert_refused(tables, "range", message)


# ------------------------------------------------------------ blocks and cases


def test_block_that_goes_on_elsewhere_is_refused():
    assert_refused(change_node(PRODUCTS, level=2), "block", "op 1, next to op 0 Read, is elsewhere")


def test_head_inside_of_a_block_is_refused():
    tables = change_node(PRODUCTS, is_head=True)
    assert_refused(tables, "block", "op 1 Mul is the head of a block, and comes next to 1 ops")


def test_op_that_no_block_leads_to_is_refused():
    tables = change_node(FETCH, next=-1)
    assert_refused(tables, "block", "op 1 Mul is inside of a block, and comes next to 0 ops")


def test_two_blocks_of_one_branch_are_refused():
    tables = change_node(NEGATED, level=2)
    assert_refused(tables, "block", "op 2 and op 3 Sum begin one branch of level 2")


def test_ring_is_refused():
    tables = change_node(FETCH, is_head=False)
    tables = change_node(PRODUCTS, tables, next=FETCH)
    assert_refused(tables, "block", "2 ops are in no block that has a head")


def test_level_without_a_block_is_refused():
    levels = [*make_plan().levels, PlanLevel(epoch=1)]
    tables = dataclasses.replace(make_plan(), levels=levels)
    assert_refused(tables, "case", "the branches of level 4 are []")


def test_branches_with_a_gap_are_refused():
    assert_refused(change_node(NEGATED, branch=1), "case", "the branches of level 1 are [1]")


@pytest.mark.parametrize("skip_index", [0, 2])
def test_skip_that_is_a_branch_or_none_is_refused(skip_index):
    tables = change("levels", make_plan(), 1, skip_index=skip_index)
    assert_refused(tables, "case", f"branch {skip_index} of 1 skips level 1")


def test_switch_case_that_nobody_decides_is_refused():
    tables = change("levels", make_plan(), 1, channel=-1)
    assert_refused(tables, "case", "level 1 has 1 branches, skip 1, channel -1")


def test_decision_where_no_ways_part_is_refused():
    tables = change("levels", make_plan(), 2, channel=1)
    assert_refused(tables, "case", "level 2 has 1 branches, skip -1, channel 1")


# -------------------------------------------------------------------- epochs


def test_epochs_out_of_order_are_refused():
    tables = change("levels", make_plan(), 1, epoch=1)
    assert_refused(tables, "epoch", "level 2 is of epoch 0, behind epoch 1")


def test_epoch_that_cannot_be_closed_is_refused():
    epochs = [*make_plan().epochs, EpochChannels(4, 8)]
    tables = dataclasses.replace(make_plan(), epochs=epochs)
    assert_refused(tables, "epoch", "3 epochs can be closed, and 2 are there")


def test_epoch_that_begins_elsewhere_is_refused():
    tables = change("epochs", make_plan(), 1, start=2)
    assert_refused(tables, "epoch", "epoch 1 begins at level 3, not 2")


@pytest.mark.parametrize(("number", "changes"), [(0, {"resume": -1}), (1, {"done": 6})])
def test_epoch_whose_end_is_not_told_as_it_should_be_is_refused(number, changes):
    tables = change("epochs", make_plan(), number, **changes)
    assert_refused(tables, "epoch", f"epoch {number} of 2 is closed by")


# --------------------------------------------------------------------- loops


@pytest.mark.parametrize("end", [0, 8])
def test_trip_outside_of_its_loop_is_refused(end):
    tables = change("levels", make_loop(), 2, turns=[(1, end)])
    message = f"trips of loops that end before levels [{end}] begin at 2"
    assert_refused(tables, "loop", message)


def test_inner_loop_that_ends_later_is_refused():
    tables = change("levels", make_loop(), 2, turns=[(1, 6), (6, 7)])
    assert_refused(tables, "loop", "of the loops at level 2, inner ones end before [6, 7]")


def test_epoch_that_begins_in_a_loop_is_refused():
    tables = make_loop()
    for level in range(3, 7):
        tables = change("levels", tables, level, epoch=1)
    epochs = [EpochChannels(0, 6, 7, 8), EpochChannels(3, 9)]
    tables = dataclasses.replace(tables, epochs=epochs, num_channels=10)
    assert_refused(tables, "loop", "epochs [0, 1] are in the loop at level 0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trip_begin": 3}, "level 2 is passed by a trip from level 3 of a loop to 6"),
        ({"loop_end": 5}, "passed by the trip that begins at level 2, which nobody decides on"),
        ({"turns": [(-1, 6)]}, "passed by the trip that begins at level 2, which nobody decides"),
        ({"skip_index": 1, "channel": 7}, "is passed by each trip, and has a branch that skips"),
    ],
)
def test_level_that_trips_cannot_keep_is_refused(changes, message):
    assert_refused(change("levels", make_loop(), 2, **changes), "loop", message)


# --------------------------------------------------------------------- joins


def test_web_that_nothing_adds_to_is_refused():
    tables = change_node(PRODUCTS, outputs=[result()])
    tables = change_node(NEGATED, tables, outputs=[result()])
    assert_refused(tables, "join", "nothing adds to web 0")


def test_join_of_two_inputs_is_refused():
    tables = change_input(JOINED, 1, PlanInput(InputKind.JOIN, 0))
    assert_refused(tables, "join", "join 0 is 2 inputs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel": 7}, "join 0 of rule LATEST has channel 7"),
        ({"allows_external": True}, "join 0 of rule LATEST has channel -1"),
        ({"alternatives": [(1, 0)]}, "join 0 of rule LATEST is one of [(1, 0)]"),
        ({"rule": Rule.SELECT, "channel": 7}, "join 0 of rule SELECT is one of ()"),
        ({"rule": Rule.SAME, "same": 0}, "join 0 is the same as itself in the end"),
    ],
)
def test_join_that_is_not_decided_as_its_rule_says_is_refused(changes, message):
    assert_refused(change("joins", make_plan(), 0, **changes), "join", message)


def test_join_of_another_type_than_its_alternatives_is_refused():
    changes = {"rule": Rule.SELECT, "channel": 7, "alternatives": [(1, 0)], "dtype": RESOURCE}
    tables = change("joins", make_plan(), 0, **changes)
    assert_refused(tables, "join", f"join 0 of type {RESOURCE} may be %1.0, a {FLOAT}")


# --------------------------------------------------------------------- nodes


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (change_node(NEGATED, kind=NodeKind.FOLDED), "op 2 Neg, FOLDED, has 0 results ready"),
        (change_node(NEGATED, folded=[1]), "op 2 Neg, DELEGATED, has 1 results ready"),
        (change_node(WRITE, kind=NodeKind.FOLDED, folded=[1]), "1 of 0 results of op 5 AssignAdd"),
        (change_node(NEGATED, on_host=True, seed_channel=0), "op 2 Neg is not the graph's to run"),
        (change_node(NEGATED, check_channel=0), "op 2 Neg is awaited before it, and Python does"),
        (change_node(NEGATED, has_siblings=True), "op 2 Neg has siblings, and Python does not"),
        (change_node(PYTHON, num_input_specs=2), "op 4 PyFunc has 1 inputs and knows 2"),
        (change_node(PYTHON, exit_channel=0), "op 4 PyFunc is awaited behind it, and Python runs"),
        (change_node(JOINED, on_host=True), "output 0 of op 3 Sum is fetched, and Python has it"),
        (change_node(NEGATED, outputs=[result(feed_channel=0)]), "output 0 of op 2 Neg is fed"),
        (change_node(NEGATED, outputs=[result(same_as_input=0)]), "is its input, and no handle"),
        (change_node(NEGATED, counts=(2,)), "op 2 Neg has 1 inputs, and its counts make 2"),
    ],
)
def test_node_that_contradicts_itself_is_refused(tables, message):
    assert_refused(tables, "node", message)


def test_op_of_any_number_of_inputs_is_accepted():
    tables = change_node(PYTHON, counts=[-2])
    check_plan(tables)
    assert tables.nodes[PYTHON].counts == [-2]


# --------------------------------------------------------------------- inputs


@pytest.mark.parametrize("node", [NEGATED, JOINED, WRITE])
def test_input_that_is_made_later_is_refused(node):
    tables = change_input(NEGATED, 0, made(node))
    if node == WRITE:
        tables = change_node(WRITE, tables, outputs=[result()])
    message = f"input 0 of op 2 Neg is made by op {node}, which does not come before it"
    assert_refused(tables, "input", message)


def test_input_that_another_branch_makes_is_refused():
    """Two branches of a level, of which the second takes what the first makes."""
    tables = make_plan()
    other = PlanNode("Exp", 1, counts=(-1,), inputs=[made(NEGATED)], branch=1, successors=[3])
    tables = dataclasses.replace(tables, nodes=[*tables.nodes, other])
    tables = change("levels", tables, 1, skip_index=2)
    message = "input 0 of op 6 Exp is made by op 2, which does not come before it"
    assert_refused(tables, "input", message)


def test_input_that_is_made_later_in_a_block_is_refused():
    tables = change_input(FETCH, 0, made(PRODUCTS))
    assert_refused(tables, "input", "input 0 of op 0 Read is made by op 1, which does not come")


def test_result_of_a_folded_op_that_is_no_constant_is_refused():
    tables = change_node(FETCH, kind=NodeKind.FOLDED, folded=[tf.constant([1.0, 1.0])])
    message = "input 1 of op 1 Mul is a result of op 0, which is folded"
    assert_refused(tables, "input", message)


def test_result_of_pythons_that_never_comes_to_the_graph_is_refused():
    tables = change_node(PYTHON, outputs=[result()])
    message = "input 1 of op 5 AssignAdd is Python's %4.0, which is not fed"
    assert_refused(tables, "input", message)


def test_feed_that_never_comes_to_the_graph_is_refused():
    tables = change("feeds", make_plan(), 0, channel=-1)
    message = "input 0 of op 1 Mul is feed 0, which never comes to the graph"
    assert_refused(tables, "input", message)


@pytest.mark.parametrize(
    ("node", "source", "kind"),
    [(PYTHON, made(3), "IMPERATIVE"), (PRODUCTS, PlanInput(InputKind.ANY), "DELEGATED")],
)
def test_input_that_is_verified_where_python_runs_the_op_or_the_reverse_is_refused(
    node, source, kind
):
    message = f"op {node} {make_plan().nodes[node].name}, {kind}, is {source.kind.name}"
    assert_refused(change_input(node, 0, source), "input", message)


def test_variable_written_in_no_known_way_is_refused():
    tables = change_input(WRITE, 0, PlanInput(InputKind.VARIABLE, 0, 3))
    assert_refused(tables, "input", "input 0 of op 5 AssignAdd is a variable, written in way 3")


# ------------------------------------------------------------------ variables


def test_variable_that_the_graph_never_gets_is_refused():
    tables = change("variables", make_plan(), 0, is_captured=False)
    message = "input 0 of op 0 Read is variable 0, which the graph never gets"
    assert_refused(tables, "variable", message)


def test_variable_that_is_captured_and_fed_is_refused():
    tables = change("variables", make_plan(), 0, feed_channel=7)
    assert_refused(tables, "variable", "variable 0 is captured, and bound too")


@pytest.mark.parametrize("first", [1, 0])
def test_slot_of_a_variable_whose_first_slot_is_another_is_refused(first):
    variables = [PlanVariable(1, False, 8), PlanVariable(first, False, 9)]
    tables = dataclasses.replace(make_plan(), variables=variables, num_channels=10)
    assert_refused(tables, "variable", "variable 0 is the same as 1, no first one")


def test_write_that_the_variable_does_not_know_of_is_refused():
    tables = change("variables", make_plan(), 0, written=False)
    assert_refused(tables, "variable", "variable 0 is not written, and ops say otherwise")


def test_write_that_no_op_makes_is_refused():
    tables = change_input(WRITE, 0, PlanInput(InputKind.VARIABLE, 0))
    assert_refused(tables, "variable", "variable 0 is written, and ops say otherwise")


# ------------------------------------------------------------------- channels


def test_channel_of_two_uses_is_refused():
    tables = change_node(JOINED, outputs=[result(fetch_channel=0)])
    message = "feed 0 and the fetch of output 0 of op 3 Sum go by channel 0"
    assert_refused(tables, "channel", message)


@pytest.mark.parametrize("channel", [8, -2])
def test_channel_that_does_not_exist_is_refused(channel):
    tables = change("epochs", make_plan(), 0, done=8)
    tables = change_node(JOINED, outputs=[result(fetch_channel=channel)])
    message = f"the fetch of output 0 of op 3 Sum goes by channel {channel} of 8"
    assert_refused(tables, "channel", message)


def test_channel_that_nothing_uses_is_refused():
    tables = dataclasses.replace(make_plan(), num_channels=10)
    assert_refused(tables, "channel", "nothing goes by channels [8, 9]")


# ----------------------------------------------------------------------- ways


def why_not(tables, path):
    """Return why a path cannot be followed, or None if it can."""
    try:
        Ways(tables).follow(path)
    except NoWayError as error:
        return str(error)
    return None


def follow(tables, nodes, **sources):
    """Return why a path cannot be followed on which each input is what its node says."""
    of_path = []
    for number in nodes:
        known = [
            Output(source.a, source.b) if source.kind is InputKind.OUTPUT else None
            for source in tables.nodes[number].inputs
        ]
        known[:1] = [sources.get(f"op{number}", known[0])] if known else []
        of_path.append(tuple(known))
    return why_not(tables, Path(tuple(nodes), tuple(of_path)))


def test_both_ways_can_be_followed():
    joined = {"op3": Output(NEGATED, 0)}
    assert follow(make_plan(), [0, 1, 2, 3, 4, 5], **joined) is None
    assert follow(make_plan(), [0, 1, 3, 4, 5], op3=Output(PRODUCTS, 0)) is None


@pytest.mark.parametrize(
    ("nodes", "joined", "message"),
    [
        ([0, 1, 2, 4, 5], None, "no way leads from op 2 to 4"),  # over what every way passes
        ([1, 3, 4, 5], None, "no way leads from op -1 to 1"),  # into a block
        ([0, 1, 3, 2], None, "no way leads from op 3 to 2"),  # back
        ([0, 1, 3, 4], Output(1, 0), "no way leads from op 4 to -2"),  # out of a block
        ([0, 1, 3], Output(1, 0), "no way leads from op 3 to -2"),
        ([0, 1, 2, 3, 4, 5], Output(1, 0), "op 3 Sum, input 0, JOIN 0, is Output(node=1, o"),
        ([0, 1, 2, 3, 4, 5], None, "op 3 Sum, input 0, JOIN 0, is None"),
    ],
)
def test_way_that_the_plan_does_not_have_is_found(nodes, joined, message):
    assert follow(make_plan(), nodes, op3=joined).startswith(message)


def test_input_that_is_another_ops_is_found():
    found = follow(make_plan(), [0, 1, 2, 3, 4, 5], op2=Output(0, 0))
    assert found == "op 2 Neg, input 0, OUTPUT 1, is Output(node=0, output=0)"


@pytest.mark.parametrize("nodes", [[0, 6], [0, 1, 6], [0, 2, 4, 6], [0, 1, 2, 3, 4, 5, 6], [6]])
def test_loop_can_be_left_behind_every_trip(nodes):
    assert follow(make_loop(), nodes) is None


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([0, 4, 6], "no way leads from op 0 to 4"),  # over a whole trip
        ([1, 6], "no way leads from op -1 to 1"),  # into the middle of one
        ([2, 6], "no way leads from op -1 to 2"),  # over the first one
    ],
)
def test_trip_cannot_be_left_out(nodes, message):
    assert follow(make_loop(), nodes) == message


def test_channel_that_two_decisions_go_by_is_found():
    tables = change("levels", make_loop(), 3, channel=3)
    assert follow(tables, [0, 1, 2, 3, 6]) == "channel 3 is used twice, last from op 2 to 3"


def test_way_back_to_an_earlier_epoch_is_found():
    tables = change("levels", make_loop(), 0, epoch=1)
    found = follow(tables, [0, 1, 6])
    assert found == "op 1 Neg, which is of epoch 0, comes behind epoch 1"


def test_joins_that_are_the_same_are_decided_once():
    same = PlanJoin(Rule.SAME, FLOAT, (2,), same=0)
    tables = change_input(WRITE, 1, PlanInput(InputKind.JOIN, 1))
    tables = dataclasses.replace(tables, joins=[*tables.joins, same])
    check_plan(tables)
    nodes = (0, 1, 3, 4, 5)
    one, other = Output(PRODUCTS, 0), Output(NEGATED, 0)
    for last, is_same in ((one, True), (other, False)):
        sources = ((None,), (None, Output(0, 0)), (one, None), (None,), (None, last))
        assert (why_not(tables, Path(nodes, sources)) is None) == is_same
