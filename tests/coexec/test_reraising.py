"""Wrappers that annotate an error and raise it again, as libraries have around every call."""

import functools
import itertools

import keras
import pytest
import tensorflow as tf

from terra_tf.testing import Program, assert_co_executing, assert_matches_eager

pytestmark = pytest.mark.timeout(120)
NUM_STEPS = 24
BAD_STEPS = frozenset({9, 10, 17})


class WrappedError(Exception):
    pass


def annotating(log):
    def wrap(function):
        @functools.wraps(function)
        def call(*args):
            try:
                return function(*args)
            except Exception as error:
                log.append(f"in {function.__name__}")
                error.add_note(log[-1])
                raise

        return call

    return wrap


def translating(log):
    def wrap(function):
        @functools.wraps(function)
        def call(*args):
            try:
                return function(*args)
            except tf.errors.OpError as error:
                log.append(type(error).__name__)
                raise WrappedError(f"{function.__name__} has failed") from error
            finally:
                log.append("done")

        return call

    return wrap


def program(step, variables, log):
    numbers = itertools.count()

    def run():
        number = next(numbers)
        index = 99.0 if number in BAD_STEPS else float(number % 8)
        try:
            return step(tf.fill([4], index)), list(log)
        except Exception as error:
            notes = getattr(error, "__notes__", [])
            return type(error).__name__, [n for n in notes if n.startswith("in ")], list(log)
        finally:
            log.clear()

    return Program(run, variables)


def weights():
    return [tf.Variable(0.3 * tf.random.stateless_normal([8, 8], [i, 1])) for i in range(3)]


def make_layers(wrap, around):
    table, ws, log = tf.Variable(tf.random.stateless_normal([8, 8], [7, 7])), weights(), []

    def layer(h, x, w):
        rows = tf.gather(h, tf.cast(x, tf.int32))
        return tf.tanh(rows @ w) + h[:4]

    wrapped = around(log)(layer)

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            h = table + 0.0
            for w in ws:
                h = tf.concat([wrapped(h, x, w), h[4:]], axis=0)
            loss = tf.reduce_mean(h**2)
        for w, g in zip(ws, tape.gradient(loss, ws), strict=True):
            w.assign_sub(0.1 * g)
        return loss

    return program(step, ws, log)


def make_whole_step(wrap, around):
    """The last op in the `try` is a write, which is not done if something before it has failed."""
    ws, log = weights(), []

    def train(x):
        rows = tf.gather(ws[1] * 0.1, tf.cast(x, tf.int32))
        ws[0].assign_add(tf.concat([rows, rows], axis=0))
        ws[2].assign_sub(0.1 * ws[0])

    train = around(log)(train)

    @wrap
    def step(x):
        train(x)
        return tf.reduce_sum(ws[2])

    return program(step, ws, log)


def make_branches_in_the_try(wrap, around):
    ws, log, numbers = weights(), [], itertools.count()

    def work(x):
        number = next(numbers)
        y = tf.gather(ws[0], tf.cast(x, tf.int32))
        if number % 2:
            y = tf.tanh(y)
        if number % 3:
            y = tf.gather(y * 2.0, tf.cast(x * 0.5, tf.int32) % 4)
        return y

    work = around(log)(work)

    @wrap
    def step(x):
        ws[0].assign_add(0.01 * tf.ones([8, 8]))
        return tf.reduce_sum(tf.sin(work(x)))

    return program(step, ws, log)


def make_tries_in_a_try(wrap, around):
    ws, log = weights(), []

    def inner(x, w):
        return tf.gather(w, tf.cast(x, tf.int32))

    def outer(x):
        total = 0.0
        for w in ws:
            total += tf.reduce_sum(around(log)(inner)(x, w))
        return total + tf.reduce_sum(tf.gather(ws[0], tf.cast(x * 0.5, tf.int32)))

    @wrap
    def step(x):
        y = around(log)(outer)(x)
        ws[0].assign_add(0.01 * tf.ones([8, 8]) * y)
        return y

    return program(step, ws, log)


def make_keras_layer_in_a_try(wrap, around):
    log = []
    layer = keras.layers.Dense(4)
    layer.build([None, 8])
    table = weights()[0]

    def call(x):
        return layer(tf.gather(table, tf.cast(x, tf.int32)))

    call = around(log)(call)

    @wrap
    def step(x):
        return tf.reduce_sum(call(x))

    return program(step, [table], log)


MAKES = [
    make_layers,
    make_whole_step,
    make_branches_in_the_try,
    make_tries_in_a_try,
    make_keras_layer_in_a_try,
]


@pytest.mark.parametrize("around", [annotating, translating])
@pytest.mark.parametrize("make", MAKES)
def test_an_error_passes_the_handler(make, around):
    (step,) = assert_matches_eager(lambda wrap: make(wrap, around), num_steps=NUM_STEPS)
    assert step.stats().co_executed_steps > 8


def never_bad(make, around, monkeypatch):
    monkeypatch.setattr(__name__ + ".BAD_STEPS", frozenset())
    (step,) = assert_matches_eager(lambda wrap: make(wrap, around), num_steps=NUM_STEPS)
    return step


@pytest.mark.parametrize("around", [annotating, translating])
@pytest.mark.parametrize("make", MAKES)
def test_what_never_fails_is_run_by_the_graph(make, around, monkeypatch):
    step = never_bad(make, around, monkeypatch)
    assert_co_executing(step)
    assert not step.stats().imperative_ops


def keeping(log):
    """Like `annotating`, but for one number it does not raise again."""

    def wrap(function):
        def call(*args):
            try:
                return function(*args)
            except tf.errors.InvalidArgumentError as error:
                log.append(function.__name__)
                if len(log) > 3:
                    raise
                return tf.zeros([4, 8]) + float(len(str(error)) > 0)

        return call

    return wrap


def test_what_may_be_kept_is_run_by_python(monkeypatch):
    (step,) = assert_matches_eager(lambda wrap: make_layers(wrap, keeping), num_steps=NUM_STEPS)
    assert step.stats().imperative_ops
