"""What an installed wheel must do; `make wheel-test` runs this where no source tree is around.

Not a test of pytest's: it runs in an environment that has nothing but the wheel's requirements.
"""

import importlib.metadata
import pathlib
import sys

import numpy as np
import tensorflow as tf

import terra_tf as terra


def check_installation():
    """Assert that the package comes from an environment, whole, with its metadata."""
    home = pathlib.Path(terra.__file__).parent
    assert home.parent.name == "site-packages", home
    for name in ("_terra_native.so", "_build_info.py", "_terra_native.pyi", "py.typed"):
        assert (home / name).exists(), name
    metadata = importlib.metadata.metadata("terra-tf")
    assert metadata["Version"] == terra.__version__
    assert "Apache-2.0" in (metadata["License"] or metadata["License-Expression"] or "")
    requirements = importlib.metadata.requires("terra-tf")
    assert any(r.startswith("tensorflow") and "2.21" in r for r in requirements), requirements


def run_training():
    """Assert that a training step with Python in it co-executes, and gives eager's bits."""

    def make(wrap):
        weight = tf.Variable(tf.ones([4, 1]))
        history = []

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((tf.matmul(x, weight) - 1.0) ** 2)
            weight.assign_sub(0.1 * tape.gradient(loss, weight))
            history.append(float(loss))
            return loss

        rng = np.random.default_rng(0)
        for _ in range(20):
            step(tf.constant(rng.standard_normal((8, 4)).astype(np.float32)))
        return step, history, weight.numpy()

    _, losses, weight = make(lambda function: function)
    step, terra_losses, terra_weight = make(terra.function)
    assert terra_losses == losses
    assert (terra_weight == weight).all()
    assert step.stats().phase == "co-execution", step.explain()


if __name__ == "__main__":
    check_installation()
    run_training()
    print(f"terra-tf {terra.__version__} runs on Python {sys.version.split()[0]}, TensorFlow "
          f"{tf.__version__}")  # fmt: skip
