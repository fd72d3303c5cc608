"""Calls of Keras' objects that are replayed, and every way to change such an object."""

import functools
import inspect
import pickle
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hazards import NUM_STEPS, Counter

import terra_tf
from terra_tf.testing import assert_matches_eager

pytestmark = pytest.mark.timeout(120)

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=1.0),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, global_clipnorm=0.5),
    "schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
    ),
    "ema": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9),
}


def train(make_optimizer, change=lambda optimizer, variables, n: None, num_steps=18, **kwargs):
    """Compare training with eager, the optimizer changed before each step; return the counters."""
    functions = []

    def make(wrap):
        rng = np.random.default_rng(0)
        variables = [
            tf.Variable(rng.normal(size=shape).astype("f"))
            for shape in ([4, 8], [8], [8, 2])
        ]
        optimizer, count = make_optimizer(), Counter()

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                y = tf.tanh(x @ variables[0] + variables[1]) @ variables[2]
                loss = tf.reduce_mean(y * y)
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables))
            return loss

        functions.append(step)

        def run():
            change(optimizer, variables, count.advance())
            loss = step(tf.constant(rng.normal(size=[3, 4]).astype("f")))
            return loss, variables, [v.value for v in optimizer.variables]

        return run

    assert_matches_eager(make, num_steps, **kwargs)
    return functions[-1].stats()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_is_replayed(name):
    stats = train(OPTIMIZERS[name])
    gradients = stats.co_executed_steps - 1
    assert stats.calls_replayed["GradientTape.gradient"] >= gradients - 1, stats
    assert stats.calls_replayed["Optimizer.apply"] >= gradients - 1, stats


CHANGES = {
    "rate": lambda o, n: setattr(o, "learning_rate", 0.1 / n),
    "rate through its variable": lambda o, n: o._learning_rate.assign(0.1 / n),
    "momentum": lambda o, n: setattr(o, "momentum", 0.9 - 0.05 * n),
    "through __dict__": lambda o, n: o.__dict__.update(momentum=0.9 - 0.05 * n),
    "clipping": lambda o, n: setattr(o, "clipnorm", 0.1 * n),
    "weight decay": lambda o, n: setattr(o, "weight_decay", 0.1 * n),
    "a slot's variable": lambda o, n: o._momentums[0].assign(o._momentums[0] * 0.5),
    "another slot": lambda o, n: o._momentums.__setitem__(
        0, keras.Variable(tf.fill([4, 8], 0.1 * n))
    ),
    "its list of slots": lambda o, n: setattr(o, "_momentums", list(o._momentums)),
    "a method of its own": lambda o, n: setattr(
        o, "update_step", lambda gradient, variable, rate: variable.assign_sub(gradient * rate * n)
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_of_an_optimizer_is_seen(what):
    def change(optimizer, variables, n):
        del variables
        if n in (9, 10, 13):
            CHANGES[what](optimizer, n)

    stats = train(OPTIMIZERS["momentum"], change, 20)
    assert stats.calls_replayed["Optimizer.apply"] > 0


def test_change_of_the_class_is_seen():
    original = keras.optimizers.SGD.update_step

    def change(optimizer, variables, n):
        del optimizer, variables
        if n == 0:
            keras.optimizers.SGD.update_step = original
        if n == 9:
            keras.optimizers.SGD.update_step = (
                lambda self, gradient, variable, rate: self.assign_sub(variable, gradient * 0.5)
            )

    try:
        stats = train(OPTIMIZERS["momentum"], change, 16)
        assert stats.calls_replayed["Optimizer.apply"] > 0
    finally:
        keras.optimizers.SGD.update_step = original


def test_optimizers_of_the_user_run_their_python():
    class Counting(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            self.seen = getattr(self, "seen", 0) + 1
            super().update_step(gradient * (1 + self.seen % 2), variable, learning_rate)

    stats = train(lambda: Counting(0.1))
    refused = [call for call in stats.calls_not_replayed if call.startswith("Optimizer.apply")]
    assert refused == ["Optimizer.apply: changes would go unseen: Counting is a Counting"]


def test_schedules_of_the_user_run_their_python():
    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self):
            self.calls = 0

        def __call__(self, step):
            self.calls += 1
            return 0.1 / self.calls

    train(lambda: keras.optimizers.SGD(Schedule()))


def test_two_optimizers_and_variables_that_are_frozen():
    def make(wrap):
        rng = np.random.default_rng(0)
        model = keras.Sequential([keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(1)])
        model.build([None, 3])
        for number, weight in enumerate(model.weights):
            weight.assign(tf.fill(weight.shape, 0.1 * (number + 1)))
        optimizers, count = [keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.1)], Counter()
        for optimizer in optimizers:
            optimizer.build(model.trainable_variables)

        @wrap
        def step(x, which):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x) ** 2)
            variables = model.trainable_variables
            optimizers[which].apply(tape.gradient(loss, variables), variables)
            return loss

        def run():
            n = count.advance()
            model.layers[0].trainable = n % 4 != 3
            x = tf.constant(rng.normal(size=[3, 3]).astype("f"))
            return step(x, n % 2), [w.value for w in model.weights]

        return run

    assert_matches_eager(make, 2 * NUM_STEPS)


