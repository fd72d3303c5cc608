"""Steps that call `tf.function`s: those without an effect are ops of the graph."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_co_executing, assert_matches_eager

pytestmark = pytest.mark.timeout(120)


def batches(shape=(4, 6)):
    numbers = itertools.count()
    return lambda: tf.random.stateless_normal(shape, [next(numbers), 3])


def weight(seed=0):
    return tf.Variable(0.3 * tf.random.stateless_normal([6, 6], [seed, 1]))


def training(wrap, function, variables):
    """A step that differentiates `function` and applies the gradients."""
    draw = batches()

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(function(x)))
        for v, g in zip(variables, tape.gradient(loss, variables), strict=True):
            v.assign_sub(0.1 * g)
        return loss

    return Program(lambda: step(draw()), variables)


def make_dense(wrap):
    w, b = weight(), tf.Variable(tf.zeros([6]))

    @tf.function
    def dense(x):
        return tf.nn.relu(tf.matmul(x, w) + b)

    return training(wrap, dense, [w, b])


def make_loop(wrap):
    w = weight()

    @tf.function
    def unroll(x):
        h = tf.zeros([4, 6])
        for _ in tf.range(3):
            h = tf.tanh(h @ w + x)
        return h

    return training(wrap, unroll, [w])


def make_branch(wrap):
    w = weight()

    @tf.function
    def choose(x):
        if tf.reduce_sum(x) > 0.0:
            return tf.tanh(x @ w)
        return x @ w

    return training(wrap, choose, [w])


def make_functions_in_functions(wrap):
    w, v = weight(), weight(1)

    @tf.function
    def inner(x, scale=2.0):
        return {"y": tf.tanh(x @ w) * scale}

    @tf.function
    def outer(x):
        return inner(x)["y"] + inner(x @ v, scale=0.5)["y"]

    return training(wrap, outer, [w, v])


def make_called_in_a_loop(wrap):
    weights = [weight(i) for i in range(4)]

    @tf.function
    def layer(x, w):
        return x + tf.tanh(x @ w)

    def model(x):
        for w in weights:
            x = layer(x, w)
        return x

    return training(wrap, model, weights)


def make_rewritten_by_grappler(wrap):
    """Eager has the bits of a function that Grappler has rewritten; so must the graph."""
    w = weight()

    @tf.function
    def statistics(x):
        y = x @ w
        mean = tf.reduce_mean(y, axis=0, keepdims=True)
        scaled = (y - mean) / 3.0 / (1.0 + tf.sqrt(tf.reduce_mean((y - mean) ** 2) + 1e-3))
        return scaled * 0.1 + scaled * 0.7 + tf.pow(scaled, 3.0) / 7.0

    return training(wrap, statistics, [w])


def make_sums_with_variables(wrap):
    """Grappler adds what has one shape first: it has to know those of variables."""
    w, v, scale = weight(), weight(1), tf.Variable(tf.ones([6]))

    @tf.function
    def mixed(x, b, gain):
        y = x + b + x @ w
        return y + gain + tf.tanh(y @ v) + tf.transpose(v)[:4]

    return training(wrap, lambda x: mixed(x, x[0], scale), [w, v, scale])


def make_other_variables_of_a_function(wrap):
    """One function, called with variables whose shapes are known, partly, or not at all."""
    shapes = {1: [6, 1], 6: [6, 6], 3: None, 5: [6, None], 4: [None, 4]}
    weights = [
        tf.Variable(0.3 * tf.random.stateless_normal([6, n], [n, 1]), shape=shapes[n])
        for n in shapes
    ]
    draw, bias = batches(), tf.Variable(tf.ones([1]))

    @tf.function
    def dense(x, w):
        return x[:, :1] + bias + x[:, 1:2] @ w[:1] + tf.reduce_sum(w)

    @wrap
    def step(x):
        return [dense(x, w) for w in weights]

    return Program(lambda: step(draw()), weights)


def make_gradient_in_the_function(wrap):
    w = weight()

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ w))
        return loss, tape.gradient(loss, w)

    draw = batches()

    @wrap
    def step(x):
        loss, change = gradient(x)
        w.assign_sub(0.1 * change)
        return loss

    return Program(lambda: step(draw()), [w])


def make_gradient_of_a_gradient(wrap):
    w = weight()

    @tf.function
    def critic(x):
        return tf.reduce_sum(tf.tanh(x @ w) ** 2, axis=1)

    def penalty(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = critic(x)
        return tf.norm(tape.gradient(y, x), axis=1) - 1.0

    return training(wrap, penalty, [w])


def make_integers(wrap):
    w, draw = weight(), batches()

    @tf.function(input_signature=[tf.TensorSpec([None, 6]), tf.TensorSpec([], tf.int32)])
    def top(x, k):
        return tf.math.top_k(x @ w, k=k)

    @wrap
    def step(x):
        values, indices = top(x, 2)
        w.assign_add(0.01 * tf.ones([6, 6]))
        return tf.reduce_sum(values), indices

    return Program(lambda: step(draw()), [w])


DELEGATED = [
    make_dense,
    make_loop,
    make_branch,
    make_called_in_a_loop,
    make_rewritten_by_grappler,
    make_sums_with_variables,
    make_other_variables_of_a_function,
    make_gradient_in_the_function,
    make_gradient_of_a_gradient,
    make_integers,
]


@pytest.mark.parametrize("make", DELEGATED)
def test_a_function_without_an_effect_is_an_op_of_the_graph(make):
    (step,) = assert_matches_eager(make, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    assert step.stats().fallbacks == {}
    assert_co_executing(step)


def test_a_function_that_calls_others_is_pythons_to_run():
    (step,) = assert_matches_eager(make_functions_in_functions, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    reasons = {op.reason for op in step.explain().imperative_ops}
    assert reasons == {"nested_functions"}


# No sums of three, and nothing that is used three times: TensorFlow begins an `AddN` in a function
# with whichever input is there first, and eager's own bits differ once in some thousand calls.
_UNARY = [
    tf.tanh, tf.nn.softplus, tf.sigmoid, tf.exp, tf.square, tf.nn.relu, tf.math.rsqrt,
    lambda x: x * 1.1 * 2.3, lambda x: x / 3.0, lambda x: tf.pow(x, 2.0), lambda x: x**3,
    lambda x: 1.0 / (tf.abs(x) - -1.5), lambda x: x * 3.0 - x * 5.0,
    lambda x: tf.transpose(tf.transpose(x)), lambda x: tf.reduce_mean(x) - x,
]  # fmt: skip


def random_function(rng, w, inner=()):
    """A function of float32[5, 6] of what Grappler likes to rewrite; it may call others."""
    chosen = [rng.integers(len(_UNARY)) for _ in range(4)]

    @tf.function
    def function(x, b):
        h = x @ w * 0.3 - b
        for number in chosen[:2]:
            h = _UNARY[number](tf.maximum(tf.abs(h), 0.1)) - h
        for called in inner:
            h = called(h * 0.5, b) * called(x, b) - h
        for number in chosen[2:]:
            h = _UNARY[number](tf.maximum(tf.abs(h) * 0.2, 0.1)) - h
        return tf.clip_by_value(h, -3.0, 3.0)

    return function


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_random_functions_have_eagers_bits(seed, depth):
    def make(wrap):
        rng = np.random.default_rng(seed)
        w, draw = weight(), batches()
        functions = [random_function(rng, w)]
        for _ in range(depth):
            functions.append(random_function(rng, w, functions[-1:]))

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(functions[-1](x, x[0]) * 1e-2)
            change = tape.gradient(loss, w)
            w.assign_sub(1e-2 * tf.clip_by_norm(change, 1.0))
            return loss, change

        return Program(lambda: step(draw()), [w])

    (step,) = assert_matches_eager(make, num_steps=8)
    assert step.stats().fallbacks == {}
    assert step.stats().co_executed_steps >= 5
    assert bool(step.stats().imperative_ops) == (depth > 0)


def adding(held):
    """A function whose sum may begin with any of its parts but those that are held elsewhere."""

    @tf.function(autograph=False)
    def function(x):
        parts = [tf.sin(x), tf.cos(x) * 100.0, tf.exp(x) * 1e-2, x, x / 7.0]
        return tf.add_n(parts), [parts[number] for number in held]

    return function


def test_a_sum_begins_with_the_part_that_eagers_does():
    """Which one that is, follows from who holds what, not from the order of the parts alone."""

    def make(wrap):
        draw = batches((5, 7))
        subsets = (itertools.combinations((0, 1, 2, 4), count) for count in range(5))
        functions = [adding(held) for held in itertools.chain(*subsets)]

        @wrap
        def step(x):
            # No one but the function holds the products.
            return [function(x * (1.0 + number)) for number, function in enumerate(functions)]

        return Program(lambda: step(draw()))

    (step,) = assert_matches_eager(make, num_steps=12)
    assert step.stats().co_executed_steps >= 9
    assert_co_executing(step)


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
