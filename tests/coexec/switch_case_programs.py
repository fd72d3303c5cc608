"""Small programs with branches, for `test_switch_cases`: each is a few lines that do one thing.

A *body* is one call of a decorated function: `body(x, case, s)`. `x` is float32[3] and another
one in each call, `case` the number of the way to take, `s` the state that is left to later calls:
variables `s.w`, `s.v` (float32[4, 3]) and `s.u` (float32[3]), a list `s.log`, and `s.calls`. What
a body returns has its Python side effects in it. `make_of(body)` makes a program of it.
"""

import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from terra_tf.testing import Program


class Body(NamedTuple):
    """A body and what is to be expected of it.

    num_cases: how many ways it has.
    num_rounds: how many calls of each it takes to know them all.
    is_branch: whether they are different ops, or only different inputs.
    settles: not where an op raises in some of the calls: those leave the graph.
    """

    run: Callable
    num_cases: int = 2
    num_rounds: int = 5
    is_branch: bool = True
    settles: bool = True


BODIES: dict[str, Body] = {}


def body(*args, **kwargs):
    """Register a body by its function's name; see `Body` for the arguments."""

    def register(function):
        BODIES[function.__name__] = Body(function, *args, **kwargs)
        return function

    return register


def make_of(run, as_numpy=False):
    """Return a `make(wrap)` whose program's step takes the case."""

    def make(wrap):
        rng = np.random.default_rng(3)
        s = types.SimpleNamespace(
            w=tf.Variable(rng.standard_normal([4, 3]).astype(np.float32)),
            v=tf.Variable(rng.standard_normal([4, 3]).astype(np.float32)),
            u=tf.Variable(rng.standard_normal([3]).astype(np.float32)),
            log=[],
            kept=[],
            calls=0,
        )

        @wrap
        def call(x, case):
            return run(x, case, s)

        def step(case):
            s.calls += 1
            x = rng.standard_normal([3]).astype(np.float32)
            return call(x if as_numpy else tf.constant(x), case), list(s.log[-3:])

        return Program(step, [s.w, s.v, s.u])

    return make


# ------------------------------------------------------------------------ places


@body()
def if_else(x, case, s):
    y = x * 2.0 if case else tf.tanh(x)
    return y + 1.0


@body()
def if_else_by_value(x, case, s):
    y = tf.abs(x) * (1.0 if case else -1.0)
    if tf.reduce_sum(y) > 0:
        y = tf.tanh(y) + 1.0
        s.log.append("positive")
    else:
        y = tf.exp(y)
    return tf.reduce_sum(y * x)


@body(3)
def three_ways(x, case, s):
    if case == 0:
        y = x + 1.0
    elif case == 1:
        y = tf.tanh(x) * tf.exp(x)
    else:
        y = x - x[0]
    return y * 2.0


@body()
def optional_at_start(x, case, s):
    if case:
        x = tf.tanh(x)
    return x * 2.0


@body()
def optional_at_end(x, case, s):
    y = x * 2.0
    if case:
        y = tf.tanh(y)
    return y


@body()
def nothing_but_optional(x, case, s):
    if case:
        return tf.tanh(x)
    return x


@body(8, 4)
def adjacent(x, case, s):
    if case & 1:
        x = tf.tanh(x)
    if case & 2:
        x = x * 2.0
    if case & 4:
        x = tf.exp(x)
    return x


@body(4)
def adjacent_with_ops_between(x, case, s):
    if case & 1:
        x = tf.tanh(x)
    x = x + s.u
    if case & 2:
        x = x * 2.0
    return tf.reduce_sum(x)


@body(5)
def nested(x, case, s):
    y = x + 1.0
    if case:
        y = tf.tanh(y)
        if case > 1:
            y = y * 2.0
            y = tf.exp(y) if case > 2 else y - x
        if case == 4:
            y = tf.sin(y)
        y = y + x
    return y


@body(3)
def early_return(x, case, s):
    y = x * 2.0
    if case == 0:
        return y
    s.u.assign(y)
    if case == 1:
        return tf.tanh(y), "second"
    return s.u + 1.0, "third"


@body(4)
def loop_of_any_length(x, case, s):
    for i in range(case):
        x = tf.tanh(x) + float(i)
        s.log.append(i)
    return x * 2.0


@body()
def under_a_tape(x, case, s):
    with tf.GradientTape() as tape:
        h = s.w * x
        h = tf.tanh(h) if case else tf.sin(h) + 1.0
        loss = tf.reduce_sum(h * h)
    gradient = tape.gradient(loss, s.w)
    s.w.assign_sub(0.1 * gradient)
    return loss


@body()
def another_optimizer_step(x, case, s):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((s.w * x) ** 2) + tf.reduce_sum(s.u * x)
    dw, du = tape.gradient(loss, [s.w, s.u])
    if case:
        s.w.assign_sub(0.1 * dw)
    else:
        s.u.assign_sub(0.1 * du)
    return loss


# ------------------------------------------------------------------------- reads


@body()
def read_before(x, case, s):
    y = tf.tanh(x)
    s.log.append(float(y[0]))
    if case:
        y = y * 2.0
    return y


@body()
def read_after(x, case, s):
    y = tf.tanh(x)
    if case:
        y = y * 2.0
    s.log.append(y.numpy().tolist())
    return y + 1.0


@body()
def read_after_what_was_made_before(x, case, s):
    y, z = tf.tanh(x), x
    if case:
        z = z * 2.0
    s.log.append(y.numpy().tolist())
    return z + y


