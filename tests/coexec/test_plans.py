"""Plans as text, the golden ones; and that what is built passes the checker of plans.

The expected texts are in golden/; TERRA_UPDATE_GOLDEN=1 writes them.
"""

import dataclasses
import os
import pathlib
import re

import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.errors import InternalError
from terra_tf.runtime import entry, plan_fit

pytestmark = pytest.mark.timeout(60)

GOLDEN_FILES = pathlib.Path(__file__).parent / "golden"


def straight():
    """Run ops on a variable, a feed, a constant; update the variable."""
    weight = tf.Variable([1.0, 2.0])

    @terra.function
    def step(x):
        y = x * weight + 0.5
        weight.assign_sub(0.1 * y)
        return tf.reduce_sum(y)

    for i in range(6):
        step(tf.constant([1.0, float(i)]))
    return step


def branches():
    """Take one of two branches, and maybe one more; join what they give."""
    weight = tf.Variable(2.0)

    @terra.function
    def step(x, is_deep, is_negative):
        x = tf.sin(x) * weight if is_deep else tf.cos(x)
        if is_negative:
            x = -x
        return x + 1.0

    for i in range(12):
        step(tf.constant(float(i)), i % 2 == 0, i % 3 == 0)
    return step


def rolled_loop():
    """Turn a loop that varies so often that it is a While."""

    @terra.function
    def step(x, num_trips):
        for _ in range(num_trips):
            x = tf.sin(x) * 2.0
        return x + 1.0

    for i in range(12):
        step(tf.constant([0.5, float(i)]), 6 + i % 3)
    return step


def epoch():
    """Run an op in Python that may use any variable, between a write and a read of one."""
    weight = tf.Variable([1.0, 2.0])

    @terra.function
    def step(x):
        weight.assign_add(x)
        doubled = tf.py_function(lambda value: value * 2.0, [x], tf.float32)
        return weight * doubled

    for i in range(6):
        step(tf.constant([1.0, float(i)]))
    return step


def read_in_the_middle():
    """Read a value, and go on with what Python makes of it."""

    @terra.function
    def step(x):
        norm = tf.norm(x)
        return x / max(float(norm), 1.0)

    for i in range(6):
        step(tf.constant([1.0, float(i)]))
    return step


PROGRAMS = [straight, branches, rolled_loop, epoch, read_in_the_middle]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_text_is_the_golden_one(program):
    step = program()
    assert step.stats().phase == "co-execution"
    assert step.stats().co_executed_steps > 0
    path = GOLDEN_FILES / f"{program.__name__}.plan.txt"
    text = step.built_graph.plan_text() + "\n"
    if os.environ.get("TERRA_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_text_is_the_same_again():
    assert branches().built_graph.plan_text() == branches().built_graph.plan_text()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_built_plan_is_checked_and_accepted(program, monkeypatch):
    checked = []
    monkeypatch.setattr(entry, "check_built", checked.append)
    with terra.config.override(verify=True):
        built = program().built_graph
    assert checked[-1] is built
    plan_fit.check_built(built)


def test_nothing_is_checked_without_the_knob(monkeypatch):
    checked = []
    monkeypatch.setattr(entry, "check_built", checked.append)
    monkeypatch.setattr(entry, "check_merged", lambda graph, trace: checked.append(graph))
    with terra.config.override(verify=False):
        assert straight().stats().graph_builds == 1
    assert checked == []


def break_plan(built):
    raise InternalError("a plan is broken")


def break_merge(graph, trace):
    raise InternalError("a TraceGraph is broken")


@pytest.mark.parametrize(
    ("checker", "breaks", "num_calls"),
    [("check_built", break_plan, 2), ("check_merged", break_merge, 1)],
)
def test_what_is_broken_is_raised_and_no_graph_is_used(checker, breaks, num_calls, monkeypatch):
    """Not swallowed as a graph that cannot be built: that would be an eager step."""
    monkeypatch.setattr(entry, checker, breaks)

    @terra.function
    def step(x):
        return tf.sin(x)

    x = tf.constant(1.0)
    with terra.config.override(verify=True):
        for _ in range(num_calls - 1):
            step(x)
        with pytest.raises(InternalError, match="is broken"):
            step(x)
    assert step.built_graph is None
    assert step.stats().co_executed_steps == 0
    monkeypatch.undo()
    for _ in range(4):
        result = step(x)
    assert float(result) == float(tf.sin(x))


# ------------------------------------------------- a plan that does not fit what it was made of


def change(row, tables, number, **changes):
    """Return tables of which one row of the table `row` is another."""
    rows = list(getattr(tables, row))
    rows[number] = dataclasses.replace(rows[number], **changes)
    return dataclasses.replace(tables, **{row: rows})


def change_output(tables, number, **changes):
    (output,) = tables.nodes[number].outputs
    return change("nodes", tables, number, outputs=[dataclasses.replace(output, **changes)])


def assert_unfit(tables, built, invariant, message):
    pattern = re.escape(f"a plan is broken ({invariant}): ") + ".*" + re.escape(message)
    with pytest.raises(InternalError, match=pattern):
        plan_fit.check_fit(tables, built)


@pytest.fixture(scope="module")
def of_branches():
    """A graph of Sin, Read, Mul | Cos, then maybe Neg, then Add."""
    return branches().built_graph


@pytest.fixture(scope="module")
def of_loop():
    return rolled_loop().built_graph


@pytest.fixture(scope="module")
def of_epochs():
    return epoch().built_graph


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (2, {"successors": [3]}, "op 2 is followed by [3], and was by"),
        (2, {"is_fork": False}, "op 2 is followed by several, and is no fork"),
        (1, {"next": -1}, "no way leads from op 1 to 2, as a trace has gone"),
    ],
)
def test_plan_with_other_edges_is_refused(of_branches, number, changes, message):
    tables = change("nodes", of_branches.plan_tables, number, **changes)
    assert_unfit(tables, of_branches, "edge", message)


