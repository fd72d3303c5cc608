"""An op that Python runs and that raises is passed, where steps are known to go on behind it."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(120)
X = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)


def update(weight, batch):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((batch @ weight - 1.0) ** 2)
    weight.assign_sub(0.01 * tape.gradient(loss, weight))
    return loss


def loop_over(dataset, weight):
    total = 0.0
    for batch in dataset:
        total += update(weight, batch)
    return total


def loop_over_a_part(dataset, weight):
    return loop_over(dataset.take(3), weight)


def loop_and_else(dataset, weight):
    for number, batch in enumerate(dataset):
        loss = update(weight, batch)
        if number == 7:
            break
    else:
        loss = loss + 100.0
    return loss


def list_all(dataset, weight):
    return sum(update(weight, batch) for batch in list(dataset))


def nested(dataset, weight):
    total = 0.0
    for first in dataset.take(2):
        for second in dataset.take(2):
            total += tf.reduce_sum(first) * update(weight, second)
    return total


@pytest.mark.parametrize("batch_size", [2, 3])
@pytest.mark.parametrize(
    "run_epoch", [loop_over, loop_over_a_part, loop_and_else, list_all, nested]
)
def test_loop_over_a_dataset_ends_in_the_graph(run_epoch, batch_size):
    def make(wrap):
        dataset = tf.data.Dataset.from_tensor_slices(X).batch(batch_size)
        weight = tf.Variable(tf.ones([3, 1]))
        return Program(wrap(lambda: run_epoch(dataset, weight)), [weight])

    (step,) = assert_matches_eager(make, num_steps=24)
    stats = step.stats()
    assert stats.phase == "co-execution"
    assert stats.co_executed_steps >= 12
    assert "op_error" not in stats.fallbacks
    assert "new_path" not in stats.fallbacks


def make_iterator_kept(wrap, lengths):
    """The iterator ends in every fourth call or so; the dataset is another length each time."""
    lengths, weight = itertools.cycle(lengths), tf.Variable(tf.ones([3, 1]))
    state = {"iterator": iter(tf.data.Dataset.from_tensor_slices(X).batch(1).take(3))}
    starts = []

    @wrap
    def step():
        try:
            batch = next(state["iterator"])
        except StopIteration:
            starts.append(len(starts))
            dataset = tf.data.Dataset.from_tensor_slices(X).batch(1).take(next(lengths))
            state["iterator"] = iter(dataset)
            batch = next(state["iterator"])
        return update(weight, batch), list(starts)

    return Program(step, [weight])


def test_iterator_that_is_made_anew_where_it_ends():
    (step,) = assert_matches_eager(lambda wrap: make_iterator_kept(wrap, [3, 5, 2]), num_steps=40)
    stats = step.stats()
    assert stats.fallbacks == {"op_error": 1}
    assert stats.co_executed_steps >= 32


def make_checked(wrap, is_bad, handle):
    numbers, steps, seen = itertools.count(), tf.Variable(0.0), []

    @wrap
    def step(x):
        steps.assign_add(1.0)
        try:
            y = tf.debugging.check_numerics(tf.math.log(x), "no logarithm")
        except tf.errors.InvalidArgumentError as error:
            seen.append(type(error).__name__)
            return handle(x, steps)
        steps.assign_add(0.5)
        return y * 2.0, steps + 0.0

    def run():
        i = next(numbers)
        try:
            return step(tf.constant(-1.0 if is_bad(i) else 1.0 + i)), list(seen)
        except ValueError as error:
            return str(error), list(seen)

    return Program(run, [steps])


def leave_out(x, steps):
    return x * 0.0, steps + 0.0


def give_up(x, steps):
    steps.assign_sub(10.0)
    raise ValueError("a bad batch")


@pytest.mark.parametrize("handle", [leave_out, give_up])
@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_error_that_is_caught_again_and_again_is_a_way_of_the_graph(period, handle):
    (step,) = assert_matches_eager(
        lambda wrap: make_checked(wrap, lambda i: i % period == period - 1, handle), num_steps=40
    )
    stats = step.stats()
    assert stats.phase == "co-execution"
    assert stats.co_executed_steps >= 30
    assert sum(stats.fallbacks.values()) <= 2


def test_step_that_leaves_its_graph_behind_an_op_that_raised():
    """What is replayed and recorded has the op that raised, and does not run it again."""

    def make(wrap):
        numbers, total = itertools.count(), tf.Variable(0.0)
        iterator = {"it": iter(tf.data.Dataset.range(3))}

        @wrap
        def step(i):
            total.assign_add(1.0)
            try:
                value = next(iterator["it"])
            except StopIteration:
                iterator["it"] = iter(tf.data.Dataset.range(3))
                value = tf.constant(-1, tf.int64)
            y = tf.cast(value, tf.float32) * 2.0
            if i in (13, 15, 21):
                y = tf.sin(y) + float(i)  # another constant each time
            total.assign_add(y)
            return y, total + 0.0

        return Program(lambda: step(next(numbers)), [total])

    (step,) = assert_matches_eager(make, num_steps=30)
    assert step.stats().co_executed_steps >= 18


def test_raised_op_is_an_op_of_the_trace_graph():
    def make(wrap):
        dataset = tf.data.Dataset.range(2)
        return Program(wrap(lambda: [float(x) for x in dataset]))

    (step,) = assert_matches_eager(make, num_steps=8)
    nodes = [n for n in step.trace_graph.nodes if n.record.op_type == "IteratorGetNext"]
    assert [node.may_raise for node in nodes] == [False, False, True]
    assert step.stats().fallbacks == {}
