"""Tapes are told of ops only if somebody looks: then they know what eager's would know.

Each program looks at a tape in another way, at another moment, after steps in which nobody did.
"""

import threading

import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime import interception
from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(120)

LATE = (9, 13, 14)
NUM_CALLS = 20


def program(body, num_variables=2):
    """A program of `body(variables, x, is_late)`; it is late in three calls, two in a row."""

    def make(wrap):
        variables = [tf.Variable([1.0 + i, 2.0 - i]) for i in range(num_variables)]
        calls = [0]
        function = wrap(lambda x, is_late: body(variables, x, is_late))

        def step():
            calls[0] += 1
            x = tf.constant([calls[0] * 0.1, 1.0])
            return function(x, calls[0] in LATE)

        return Program(step, variables)

    return make


def run(body, **kwargs):
    """Compare with eager, and return what tapes were told in the end."""
    (function,) = assert_matches_eager(program(body, **kwargs), NUM_CALLS)
    stats = function.stats()
    assert stats.co_executed_steps >= NUM_CALLS // 2, function.explain()
    return stats


def loss_of(variables, x):
    y = x
    for variable in variables:
        y = tf.tanh(y * variable) + variable
    return tf.reduce_sum(y * y)


def descend(variables, gradients):
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is not None:
            variable.assign_sub(0.01 * gradient)


# ------------------------------------------------------------------ nobody looks


def test_in_steady_state_nothing_is_recorded():
    def body(variables, x, is_late):
        del is_late
        with tf.GradientTape() as tape:
            loss = loss_of(variables, x)
        descend(variables, tape.gradient(loss, variables))
        return loss

    (function,) = assert_matches_eager(program(body), NUM_CALLS)
    before = function.stats()
    assert before.tape_ops_unrecorded > 0
    for i in range(5):
        function(tf.constant([0.1 * i, 1.0]), False)
    terra.synchronize()
    after = function.stats()
    assert after.tape_ops_recorded == before.tape_ops_recorded, function.explain()
    per_step = 2 * 5 + 2  # two reads, product, tanh, sum; and the loss has two
    assert after.tape_ops_unrecorded - before.tape_ops_unrecorded == 5 * per_step


def test_nested_and_persistent_tapes_are_not_told_either():
    def body(variables, x, is_late):
        del is_late
        with tf.GradientTape(persistent=True) as first, tf.GradientTape() as second:
            loss = loss_of(variables, x)
            other = tf.reduce_mean(tf.sin(variables[0]) * x)
        descend(variables[:1], first.gradient(loss, variables[:1]))
        descend(variables, second.gradient(other, variables))
        descend(variables[1:], first.gradient(loss * 1.0, variables[1:]))
        return loss, other

    stats = run(body)
    assert stats.tape_ops_unrecorded > stats.tape_ops_recorded


def test_tapes_one_after_the_other():
    def body(variables, x, is_late):
        del is_late
        losses = []
        for variable in variables:
            with tf.GradientTape() as tape:
                losses.append(loss_of([variable], x))
            descend([variable], tape.gradient(losses[-1], [variable]))
        return losses

    stats = run(body, num_variables=4)
    assert stats.tape_ops_unrecorded > stats.tape_ops_recorded


# -------------------------------------------------------------- somebody looks


def test_gradient_of_something_else_in_some_steps():
    def body(variables, x, is_late):
        with tf.GradientTape() as tape:
            tape.watch(x)
            inner = tf.sin(x * variables[0])
            loss = tf.reduce_sum(inner * variables[1])
        if is_late:
            return tape.gradient(inner, [x, variables[0], variables[1]])
        return tape.gradient(loss, variables)

    stats = run(body)
    assert stats.tape_ops_unrecorded > 0 and stats.tape_ops_recorded > 0


@pytest.mark.parametrize("when", ["first", "in the middle"])
def test_what_was_computed_before_a_tensor_is_watched_is_not_connected(when):
    def body(variables, x, is_late):
        with tf.GradientTape(persistent=True) as tape:
            if when == "first":
                tape.watch(x)
            before = x * variables[0]
            if is_late or when != "first":
                tape.watch(x)
            after = x * variables[1]
        results = [tape.gradient(y, [x, *variables]) for y in (before, after, before + after)]
        return results

    run(body)


