"""The text, the notebook view and the plain data of an explanation made by hand."""

import dataclasses
import json

import pytest

from terra_tf.runtime.advice import advise
from terra_tf.runtime.explanation import Explanation, Fetch, ImperativeOp
from terra_tf.runtime.stats import Event, Stats
from terra_tf.runtime.waits import Awaited, Wait
from terra_tf.runtime.ways import Branch, Fork, Loop

STATS = Stats(
    phase="co-execution",
    steps=40, traced_steps=2, co_executed_steps=37, graph_builds=2, transitions=1,
    fallbacks={"dataflow_changed": 1, "stance": 2}, imperative_ops={"PrintV2": 1},
    num_nodes=30, num_feeds=2, num_fetches=2, num_switch_cases=1, num_loops=0,
    calls_replayed={}, calls_not_replayed={}, tape_ops_recorded=0, tape_ops_unrecorded=0,
    python_stall_s=0.0655, graph_stall_s=0.1439,
)  # fmt: skip
EVENTS = (
    Event(1, "new path", "18 ops where none were known", ""),
    Event(2, "tracing -> co-execution", "", ""),
    Event(12, "dataflow_changed", "a tensor of this step", "train.py:14 in train_step"),
)
PRINT_AT = "train.py:16 in train_step"
WAITS = (
    Wait(Awaited.VALUE, "Mean", "train.py:11 in train_step", "train.py:17 in train_step", 37, 0.05),
    Wait(Awaited.GO_AHEAD, "PrintV2", PRINT_AT, PRINT_AT, 1, 0.01),
    Wait(Awaited.END, "", "", "train.py:22 in <module>", 30, 0.005),
)  # fmt: skip
PRINT = ImperativeOp("PrintV2", "stateful_op", PRINT_AT)
EXPLANATION = Explanation(
    "train_step (train.py:7)",
    STATS,
    EVENTS,
    (PRINT,),
    (Fetch("Mean", "train.py:11 in train_step"),),
    WAITS,
    (Fork((Branch("train.py:14 in train_step", 3),), True),),
    (Loop("train.py:9 in train_step", 3),),
    advise(STATS, WAITS, EVENTS, (PRINT,)),
)

GOLDEN = """\
train_step (train.py:7): co-execution
  40 steps: 37 co-executed, 2 traced; 2 graphs built
  the graph: 30 ops, 1 switch-case, 2 feeds, 2 fetches
What happened:
  step 1: new path; 18 ops where none were known
  step 2: tracing -> co-execution
  step 12: dataflow_changed; a tensor of this step; at train.py:14 in train_step
Why steps left the graph:
  2 x stance: The stance set by the program asked for imperative execution.
  1 x dataflow_changed: An op took as input another op's output than on any traced path.
What Python runs itself in every step:
  PrintV2 at train.py:16 in train_step: The op has effects that are not known to be safe to delay.
What Python reads from the graph, or keeps:
  Mean of train.py:11 in train_step
Where Python waited for the graph:
  50.00 ms, 37 times, at train.py:17 in train_step: for Mean of train.py:11 in train_step
  10.00 ms, 1 time, at train.py:16 in train_step: for all that comes before PrintV2
  5.00 ms, 30 times, at train.py:22 in <module>: for graphs to end
Branches the graph has:
  train.py:14 in train_step (3 traces) | not
Loops:
  train.py:9 in train_step: up to 3 trips, unrolled
What would make it faster:
  train.py:17 in train_step reads the result of Mean (train.py:11 in train_step) and waits for it, \
1.35 ms a step. Read it every few steps, or later: after the next step has begun.
  train.py:22 in <module> waits 0.14 ms a step for graphs to end: Python is faster than they are, \
or an op of theirs could fail on data (config.run_ahead_on_fallible = True does not wait for that).
  PrintV2 at train.py:16 in train_step makes Python and graph wait for each other, which has cost \
10.0 ms of waiting. Run it every few steps, or after the call.
Who waited, per co-executed step: Python 1.77 ms, the graph 3.89 ms"""


def test_text_for_a_terminal():
    assert str(EXPLANATION) == GOLDEN


def test_view_for_a_notebook_says_the_same_and_escapes_it():
    view = EXPLANATION._repr_html_()
    assert "train.py:22 in &lt;module&gt;" in view
    assert "<module>" not in view
    assert view.count("<details") == view.count("</details>") == 8
    assert view.count("<li>") == view.count("</li>") == sum(
        line.startswith("  ") for line in GOLDEN.splitlines()
    )


def test_data_for_tools_can_be_kept_as_json():
    data = json.loads(json.dumps(EXPLANATION.to_dict()))
    assert data["name"] == "train_step (train.py:7)"
    assert data["stats"]["fallbacks"] == {"dataflow_changed": 1, "stance": 2}
    assert data["waits"][0]["awaited"] == "value"
    assert data["waits"][0]["total_s"] == 0.05
    assert data["forks"][0]["branches"][0]["traces"] == 3
    assert data["events"][2]["where"] == "train.py:14 in train_step"


def test_long_sections_are_cut_and_say_so():
    ops = tuple(dataclasses.replace(PRINT, where=f"train.py:{line} in f") for line in range(15))
    many = dataclasses.replace(EXPLANATION, imperative_ops=ops)
    assert "  ... and 3 more" in str(many).splitlines()


def test_equal_lines_are_said_once():
    made = dataclasses.replace(PRINT, op_type="VarHandleOp", in_every_step=False)
    read = EXPLANATION.fetches * 2
    lines = str(
        dataclasses.replace(EXPLANATION, imperative_ops=(made,) * 15, fetches=read)
    ).splitlines()
    (line,) = (line for line in lines if line.startswith("  VarHandleOp"))
    assert line.endswith("not known to be safe to delay. (15 ops)")
    assert "  Mean of train.py:11 in train_step (2 ops)" in lines


def test_function_that_was_never_called_is_told_to_be_called():
    stats = dataclasses.replace(STATS, steps=0)
    assert advise(stats, (), (), ()) == ("Call the function: nothing has run yet.",)


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("constant_changed", "Give it as a tensor"),
        ("feed_changed", "Pad or bucket"),
        ("new_path", "tf.where"),
        ("concurrent", "from one thread"),
    ],
)
def test_habitual_fallback_has_advice_with_its_line(reason, text):
    stats = dataclasses.replace(STATS, fallbacks={reason: 5}, graph_stall_s=0.0)
    events = tuple(Event(i, reason, "", "train.py:8 in f") for i in range(5))
    (sentence,) = advise(stats, (), events, ())
    assert text in sentence
    assert sentence.endswith("(most often at train.py:8 in f)")


def test_rare_fallback_and_short_wait_are_not_worth_advice():
    wait = dataclasses.replace(WAITS[0], total_s=1e-4)
    stats = dataclasses.replace(STATS, fallbacks={"new_path": 1})
    assert advise(stats, (wait,), (), ()) == ()


def test_bottleneck_in_python_is_named():
    stats = dataclasses.replace(STATS, fallbacks={}, python_stall_s=0.01, graph_stall_s=1.0)
    (sentence,) = advise(stats, (), (), ())
    assert sentence.startswith("The graph waits for Python")
