"""Counters are exact, and the report tells a person which line did what."""

import dataclasses
import inspect

import programs
import pytest
import tensorflow as tf

import terra_tf as terra

pytestmark = pytest.mark.timeout(60)


def line_of(function, text):
    """Return "file:line" of the first line of `function` that holds `text`."""
    lines, first = inspect.getsourcelines(function)
    offset = next(index for index, line in enumerate(lines) if text in line)
    return f"test_stats_and_explain.py:{first + offset}"


def make_simple():
    weight = tf.Variable(1.0)

    @terra.function
    def step(x):
        weight.assign_sub(0.5 * x)
        return weight * x

    return step


def call(function, num_steps, *args):
    for _ in range(num_steps):
        function(tf.constant(1.0), *args)


def test_counters_of_a_function_that_was_never_called():
    stats = make_simple().stats()
    assert (stats.phase, stats.steps, stats.traced_steps) == ("tracing", 0, 0)
    assert (stats.co_executed_steps, stats.graph_builds, stats.transitions) == (0, 0, 0)
    assert (stats.fallbacks, stats.imperative_ops) == ({}, {})


def test_counters_of_a_straight_program():
    step = make_simple()
    call(step, 2)
    assert step.stats().traced_steps == 2
    call(step, 8)
    stats = step.stats()
    assert stats.phase == "co-execution"
    assert (stats.steps, stats.traced_steps, stats.co_executed_steps) == (10, 2, 8)
    assert (stats.graph_builds, stats.transitions) == (1, 1)
    assert (stats.fallbacks, stats.imperative_ops) == ({}, {})
    assert (stats.num_switch_cases, stats.num_loops) == (0, 0)
    assert stats.num_feeds == 1  # The argument; the variable is bound, 0.5 is constant.
    assert stats.num_fetches == 1  # The result.
    assert stats.num_nodes == 4  # Two products, the assignment, the read.
    assert stats.python_stall_s >= 0.0
    assert stats.graph_stall_s >= 0.0


def test_statistics_are_frozen_snapshots():
    step = make_simple()
    call(step, 3)
    stats = step.stats()
    call(step, 3)
    assert (stats.steps, step.stats().steps) == (3, 6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.steps = 7
    stats.fallbacks["x"] = 1
    assert step.stats().fallbacks == {}


def test_functions_are_counted_apart():
    first, second = make_simple(), make_simple()
    call(first, 5)
    call(second, 3)
    assert (first.stats().steps, second.stats().steps) == (5, 3)
    assert (first.stats().co_executed_steps, second.stats().co_executed_steps) == (3, 1)


def test_one_divergence_is_counted_once_with_its_reason():
    step_once = {"sin": False}

    @terra.function
    def step(x):
        return tf.sin(x) if step_once["sin"] else tf.cos(x)

    call(step, 4)
    assert step.stats().fallbacks == {}
    step_once["sin"] = True
    call(step, 1)
    stats = step.stats()
    assert stats.fallbacks == {"new_path": 1}
    assert stats.steps == 5
    assert line_of(step.python_function, "tf.sin") in str(step.explain())


def test_unplanned_read_is_counted_with_its_reason_and_line():
    is_read = []

    @terra.function
    def step(x):
        hidden = tf.tanh(x)
        if is_read:
            float(hidden)
        return hidden * 2.0

    call(step, 4)
    is_read.append(True)
    call(step, 1)
    assert step.stats().fallbacks == {"unplanned_materialization": 1}
    assert "float(hidden)" in str(step.explain()) or line_of(
        step.python_function, "float(hidden)"
    ) in str(step.explain())
    call(step, 4)
    assert step.stats().fallbacks == {"unplanned_materialization": 1}
    assert step.stats().phase == "co-execution"


def test_op_error_is_counted_and_an_exception_at_the_end_is_none():
    is_raising = []

    @terra.function
    def lookup(index):
        rows = tf.gather(tf.ones([4, 2]), index)
        if is_raising:
            raise KeyError("user")
        return rows

    for _ in range(4):
        lookup(tf.constant([1]))
    is_raising.append(True)
    with pytest.raises(KeyError, match="user"):
        lookup(tf.constant([1]))
    assert lookup.stats().fallbacks == {}  # everything had run: the step just ends
    is_raising.clear()
    programs.warm_up(lookup, lambda: lookup(tf.constant([1])))
    with pytest.raises(tf.errors.InvalidArgumentError):
        lookup(tf.constant([9]))
    assert lookup.stats().fallbacks == {"index_out_of_range": 1}


def test_imperative_op_is_counted_and_explained():
    @terra.function
    def step(x):
        y = x * 2.0
        tf.print(y, output_stream="file:///dev/null")
        return y * 2.0

    call(step, 6)
    stats = step.stats()
    assert stats.phase == "co-execution"
    assert list(stats.imperative_ops) == ["PrintV2"]
    report = str(step.explain())
    assert "PrintV2" in report
    assert line_of(step.python_function, "tf.print") in report


def test_report_names_phase_function_and_counts():
    step = make_simple()
    call(step, 1)
    assert "tracing" in str(step.explain())
    call(step, 5)
    report = str(step.explain())
    assert "co-execution" in report
    assert "step" in report
    assert "6" in report


def test_reset_starts_anew():
    step = make_simple()
    call(step, 5)
    step.reset()
    assert step.stats().phase == "tracing"
    before = step.stats()
    call(step, 5)
    after = step.stats()
    assert after.phase == "co-execution"
    assert after.traced_steps - before.traced_steps == 2
    assert after.graph_builds - before.graph_builds == 1


def test_imperative_stance_is_counted_and_ends_with_its_block():
    step = make_simple()
    call(step, 4)
    with terra.set_stance("imperative"):
        call(step, 3)
        assert step.stats().co_executed_steps == 2
        assert step.stats().fallbacks == {"stance": 3}
    call(step, 2)
    assert step.stats().phase == "co-execution"
    assert step.stats().co_executed_steps == 4


def test_set_stance_without_a_block_holds_until_it_is_set_again():
    step = make_simple()
    terra.set_stance("imperative")
    try:
        call(step, 4)
        assert step.stats().co_executed_steps == 0
    finally:
        terra.set_stance("co_execute")
    call(step, 4)
    assert step.stats().co_executed_steps >= 1


def test_program_that_never_takes_the_same_path_becomes_imperative():
    count = iter(range(1000))
    ops = [tf.sin, tf.cos, tf.tanh, tf.exp, tf.nn.relu, tf.abs, tf.square, tf.negative]

    @terra.function
    def step(x):
        index = next(count)
        for bit in range(8):
            x = ops[(index * 5 + bit * index) % 8](x)
        return x

    call(step, 30)
    stats = step.stats()
    assert stats.steps == 30
    assert stats.traced_steps + stats.co_executed_steps <= 30
    assert stats.phase in ("tracing", "imperative", "co-execution")
    assert sum(stats.fallbacks.values()) <= 30


def test_second_entry_signature_gets_a_graph_of_its_own():
    step = terra.function(lambda x: tf.reduce_sum(tf.tanh(x)))
    for _ in range(5):
        step(tf.ones([3]))
    for _ in range(5):
        step(tf.ones([4]))
    stats = step.stats()
    assert (stats.traced_steps, stats.graph_builds, stats.co_executed_steps) == (4, 2, 6)
    step(tf.ones([3]))
    assert step.stats().co_executed_steps == 7
