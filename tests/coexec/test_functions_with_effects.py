"""Steps that call `tf.function`s with effects or errors, or another one each time."""

import itertools

import pytest
import tensorflow as tf
from function_programs import batches, training, weight

from terra_tf.testing import Program, assert_co_executing, assert_matches_eager

pytestmark = pytest.mark.timeout(120)


def make_read_between_writes(wrap):
    w, draw = weight(), batches()

    @tf.function
    def loss_of(x):
        return tf.reduce_mean(tf.square(x @ w))

    @wrap
    def step(x):
        losses = []
        for _ in range(3):
            losses.append(loss_of(x))
            w.assign_sub(0.1 * w)
            losses.append(loss_of(x) + tf.reduce_sum(w))
            w.assign_add(0.01 * tf.ones([6, 6]))
        return losses

    return Program(lambda: step(draw()), [w])


def make_several_steps_in_a_step(wrap):
    w, draw = weight(), batches()

    @tf.function
    def hidden(x):
        return tf.tanh(x @ w)

    @wrap
    def step(x):
        losses = []
        for _ in range(2):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(hidden(x)))
            w.assign_sub(0.1 * tape.gradient(loss, w))
            losses.append(loss)
        return losses

    return Program(lambda: step(draw()), [w])


@pytest.mark.parametrize("make", [make_read_between_writes, make_several_steps_in_a_step])
def test_a_function_sees_what_was_written_before_it(make):
    (step,) = assert_matches_eager(make, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    assert_co_executing(step)


def make_writing(wrap):
    w, count, draw = weight(), tf.Variable(0), batches()

    @tf.function
    def update(x):
        count.assign_add(1)
        w.assign_sub(0.1 * tf.matmul(x, x @ w, transpose_a=True))
        return tf.reduce_sum(w)

    @wrap
    def step(x):
        before = tf.reduce_sum(w * w)
        return before, update(x), tf.reduce_sum(w), count + 0

    return Program(lambda: step(draw()), [w, count])


def make_drawing(wrap):
    draw = batches()

    @tf.function
    def noisy(x):
        return x + tf.random.normal([4, 6], seed=3)

    @wrap
    def step(x):
        return tf.reduce_sum(tf.tanh(noisy(x)) * 2.0)

    return Program(lambda: step(draw()))


def make_table(wrap):
    keys, values = tf.constant([1, 2, 3], tf.int64), tf.constant([1.0, 2.0, 3.0])
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, -1.0)
    table.insert(keys, values)
    numbers = itertools.count()

    @tf.function
    def look_up(i):
        found = table.lookup(i)
        table.insert([i], [found + 1.0])
        return found

    @wrap
    def step(i):
        return look_up(i) * 2.0, look_up(i) * 3.0

    return Program(lambda: step(tf.constant(next(numbers) % 5, tf.int64)))


def make_writing_under_a_tape(wrap):
    w, moving = weight(), tf.Variable(tf.zeros([6]))

    @tf.function
    def normalized(x):
        y = x @ w
        mean = tf.reduce_mean(y, axis=0)
        moving.assign(0.9 * moving + 0.1 * mean)
        for _ in tf.range(2):
            y = tf.tanh(y @ w)
        return y - moving

    return training(wrap, normalized, [w])


EFFECTS = [make_writing, make_drawing, make_table, make_writing_under_a_tape]


