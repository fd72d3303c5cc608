"""TensorFlow's functions and operators, replayed: what they can depend on, and how they look."""

import collections
import typing

import numpy as np
import pytest
import tensorflow as tf
from hazards import Counter, assert_like_eager, draw_inputs, make_weight

import terra_tf
from terra_tf.testing import assert_matches_eager

pytestmark = pytest.mark.timeout(120)


# ------------------------------------------------------------------- counters


def test_every_call_of_a_straight_step_is_replayed():
    def make(wrap):
        weight, draw = make_weight(), draw_inputs()

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.relu(tf.matmul(x, weight) + 1.0)[:, 1:] ** 2)
            weight.assign_sub(0.1 * tape.gradient(loss, weight))
            return loss

        return lambda: (step(draw()), weight)

    stats = assert_like_eager(make)
    replayed = stats.co_executed_steps - 1  # the first one is followed op by op
    assert set(stats.calls_replayed) == {
        "tf.matmul", "Tensor.__add__", "tf.nn.relu", "Tensor.__getitem__", "Tensor.__pow__",
        "tf.reduce_mean", "GradientTape.gradient", "Tensor.__rmul__", "Variable.assign_sub",
    }  # fmt: skip
    assert set(stats.calls_replayed.values()) == {replayed}
    # In the step that is followed, the tape holds axes that Python made: the gradient reads them.
    assert set(stats.calls_not_replayed) <= {
        "a gradient function: its Python reads a tensor from outside"
    }


def test_one_call_of_a_line_goes_on_to_another_node_for_each_tensor():
    """In optional blocks of one line, all that tells the blocks apart is the tensor they use."""
    num_blocks, num_steps = 3, 96
    functions = []

    def make(wrap):
        variables = [tf.Variable(tf.zeros([3])) for _ in range(num_blocks)]
        rng = np.random.default_rng(0)
        choices = iter(rng.integers(2, size=(num_steps, num_blocks)).astype(bool).tolist())

        @wrap
        def step(x, taken):
            made = [tf.tanh(x), tf.sin(x), tf.exp(x)]
            for variable, value, is_taken in zip(variables, made, taken):
                if is_taken:
                    variable.assign_add(0.5 * value)
            return tf.reduce_sum(x)

        functions.append(step)
        return lambda: (step(tf.constant([1.0, 2.0, 3.0]), tuple(next(choices))), *variables)

    assert_matches_eager(make, num_steps)
    (stats,) = (f.stats() for f in functions if hasattr(f, "stats"))
    taken = np.random.default_rng(0).integers(2, size=(num_steps, num_blocks))
    num_ways_to_a_block = 1 + 2 + 3  # each is followed op by op once
    not_co_executed = taken[: num_steps - stats.co_executed_steps].sum()
    expected = taken.sum() - not_co_executed - num_ways_to_a_block
    assert stats.calls_replayed["Tensor.__rmul__"] >= expected - num_blocks


def test_replays_on_random_paths():
    """The place in the graph is part of what a call is known by, not the path to it."""

    def make(wrap):
        rng, draw, weight = np.random.default_rng(3), draw_inputs(), make_weight()

        @wrap
        def step(x, choices):
            for choice in choices:
                x = tf.nn.relu(x) if choice else tf.tanh(x + 1.0)
            return tf.reduce_sum(x @ weight)

        return lambda: step(draw(), [bool(b) for b in rng.integers(0, 2, [5])])

    stats = assert_like_eager(make, 60)
    assert stats.calls_replayed["tf.reduce_sum"] > 20
    assert stats.calls_replayed["tf.nn.relu"] > 30


# ------------------------------------------------------------------- arguments

