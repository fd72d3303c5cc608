"""`tf.config.experimental.enable_op_determinism` does under Terra what it does eagerly.

It changes which ops TensorFlow's functions run (losses are made of others), with which kernels, and
what is an error; and a program may call it at any time.
"""

import importlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

import terra_tf as terra
from terra_tf.testing import assert_matches_eager
from tests.coexec.programs import normal

pytestmark = pytest.mark.timeout(240)

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _determinism_is_off_afterwards():
    yield
    tf_config.disable_op_determinism()


def switch(is_on):
    if is_on:
        tf.config.experimental.enable_op_determinism()
    else:
        tf_config.disable_op_determinism()


def make_classifier(switches_before, switches_within, wrap):
    """Make a program whose losses are of other ops with determinism, and that switches it.

    Args:
      switches_before: call -> whether determinism is on from before that call.
      switches_within: the same, from the middle of that call.
    """
    switch(False)
    rng = np.random.default_rng(0)
    weight = tf.Variable(normal(rng, 7, 33, scale=1.0))
    calls = iter(range(1, 1000))

    def loss_of(x, labels):
        logits = tf.matmul(x, weight)
        sparse = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        dense = tf.nn.softmax_cross_entropy_with_logits(tf.one_hot(labels, 33), logits)
        return tf.reduce_mean(sparse) + tf.reduce_mean(dense)

    @wrap
    def step(x, labels, call):
        with tf.GradientTape() as tape:
            loss = loss_of(x, labels)
            if call in switches_within:
                switch(switches_within[call])
            loss += loss_of(x * 0.5, labels)
        weight.assign_sub(0.3 * tape.gradient(loss, weight))
        return loss, tf.random.uniform([3]), tf.nn.dropout(x, 0.5)

    def run():
        call = next(calls)
        if call in switches_before:
            switch(switches_before[call])
        x = tf.constant(normal(rng, 9, 7, scale=1.0))
        return step(x, tf.constant(rng.integers(0, 33, 9)), call), weight

    return run


SWITCHES = {
    "never": ({}, {}),
    "before the first call": ({1: True}, {}),
    "after the first call": ({2: True}, {}),
    "in co-execution": ({10: True}, {}),
    "to and fro": ({10: True, 18: False, 20: True, 21: False, 24: True}, {}),
    "within a call": ({}, {10: True}),
    "within calls": ({}, {10: True, 16: False, 17: True, 18: False, 23: True, 24: False}),
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_bits_are_eagers_whenever_it_is_switched_on(switches):
    (function,) = assert_matches_eager(lambda wrap: make_classifier(*switches, wrap), 30)
    stats = function.stats()
    assert stats.co_executed_steps >= 20, function.explain()
    assert sum(stats.calls_replayed.values()) > 100


def test_each_setting_has_a_graph_of_its_own():
    switches = {10: True, 18: False, 24: True}
    (function,) = assert_matches_eager(lambda wrap: make_classifier(switches, {}, wrap), 30)
    stats = function.stats()
    assert stats.fallbacks == {}
    assert stats.traced_steps == 4 and stats.co_executed_steps == 26


# ---------------------------------------------------------------------- errors


def without_seed():
    return tf.shape(tf.random.uniform([3]))


def without_seed_raw():
    return tf.shape(tf.raw_ops.RandomUniform(shape=[4], dtype=tf.float32, seed=0, seed2=0))


def generator():
    return tf.shape(tf.random.Generator.from_non_deterministic_state().uniform([3]))


def timestamp():
    return tf.shape(tf.timestamp())


def boxes():
    corners = tf.constant([[[0.1, 0.1, 0.8, 0.8]]])
    found = tf.image.sample_distorted_bounding_box([9, 9, 3], corners, min_object_covered=0.1)
    return tf.shape(found[0])


def crops():
    image = tf.reshape(tf.range(48.0), [1, 4, 4, 3])
    with tf.GradientTape() as tape:
        tape.watch(image)
        cut = tf.image.crop_and_resize(image, [[0.1, 0.2, 0.9, 0.8]] * 5, [0] * 5, [3, 3])
        loss = tf.reduce_sum(cut * cut)
    return tape.gradient(loss, image)


def segments():
    parts = tf.sin(tf.range(300.0))
    return tf.math.unsorted_segment_sum(parts, tf.range(300) % 7, 7)


def scattered():
    at = tf.reshape(tf.range(300) % 5, [300, 1])
    return tf.tensor_scatter_nd_add(tf.zeros([5]), at, tf.cos(tf.range(300.0)))


def histogram():
    return tf.math.bincount(tf.range(90) % 11, weights=tf.sin(tf.range(90.0)))


PROGRAMS = (
    without_seed,
    without_seed_raw,
    generator,
    timestamp,
    boxes,
    crops,
    segments,
    scattered,
    histogram,
)
# A kernel that was made without a seed before it was forbidden goes on, eagerly too.
RAISE = {
    1: {"without_seed", "without_seed_raw", "generator", "timestamp", "boxes"},
    7: {"without_seed", "generator", "timestamp", "boxes"},
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("switched_on_at", RAISE)
def test_errors_are_eagers(program, switched_on_at):
    raised = []

    def make(wrap):
        switch(False)
        tf.random.set_seed(None)
        weight, calls = tf.Variable(1.0), iter(range(1, 100))
        function = wrap(lambda x: (program(), weight.assign_add(x)))

        def step():
            if next(calls) == switched_on_at:
                switch(True)
            try:
                return function(tf.constant(0.5)), weight
            except Exception as error:
                raised.append(type(error).__name__)
                raise

        return step

    assert_matches_eager(make, 14)
    names = set(raised)
    assert len(names) == (program.__name__ in RAISE[switched_on_at]), names


# --------------------------------------------------------- for a whole process


def test_a_process_with_determinism_repeats_its_bits():
    """The environment variable has the same effect as the call, from the beginning."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_DETERMINISTIC_OPS": "1"}
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    eager, *others = done.stdout.split()
    assert others == [eager] * 5


def print_runs():
    """Print the bits of a program's last loss: of an eager run, and of five under Terra."""
    make_episodes = importlib.import_module("tests.coexec.test_add_n").make_episodes
    assert tf_config.is_op_determinism_enabled()
    for number in range(6):
        step = make_episodes(terra.function if number else (lambda function: function))
        for _ in range(40):
            loss = step()
        print(loss.numpy().tobytes().hex())


if __name__ == "__main__":
    print_runs()
