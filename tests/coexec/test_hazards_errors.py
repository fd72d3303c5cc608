"""Ops that fail and steps that are interrupted: what is raised, and what is left behind.

Most tests are a program whose hazard acts in every step or in late ones only (see `hazards`).
"""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import programs
import pytest
import tensorflow as tf
from hazards import (
    LATE,
    NUM_STEPS,
    WIDTH,
    Counter,
    assert_co_executed_before,
    draw_inputs,
    make_weight,
    train_once,
)

import terra_tf as terra
from terra_tf.testing import Program, assert_matches_eager, describe_exception

pytestmark = pytest.mark.timeout(60)


# ---- Errors of ops ----------------------------------------------------------------------


def make_failing(wrap, body, *, bad_steps=(LATE, LATE + 2)):
    """Build a program whose `body(x, index, weight, table)` fails if fed a large index."""
    weight, inputs, count = make_weight(), draw_inputs(), Counter()
    table = tf.Variable(programs.normal(np.random.default_rng(2), 10, WIDTH))
    run = wrap(lambda x, index: body(x, index, weight, table))

    def step():
        index = 99 if count.advance() in bad_steps else count.value % 5
        return run(inputs(), tf.constant([1, index, 2]))

    return Program(step, [weight, table])


def test_op_error_that_nobody_consumes_reaches_the_caller():
    def body(x, index, weight, table):
        loss = train_once(x, weight)
        tf.gather(table, index)
        weight.assign(weight * 0.99)
        return loss

    (run,) = assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)
    assert_co_executed_before(run)


def test_op_fails_while_independent_branches_go_on():
    def body(x, index, weight, table):
        table.assign_add(0.01 * table)
        rows = tf.gather(table, index)
        for _ in range(4):
            weight.assign(weight * 0.9 + 0.01 * tf.eye(WIDTH))
        table.assign_sub(0.02 * table)
        return tf.reduce_sum(rows), tf.reduce_sum(x @ weight)

    (run,) = assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)
    assert_co_executed_before(run)


@pytest.mark.parametrize("method", ["scatter_add", "scatter_sub", "scatter_update"])
def test_failing_scatter_is_applied_as_often_and_as_far_as_eager_does(method):
    def body(x, index, weight, table):
        weight.assign(weight * 1.5)
        updates = tf.IndexedSlices(x[:3], index)
        getattr(table, method)(updates)
        weight.assign(weight * 0.5)
        return tf.reduce_sum(table)

    (run,) = assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)
    assert_co_executed_before(run, 5)


def test_repeated_scatter_reads_its_own_writes():
    def body(x, index, weight, table):
        table.scatter_add(tf.IndexedSlices(x[:3], index))
        total = tf.reduce_sum(table)
        table.scatter_sub(tf.IndexedSlices(x[1:] * 0.5, index))
        return total, tf.reduce_sum(table)

    assert_matches_eager(lambda wrap: make_failing(wrap, body, bad_steps=()), NUM_STEPS)


def test_op_error_caught_inside_the_step_with_synchronous_errors():
    def body(x, index, weight, table):
        try:
            rows = tf.gather(table, index)
        except tf.errors.InvalidArgumentError:
            rows = -table[:3]
        weight.assign_add(0.1 * x[:1] * rows[:1, :1])
        return tf.reduce_sum(rows)

    with terra.config.override(synchronous_errors=True):
        assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)


def test_op_error_caught_inside_the_step_where_the_value_is_read():
    def body(x, index, weight, table):
        weight.assign(weight * 1.25)
        try:
            total = float(tf.reduce_sum(tf.gather(table, index)))
        except tf.errors.InvalidArgumentError as error:
            total = type(error).__name__
        weight.assign_add(0.1 * tf.eye(WIDTH))
        return total, tf.reduce_sum(x @ weight)

    (run,) = assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)
    assert_co_executed_before(run)


def test_op_error_caught_inside_the_step_is_exact_from_the_second_time_on():
    caught = []
    table = tf.Variable(tf.ones([10, 4]))

    @terra.function
    def lookup(index):
        try:
            return tf.gather(table, index)
        except tf.errors.InvalidArgumentError:
            caught.append(index)
            return -table[:1]

    good, bad = [3], [99]
    programs.warm_up(lookup, lambda: lookup(tf.constant(good)))
    with contextlib.suppress(tf.errors.InvalidArgumentError):
        lookup(tf.constant(bad))  # May surface when the call returns, outside the `try`.
    for index in (good, bad, good, bad, bad):
        rows = lookup(tf.constant(index))
        assert (rows[0, 0].numpy() < 0) == (index == bad)
    assert len(caught) in (3, 4)


