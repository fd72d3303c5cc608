"""Functions that are hooked look as before, and hooks come off and on without a trace."""

import inspect
import pickle

import pytest
import tensorflow as tf
from hazards import NUM_STEPS, draw_inputs, make_weight

import terra_tf
from terra_tf.runtime import interception
from terra_tf.runtime.swapped_code import is_swapped

HOOKED = [tf.matmul, tf.nn.relu, tf.reduce_sum, tf.Tensor.__add__, tf.reshape]
HOOKED.append(type(tf.Variable(0.0)).assign)


@pytest.mark.parametrize("function", HOOKED, ids=lambda f: f.__qualname__)
def test_hooked_function_looks_as_before(function):
    terra_tf.function(lambda: tf.zeros([]))()
    with terra_tf.config.override(replay_calls=False):
        terra_tf.function(lambda: tf.zeros([]))()
        code, signature = function.__code__, inspect.signature(function)
        looks = [function.__name__, function.__doc__, function.__module__, function.__defaults__]
        attributes = dict(vars(function))
    terra_tf.function(lambda: tf.zeros([]))()
    assert function.__code__ is not code
    assert inspect.signature(function) == signature
    assert looks == [
        function.__name__, function.__doc__, function.__module__, function.__defaults__
    ]  # fmt: skip
    assert set(vars(function)) - {"__signature__"} == set(attributes) - {"__signature__"}
    if "." not in function.__qualname__:
        assert pickle.loads(pickle.dumps(function)) is function


def test_uninstalling_puts_every_code_back():
    terra_tf.function(lambda: tf.zeros([]))()
    hooked = [function for _, function, _ in interception.functions_of_tensorflow()]
    codes = [function.__code__ for function in hooked]
    interception.uninstall()
    try:
        changed = [function.__code__ is not code for function, code in zip(hooked, codes)]
        assert all(changed) and len(changed) > 400
        assert tf.matmul(tf.eye(2), tf.eye(2)).numpy().tolist() == [[1, 0], [0, 1]]
        assert "__signature__" not in vars(tf.nn.relu)
    finally:
        interception.install()


def test_knob_taken_off_and_put_back_costs_no_divergence():
    weight, draw = make_weight(), draw_inputs()

    @terra_tf.function
    def step(x, is_scaled):
        if is_scaled:  # where ways part, ops are located by the code that runs them
            x = tf.nn.relu(x * 2.0)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.relu(tf.matmul(x, weight) + 1.0) ** 2)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    for number in range(NUM_STEPS):
        step(draw(), number % 2)
    before = step.stats()
    for _ in range(2):
        with terra_tf.config.override(replay_calls=False):
            interception.apply_knobs()
            assert not is_swapped(tf.matmul.__code__)
        for number in range(4):
            step(draw(), number % 2)
    after = step.stats()
    assert after.fallbacks == before.fallbacks
    assert after.graph_builds == before.graph_builds
    assert after.calls_replayed["tf.matmul"] > before.calls_replayed["tf.matmul"]
