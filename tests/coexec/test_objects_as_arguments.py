"""One function for many objects: each is co-executed for itself, and costs the same."""

import gc

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra

X = tf.constant(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))


class Net(tf.Module):
    def __init__(self, seed):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.w = tf.Variable(rng.standard_normal((3, 3)).astype(np.float32))

    def train(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.tanh(x @ self.w) ** 2)
        self.w.assign_sub(0.1 * tape.gradient(loss, self.w))
        return loss


class Trainer:
    """No module; its method is decorated."""

    def __init__(self, seed):
        self.net = Net(seed)

    def step(self, x):
        return self.net.train(x)


class TerraTrainer(Trainer):
    @terra.function
    def step(self, x):
        return self.net.train(x)


def test_objects_in_turns_are_co_executed():
    step = terra.function(lambda net, x: net.train(x))
    ours, theirs = [Net(i) for i in range(3)], [Net(i) for i in range(3)]
    for _ in range(8):
        for one, other in zip(ours, theirs, strict=True):
            assert float(step(one, X)) == float(other.train(X))
    stats = step.stats()
    assert stats.graph_builds == 3 and stats.co_executed_steps == 24 - stats.traced_steps
    assert stats.traced_steps <= 9 and not stats.fallbacks


def test_decorated_method_of_a_plain_class():
    TerraTrainer.step.reset()
    ours, theirs = [TerraTrainer(i) for i in range(3)], [Trainer(i) for i in range(3)]
    for _ in range(8):
        for one, other in zip(ours, theirs, strict=True):
            assert float(one.step(X)) == float(other.step(X))
    stats = TerraTrainer.step.stats()
    assert stats.co_executed_steps >= 15 and not stats.fallbacks


def test_new_object_every_few_steps_costs_the_same_each_time():
    step = terra.function(lambda net, x: net.train(x))
    traced = []
    for trial in range(10):
        one, other = Net(trial), Net(trial)
        for _ in range(6):
            assert float(step(one, X)) == float(other.train(X))
        traced.append(step.stats().traced_steps)
        del one
        gc.collect()
    costs = np.diff([0, *traced])
    assert max(costs) <= 3, costs
    assert not step.stats().fallbacks


def test_new_object_in_each_call_is_co_executed_as_before():
    class Doubling(tf.Module):
        def __call__(self, x):
            return x * 2.0

    step = terra.function(lambda module, x: module(x) + 1.0)
    for _ in range(16):
        assert (step(Doubling(), X).numpy() == (X * 2.0 + 1.0).numpy()).all()
        gc.collect()
    assert step.stats().co_executed_steps >= 8


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_objects_in_a_container(kind):
    nets = [Net(0), Net(1)], [Net(0), Net(1)]
    one, other = (kind(zip("ab", n, strict=True)) if kind is dict else kind(n) for n in nets)

    def run(nets, x):
        return sum(net.train(x) for net in (nets.values() if kind is dict else nets))

    step = terra.function(run)
    for _ in range(6):
        assert float(step(one, X)) == float(run(other, X))
    assert step.stats().phase == "co-execution"
