"""Variables that are changed or read from outside of the step, or are others in later steps.

Most tests are a program whose hazard acts in every step or in late ones only (see `hazards`).
"""

import functools
import threading

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

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)


# ---- Variables changed or read from outside the step ------------------------------------


def test_variable_assigned_between_in_flight_steps():
    def make(wrap):
        weight, rate, inputs = make_weight(), tf.Variable(0.1), draw_inputs()
        count = Counter()

        @wrap
        def train(x):
            return train_once(x, weight, rate)

        def step():
            first = train(inputs())
            rate.assign(0.1 / (count.advance() + 1))
            second = train(inputs())
            rate.assign_add(0.01)
            return first, second

        return Program(step, [weight, rate])

    (train,) = assert_matches_eager(make, NUM_STEPS, read_at_end=True)
    assert (train.stats().traced_steps, train.stats().fallbacks) == (2, {})


def test_trained_weight_overwritten_and_read_between_in_flight_steps():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()
        train = wrap(lambda x: train_once(x, weight))

        def step():
            train(inputs())
            if count.advance() % 3 == 2:
                weight.assign(weight * 0.5)
            train(inputs())
            return weight.numpy() if count.value % 4 == 3 else weight[0]

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert train.stats().fallbacks == {}


def run_in_thread(function):
    """Run `function` in a thread of its own, wait for it, and return what it returned."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(20)
    assert results, "the worker thread is stuck"
    return results[0]


@pytest.mark.parametrize("is_always", [True, False], ids=["always", "late"])
def test_worker_thread_reads_variable_that_the_open_step_has_written(is_always):
    def make(wrap):
        weight, inputs, count, seen = make_weight(), draw_inputs(), Counter(), []

        @wrap
        def train(x):
            loss = train_once(x, weight)
            if is_always or count.is_late:
                seen.append(run_in_thread(weight.numpy))
            weight.assign(weight * 0.99)
            return loss

        def step():
            count.advance()
            return train(inputs()), list(seen)

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    if not is_always:
        assert_co_executed_before(train)


def test_worker_thread_writes_variable_in_the_middle_of_a_step():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def train(x):
            loss = train_once(x, weight)
            if count.is_late:
                run_in_thread(lambda: weight.assign_add(tf.ones_like(weight)) is None)
            return loss + tf.reduce_sum(weight)

        def step():
            count.advance()
            return train(inputs())

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert_co_executed_before(train)


def test_worker_thread_reads_unfetched_tensor_of_the_open_step():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def train(x):
            hidden = tf.tanh(x @ weight)
            seen = run_in_thread(hidden.numpy) if count.is_late else None
            weight.assign_sub(0.1 * tf.reduce_mean(hidden) * weight)
            return tf.reduce_sum(hidden), seen

        def step():
            count.advance()
            return train(inputs())

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert_co_executed_before(train)


def test_two_threads_with_a_barrier_inside_their_steps():
    def make(wrap):
        weights = [make_weight(), make_weight()]
        inputs = [draw_inputs(1), draw_inputs(2)]
        barrier = threading.Barrier(2)

        @wrap
        def train(x, weight):
            barrier.wait(20)
            loss = train_once(x, weight)
            barrier.wait(20)
            weight.assign(weight * 0.99)
            return loss

        def step():
            losses = [None, None]

            def work(k):
                losses[k] = [train(inputs[k](), weights[k]).numpy() for _ in range(3)]

            threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            return losses

        return Program(step, weights)

    assert_matches_eager(make, 4)


def test_two_threads_train_two_functions_at_once():
    def make(wrap):
        weights = [make_weight(), make_weight()]
        inputs = [draw_inputs(1), draw_inputs(2)]
        trains = [wrap(functools.partial(train_once, weight=weight)) for weight in weights]

        def step():
            losses = [None, None]

            def work(k):
                losses[k] = [trains[k](inputs[k]()) for _ in range(8)]

            threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            return losses

        return Program(step, weights)

    assert_matches_eager(make, 6)


# ---- Variables and models that change ---------------------------------------------------


def test_fresh_variable_in_every_call():
    def make(wrap):
        inputs = draw_inputs()

        @wrap
        def fit(x, start):
            local = tf.Variable(start * 2.0)
            for _ in range(2):
                local.assign_sub(0.1 * tf.reduce_mean(x, axis=0))
            start.assign_add(local)
            return tf.reduce_sum(local)

        def step():
            start = tf.Variable(tf.ones([WIDTH]))
            return fit(inputs(), start), start

        return step

    assert_matches_eager(make, NUM_STEPS)


def test_two_models_through_one_function():
    def make(wrap):
        weights, inputs, count = [make_weight(), make_weight()], draw_inputs(), Counter()
        train = wrap(train_once)
        return Program(lambda: train(inputs(), weights[count.advance() % 2]), weights)

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert (train.stats().traced_steps, train.stats().fallbacks) == (2, {})


def test_same_variable_in_two_roles_after_two_different_ones():
    def make(wrap):
        weights, inputs, count = [make_weight(), make_weight()], draw_inputs(), Counter()

        @wrap
        def train(x, first, second):
            first.assign(first * 0.9)
            second.assign_add(0.01 * tf.eye(WIDTH))
            return tf.reduce_sum(x @ first @ second)

        def step():
            second = weights[0] if count.advance() in (LATE, LATE + 3) else weights[1]
            return train(inputs(), weights[0], second)

        return Program(step, weights)

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert_co_executed_before(train)


def test_variable_dies_between_steps():
    def make(wrap):
        inputs, state = draw_inputs(), {"w": make_weight()}
        train = wrap(lambda x: train_once(x, state["w"]))

        def step():
            loss = train(inputs())
            state["w"] = tf.Variable(state["w"] * 0.5)
            return loss

        return step

    assert_matches_eager(make, NUM_STEPS, read_at_end=True)


# ------------------------------------------------- variables that a step makes itself


def make_split_generator(wrap):
    generator = tf.random.Generator.from_seed(7)

    @wrap
    def step(x):
        first, second = generator.split(2)
        return x + first.normal([4]), x * second.uniform([4])

    return Program(lambda: step(tf.ones([4])), [generator.state])


def make_variables_in_a_loop(wrap):
    total = tf.Variable(tf.zeros([4]))

    @wrap
    def step(x):
        copies = [tf.Variable(total * float(n)) for n in range(3)]
        for copy in copies:
            copy.assign_add(x)
        total.assign_add(sum(copies) / 6.0)
        return [copy.read_value() for copy in copies]

    return Program(lambda: step(tf.ones([4])), [total])


@pytest.mark.parametrize("make", [make_split_generator, make_variables_in_a_loop])
def test_step_that_makes_variables_in_a_loop_settles(make):
    """Others in each step, they tell no trip of the loop from another."""
    (step,) = assert_matches_eager(make, NUM_STEPS)
    assert step.stats().co_executed_steps >= NUM_STEPS - 4, str(step.explain())
