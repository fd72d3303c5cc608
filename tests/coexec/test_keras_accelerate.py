"""`terra.keras.accelerate`: fit, evaluate and predict have the results of `run_eagerly=True`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_training import plain

import terra_tf as terra

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras'
]

NUM_BATCHES, BATCH_SIZE, NUM_EPOCHS = 6, 4, 3
LAYERS = keras.layers


def data_of(*shape, num_classes=None, num_batches=NUM_BATCHES):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_batches * BATCH_SIZE, *shape)).astype(np.float32)
    if num_classes is None:
        return x, rng.standard_normal((len(x), 1)).astype(np.float32)
    return x, rng.integers(0, num_classes, len(x))


class Observer(keras.callbacks.Callback):
    """Notes what a callback is told, and reads and writes weights."""

    def __init__(self, *, writes=False):
        super().__init__()
        self.seen, self.writes = [], writes

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((batch, list(logs.items())))
        if self.writes and batch % 2:
            kernel = self.model.layers[-1].kernel
            self.seen.append(float(np.sum(kernel.numpy())))
            kernel.assign(kernel * 0.5)

    def on_test_batch_end(self, batch, logs=None):
        self.seen.append((batch, list(logs.items())))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, list(logs.items())))


def dense(activation=None, units=3, **options):
    return [keras.Input((5,)), LAYERS.Dense(8, "relu", **options), LAYERS.Dense(units, activation)]


def sequential(layers, **compile_options):
    model = keras.Sequential(layers)
    compile_options.setdefault("optimizer", keras.optimizers.Adam(0.01))
    model.compile(**compile_options)
    return model


def classifier(activation=None, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    options = {"loss": loss, "metrics": ["accuracy"], **options}
    return sequential(dense(activation), **options), data_of(5, num_classes=3)


def one_hot(activation=None):
    loss = keras.losses.CategoricalCrossentropy(from_logits=activation is None)
    x, y = data_of(5, num_classes=3)
    labels = np.eye(3, dtype=np.float32)[y]
    return sequential(dense(activation), loss=loss, metrics=["accuracy"]), (x, labels)


def binary():
    model = sequential(dense("sigmoid", 1), loss="binary_crossentropy", metrics=["AUC"])
    return model, data_of(5, num_classes=2)


def cnn():
    layers = [
        keras.Input((8, 8, 1)),
        LAYERS.Conv2D(4, 3),
        LAYERS.BatchNormalization(),
        LAYERS.ReLU(),
        LAYERS.MaxPooling2D(),
        LAYERS.Flatten(),
        LAYERS.Dropout(0.3, seed=1),
        LAYERS.Dense(3, "softmax"),
    ]
    model = sequential(layers, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, data_of(8, 8, 1, num_classes=3)


class Custom(keras.Model):
    """A step, a loss and a schedule in plain Python, and an output that is no tensor."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = LAYERS.Dense(8, "tanh"), LAYERS.Dense(1)
        self.effects = []

    def call(self, x, training=False):
        self.effects.append(("call", bool(training)))
        return self.last(self.hidden(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
            if len(self.effects) % 5 == 0:
                loss = loss * 0.5
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.effects.append(float(loss))
        return {"z": loss, "calls": len(self.effects) / 10, "a": loss * 2.0}


def custom_step():
    model = Custom()
    model.compile("sgd", "mse")
    return model, data_of(5)


def several_inputs_and_outputs():
    a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
    h = LAYERS.concatenate([LAYERS.Dense(4, "relu")(a), LAYERS.Dense(4)(b)])
    outputs = {"p": LAYERS.Dense(1, name="p")(h), "q": LAYERS.Dense(2, name="q")(h)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        "rmsprop", {"p": "mse", "q": "mae"}, loss_weights={"p": 1.0, "q": 0.5}, metrics={"p": "mae"}
    )
    x, y = data_of(5)
    return model, ({"a": x, "b": x[:, :3]}, {"p": y, "q": x[:, 3:]})


def weighted():
    model, (x, y) = classifier(weighted_metrics=["accuracy"])
    return model, (x, y, np.linspace(0, 1, len(x)).astype(np.float32))


class Penalty(keras.layers.Layer):
    def call(self, x):
        self.add_loss(0.01 * tf.reduce_sum(x**2))
        return x


def penalties():
    layers = dense(units=1, kernel_regularizer=keras.regularizers.L2(0.1))
    return sequential([*layers, Penalty()], loss="mse"), data_of(5)


class Peak(keras.metrics.Metric):
    """A metric of the user's, with state and Python."""

    def __init__(self):
        super().__init__(name="peak")
        self.peak = self.add_weight(shape=(), initializer="zeros", name="peak")
        self.num_updates = 0

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.num_updates += 1
        self.peak.assign(tf.maximum(self.peak, tf.reduce_max(tf.abs(y_pred))))

    def result(self):
        return self.peak + float(self.num_updates)


def users_loss(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_true - y_pred), axis=-1)


def users_metric():
    return sequential(dense(units=1), loss=users_loss, metrics=[Peak()]), data_of(5)


def with_optimizer(optimizer):
    return lambda: (sequential(dense(units=1), loss="mse", optimizer=optimizer()), data_of(5))


class UsersAdam(keras.optimizers.Adam):
    """Nothing of its own."""


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.01 / (tf.cast(step, tf.float32) + 1.0)


def every(num_batches):
    return lambda: classifier(steps_per_execution=num_batches)


OPTIMIZERS = keras.optimizers
MODELS = {
    "logits": classifier,
    "softmax": lambda: classifier("softmax"),
    "one-hot logits": one_hot,
    "one-hot softmax": lambda: one_hot("softmax"),
    "binary": binary,
    "cnn": cnn,
    "custom step": custom_step,
    "several inputs and outputs": several_inputs_and_outputs,
    "sample weight": weighted,
    "penalties": penalties,
    "a user's metric and loss": users_metric,
    "clipnorm": with_optimizer(lambda: OPTIMIZERS.Adam(0.01, clipnorm=0.1)),
    "accumulation": with_optimizer(lambda: OPTIMIZERS.SGD(0.1, gradient_accumulation_steps=2)),
    "ema": with_optimizer(
        lambda: OPTIMIZERS.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4)
    ),
    "schedule": with_optimizer(
        lambda: OPTIMIZERS.Adam(OPTIMIZERS.schedules.ExponentialDecay(0.1, 4, 0.5))
    ),
    "a user's schedule": with_optimizer(lambda: OPTIMIZERS.Adam(Warmup())),
    "a user's optimizer": with_optimizer(lambda: UsersAdam(0.01)),
    "4 steps per execution": every(4),  # the last call of an epoch gets two
    "jit_compile": lambda: classifier(jit_compile=True),
}
FIT_OPTIONS = {
    "class weight": lambda path: {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}},
    "validation split": lambda path: {"validation_split": 0.34},
    "a batch that is left over": lambda path: {"batch_size": 5},
    "callbacks": lambda path: {
        "callbacks": [
            Observer(writes=True),
            keras.callbacks.ModelCheckpoint(path / "m.keras", monitor="loss"),
            keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=10.0),
        ]
    },
}