def test_op_error_never_surfaces_in_a_later_call():
    table = tf.Variable(tf.ones([10, 4]))
    counter = tf.Variable(0)
    bodies = []

    @terra.function
    def lookup(index):
        bodies.append(1)
        counter.assign_add(1)
        return tf.gather(table, index)

    programs.warm_up(lookup, lambda: lookup(tf.constant([3])))
    num_bodies = len(bodies)
    with pytest.raises(tf.errors.InvalidArgumentError, match="indices"):
        lookup(tf.constant([99]))
    assert lookup(tf.constant([1])).numpy().sum() == 4.0
    assert len(bodies) == num_bodies + 2
    assert counter.numpy() == len(bodies)


class DivergedError(Exception):
    """The user's own, with a constructor of its own."""

    def __init__(self, step, *, value):
        super().__init__(f"diverged in step {step}")
        self.step, self.value = step, value


def test_exception_of_the_users_own_class_arrives_whole():
    def make(wrap):
        weight, inputs, count, kept = make_weight(), draw_inputs(), Counter(), []

        @wrap
        def train(x):
            loss = train_once(x, weight)
            if count.is_late:
                kept.append(loss)
                raise DivergedError(count.value, value=loss)
            weight.assign(weight * 0.99)
            return loss

        def step():
            count.advance()
            try:
                return train(inputs())
            except DivergedError as error:
                return describe_exception(error), error.step, error.value, list(kept)

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert_co_executed_before(train)


@pytest.mark.parametrize("name", [None, "the_name"])
@pytest.mark.parametrize(
    ("body", "good", "bad"),
    [
        (lambda x, name: tf.gather_nd(tf.eye(3), x, name=name), [[1]], [[7]]),
        (lambda x, name: tf.reshape(tf.where(x), [2, -1], name=name), [1, 1], [1, 0]),
    ],
    ids=["fast", "slow"],
)
def test_message_of_an_op_error_is_eagers_to_the_last_word(body, good, bad, name):
    messages = []
    for wrap in (lambda f: f, terra.function):
        function = wrap(lambda x: body(x, name) + tf.cast(1, body(x, name).dtype))
        for step in range(6):
            if step in (0, 5):
                with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                    function(tf.constant(bad))
                messages.append((str(caught.value), caught.value.message))
            else:
                function(tf.constant(good))
    assert len(set(messages)) == 1
    assert function.stats().fallbacks == {"python_exception": 1}  # the first, in tracing
    assert function.stats().co_executed_steps >= 2


def test_traceback_of_an_op_error_names_the_users_line():
    table = tf.Variable(tf.ones([10, 4]))

    @terra.function
    def lookup(index):
        return tf.gather(table, index)

    programs.warm_up(lookup, lambda: lookup(tf.constant([3])))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        lookup(tf.constant([99])).numpy()
    assert any(os.path.basename(__file__) in str(entry.path) for entry in caught.traceback)


# ---- Ctrl-C -----------------------------------------------------------------------------

SLOW_WIDTH = 1024


def slow_chain(x, num_products=12):
    """Multiply float32[SLOW_WIDTH, SLOW_WIDTH] with itself for about half a second."""
    for _ in range(num_products):
        x = tf.linalg.l2_normalize(x @ x, axis=1)
    return tf.reduce_sum(x)


def interrupt_after(delay_s):
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    return timer


@pytest.mark.timeout(90)
def test_ctrl_c_during_a_wait_inside_a_step():
    before, after = tf.Variable(0), tf.Variable(0)
    x = tf.random.normal([SLOW_WIDTH, SLOW_WIDTH])

    @terra.function
    def step(x):
        before.assign_add(1)
        total = float(slow_chain(x))
        after.assign_add(1)
        return total

    programs.warm_up(step, lambda: step(x + 0.0), 4)
    assert (before.numpy(), after.numpy()) == (4, 4)
    timer = interrupt_after(0.05)
    with pytest.raises(KeyboardInterrupt):
        step(x + 0.0)
        time.sleep(5)  # A fast machine: the step was over before the signal.
    timer.join()
    assert before.numpy() == 5
    assert after.numpy() in (4, 5)
    num_after = int(after.numpy())
    assert np.isfinite(step(x + 0.0))
    assert (before.numpy(), after.numpy()) == (6, num_after + 1)


@pytest.mark.timeout(90)
def test_ctrl_c_while_a_returned_tensor_is_awaited():
    calls = tf.Variable(0)
    x = tf.random.normal([SLOW_WIDTH, SLOW_WIDTH])

    @terra.function
    def step(x):
        calls.assign_add(1)
        return slow_chain(x)

    programs.warm_up(step, lambda: step(x + 0.0), 4)
    terra.synchronize()
    expected = step(x + 0.0).numpy()
    total = step(x + 0.0)
    timer = interrupt_after(0.05)
    with pytest.raises(KeyboardInterrupt):
        total.numpy()
        time.sleep(5)
    timer.join()
    assert total.numpy() == expected
    assert calls.numpy() == 6
