"""Programs with loops that a graph rolls into a `While`, or has to leave unrolled.

Each maker returns `step(x, i)`: x is float32[4, 4], i the number of the call.
"""

import random

import numpy as np
import tensorflow as tf

LENGTHS = (7, 8, 5, 8, 2, 7, 4, 6, 3, 8, 0, 5, 1, 8)


def weight():
    return tf.Variable(tf.random.stateless_normal([4, 4], [1, 2]) * 0.3)


def length_of(i):
    return LENGTHS[i % len(LENGTHS)]


# ---- what a trip hands on -------------------------------------------------------------
def make_constant_length():
    w = weight()

    def step(x, i):
        for _ in range(8):
            x = tf.tanh(x @ w + 0.1)
        return x

    return step


def make_varying_length():
    w = weight()

    def step(x, i):
        for _ in range(length_of(i)):
            x = tf.tanh(x @ w + 0.1)
        return x * 2.0

    return step


def make_two_values_handed_on():
    w = weight()

    def step(x, i):
        state, total = tf.zeros([4, 4]), tf.constant(0.0)
        for _ in range(length_of(i)):
            state, x = tf.sigmoid(x @ w) * state, tf.tanh(x + state)
            total += tf.reduce_sum(state)
        return state, total

    return step


def make_while_with_break():
    def step(x, i):
        n = 0
        while n < 9:
            x = x * 0.7
            if float(tf.reduce_sum(tf.abs(x))) < (5.0, 2.0, 3.0, 1.0, 0.5)[i % 5]:
                break
            x = x + 0.01
            n += 1
        return x, n

    return step


# ---- what Python reads, feeds and draws -----------------------------------------------
def make_reads():
    w = weight()

    def step(x, i):
        seen = []
        for _ in range(length_of(i)):
            x = tf.tanh(x @ w + 0.1)
            seen.append(float(tf.reduce_sum(x)))
        return x, seen

    return step


def make_feeds():
    rng = np.random.default_rng(3)

    def step(x, i):
        for _ in range(length_of(i)):
            x = tf.tanh(x + tf.constant(rng.standard_normal([4, 4]), tf.float32))
        return x

    return step


def make_random_numbers():
    def step(x, i):
        for _ in range(length_of(i)):
            x = tf.nn.dropout(x, 0.2) + tf.random.normal([4, 4])
        return x

    return step


def make_constants_of_each_trip():
    w = weight()

    def step(x, i):
        state = tf.zeros([4, 4])
        for t in range(length_of(i)):
            state = tf.tanh(state @ w + x[t % 4] * (t + 1.0))
        return state

    return step


# ---- variables, branches, nests -------------------------------------------------------
def make_variables():
    v, count = tf.Variable(tf.zeros([4, 4])), tf.Variable(0.0)

    def step(x, i):
        for _ in range(length_of(i)):
            v.assign(v * 0.5 + x)
            count.assign_add(1.0)
        return v + count

    return step


def make_chosen_variable():
    """A variable that is another in each call, and that nothing but the loop uses."""
    choices = [weight() for _ in range(4)]
    for number, variable in enumerate(choices):
        variable.assign(variable * (0.5 + number))

    def step(x, i):
        w = choices[i % 4]
        for _ in range(length_of(i)):
            x = tf.tanh(x @ w)
        return x

    return step


def make_loop_in_a_branch():
    w = weight()

    def step(x, i):
        if i % 3:
            for _ in range(length_of(i)):
                x = tf.tanh(x @ w)
        else:
            x = x * 2.0
        for _ in range(length_of(i + 3)):
            x = tf.sin(x + 0.2)
        return x

    return step


def make_generator():
    def states(x, count):
        for _ in range(count):
            x = tf.tanh(x * 1.2)
            yield x

    def step(x, i):
        total = tf.zeros([4, 4])
        for state in states(x, length_of(i)):
            total = total * 0.9 + state
        return total

    return step


def make_branches():
    rnd = random.Random(3)

    def step(x, i):
        for _ in range(6):
            x = tf.tanh(x) + 1.0 if rnd.random() < 0.5 else tf.sin(x)
        return x

    return step


