"""The fixed text around a random program's statements."""

FRAME = '''"""Program SEED of tests/fuzz."""
import functools
import io
import itertools
import random
import threading

import numpy as np
import tensorflow as tf


class Box:
    """Attributes that steps read and mutate."""

    def __init__(self):
        self.rate = 0.1
        self.count = 0
        self.value = tf.constant(0.3)


class Layer:
    """A layer with a variable, an activation and a count of its calls."""

    def __init__(self, rng, activation):
        self.kernel = tf.Variable(rng.standard_normal((4, 4)).astype(np.float32) * 0.4)
        self.activation = activation
        self.calls = 0

    def __call__(self, h):
        self.calls += 1
        return self.activation(tf.matmul(h, self.kernel))


class Noted:
    """A context manager whose entry and exit are side effects."""

    def __init__(self, log):
        self.log = log

    def __enter__(self):
        self.log.append("enter")
        return self

    def __exit__(self, kind, error, trace):
        self.log.append("exit" if kind is None else f"exit {kind.__name__}")
        return False


class Fault(Exception):
    """The user's own exception."""


def make(wrap):
    rnd = random.Random(SEED)
    rng = np.random.default_rng(SEED)
    data = rng.standard_normal((64, 3, 4)).astype(np.float32)
    w = tf.Variable(rng.standard_normal((4, 4)).astype(np.float32) * 0.4)
    u = tf.Variable(tf.eye(4) * 0.5)
    b = tf.Variable([0.1, -0.2, 0.3, -0.4])
    c = tf.Variable(0.25)
    table = tf.Variable(data[20] * 0.5)
    memory = tf.Variable(tf.zeros([3, 4]))
    count = tf.Variable(0)
    layers = [Layer(rng, tf.tanh), Layer(rng, tf.nn.relu), Layer(rng, tf.identity)]
    generator = tf.random.Generator.from_seed(SEED)
    log, out, box = [], io.StringIO(), Box()
    state = {"turns": 0, "scale": 0.5, "best": tf.constant(0.2), "kept": tf.constant(data[21])}
    history = [tf.constant(0.1), tf.constant(-0.1)]
    variables = [w, u, b, c, table, memory, count, generator.state]
    variables += [layer.kernel for layer in layers]

    <<helpers>>

    @wrap
    def run(x, i):
        nonlocal w, u
        <<body>>

    def step(i):
        out.seek(0)
        out.truncate()
        outcome = run(tf.constant(data[i]), i)
        return outcome, out.getvalue()

    def between(i):
        <<between>>

    return step, variables, log, between
'''