def test_variable_that_is_read_without_being_watched_first():
    def body(variables, x, is_late):
        with tf.GradientTape() as tape:
            raw = tf.raw_ops.ReadVariableOp(resource=variables[0].handle, dtype=tf.float32)
            early = raw * x
            late = variables[0] * x
            loss = tf.reduce_sum(early * early if is_late else early * late)
        return tape.gradient(loss, variables[:1]), tape.watched_variables() == ()

    run(body)


@pytest.mark.parametrize("between", ["another tape", "stop_recording", "nothing"])
def test_variable_that_is_watched_after_tapes_have_changed(between):
    def body(variables, x, is_late):
        with tf.GradientTape(persistent=True) as outer:
            raw = tf.raw_ops.ReadVariableOp(resource=variables[0].handle, dtype=tf.float32)
            early = raw * x
            if between == "another tape":
                with tf.GradientTape() as inner:
                    late = tf.reduce_sum(variables[0] * x)
                first = inner.gradient(late, variables[:1])
            elif between == "stop_recording":
                with outer.stop_recording():
                    first = early * 2.0
                late = tf.reduce_sum(variables[0] * x)
            else:
                first, late = None, tf.reduce_sum(variables[0] * x)
        gradients = outer.gradient(early if is_late else late, variables[:1])
        return first, gradients

    run(body)


def test_watched_variables_are_known_at_any_time():
    def body(variables, x, is_late):
        with tf.GradientTape() as tape:
            y = x * variables[0]
            first = len(tape.watched_variables())
            y = y * variables[1]
            if is_late:
                y = y * variables[2]
            loss = tf.reduce_sum(y)
        gradients = tape.gradient(loss, variables)
        return first, len(tape.watched_variables()), gradients

    run(body, num_variables=3)


def test_recording_that_is_stopped_and_reset():
    def body(variables, x, is_late):
        with tf.GradientTape(persistent=True) as tape:
            y = tf.sin(x * variables[0])
            with tape.stop_recording():
                z = tf.cos(y * variables[1])
            total = tf.reduce_sum(y + z * variables[1])
            first = tape.gradient(total, variables) if is_late else None
            if is_late:
                tape.reset()
            again = tf.reduce_sum(tf.exp(-y) * variables[0] * variables[0])
        return first, tape.gradient(again, variables), tape.gradient(total, variables)

    run(body)


def test_tape_that_is_entered_again():
    def body(variables, x, is_late):
        tape = tf.GradientTape(persistent=True)
        with tape:
            y = x * variables[0]
        between = tf.sin(y) * variables[1]
        with tape:
            z = tf.cos(y * variables[1]) + between
        target = tf.reduce_sum(z * 2.0 if is_late else z)
        with tape:
            target = tf.reduce_sum(target * variables[0])
        return tape.gradient(target, variables), tape.gradient(z, [y, *variables])

    run(body)


def make_custom_gradient():
    @tf.custom_gradient
    def clipped(value):
        return value * 2.0, lambda upstream: tf.clip_by_value(upstream, -0.5, 0.5)

    return clipped


def make_graph_function():
    return tf.function(lambda value: tf.tanh(value) * value)


@pytest.mark.parametrize("make_inner", [make_custom_gradient, make_graph_function])
def test_what_records_itself_behind_what_was_not_recorded(make_inner):
    inner = make_inner()

    def body(variables, x, is_late):
        with tf.GradientTape() as tape:
            y = tf.sin(x * variables[0]) * variables[1]
            loss = tf.reduce_sum((inner(y) if is_late else y) * 3.0)
        return tape.gradient(loss, variables)

    run(body)


def test_python_op_and_reads_under_a_tape():
    def body(variables, x, is_late):
        with tf.GradientTape() as tape:
            y = tf.sin(x * variables[0])
            if float(tf.reduce_sum(y)) > 100.0 or is_late:
                y = tf.py_function(lambda v: v * v, [y], tf.float32)
                y.set_shape([2])
            unique, _ = tf.unique(tf.cast(y * 10.0, tf.int32))
            loss = tf.reduce_sum(y * variables[1]) + tf.cast(tf.size(unique), tf.float32)
        return loss, tape.gradient(loss, variables)

    run(body)


def test_second_order_and_jacobian():
    def body(variables, x, is_late):
        with tf.GradientTape(persistent=True) as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(tf.sin(x * variables[0]) * variables[1])
            (first,) = inner.gradient(loss, variables[:1])
            norm = tf.reduce_sum(first * first)
        second = outer.gradient(norm, variables)
        return second, outer.jacobian(first, variables[0]) if is_late else None

    run(body)