def make_nested():
    w = weight()

    def step(x, i):
        for outer in range(length_of(i)):
            for inner in range(4):
                x = tf.tanh(x @ w) + 0.1 * inner + outer
            x = x * 0.5
        return x

    return step


def make_nested_with_reads():
    def step(x, i):
        seen = []
        for _ in range(length_of(i)):
            for _ in range(1 + i % 4):
                x = tf.tanh(x * 1.1)
                seen.append(float(x[0, 0]))
            x = x - 0.1
        return x, seen

    return step


# ---- what the loop starts with --------------------------------------------------------
def make_start_from_outside():
    """The first trip takes an argument, and there may be no trip."""

    def step(x, i):
        for _ in range(length_of(i)):
            x = tf.tanh(x)
        return x

    return step


def make_start_in_two_branches():
    """Each branch of the first trip takes the argument: only one of them feeds it."""
    rnd = random.Random(5)

    def step(x, i):
        for _ in range(5):
            x = tf.exp(x * 0.1) if rnd.random() < 0.5 else tf.sin(x)
        return x

    return step


def make_callback_in_each_trip():
    """Python runs an op of each trip itself; the first begins an epoch."""
    v = tf.Variable(1.0)

    def step(x, i):
        x = x + v
        v.assign_add(0.5)
        for _ in range(length_of(i)):
            x = tf.py_function(lambda t: t * 0.5, [x], tf.float32)
            x = tf.tanh(x)
        return tf.ensure_shape(x, [4, 4])

    return step


# ---- what stays unrolled --------------------------------------------------------------
def make_kept_values():
    def step(x, i):
        kept = []
        for _ in range(length_of(i)):
            x = tf.tanh(x)
            kept.append(x)
        return tf.add_n([*kept, x])

    return step


def make_growing_value():
    def step(x, i):
        rows = x[:1]
        for t in range(length_of(i)):
            rows = tf.concat([rows, x[t % 4 : t % 4 + 1]], axis=0)
        return rows

    return step


def make_shape_of_each_trip():
    """Which dimension is summed over is a constant of the trip: no static shape in one body."""

    def step(x, i):
        for t in range(length_of(i)):
            x = tf.tanh(x + tf.reduce_sum(x, axis=t % 2))
        return x

    return step


def make_layers():
    layers = [weight() for _ in range(8)]

    def step(x, i):
        for layer in layers[: length_of(i)]:
            x = tf.tanh(x @ layer)
        return x

    return step


def make_constants_of_two_loops():
    """Only the inner loop can be rolled, or only the outer one: a table has one index."""

    def step(x, i):
        for a in range(length_of(i)):
            for b in range(4):
                x = tf.tanh(x * (1.0 + 0.1 * a + 0.01 * b))
            x = x + 1.0
        return x

    return step


def make_value_of_some_trips():
    def step(x, i):
        last = x
        for t in range(length_of(i)):
            y = tf.tanh(last + 1.0)
            if (i + t) % 3 == 0:
                last = tf.sin(y)
            x = x + y
        return x + last

    return step


def make_constant_handed_on():
    def step(x, i):
        added = x
        for _ in range(length_of(i)):
            x = tf.tanh(x) + added
            added = tf.zeros([4, 4])
        return x + added

    return step


def make_count_by_data():
    def step(x, i):
        for _ in range(length_of(i)):
            positive = tf.boolean_mask(x, x > 0.0)
            x = tf.tanh(x) + tf.reduce_sum(positive) + float(len(positive))
        return x

    return step


def make_writes_in_place():
    counts = tf.Variable(tf.zeros([4, 4]))

    def step(x, i):
        for _ in range(length_of(i)):
            x = tf.tanh(x)
            counts.scatter_add(tf.IndexedSlices(x[:1], [1]))
        return x + counts

    return step


def make_divisions_of_integers():
    counts = tf.Variable(tf.fill([4], 1000))

    def step(x, i):
        for _ in range(length_of(i)):
            x = tf.tanh(x)
            counts.scatter_div(tf.IndexedSlices(tf.cast(tf.abs(x[0, :1]), tf.int32) + 1, [1]))
        return x, counts + 0

    return step
