"""Python and the graph run at the same time, and the stall counters say who waited."""

import time

import numpy as np
import programs
import pytest
import tensorflow as tf

import terra_tf as terra

pytestmark = [pytest.mark.timed, pytest.mark.timeout(90)]

PYTHON_S = 0.030
WIDTH = 384


def multiply(x, num_products):
    for _ in range(num_products):
        x = x @ x * (1.0 / WIDTH)
    return x


def measure_s(call, num_calls=7):
    """Return the median time of a call, in seconds."""
    times = []
    for _ in range(num_calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@pytest.fixture(scope="module")
def num_products():
    """How many products take the graph about as long as Python sleeps."""
    x = tf.random.normal([WIDTH, WIDTH])
    multiply(x, 5)
    return max(2, round(PYTHON_S / measure_s(lambda: multiply(x, 10).numpy()) * 10))


def make_step(num_products, python_s, *, reads_loss):
    x = tf.random.normal([WIDTH, WIDTH])

    @terra.function
    def step(x):
        loss = tf.reduce_sum(multiply(x, num_products))
        time.sleep(python_s)
        return float(loss) if reads_loss else loss

    return step, lambda: step(x + 0.0)


@pytest.mark.parametrize("reads_loss", [True, False], ids=["read_at_end_of_step", "never_read"])
def test_a_step_costs_the_longer_of_python_and_graph(num_products, reads_loss):
    step, call = make_step(num_products, PYTHON_S, reads_loss=reads_loss)
    eager_s = measure_s(lambda: step.python_function(tf.random.normal([WIDTH, WIDTH])))
    programs.warm_up(step, call)
    num_steps = 15
    start = time.perf_counter()
    for _ in range(num_steps):
        call()
    terra.synchronize()
    step_s = (time.perf_counter() - start) / num_steps
    assert step.stats().fallbacks == {}
    assert PYTHON_S * 0.9 < step_s < PYTHON_S * 1.6
    assert step_s < eager_s * 0.85


def stalls_of(step, call, num_steps=10):
    before = programs.warm_up(step, call)
    for _ in range(num_steps):
        call()
    terra.synchronize()
    after = step.stats()
    python_stall_s = (after.python_stall_s - before.python_stall_s) / num_steps
    graph_stall_s = (after.graph_stall_s - before.graph_stall_s) / num_steps
    return python_stall_s, graph_stall_s


def test_graph_waits_where_python_is_slow(num_products):
    step, call = make_step(max(1, num_products // 6), 2 * PYTHON_S, reads_loss=True)
    python_stall_s, graph_stall_s = stalls_of(step, call)
    assert python_stall_s < PYTHON_S / 3
    assert graph_stall_s > PYTHON_S


def test_python_waits_where_the_graph_is_slow(num_products):
    step, call = make_step(2 * num_products, 0.0, reads_loss=True)
    python_stall_s, graph_stall_s = stalls_of(step, call)
    assert python_stall_s > PYTHON_S / 2
    assert graph_stall_s < python_stall_s / 3


def test_python_does_not_run_further_ahead_than_the_knob_says(num_products):
    step, call = make_step(2 * num_products, 0.0, reads_loss=False)
    with terra.config.override(max_inflight_steps=2):
        programs.warm_up(step, call)
        terra.synchronize()
        start = time.perf_counter()
        for _ in range(2):
            call()
        launched_s = time.perf_counter() - start
        for _ in range(8):
            call()
        waited_s = time.perf_counter() - start
        terra.synchronize()
        total_s = time.perf_counter() - start
    assert launched_s < total_s / 4
    assert waited_s > total_s / 2
