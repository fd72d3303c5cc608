"""Custom gradients with code of the user's in them always run, whatever that code is wrapped in."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hazards import Counter, assert_like_eager, draw_inputs, make_weight, num_gradients
from test_gradient_closures import library

pytestmark = pytest.mark.timeout(120)


def plain(note):
    @tf.custom_gradient
    def f(x):
        return tf.identity(x), note

    return f


def in_a_lambda(note):
    return tf.custom_gradient(lambda x: (tf.nn.silu(x), lambda upstream: note(upstream)))


def partial(note):
    def take(_, upstream):
        return note(upstream)

    return tf.custom_gradient(lambda x: (tf.identity(x), functools.partial(take, None)))


def wrapped(note):
    """It looks like a function of TensorFlow's: `wraps` copies the module."""
    copied = functools.wraps(tf.nn.relu)(lambda *args: note(*args))
    return tf.custom_gradient(lambda x: (tf.identity(x), copied))


def bound_method(note):
    class Gradient:
        def of(self, upstream):
            return note(upstream)

    return tf.custom_gradient(lambda x: (tf.identity(x), Gradient().of))


def callable_object(note):
    class Gradient:
        def __call__(self, upstream):
            return note(upstream)

    source = """
def f(called):
    @tf.custom_gradient
    def apply(x):
        return tf.identity(x), lambda upstream: called(upstream)
    return apply
"""
    return library(source)(Gradient())


def closed_over_by_the_library(note):
    source = """
def f(called):
    @tf.custom_gradient
    def apply(x):
        return tf.identity(x), lambda upstream: called(upstream)
    return apply
"""
    return library(source)(note)


def default_of_the_librarys(note):
    source = """
def f(called):
    @tf.custom_gradient
    def apply(x):
        return tf.identity(x), lambda upstream, called=called: called(upstream)
    return apply
"""
    return library(source)(note)


def in_a_container_of_the_librarys(note):
    source = """
def f(called):
    @tf.custom_gradient
    def apply(x):
        several = ({'f': [called]},)
        return tf.identity(x), lambda upstream: several[0]['f'][0](upstream)
    return apply
"""
    return library(source)(note)


def within_another(note):
    inner = plain(note)

    @tf.custom_gradient
    def f(x):
        return inner(x), library("def f(upstream): return upstream * 3.0")

    return lambda x: f(x) + inner(x)


def calling_the_library(note):
    @tf.custom_gradient
    def f(x):
        return tf.nn.silu(x), lambda upstream: tf.nn.silu(note(upstream))

    return lambda x: tf.nn.silu(f(tf.nn.silu(x)))


def recomputed(note):
    def f(x):
        return note(tf.sin(x)) * 2.0

    return tf.recompute_grad(f)


def passed_through(note):
    return lambda x: plain(note)(tf.grad_pass_through(lambda y: note(tf.round(y)))(x))


MAKERS = (
    plain, in_a_lambda, partial, wrapped, bound_method, callable_object,
    closed_over_by_the_library, default_of_the_librarys, in_a_container_of_the_librarys,
    within_another, calling_the_library, recomputed, passed_through,
)  # fmt: skip


@pytest.mark.parametrize("make_function", MAKERS, ids=lambda f: f.__name__)
def test_code_of_the_users_always_runs(make_function):
    def make(wrap):
        draw, weight, calls = draw_inputs(), make_weight(), []

        def note(upstream):
            calls.append(len(calls))
            return upstream * (1.0 + 0.125 * (len(calls) % 3))

        function = make_function(note)

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(function(tf.nn.silu(x @ weight)))
            gradient = tape.gradient(loss, weight)
            weight.assign_sub(0.01 * gradient)
            return loss, gradient

        return lambda: (step(draw()), list(calls))

    stats = assert_like_eager(make, 16)
    assert num_gradients(stats) == 0
    assert stats.co_executed_steps > 5


def test_number_of_the_users_that_changes():
    def make(wrap):
        draw, count = draw_inputs(), Counter()

        @tf.custom_gradient
        def scaled(x):
            return tf.identity(x), lambda upstream: upstream * float(count.value)

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = scaled(tf.nn.silu(x))
            return tape.gradient(y, x)

        def call():
            count.advance()
            return step(draw())

        return call

    assert num_gradients(assert_like_eager(make, 16)) == 0


def test_gradient_with_variables():
    def make(wrap):
        draw, weight, other = draw_inputs(), make_weight(), tf.Variable(2.0)

        @tf.custom_gradient
        def scaled(x):
            def gradient(upstream, variables=()):
                return upstream * 2.0, [tf.ones_like(v) * len(variables) for v in variables]

            return x * other, gradient

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(scaled(tf.nn.silu(x @ weight)))
            return tape.gradient(loss, [weight, other]), len(tape.watched_variables())

        return lambda: step(draw())

    assert num_gradients(assert_like_eager(make, 12)) == 0


def test_steps_of_which_only_some_have_one():
    def make(wrap):
        draw, weight, count, calls = draw_inputs(), make_weight(), Counter(), []
        users = plain(lambda upstream: (calls.append(1), upstream * 2.0)[1])

        @wrap
        def step(x, n):
            with tf.GradientTape() as tape:
                hidden = tf.nn.silu(x @ weight)
                if n % 4 == 3:
                    hidden = users(hidden)
                loss = tf.reduce_sum(tf.nn.silu(hidden))
            return tape.gradient(loss, weight)

        return lambda: (step(draw(), count.advance()), len(calls))

    assert num_gradients(assert_like_eager(make, 32)) > 0


def test_grad_pass_through_of_the_users_forward_code_is_replayed_behind_it():
    def make(wrap):
        draw, weight, calls = draw_inputs(), make_weight(), []

        def rounded(x):
            calls.append(1)
            return tf.round(x)

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.grad_pass_through(rounded)(x @ weight))
            return tape.gradient(loss, weight)

        return lambda: (step(draw()), len(calls))

    assert num_gradients(assert_like_eager(make)) > 0


def test_result_of_the_users_that_is_changed_before_the_gradient():
    def make(wrap):
        draw, count, kept = draw_inputs(), Counter(), []

        def pair(x, _):
            kept[:] = [x * 2.0, x * 3.0]
            return kept

        passed = tf.grad_pass_through(pair)

        @wrap
        def step(x, n):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.add_n(passed(x, x))
            if n % 4 == 3:
                kept.append(tf.zeros_like(x))
            try:
                return tape.gradient(y, x)
            except (ValueError, IndexError, TypeError) as error:
                return type(error).__name__

        return lambda: step(draw(), count.advance())

    assert_like_eager(make, 24)


def test_same_steps_with_another_gradient_function_each():
    """Forward they are one, so that only what the tape is handed tells them apart."""
    source = "def f(upstream): return upstream * {}.0"

    def make(wrap):
        draw, rng = draw_inputs(), np.random.default_rng(0)
        gradients = [library(source.format(i)) for i in range(3)]

        @wrap
        def step(x, gradient):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.custom_gradient(lambda x: (tf.identity(x), gradient))(x)
            return tape.gradient(y, x)

        return lambda: step(draw(), gradients[int(rng.integers(3))])

    assert_like_eager(make, 30)
