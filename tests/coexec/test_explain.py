"""The report knows the program: which line waited, branched, looped, and changed the phase."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime.waits import Waits

pytestmark = pytest.mark.timeout(60)


def line_of(function, text):
    """Return "file:line" of the first line of a function that holds `text`."""
    lines, first = inspect.getsourcelines(function)
    offset = next(index for index, line in enumerate(lines) if text in line)
    return f"test_explain.py:{first + offset}"


@terra.function
def step(x, is_deep):
    y = x
    for _ in range(3):
        y = tf.linalg.matmul(y, x)
    if is_deep:
        y = tf.tanh(y)
    total = tf.reduce_sum(y)
    if float(total) < 0:
        raise ValueError("negative")
    return total


@pytest.fixture(scope="module")
def explanation():
    step.reset()
    for i in range(12):
        step(tf.ones([700, 700]) / 700, i % 2 == 0)
    assert step.stats().phase == "co-execution"
    terra.synchronize()  # what the last step waited is counted when it has ended
    return step.explain()


def test_read_that_waits_is_named_with_its_line_and_op(explanation):
    wait = explanation.waits[0]
    assert wait.awaited.name == "VALUE"
    assert wait.where.startswith(line_of(step.python_function, "float(total)"))
    assert wait.made_at.startswith(line_of(step.python_function, "reduce_sum"))
    assert wait.op_type == "Sum"
    assert 0 < wait.total_s <= explanation.stats.python_stall_s + 1e-6
    assert 1 <= wait.count <= explanation.stats.co_executed_steps


def test_waits_add_up_to_the_counter(explanation):
    total_s = sum(wait.total_s for wait in explanation.waits)
    assert total_s <= explanation.stats.python_stall_s + 1e-6
    assert total_s >= 0.9 * explanation.stats.python_stall_s - 1e-3


def test_branches_and_loops_have_their_lines(explanation):
    (fork,) = explanation.forks
    assert fork.can_skip
    assert fork.branches[0].where.startswith(line_of(step.python_function, "tf.tanh"))
    (loop,) = explanation.loops
    assert loop.where.startswith(line_of(step.python_function, "for _ in"))
    assert loop.max_trips == 3


def test_story_has_steps_and_reasons(explanation):
    changes = [event for event in explanation.events if "->" in event.what]
    assert [(event.step, event.what) for event in changes] == [(3, "tracing -> co-execution")]


def test_report_of_a_function_that_has_not_run_says_so():
    explanation = terra.function(lambda x: x + 1.0).explain()
    assert "Call the function: nothing has run yet." in str(explanation)
    assert explanation.to_dict()["waits"] == []
    assert "nothing has run yet" in explanation._repr_html_()


def test_report_of_a_program_that_never_co_executed_says_why():
    function = terra.function(lambda x: x + 1.0)
    with terra.set_stance("imperative"):
        for _ in range(3):
            function(tf.ones([2]))
    assert "3 x stance" in str(function.explain())


def test_waiting_lines_of_a_program_without_end_are_bounded(explanation):
    assert explanation.waits
    waits = Waits()
    call = "waits.add(0, built, 0, 0.001)"
    for line in range(waits.MAX_LINES + 10):
        code = compile("\n" * line + call, "made_up.py", "exec")
        exec(code, {"waits": waits, "built": step.built_graph})
    assert len(waits.longest_first()) == waits.MAX_LINES
    assert waits.longest_first()[0].where == "made_up.py:1 in <module>"


def test_line_that_waits_in_every_trip_of_a_loop_is_said_once():
    @terra.function
    def reading(x):
        for _ in range(4):
            x = x @ x / tf.reduce_max(x)
            if float(x[0, 0]) < 0.0:
                break
        return x

    x = tf.constant(np.random.default_rng(0).uniform(1.0, 2.0, [300, 300]).astype(np.float32))
    for _ in range(12):
        reading(x)
    waits = reading.explain().waits
    lines = [(wait.awaited, wait.op_type, wait.made_at, wait.where) for wait in waits]
    assert len(lines) == len(set(lines))
    longest = waits[0]
    assert longest.count > reading.stats().co_executed_steps