@pytest.mark.parametrize("make", EFFECTS)
def test_a_function_with_an_effect_runs_where_python_is(make):
    (step,) = assert_matches_eager(make, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    assert step.stats().fallbacks == {}
    assert step.stats().imperative_ops


def make_made_anew(wrap):
    w = weight()

    def model(x):
        return tf.function(lambda y: tf.tanh(y @ w))(x) + x

    return training(wrap, model, [w])


def test_a_function_made_in_each_step_is_run_by_python():
    (step,) = assert_matches_eager(make_made_anew, num_steps=24)
    assert step.stats().co_executed_steps > 10
    assert step.stats().imperative_ops


def make_one_of_two(wrap):
    w, numbers = weight(), itertools.count()
    functions = [tf.function(lambda x: tf.tanh(x @ w)), tf.function(lambda x: tf.nn.relu(x @ w))]

    def model(x):
        return functions[next(numbers) % 3 == 0](x)

    return training(wrap, model, [w])


def test_another_function_is_another_way():
    (step,) = assert_matches_eager(make_one_of_two, num_steps=24)
    assert step.stats().co_executed_steps > 15
    assert_co_executing(step)


BAD_STEPS = (7, 8, 15)


def make_loops_of_branches(wrap, late):
    """Which function it is depends on Python; its lists go to gradients behind the branch."""
    numbers = itertools.count()

    @tf.function
    def folded(x, n):
        for _ in range(n):
            x = tf.tanh(x)
        return tf.foldl(lambda state, row: tf.tanh(state * 0.5 - row), x) * x

    @wrap
    def step(x, number):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = folded(x, 1 + number % 2)
        slopes = [tape.gradient(y, x), tape.gradient(y, x, y), tape.gradient(y, x)]
        return [*slopes, tf.sin(x)] if number in late else slopes

    draw = batches()
    return Program(lambda: step(draw(), next(numbers)))


@pytest.mark.parametrize("late", [(), (7, 10)])
def test_gradients_of_a_loop_in_one_of_two_functions(late):
    (step,) = assert_matches_eager(lambda wrap: make_loops_of_branches(wrap, late), num_steps=14)
    assert "graph_build_failed" not in step.stats().fallbacks
    assert step.stats().co_executed_steps >= 7


def make_failing(wrap, is_caught):
    w, numbers = weight(), itertools.count()
    draw = batches()

    @tf.function
    def checked(x, limit):
        tf.debugging.assert_less(limit, 5.0, message="over the limit")
        return tf.reduce_sum(x @ w)

    @wrap
    def step(x, limit):
        w.assign_add(0.01 * tf.ones([6, 6]))
        if not is_caught:
            return checked(x, limit) * 2.0
        try:
            return checked(x, limit) * 2.0
        except tf.errors.InvalidArgumentError as error:
            return str(error).splitlines()[-2]

    return Program(
        lambda: step(draw(), tf.constant(9.0 if next(numbers) in BAD_STEPS else 1.0)), [w]
    )


@pytest.mark.parametrize("is_caught", [False, True])
def test_an_error_in_a_function_is_eagers(is_caught):
    (step,) = assert_matches_eager(lambda wrap: make_failing(wrap, is_caught), num_steps=20)
    assert step.stats().co_executed_steps > 10


def make_unknown_shape(wrap):
    w = weight()

    @tf.function
    def positive(x):
        y = x @ w
        return tf.boolean_mask(y, tf.reduce_sum(y, axis=1) > -100.0)

    return training(wrap, positive, [w])


def test_a_result_whose_shape_depends_on_data():
    (step,) = assert_matches_eager(make_unknown_shape, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    assert_co_executing(step)


def make_leaving_its_graph(wrap):
    w, numbers = weight(), itertools.count()

    @tf.function
    def hidden(x):
        for _ in tf.range(2):
            x = tf.tanh(x @ w)
        return x

    def model(x):
        y = hidden(x)
        number = next(numbers)
        return tf.exp(-y) if number in (9, 14) else (tf.sin(y) if number == 17 else y)

    return training(wrap, model, [w])


def test_a_step_leaves_its_graph_behind_a_function():
    (step,) = assert_matches_eager(make_leaving_its_graph, num_steps=24)
    assert step.stats().fallbacks["new_path"] >= 2
    assert_co_executing(step)


def make_compiled(wrap):
    w = weight()

    @tf.function(jit_compile=True)
    def dense(x):
        return tf.tanh(x @ w) / 3.0

    return training(wrap, dense, [w])


def test_a_compiled_function_runs_as_eager_runs_it():
    (step,) = assert_matches_eager(make_compiled, num_steps=8)
    assert step.stats().co_executed_steps >= 5
