"""Whose Python a profile finds in the steps: the program's, a library's, or this package's."""

import json
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime import python_shares

pytestmark = pytest.mark.timeout(120)


def spin(seconds):
    """Keep Python busy; where depends on the frames around it."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(50))


def profile_of(function, tmp_path, num_steps=6, warm_up=8):
    for _ in range(warm_up):
        function()
    with terra.profile(tmp_path / "steps.json") as profile:
        for _ in range(num_steps):
            function()
    assert sum(profile.python_shares.values()) == pytest.approx(1.0)
    return profile


def test_time_in_the_program_is_the_programs(tmp_path):
    x = tf.ones([4])

    @terra.function
    def step():
        spin(0.03)
        return x + 1.0

    profile = profile_of(step, tmp_path)
    assert profile.python_shares["program"] > 0.8
    assert "the program's" in str(profile)
    assert step.stats().python_shares["program"] > 0.8
    assert "% the program's" in str(step.explain())
    assert json.dumps(step.explain().to_dict()["stats"]["python_shares"])


def test_what_numpy_does_is_its_callers(tmp_path):
    values = np.random.default_rng(0).normal(size=[300, 300])

    @terra.function
    def step():
        for _ in range(20):
            np.linalg.norm(np.sort(values, axis=0))
        return tf.constant(1.0) + 1.0

    assert profile_of(step, tmp_path).python_shares["program"] > 0.8


def test_time_of_keras_own_python_is_keras(tmp_path):
    model = keras.Sequential([keras.layers.Dense(4) for _ in range(6)])
    x = tf.ones([2, 4])
    model(x)

    @terra.function
    def step():
        for _ in range(10):
            model.get_config()
        return tf.reduce_sum(x)

    # Of Keras' 0.6, and TensorFlow's tracking 0.4: a hundred steps are some 400 samples.
    shares = profile_of(step, tmp_path, num_steps=100).python_shares
    assert shares["keras"] > shares.get("tensorflow", 0.0)
    assert shares["keras"] > 0.45


def test_time_of_library_calls_moves_to_this_package_with_replay(tmp_path):
    x, weight = tf.ones([4, 4]), tf.Variable(tf.ones([4, 4]))

    def make():
        @terra.function
        def step():
            y = x
            for _ in range(150):
                y = tf.tanh(tf.matmul(y, weight))
            return y

        return step

    replayed = profile_of(make(), tmp_path, num_steps=80).python_shares
    with terra.config.override(replay_calls=False):
        followed = profile_of(make(), tmp_path, num_steps=30).python_shares
    assert replayed["terra_tf"] > followed.get("terra_tf", 0.0)
    assert followed["tensorflow"] > replayed.get("tensorflow", 0.0)


def test_waiting_for_the_graph_is_nobodys(tmp_path):
    x = tf.ones([900, 900]) / 900.0

    @terra.function
    def step():
        y = x
        for _ in range(10):
            y = y @ x
        return float(tf.reduce_sum(y))

    assert profile_of(step, tmp_path).python_shares["waiting"] > 0.5


def test_without_a_profile_there_are_no_shares():
    step = terra.function(lambda: tf.ones([2]) + 1.0)
    step()
    assert step.stats().python_shares == {}
    assert "Whose Python" not in str(step.explain())


def test_profiling_leaves_the_interpreter_as_it_was(tmp_path):
    before = sys.getswitchinterval()
    with terra.profile(tmp_path / "steps.json") as profile:
        assert sys.getswitchinterval() <= before
    assert profile.python_shares == {}
    assert sys.getswitchinterval() == before
    with pytest.raises(ValueError, match="of the program"), terra.profile(tmp_path / "x.json"):
        raise ValueError("of the program")
    assert sys.getswitchinterval() == before


def test_shares_are_described_largest_first():
    shares = {"keras": 0.25, "program": 0.5, "waiting": 0.25}
    assert python_shares.describe(shares).startswith("50 % the program's, ")
    assert python_shares.describe({}) == ""
