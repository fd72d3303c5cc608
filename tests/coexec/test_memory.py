"""Co-execution holds on to nothing: not to steps, not to functions that are gone."""

import contextlib
import gc
import os

import numpy as np
import programs
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import terra_tf as terra
from terra_tf.testing import assert_co_executing

pytestmark = pytest.mark.timeout(300)

MAX_GROWTH_BYTES = 20 * 2**20
NUM_SETTLING_STEPS = 300
NUM_STEPS = 2000


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_train():
    rng = np.random.default_rng(0)
    weights = [tf.Variable(programs.normal(rng, 64, 64)) for _ in range(3)]

    @terra.function
    def train(x):
        with tf.GradientTape() as tape:
            hidden = x
            for weight in weights:
                hidden = tf.tanh(hidden @ weight)
            loss = tf.reduce_mean(hidden**2)
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.01 * gradient)
        return loss

    return train, lambda: train(tf.constant(programs.normal(rng, 64, 64)))


def measure_growth(call, num_steps):
    for _ in range(NUM_SETTLING_STEPS):
        call()
    terra.synchronize()
    gc.collect()
    before = resident_bytes()
    for _ in range(num_steps):
        call()
    terra.synchronize()
    gc.collect()
    return resident_bytes() - before


def test_two_thousand_co_executed_steps_keep_no_memory():
    train, call = make_train()
    before = programs.warm_up(train, call)
    growth = measure_growth(call, NUM_STEPS)
    assert_co_executing(train, after=before)
    assert growth < MAX_GROWTH_BYTES, f"{growth / 2**20:.1f} MiB"


def test_steps_that_diverge_keep_no_memory():
    weight = tf.Variable(tf.eye(64))
    count = iter(range(10**9))

    @terra.function
    def train(x):
        weight.assign(weight * 0.9 + x)
        if next(count) % 10 == 9:
            return float(weight[0, 0])
        return tf.reduce_sum(weight)

    growth = measure_growth(lambda: train(tf.ones([64, 64])), 700)
    assert train.stats().steps == NUM_SETTLING_STEPS + 700
    assert growth < MAX_GROWTH_BYTES, f"{growth / 2**20:.1f} MiB"


def test_steps_that_raise_keep_no_memory():
    table, count = tf.Variable(tf.ones([1000, 64])), iter(range(10**9))

    @terra.function
    def lookup(index):
        rows = tf.gather(table, index)
        table.assign(table * 0.999)
        if next(count) % 10 == 9:
            raise KeyError
        return tf.reduce_sum(rows)

    def call():
        with contextlib.suppress(KeyError):
            lookup(tf.constant([3, 4]))

    growth = measure_growth(call, 500)
    assert growth < MAX_GROWTH_BYTES, f"{growth / 2**20:.1f} MiB"


def make_run_and_drop(index):
    """Let a function co-execute and forget it; return the type of its TraceGraph."""
    weight = tf.Variable(float(index))

    @terra.function
    def train(x):
        weight.assign(weight * 0.5 + x)
        return weight * x

    for _ in range(4):
        train(tf.constant(1.0))
    assert train.stats().phase == "co-execution"
    return type(train.trace_graph)


def count_live(*types):
    gc.collect()
    return sum(isinstance(thing, types) for thing in gc.get_objects())


def count_live_graphs():
    return count_live(tf.Graph), len(context.context().list_function_names())


def test_two_hundred_functions_created_run_and_dropped_leave_nothing():
    trace_graph_type = make_run_and_drop(0)
    terra.synchronize()
    num_trace_graphs = count_live(trace_graph_type)
    num_graphs, num_functions = count_live_graphs()
    for index in range(200):
        make_run_and_drop(index)
    terra.synchronize()
    assert count_live(trace_graph_type) <= num_trace_graphs
    graphs_after, functions_after = count_live_graphs()
    assert graphs_after <= num_graphs
    assert functions_after <= num_functions + 2


def test_dropped_function_frees_the_variables_it_closed_over():
    def run():
        weight = tf.Variable(tf.ones([4]))
        train = terra.function(lambda: weight.assign(weight * 0.5))
        for _ in range(4):
            train()
        assert train.stats().phase == "co-execution"

    run()
    terra.synchronize()
    before = count_live(tf.Variable)
    for _ in range(5):
        run()
    terra.synchronize()
    assert count_live(tf.Variable) <= before