# ---- functions that objects hold, and threads -----------------------------------------------
def assert_layer_matches_eager(make_layer, change=lambda held, n: None):
    """Compare calls of a layer; `make_layer(held)` may keep what `change(held, n)` changes."""

    def make(wrap):
        rng, count, held = np.random.default_rng(0), Counter(), []
        layer = make_layer(held)
        step = wrap(lambda x: layer(x))

        def run():
            change(held, count.advance())
            return step(tf.constant(rng.normal(size=[3, 4]).astype("f"))), len(held)

        return run

    assert_matches_eager(make, 16)


def test_wrapper_of_the_users_around_a_library_function():
    """`functools.wraps` makes the library's module its own."""

    def make_layer(held):
        @functools.wraps(tf.nn.relu)
        def noted(x):
            held.append("called")
            return tf.nn.relu(x)

        return keras.layers.Activation(noted)

    assert_layer_matches_eager(make_layer)


def test_function_of_the_users_inside_a_library_function():
    def make_layer(held):
        def noted(x):
            held.append("called")
            return tf.nn.relu(x)

        return keras.layers.Activation(tf.autograph.experimental.do_not_convert(noted))

    assert_layer_matches_eager(make_layer)


@pytest.mark.parametrize("name", ("call", "__call__"))
def test_bound_method_of_another_object(name):
    def make_layer(held):
        held.append(keras.layers.Activation("relu"))
        return keras.layers.Activation(getattr(held[0], name))

    def change(held, n):
        if n in (9, 10, 13):
            held[0].activation = tf.sin if n % 2 else tf.tanh

    assert_layer_matches_eager(make_layer, change)


def test_layers_with_functions_of_the_library_are_replayed():
    layer = keras.layers.Dense(4, activation=keras.layers.Activation(tf.nn.relu).call)
    layer.build([None, 4])
    step = terra_tf.function(lambda x: layer(x))
    for _ in range(8):
        step(tf.ones([2, 4])).numpy()
    assert step.stats().calls_replayed["Layer.__call__"] > 0


def test_scopes_of_keras_belong_to_threads():
    def make(wrap):
        rng, count, layer = np.random.default_rng(0), Counter(), keras.layers.Dense(4)
        layer.build([None, 4])
        layer.kernel.assign(tf.ones([4, 4]))
        step, results = wrap(lambda x: layer(x)), []

        def work(x):
            with keras.StatelessScope([(layer.kernel, tf.zeros([4, 4]))]):
                results.append(step(x).numpy())

        def run():
            x = tf.constant(rng.normal(size=[3, 4]).astype("f"))
            if count.advance() not in (9, 12):
                return step(x)
            thread = threading.Thread(target=work, args=(x,))
            thread.start()
            thread.join()
            return results.pop()

        return run

    assert_matches_eager(make, 16)


def test_keras_warns_of_missing_gradients_in_each_step():
    def make(wrap):
        layer, optimizer = keras.layers.Dense(4), keras.optimizers.SGD(0.1)
        layer.build([None, 4])
        layer.kernel.assign(tf.ones([4, 4]))
        optimizer.build(layer.trainable_variables)

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(x @ layer.kernel)
            variables = layer.trainable_variables
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                optimizer.apply(tape.gradient(loss, variables), variables)
            return loss, len(found)

        return lambda: step(tf.ones([3, 4]))

    assert_matches_eager(make, 12)


def test_what_is_hooked_looks_as_before():
    terra_tf.function(lambda: tf.zeros([]))()
    apply = keras.optimizers.Optimizer.apply
    assert list(inspect.signature(apply).parameters) == ["self", "grads", "trainable_variables"]
    assert inspect.isfunction(apply) and apply.__name__ == "apply" and apply.__doc__
    assert pickle.loads(pickle.dumps(apply)) is apply
    bound = keras.optimizers.SGD(0.1).apply
    assert list(inspect.signature(bound).parameters) == ["grads", "trainable_variables"]
