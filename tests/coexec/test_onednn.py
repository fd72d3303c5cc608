"""The graph gives eager's bits with TensorFlow's oneDNN kernels and without them.

Which of them a process has is decided when it starts; so each runs in a process of its own, and
any x86 machine tests both.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import test_util

import terra_tf as terra

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_STEPS = 5


def constant(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


IMAGES, KERNEL, BIAS = constant(4, 17, 17, 8), constant(3, 3, 8, 16), constant(16)
SCALE, OFFSET = constant(8), constant(8, seed=1)
PADDED = [[0, 0], [1, 1], [1, 1], [0, 0]]


def conv_and_bias():
    return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(IMAGES, KERNEL, 1, "SAME"), BIAS))


def pad_and_conv():
    return tf.nn.conv2d(tf.identity(tf.pad(IMAGES, PADDED)), KERNEL, 2, "VALID")


def pools():
    pooled = tf.nn.max_pool2d(IMAGES, 3, 2, "SAME"), tf.nn.avg_pool2d(IMAGES, 3, 2, "SAME")
    return pooled[0] + pooled[1]


def pool3d():
    return tf.nn.max_pool3d(tf.reshape(IMAGES, [4, 17, 17, 4, 2]), 3, 2, "SAME")


def normalized_by_neighbours():
    return tf.nn.local_response_normalization(IMAGES, 2)


def normalized_by_batch():
    outputs = tf.compat.v1.nn.fused_batch_norm(
        IMAGES, SCALE, OFFSET, epsilon=1e-3, is_training=True
    )
    return outputs[0]


def dense():
    return tf.nn.gelu(tf.nn.bias_add(tf.matmul(tf.reshape(IMAGES, [-1, 8]), KERNEL[0, 0]), BIAS))


PROGRAMS = {
    program.__name__: program
    for program in (
        conv_and_bias,
        pad_and_conv,
        pools,
        pool3d,
        normalized_by_neighbours,
        normalized_by_batch,
        dense,
    )
}


def with_gradients(program):
    """Return a function that gives what a program does, and its gradients."""
    sources = [IMAGES, KERNEL, BIAS, SCALE, OFFSET]

    def train():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            output = program()
            loss = tf.reduce_sum(output * output)
        gradients = tape.gradient(loss, sources)
        return [output, *(gradient for gradient in gradients if gradient is not None)]

    return train


def compare_all():
    """Run all programs; return what each differs in, and which ops Python had to run."""
    found = {"is_onednn_on": test_util.IsMklEnabled()}
    for name, program in PROGRAMS.items():
        train = with_gradients(program)
        expected = [tensor.numpy() for tensor in train()]
        function = terra.function(train)
        for _ in range(NUM_STEPS):
            results = [tensor.numpy() for tensor in function()]
        terra.synchronize()
        stats = function.stats()
        found[name] = {
            "largest_difference": max(
                float(np.abs(a - b).max()) for a, b in zip(expected, results, strict=True)
            ),
            "co_executed_steps": stats.co_executed_steps,
            "imperative_ops": stats.imperative_ops,
        }
    return found


@pytest.mark.parametrize("is_on", [False, True], ids=["without", "with"])
def test_graph_gives_the_bits_of_eager(is_on):
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": str(int(is_on))}
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("is_onednn_on") == is_on
    assert found == {
        name: {
            "largest_difference": 0.0,
            "co_executed_steps": NUM_STEPS - 2,
            "imperative_ops": {},
        }
        for name in PROGRAMS
    }


if __name__ == "__main__":
    print(json.dumps(compare_all()))