ARGUMENTS = {
    "an int and a float": (lambda x, v: tf.multiply(x, v), [2, 2.0, 3, True]),
    "True and 1": (lambda x, v: tf.reduce_sum(x, axis=0, keepdims=v), [True, False, 1]),
    "0.0 and -0.0": (lambda x, v: 1.0 / (x * 0.0 + v), [0.0, -0.0]),
    "-1 and -2": (lambda x, v: x * v, [-1, -2, np.float32(-1), np.float64(-2), np.int32(-1)]),
    "NumPy's types": (lambda x, v: tf.cast(x, v), [np.float32, np.float64, tf.float64, "float32"]),
    "a list that changes": (lambda x, v: tf.reshape(x, v), [[2, -1], [-1], [4, 2], (8, 1)]),
    "slices": (
        lambda x, v: x[v],
        [slice(0, 1), slice(None), 0, (slice(None), 1), (..., None), (0, slice(None, None, 2))],
    ),
    "names": (lambda x, v: tf.add(x, 1.0, name=v), ["a", "b", None]),
    "no tensor at all": (lambda x, v: x + tf.zeros(v), [[4], [2, 4], [1]]),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_argument_that_changes(what):
    function, values = ARGUMENTS[what]

    def make(wrap):
        count, x = Counter(), tf.reshape(tf.range(8.0), [2, 4])
        step = wrap(lambda x, v: function(x + 1.0, v))
        return lambda: step(x, values[count.advance() // 3 % len(values)])

    assert_like_eager(make, 9 * len(values))


def test_list_that_is_changed_in_place():
    def make(wrap):
        shape, count = [2, 4], Counter()
        step = wrap(lambda x: tf.reshape(x * 2.0, shape))

        def call():
            shape[:] = [2, 4] if count.advance() % 4 else [4, 2]
            return step(tf.range(8.0))

        return call

    assert_like_eager(make, 20)


def test_same_tensor_twice_is_another_call():
    def make(wrap):
        draw, count = draw_inputs(), Counter()

        @wrap
        def step(x, y, same):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch([x, y])
                z = tf.multiply(x, x if same else y)
            return z, tape.gradient(z, x), tape.gradient(z, y)

        return lambda: step(draw(), draw(), count.advance() % 3 == 0)

    assert_like_eager(make, 24)


def test_value_that_the_function_itself_reads():
    def make(wrap):
        count = Counter()
        step = wrap(lambda x, n: tf.reduce_sum(tf.one_hot(tf.argmax(x), n) * float(n)))
        return lambda: step(tf.range(3.0), 3 + count.advance() // 4 % 2)

    assert_like_eager(make, 24)


def test_tensor_that_says_a_shape():
    def make(wrap):
        shapes, count = [tf.constant([2, 4]), tf.constant([4, 2])], Counter()
        step = wrap(lambda x, shape: tf.reshape(x, shape) + 1.0)
        return lambda: step(tf.range(8.0), shapes[count.advance() // 3 % 2])

    assert_like_eager(make, 18)


# ---------------------------------------------------------------- tapes, state


def test_what_tapes_watch():
    def make(wrap):
        a, b, draw, count = make_weight(), make_weight(), draw_inputs(), Counter()

        @wrap
        def step(x, stop, watch):
            with tf.GradientTape(watch_accessed_variables=watch) as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    y = tf.matmul(x, a)
                    if stop:
                        with inner.stop_recording():
                            y = y + tf.matmul(x, b)
                    y = tf.reduce_sum(tf.stop_gradient(y) * tf.sin(y))
                seen = [v is a for v in inner.watched_variables()]
                slope = inner.gradient(y, a)
            return y, slope, outer.gradient(slope, x), seen, len(outer.watched_variables())

        return lambda: step(draw(), count.advance() % 3 == 0, count.value % 5 < 3)

    assert_like_eager(make, 30)


def test_variable_that_becomes_trainable():
    def make(wrap):
        weight, draw, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(tf.matmul(x, weight))
            return y, len(tape.watched_variables()), tape.gradient(y, weight) is None

        def call():
            weight._trainable = count.advance() % 4 < 2
            return step(draw())

        return call

    assert_like_eager(make, 24)


def test_custom_gradients_inside_and_outside_of_functions():
    def make(wrap):
        draw, calls = draw_inputs(), []

        @tf.custom_gradient
        def clipped(x):
            calls.append("forward")

            def gradient(dy):
                calls.append("backward")
                return tf.clip_by_value(dy, -0.1, 0.1)

            return tf.identity(x), gradient

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(tf.nn.silu(clipped(x) * 3.0))
            return y, tape.gradient(y, x), len(calls)

        return lambda: step(draw())

    assert_like_eager(make)


def test_what_an_assignment_returns_is_the_variable_read_later():
    def make(wrap):
        weight, draw = make_weight(), draw_inputs()

        @wrap
        def step(x):
            after = weight.assign_add(tf.ones_like(weight))
            weight.assign_add(tf.ones_like(weight))
            return tf.reduce_sum(after + 1.0), after.trainable, type(after).__name__, after.shape

        return lambda: (step(draw()), weight)

    assert_like_eager(make)


def test_python_state_on_a_tensor():
    def make(wrap):
        draw, count = draw_inputs(), Counter()

        @wrap
        def step(x, mark):
            y = tf.nn.relu(x)
            if mark:
                y.mark = mark
            z = tf.identity(y) + 1.0
            return z, getattr(y, "mark", None), hasattr(z, "mark")

        return lambda: step(draw(), count.advance() % 3)

    assert_like_eager(make, 18)


# ---------------------------------------------------------- gradient functions


def random_branches(wrap, num_choices=7, order=1):
    rng, draw = np.random.default_rng(5), draw_inputs()
    weights = [make_weight() for _ in range(3)]

    def differentiate(x, choices, order):
        with tf.GradientTape() as tape:
            h = x
            for number, choice in enumerate(choices):
                h = tf.tanh(h @ weights[number % 3]) if choice else tf.nn.relu(h) * 0.5 + h
            loss = tf.reduce_mean(h * h)
            if order > 1:
                gradients = differentiate(x, choices, order - 1)[1]
                loss += sum(tf.reduce_sum(g * g) for g in gradients)
        return loss, tape.gradient(
            loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    @wrap
    def step(x, choices):
        loss, gradients = differentiate(x, choices, order)
        for weight, gradient in zip(weights, gradients):
            weight.assign_sub(0.01 * gradient)
        return loss, gradients

    def run():
        choices = [bool(b) for b in rng.integers(0, 2, [num_choices])]
        return step(draw(), choices), weights

    return run


def test_gradient_functions_are_replayed_where_the_history_is_new():
    stats = assert_like_eager(random_branches, 60)
    assert stats.calls_replayed["a gradient function"] > 200
    assert stats.calls_replayed["a sum of gradients"] > 20


def test_second_order_gradients_on_random_paths():
    assert_like_eager(lambda wrap: random_branches(wrap, 3, order=2), 40)


def test_gradients_of_gathers_on_random_paths():
    def make(wrap):
        rng, table = np.random.default_rng(5), make_weight()

        @wrap
        def step(rows, twice):
            with tf.GradientTape() as tape:
                y = tf.gather(table, rows)
                if twice:
                    y = y * tf.gather(table, rows + 1)
                loss = tf.reduce_sum(y)
            gradient = tape.gradient(loss, table)
            return tf.convert_to_tensor(gradient), isinstance(gradient, tf.IndexedSlices)

        return lambda: step(tf.constant(rng.integers(0, 7, [3])), bool(rng.integers(0, 2)))

    assert_like_eager(make, 30)


# ------------------------------------------------------------------- functions


def test_functions_that_build_graphs_within_a_step():
    def make(wrap):
        draw, weight = draw_inputs(), make_weight()

        @wrap
        def step(x):
            inner = tf.function(lambda y: tf.nn.relu(tf.matmul(y, weight)) + 1.0)
            rows = tf.map_fn(lambda row: tf.tanh(row) * 2.0, x)
            return inner(tf.nn.relu(x)), tf.nn.relu(rows)

        return lambda: step(draw())

    assert_like_eager(make, 12)


def test_errors_that_functions_raise_are_eagers():
    def make(wrap):
        draw, count = draw_inputs(), Counter()

        @wrap
        def step(x, bad):
            try:
                return tf.matmul(x, tf.nn.relu(x) if bad else tf.transpose(x))
            except (ValueError, tf.errors.InvalidArgumentError) as error:
                return type(error).__name__

        return lambda: step(draw(), count.advance() % 4 == 3)

    assert_like_eager(make, 16)


class Masked(tf.experimental.ExtensionType):
    values: tf.Tensor


def test_functions_that_the_program_dispatches_to_its_own_run():
    seen = []

    @tf.experimental.dispatch_for_api(tf.math.cumsum, {"x": Masked})
    def own(x, axis=0, exclusive=False, reverse=False, name=None):
        seen.append(1)
        return x.values * 10.0

    step = terra_tf.function(lambda x: tf.math.cumsum(Masked(x)) + tf.math.cumsum(x))
    try:
        for _ in range(6):
            assert step(tf.ones([3])).numpy().tolist() == [11.0, 12.0, 13.0]
        assert len(seen) == 6
    finally:
        tf.experimental.unregister_dispatch_for(own)
    why = "argument of another kind"
    assert any("cumsum" in call and why in call for call in step.stats().calls_not_replayed)


# ------------------------------------------- marks of zeros, numbers in lists


def test_zeros_keep_their_mark():
    """Gradient functions of losses look for TensorFlow's mark of tensors that are all zero."""

    def make(wrap):
        draw, weight = draw_inputs(), make_weight()

        @wrap
        def step(x):
            zeros = tf.zeros_like(x)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.tanh(x @ weight) * zeros + x @ weight)
            weight.assign_sub(0.1 * tape.gradient(loss, weight))
            return zeros, zeros._is_zeros_tensor, tf.zeros_like(zeros)

        return lambda: (step(draw()), weight)

    stats = assert_like_eager(make)
    assert stats.calls_replayed["tf.zeros_like"] >= 2 * (stats.co_executed_steps - 2)
    assert not any("attributes" in call for call in stats.calls_not_replayed)


def test_other_attributes_of_tensors_are_not_lost():
    def make(wrap):
        draw = draw_inputs()

        @wrap
        def step(x):
            x.owner = "user"
            return tf.nn.relu(x), x.owner

        return lambda: step(draw())

    stats = assert_like_eager(make)
    assert stats.calls_not_replayed["tf.nn.relu: a tensor with attributes"] > 4


class Pair(typing.NamedTuple):
    left: tf.Tensor
    right: tf.Tensor


class Noted(collections.namedtuple("Noted", ["left", "right"])):
    """Its instances can have attributes, which a replay would not know."""


def test_named_tuples_are_made_anew():
    def make(wrap):
        draw = draw_inputs()
        pair = terra_tf.pure(lambda x: Pair(tf.sin(x), tf.cos(x)))
        noted = terra_tf.pure(lambda x: Noted(tf.sin(x), tf.cos(x)))

        @wrap
        def step(x):
            best, q = tf.math.top_k(x, 2), tf.linalg.qr(x)
            found = tf.unique_with_counts(tf.cast(tf.reshape(x, [-1]) * 3.0, tf.int32))
            results = best, q, found, pair(x), noted(x)
            names = [(type(result).__name__, result._fields) for result in results]
            return names, best.values, best.indices, q.q, found.count, *pair(x), noted(x).right

        return lambda: step(draw())

    stats = assert_like_eager(make)
    expected = stats.co_executed_steps - 1
    for name in ("tf.math.top_k", "tf.linalg.qr", "tf.unique_with_counts"):
        assert stats.calls_replayed[name] == expected, stats.calls_not_replayed
    reasons = {text.partition(": ")[2] for text in stats.calls_not_replayed}
    assert reasons == {"it returns a Noted"}


def test_numbers_in_lists_are_part_of_the_key():
    """The words are tensors that are made inside of the call, and others in every call."""

    def make(wrap):
        rng, table = np.random.default_rng(5), make_weight()

        @wrap
        def step(words):
            with tf.GradientTape() as tape:
                loss = sum(tf.reduce_sum(tf.nn.embedding_lookup(table, [w])) for w in words)
            gradient = tf.convert_to_tensor(tape.gradient(loss, table))
            table.assign_sub(0.1 * gradient)
            return loss, gradient

        return lambda: (step([int(word) for word in rng.integers(0, 4, [3])]), table)

    stats = assert_like_eager(make, 40)
    assert stats.calls_replayed["tf.nn.embedding_lookup"] > 40