def test_plan_with_fewer_ops_is_refused(of_branches):
    tables = of_branches.plan_tables
    tables = dataclasses.replace(tables, nodes=tables.nodes[:-1])
    assert_unfit(tables, of_branches, "edge", "5 ops for 6")


def test_trip_with_other_ops_is_refused(of_loop):
    tables = change("nodes", of_loop.plan_tables, 6, name="Cos")
    assert_unfit(tables, of_loop, "trip", "levels 1 and 3, of two trips, have other ops")


def test_value_that_python_reads_and_the_graph_keeps_is_refused(of_branches):
    tables = change_output(of_branches.plan_tables, 4, fetch_channel=-1)
    message = "output 0 of op 4 AddV2 is not fetched: Python reads or keeps it"
    assert_unfit(tables, of_branches, "fetch", message)


def test_value_that_python_runs_an_op_on_and_the_graph_keeps_is_refused():
    @terra.function
    def step(x):
        return tf.py_function(lambda value: value, [tf.sin(x)], tf.float32)

    for _ in range(4):
        step(tf.constant(1.0))
    built = step.built_graph
    tables = change_output(built.plan_tables, 0, fetch_channel=-1)
    assert_unfit(tables, built, "fetch", "op 0 Sin is not fetched: Python runs op 1 on it")


def test_path_whose_inputs_are_others_is_refused(of_branches):
    tables = of_branches.plan_tables
    inputs = [tables.nodes[2].inputs[1]] * 2
    tables = change("nodes", tables, 2, inputs=inputs)
    message = "op 2 Mul, input 0, OUTPUT 1, is Output(node=0, output=0)"
    assert_unfit(tables, of_branches, "way", message)


def test_message_that_no_op_takes_is_refused(of_branches):
    tables = change_output(of_branches.plan_tables, 4, fetch_channel=9)
    message = "op 4 AddV2 goes by channel 9, where the function has no Terra>Fetch"
    assert_unfit(tables, of_branches, "message", message)


def test_op_that_waits_for_a_message_nobody_sends_is_refused(of_epochs):
    epochs = [dataclasses.replace(each) for each in of_epochs.plan_tables.epochs]
    epochs[0].resume = -1
    tables = dataclasses.replace(of_epochs.plan_tables, epochs=epochs)
    message = "a Terra>AwaitCommit of the function goes by channel 3, and Python by none"
    assert_unfit(tables, of_epochs, "message", message)


def test_two_ops_that_take_one_message_are_refused(of_branches, monkeypatch):
    taken = [*plan_fit.takers(of_branches.generated)]
    monkeypatch.setattr(plan_fit, "takers", lambda generated: [*taken, taken[0]])
    message = f"two ops of the function go by channel {taken[0][0]}"
    assert_unfit(of_branches.plan_tables, of_branches, "message", message)


def test_feed_that_one_way_does_not_send_is_refused(of_branches):
    """The function waits for it in every step; of the two branches one has it."""
    (main,) = (n for n, f in enumerate(of_branches.plan_tables.feeds) if f.channel == 1)
    generated = of_branches.generated
    key = next(key for key, channel in generated.feed_channels.items() if channel == 1)
    feeds = {(key[0], None) if k == key else k: c for k, c in generated.feed_channels.items()}
    unfit = dataclasses.replace(generated, feed_channels=feeds)
    built = dataclasses.replace(of_branches, generated=unfit)
    message = f"feed {main} is awaited and not said"
    assert_unfit(of_branches.plan_tables, built, "message", message)


def test_feed_that_is_sent_to_nobody_is_refused(of_branches):
    generated = of_branches.generated
    feeds = {key: c for key, c in generated.feed_channels.items() if c != 1}
    unfit = dataclasses.replace(generated, feed_channels=feeds)
    built = dataclasses.replace(of_branches, generated=unfit)
    assert_unfit(of_branches.plan_tables, built, "message", "feed 0 is said to nobody")


def test_decision_that_nobody_makes_is_refused(of_branches):
    """The function has a switch-case where the plan passes without a word."""
    generated = of_branches.generated
    unfit = dataclasses.replace(generated, case_channels={**generated.case_channels, 2: 1})
    built = dataclasses.replace(of_branches, generated=unfit)
    message = "feed 0 is awaited and not said"  # by whose channel this would come
    assert_unfit(of_branches.plan_tables, built, "message", message)


def test_trip_that_nobody_decides_on_is_refused(of_loop):
    loop, channel, shifts, depth = of_loop.generated.loops[0]
    later = type(of_loop.generated.loops[0])(loop, channel + 1, shifts, depth)
    unfit = dataclasses.replace(of_loop.generated, loops=[later])
    built = dataclasses.replace(of_loop, generated=unfit)
    message = f"the trip at level {loop.begin} of the loop to level {loop.end} is said to nobody"
    assert_unfit(of_loop.plan_tables, built, "message", message)
