"""Everyday ways of training a Keras model are replayed: decorated steps, `run`, schedules, classes.

What the user's own Python does there happens in every step; calls of Keras around it are replayed.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras'
]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 40)
X_TENSOR, Y_TENSOR = tf.constant(X[:8]), tf.constant(Y[:8])
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class OwnStep(keras.Model):
    """A functional model with a step of its own; nothing of a call is the user's."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


class OwnCall(OwnStep):
    def call(self, x, training=False):
        return super().call(x) * SCALE[0]


SCALE = [1.0]


class Decorated(OwnStep):
    @terra.function
    def train_step(self, data):
        return super().train_step(data)


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule with Python of its own, whose calls are counted."""

    def __init__(self):
        self.num_calls, self.factor = 0, 1.0

    def __call__(self, step):
        self.num_calls += 1
        return 0.01 * self.factor * tf.minimum(1.0, (tf.cast(step, tf.float32) + 1.0) / 7.0)


class NamedAdam(keras.optimizers.Adam):
    def get_config(self):
        return {**super().get_config(), "named": True}


class HalvingSGD(keras.optimizers.SGD):
    """Updates in a way of its own."""

    num_updates = 0

    def update_step(self, gradient, variable, learning_rate):
        type(self).num_updates += 1
        super().update_step(gradient * 0.5, variable, learning_rate)


def make(kind=OwnStep, optimizer="adam"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    outputs = keras.layers.Dense(3)(keras.layers.Dense(8, activation="relu")(inputs))
    model = kind(inputs, outputs)
    model.compile(optimizer, LOSS, run_eagerly=True)
    return model


def fit(model):
    history = model.fit(X, Y, batch_size=8, epochs=4, verbose=0, shuffle=False).history
    return history, model.get_weights()


def assert_same(one, other):
    assert one[0] == other[0]
    assert all((a == b).all() for a, b in zip(one[1], other[1], strict=True))


def replayed(stats, name):
    """How often a call was replayed."""
    return stats.calls_replayed.get(name, 0)


def test_decorated_method_under_fit():
    model = make(Decorated)
    Decorated.train_step.reset()
    assert_same(fit(model), fit(make()))
    stats = Decorated.train_step.stats()
    assert stats.co_executed_steps >= 16
    assert replayed(stats, "Layer.__call__") >= 14 and replayed(stats, "Optimizer.apply") >= 14


def test_decorated_instance_attribute_under_fit():
    model = make()
    model.train_step = terra.function(model.train_step)
    assert_same(fit(model), fit(make()))
    stats = model.train_step.stats()
    assert stats.co_executed_steps >= 16
    assert replayed(stats, "Layer.__call__") >= 14 and replayed(stats, "Optimizer.apply") >= 14


def test_call_of_the_users_is_not_taken_for_keras_own():
    """It reads what no guard sees."""
    losses = {}
    for is_terra in (False, True):
        model, losses[is_terra] = make(OwnCall), []
        step = terra.function(model.train_step) if is_terra else model.train_step
        for i in range(12):
            SCALE[0] = 2.0 if i % 3 == 2 else 1.0
            losses[is_terra].append(float(step((X_TENSOR, Y_TENSOR))["loss"]))
    SCALE[0] = 1.0
    assert losses[True] == losses[False]


def test_method_that_a_user_replaces_later_is_seen():
    class Changing(OwnStep):
        pass

    def doubled(self, x, **options):
        return OwnStep.call(self, x, **options) * 2.0

    losses = {}
    for is_terra in (False, True):
        if "call" in vars(Changing):
            del Changing.call
        model, losses[is_terra] = make(Changing), []
        step = terra.function(model.train_step) if is_terra else model.train_step
        for i in range(12):
            if i == 8:
                Changing.call = doubled
            losses[is_terra].append(float(step((X_TENSOR, Y_TENSOR))["loss"]))
    assert losses[True] == losses[False]
    assert len(set(losses[True])) == 12


def steps_through(run, num_steps=12):
    """Trains by `run(step, data)`; returns the function, the losses and the weights."""
    model = make()

    @terra.function
    def step(data):
        return model.train_step(data)["loss"]

    losses = [float(run(step, (X_TENSOR, Y_TENSOR))) for _ in range(num_steps)]
    return step, losses, model.get_weights()


def test_default_strategys_run_is_replayed():
    plain = steps_through(lambda step, data: step(data))
    strategy = tf.distribute.get_strategy()
    step, *outcome = steps_through(lambda step, data: strategy.run(step, (data,)))
    assert_same(outcome, plain[1:])
    assert replayed(step.stats(), "Optimizer.apply") >= 8
    assert replayed(step.stats(), "Layer.__call__") >= 8


def test_run_and_plain_calls_share_what_was_learned():
    strategy, numbers = tf.distribute.get_strategy(), iter(range(100))

    def run(step, data):
        return strategy.run(step, (data,)) if next(numbers) % 2 else step(data)

    step, *outcome = steps_through(run)
    assert_same(outcome, steps_through(lambda step, data: step(data))[1:])
    assert replayed(step.stats(), "Optimizer.apply") >= 8


def test_another_strategy_is_not_taken_for_the_default():
    """Its context is another one, as Python can ask."""
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    seen, model = [], make()

    @terra.function
    def step(x):
        seen.append(tf.distribute.has_strategy())
        return tf.reduce_sum(model(x))

    for i in range(12):
        with strategy.scope() if i % 3 == 2 else tf.name_scope("none"):
            assert float(step(X_TENSOR)) == float(tf.reduce_sum(model(X_TENSOR)))
    assert seen == [i % 3 == 2 for i in range(12)]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda rate: keras.optimizers.Adam(rate),
        lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.01),
        lambda rate: keras.optimizers.RMSprop(rate, clipnorm=1.0),
        lambda rate: keras.optimizers.Adafactor(rate),
        lambda rate: keras.optimizers.Ftrl(rate),
    ],
    ids=["adam", "sgd", "adamw", "rmsprop", "adafactor", "ftrl"],
)
def test_schedule_of_the_users_runs_in_every_step(optimizer):
    outcomes, schedules, stats = [], [], None
    for is_terra in (False, True):
        schedule = Warmup()
        model = make(optimizer=optimizer(schedule))
        model.optimizer.build(model.trainable_variables)
        step = terra.function(model.train_step) if is_terra else model.train_step
        losses = []
        for i in range(14):
            schedule.factor = 3.0 if i >= 9 else 1.0  # seen at once: it is the user's Python
            losses.append(float(step((X_TENSOR, Y_TENSOR))["loss"]))
        outcomes.append((losses, model.get_weights()))
        schedules.append(schedule.num_calls)
        stats = step.stats() if is_terra else None
    assert_same(*outcomes)
    assert schedules[0] == schedules[1]
    assert stats.phase == "co-execution"
    if not isinstance(model.optimizer, keras.optimizers.Adafactor):  # it looks at its schedule
        assert replayed(stats, "Optimizer.update") >= 8


def test_rate_that_is_a_function_of_the_users():
    rate = [0.01]
    outcomes = []
    for is_terra in (False, True):
        model = make(optimizer=keras.optimizers.Adam(lambda: rate[0]))
        step = terra.function(model.train_step) if is_terra else model.train_step
        losses = []
        for i in range(14):
            rate[0] = 0.01 if i < 9 else 0.05
            losses.append(float(step((X_TENSOR, Y_TENSOR))["loss"]))
        outcomes.append((losses, model.get_weights()))
    assert_same(*outcomes)


def test_optimizer_class_that_updates_as_keras_own_is_replayed():
    model = make(optimizer=NamedAdam(0.01))
    step = terra.function(model.train_step)
    model.train_step = step
    assert_same(fit(model), fit(make(optimizer=NamedAdam(0.01))))
    assert replayed(step.stats(), "Optimizer.apply") >= 14


def test_optimizer_class_with_an_update_of_its_own_runs_it():
    counts, outcomes = [], []
    for is_terra in (False, True):
        HalvingSGD.num_updates = 0
        model = make(optimizer=HalvingSGD(0.1))
        if is_terra:
            model.train_step = terra.function(model.train_step)
        outcomes.append(fit(model))
        counts.append(HalvingSGD.num_updates)
    assert_same(*outcomes)
    assert counts[0] == counts[1] > 0