def test_forward_mode_behind_a_tape():
    def make(wrap):
        variable, calls = tf.Variable([1.0, 2.0]), [0]

        @wrap
        def way(x, is_late):
            with tf.GradientTape() as tape:
                y = tf.sin(x * variable)
                if is_late:
                    with tf.autodiff.ForwardAccumulator(y, tf.ones_like(y)) as accumulator:
                        z = y * y
                    y = z + accumulator.jvp(z)
                loss = tf.reduce_sum(y)
            return tape.gradient(loss, [variable])

        def step():
            calls[0] += 1
            return way(tf.constant([0.1 * calls[0], 1.0]), calls[0] == 12)

        return Program(step, [variable])

    assert_matches_eager(make, NUM_CALLS)


# ------------------------------------------------------- when the step is over


def test_tape_outlives_its_step():
    def make(wrap):
        variables, calls = [tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])], [0]

        @wrap
        def forward(x):
            with tf.GradientTape(persistent=True) as tape:
                loss = loss_of(variables, x)
            return loss, tape

        def step():
            calls[0] += 1
            loss, tape = forward(tf.constant([0.1 * calls[0], 1.0]))
            gradients = tape.gradient(loss, variables)
            descend(variables, gradients)
            return loss, gradients, tape.gradient(loss, variables[:1])

        return Program(step, variables)

    (function,) = assert_matches_eager(make, NUM_CALLS)
    assert function.stats().co_executed_steps > 0
    assert function.stats().tape_ops_recorded > 0


def test_step_inside_of_a_tape_of_the_callers():
    def make(wrap):
        variables, calls = [tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])], [0]

        @wrap
        def forward(x):
            with tf.GradientTape() as inner:
                loss = loss_of(variables, x)
            (gradient,) = inner.gradient(loss, variables[:1])
            return loss + tf.reduce_sum(gradient * gradient)

        def step():
            calls[0] += 1
            with tf.GradientTape() as outer:
                loss = forward(tf.constant([0.1 * calls[0], 1.0]))
            gradients = outer.gradient(loss, variables)
            descend(variables, gradients)
            return loss, gradients

        return Program(step, variables)

    assert_matches_eager(make, NUM_CALLS)


@pytest.mark.parametrize("goes_on", [True, False])
def test_divergence_and_errors_under_a_tape(goes_on):
    def body(variables, x, is_late):
        with tf.GradientTape() as tape:
            y = tf.sin(x * variables[0])
            if is_late:
                y = tf.cos(y) + y
                if not goes_on:
                    raise ValueError("late")
            loss = tf.reduce_sum(y * variables[1])
        gradients = tape.gradient(loss, variables)
        descend(variables, gradients)
        return loss, gradients

    run(body)


def test_epoch_that_ends_under_a_tape():
    """What Python runs itself in the middle makes everything before it final."""

    def body(variables, x, is_late):
        with tf.GradientTape() as tape:
            y = tf.sin(x * variables[0])
            variables[1].assign_add(tf.stop_gradient(y) * 0.01)
            tf.print("y", y, output_stream="file:///dev/null")
            loss = tf.reduce_sum(y * variables[1])
        gradients = tape.gradient(loss, variables if is_late else variables[:1])
        return loss, gradients

    run(body)


def test_gradient_in_another_thread():
    def body(variables, x, is_late):
        with tf.GradientTape() as tape:
            loss = loss_of(variables, x)
        if not is_late:
            return loss, tape.gradient(loss, variables)
        found = []
        thread = threading.Thread(target=lambda: found.append(tape.gradient(loss, variables)))
        thread.start()
        thread.join(timeout=30)
        return loss, found[0]

    (function,) = assert_matches_eager(program(body), NUM_CALLS)
    assert function.stats().co_executed_steps > 0


def test_tape_that_was_left_while_hooks_were_off():
    variables = [tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])]

    @terra.function
    def step(x, reads_all):
        with tf.GradientTape() as tape:
            loss = loss_of(variables, x)
        return tape.gradient(loss, variables if reads_all else variables[:1])

    x = tf.constant([0.5, 1.0])
    expected = [g.numpy().tolist() for g in step.python_function(x, True)]
    for i in range(6):
        if i % 2:
            terra.synchronize()
            with tf.GradientTape():
                interception.uninstall()
            interception.install()
        for _ in range(4):
            step(x, False)
        assert [g.numpy().tolist() for g in step(x, True)] == expected
    assert step.stats().tape_ops_unrecorded > 0, step.explain()