@body()
def read_inside(x, case, s):
    y = tf.tanh(x)
    if case:
        y = y * 2.0
        s.log.append(y.numpy().tolist())
        y = y + 1.0
    return y * x


@body()
def read_inside_what_was_made_before(x, case, s):
    y, z = tf.tanh(x), tf.exp(x)
    if case:
        z = z * 2.0
        s.log.append(y.numpy().tolist())
        z = z + float(y[0])
    return z


@body()
def read_first_in_the_branch(x, case, s):
    y = tf.tanh(x)
    if case:
        s.log.append(y.numpy().tolist())
        y = y * 2.0
    return y


@body(4)
def decision_by_decision(x, case, s):
    y = tf.tanh(x) * 0.0 + float(case % 2)
    if float(y[0]) > 0.5:
        y = tf.exp(y)
        if case > 1 and float(y[1]) > 2.0:
            y = y + 3.0
        s.log.append(float(y[2]))
    if float(y[0]) > 5.0:
        y = y - 1.0
    return y


# ------------------------------------------------------------------- exceptions


@body()
def raised_inside_and_caught(x, case, s):
    try:
        y = x * 2.0
        if case:
            y = tf.tanh(y)
            raise ValueError("inside")
        z = tf.exp(y)
    except ValueError as error:
        s.log.append(str(error))
        z = y + 1.0
    return z * x


@body(settles=False)
def failed_op_inside_and_caught(x, case, s):
    y = x * 2.0
    if case:
        try:
            s.u.assign_add(x)
            bad = tf.debugging.check_numerics(y / (y - y), "bad")
            s.log.append(bad.numpy().tolist())
        except tf.errors.InvalidArgumentError as error:
            s.log.append(type(error).__name__)
            y = tf.tanh(y)
    return y + s.u


@body(settles=False)
def wrong_index_inside_and_caught(x, case, s):
    index = tf.cast(tf.reduce_sum(x * 0.0), tf.int32) + (9 if case else 1)
    if case:
        try:
            s.log.append(tf.gather(s.u, index).numpy().tolist())
        except tf.errors.InvalidArgumentError:
            s.log.append("no such element")
    else:
        s.log.append(tf.gather(s.u, index).numpy().tolist())
    return x + 1.0


# -------------------------------------------------------------- imperative, random


@body()
def py_function_inside(x, case, s):
    y = tf.tanh(x)
    if case:
        (y,) = tf.py_function(lambda t: [s.log.append(float(t[0])) or t * 2.0], [y], [tf.float32])
    return y + 1.0


@body()
def numpy_function_inside(x, case, s):
    y = tf.tanh(x)
    if case:
        y = tf.numpy_function(lambda t: t + np.float32(1.0), [y * 2.0], tf.float32)
    return tf.reduce_sum(y * x)


@body()
def py_function_sees_variables(x, case, s):
    s.u.assign_add(x)
    if case:
        tf.py_function(lambda: s.log.append(s.u.numpy().tolist()), [], [])
        s.u.assign(s.u * 0.5)
    return s.u + 0.0


@body()
def py_function_writes_variables(x, case, s):
    y = s.u * 2.0
    if case:
        tf.py_function(lambda t: s.u.assign(t).numpy(), [y + x], [tf.float32])
        y = s.u + 1.0
    return y + s.u


@body()
def unseeded_shuffle_inside(x, case, s):
    y = tf.tanh(x)
    if case:
        y = tf.random.shuffle(y)
    return y * 2.0


@body(4)
def random_inside(x, case, s):
    y = x
    if case & 1:
        y = y + tf.random.normal([3])
    y = y * tf.random.uniform([3])
    if case & 2:
        y = tf.nn.dropout(y, 0.5)
    return y


@body()
def random_with_op_seed_inside(x, case, s):
    y = x
    if case:
        y = y + tf.random.normal([3], seed=7)
    return y * 2.0


@body()
def random_as_wide_as_the_data(x, case, s):
    if case:
        x = tf.concat([x, x], 0)
        x = x + tf.random.uniform(tf.shape(x))
    return tf.reduce_sum(x)


# ----------------------------------------------------------------------- epochs


@body()
def scatter_and_read_inside(x, case, s):
    y = x
    if case:
        s.w.scatter_add(tf.IndexedSlices(tf.stack([x, x]), [1, 2]))
        y = s.w[1] + s.w[2]
        s.w.scatter_sub(tf.IndexedSlices(y[tf.newaxis], [0]))
    return y + s.w[0]


@body()
def scatter_inside_read_after(x, case, s):
    if case:
        s.w.scatter_add(tf.IndexedSlices(x[tf.newaxis], [1]))
    y = s.w[1] * 2.0
    s.log.append(float(y[0]))
    return y


@body(3)
def other_scatters_on_each_way(x, case, s):
    if case == 0:
        s.w.scatter_add(tf.IndexedSlices(x[tf.newaxis], [1]))
        s.v.scatter_sub(tf.IndexedSlices(x[tf.newaxis], [3]))
    elif case == 1:
        s.w.scatter_update(tf.IndexedSlices(x[tf.newaxis], [2]))
    s.u.assign_add(x)
    return x + 1.0


@body()
def scatter_at_computed_indices(x, case, s):
    index = tf.argmax(x, output_type=tf.int32)[tf.newaxis]
    if case:
        s.w.scatter_add(tf.IndexedSlices(x[tf.newaxis], index))
    return x * 2.0


@body()
def gather_inside(x, case, s):
    index = tf.argmax(x, output_type=tf.int32)
    if case:
        s.w.assign_add(s.w * 0.1)
        return tf.gather(s.w, index)
    return tf.gather(s.v, index) + tf.gather(s.w, index)