def outcome(make, accelerates, fit_options):
    """Return all that can be seen of training, and the model."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    model, data = make()
    if accelerates:
        terra.keras.accelerate(model)
    else:
        model.run_eagerly = True
    options = {"callbacks": [Observer()], "batch_size": BATCH_SIZE, **fit_options}
    if "validation_split" not in options:
        options["validation_data"] = data
    if len(data) > 2:
        options["sample_weight"] = data[2]
    observer = options["callbacks"][0]
    history = model.fit(*data[:2], epochs=NUM_EPOCHS, verbose=0, **options).history
    seen = {
        "callbacks": observer.seen,
        "history": history,
        "predictions": model.predict(data[0], batch_size=BATCH_SIZE, verbose=0),
        "evaluation": model.evaluate(*data[:2], batch_size=BATCH_SIZE, verbose=0),
        "weights": model.get_weights(),
        "optimizer": [v.numpy() for v in model.optimizer.variables],
        "effects": getattr(model, "effects", None),
    }
    return {name: plain(value) for name, value in seen.items()}, model


def check_training(make, options_of=lambda: {}):
    eager, _ = outcome(make, False, options_of())
    accelerated, model = outcome(make, True, options_of())
    for name, value in eager.items():
        assert accelerated[name] == value, name
    return model


@pytest.mark.parametrize("name", MODELS)
def test_training_is_eagers(name):
    model = check_training(MODELS[name])
    stats = terra.keras.stats(model)
    assert set(stats) == {"train", "test", "predict"}
    for kind, counters in stats.items():
        assert counters.phase == "co-execution", (kind, counters)
    expected = NUM_BATCHES * NUM_EPOCHS
    assert stats["train"].steps == expected
    num_lost = 7 if name in BRANCHING else 4
    assert stats["train"].co_executed_steps >= expected - num_lost, stats["train"]


BRANCHING = {"custom step", "accumulation", "ema", "a user's metric and loss"}


@pytest.mark.parametrize("name", FIT_OPTIONS)
def test_options_of_fit_are_eagers(name, tmp_path):
    model = check_training(classifier, lambda: FIT_OPTIONS[name](tmp_path))
    assert terra.keras.stats(model)["train"].co_executed_steps >= 6
