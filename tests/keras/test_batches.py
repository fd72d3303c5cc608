"""`train_on_batch`, `test_on_batch` and `predict_on_batch` with NumPy arrays."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_model_programs import LAYERS, Stepping, dense, two_inputs_and_outputs
from keras_training import Contestant, plain, refusals_of

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras'
]
NUM_BATCHES, BATCH_SIZE = 7, 4


def regression(contestant, rng):
    """Arrays of float64, which Keras casts."""
    model = contestant.compile(dense(), "adam", metrics=["mae"])
    return model, rng.random((BATCH_SIZE, 5)), rng.random((BATCH_SIZE, 1))


def classifier(contestant, rng):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = contestant.compile(dense(3), "adam", loss, metrics=["accuracy"])
    x = rng.standard_normal((BATCH_SIZE, 5)).astype(np.float32)
    return model, x, rng.integers(0, 3, BATCH_SIZE)


def tokens(contestant, rng):
    model = keras.Sequential([
        keras.Input((4,), dtype="int32"), LAYERS.Embedding(9, 4, mask_zero=True), LAYERS.LSTM(3),
        LAYERS.Dense(1, "sigmoid"),
    ])  # fmt: skip
    contestant.compile(model, "adam", "binary_crossentropy", metrics=["accuracy"])
    return model, rng.integers(0, 9, (BATCH_SIZE, 4)), rng.integers(0, 2, (BATCH_SIZE, 1))


def dictionaries(contestant, rng):
    setup = two_inputs_and_outputs(contestant)
    first = lambda arrays: {name: array[:BATCH_SIZE] for name, array in arrays.items()}  # noqa: E731
    return setup.model, first(setup.x), first(setup.y)


MODELS = {
    "float64": regression, "labels": classifier, "tokens": tokens, "dictionaries": dictionaries
}  # fmt: skip


def run(make, is_terra, weighted=False):
    """Return all results of some batches, and what ran its Python again in the last one."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    model, x, y = make(Contestant(is_terra), np.random.default_rng(0))
    results, before = [], None
    for number in range(NUM_BATCHES):
        if number == NUM_BATCHES - 1:
            before = refusals_of(model)
        weights = {"sample_weight": np.linspace(0, number, BATCH_SIZE)} if weighted else {}
        results.append(model.train_on_batch(x, y, **weights))
        results.append(model.test_on_batch(x, y, return_dict=True))
        results.append(model.predict_on_batch(x))
    return plain([results, model.get_weights()]), refusals_of(model) - before, model


# (With dictionaries Keras takes weights of samples by output.)
CASES = [(name, weighted) for name in MODELS for weighted in (False, True)][:-1]


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_batches_of_arrays_are_eagers_and_replayed(name, weighted):
    eager, *_ = run(MODELS[name], False, weighted)
    ours, again, model = run(MODELS[name], True, weighted)
    assert ours == eager
    assert not again, again
    for kind, counters in model._self_terra_acceleration.steps.items():
        assert counters.stats().co_executed_steps >= NUM_BATCHES - 4, (kind, counters.stats())


def test_short_floats_are_rounded_as_in_eager():
    """NumPy rounds float64 to 16 bits at once; TensorFlow, which Keras asks, to 32 bits before."""
    between = np.full((BATCH_SIZE, 5), 1.0 + 2.0**-11 + 2.0**-40)
    results = []
    for is_terra in (False, True):
        layers = [keras.Input((5,), dtype="float16"), LAYERS.Rescaling(1.0, dtype="float16")]
        model = keras.Sequential(layers)
        Contestant(is_terra).compile(model, "sgd", "mse")
        calls = [(model.predict_on_batch(between), model.test_on_batch(between, between))] * 3
        results.append(plain(calls))
    assert results[0] == results[1]


def wrapped(function):
    return tf.autograph.experimental.do_not_convert(function)


class OfTheUsers(keras.Sequential):
    """Its step is wrapped by a decorator of TensorFlow's, and sees what it is given."""

    seen = ()

    @wrapped
    def train_step(self, data):
        self.seen = (*self.seen, type(data[0]).__name__)
        return super().train_step(data)


def test_wrapped_step_of_the_users_gets_arrays():
    model = OfTheUsers([keras.Input((5,)), LAYERS.Dense(1)])
    model = Contestant(is_terra=True).compile(model, "adam", "mse") or model
    for _ in range(4):
        model.train_on_batch(np.ones((4, 5), "f"), np.ones((4, 1), "f"))
    assert model.seen == ("ndarray",) * 4


def test_one_class_weighs_more():
    def weigh(is_terra):
        keras.utils.set_random_seed(1)
        model, x, y = classifier(Contestant(is_terra), np.random.default_rng(0))
        weights = {0: 1, 1: 3, 2: 0.5}
        return plain([model.train_on_batch(x, y, class_weight=weights) for _ in range(5)])

    assert weigh(True) == weigh(False)


class Witness(keras.metrics.Metric):
    def __init__(self, seen):
        super().__init__(name="witness")
        self.seen, self.total = seen, self.add_weight(shape=(), initializer="zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.seen.append(type(y_true).__name__)
        self.total.assign_add(tf.reduce_sum(tf.cast(y_true, tf.float32)))

    def result(self):
        return self.total * 1.0


def witnessing_function(seen):
    def witness(y_true, y_pred):
        seen.append(type(y_true).__name__)
        return tf.abs(tf.cast(y_true, tf.float32) - y_pred)

    return witness


def witnessing_step(seen):
    class Model(Stepping):
        def train_step(self, data):
            seen.append([type(item).__name__ for item in data[:2]])
            return super().train_step((tf.cast(data[0], tf.float32), data[1]))

    return Model([])


def witnessing_loss(seen):
    class Loss(keras.losses.MeanSquaredError):
        def __call__(self, y_true, y_pred, sample_weight=None):
            seen.append(type(y_true).__name__)
            return super().__call__(y_true, y_pred, sample_weight)

    return Loss()


def witnessing_compute_loss(seen):
    class Model(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            seen.append((type(x).__name__, type(y).__name__))
            return super().compute_loss(x, y, y_pred, sample_weight, training)

    return Model([keras.Input((5,)), LAYERS.Dense(1)])


WITNESSES = {
    "metric": lambda c, seen: c.compile(dense(), metrics=[Witness(seen)]),
    "metric function": lambda c, seen: c.compile(dense(), metrics=[witnessing_function(seen)]),
    "loss": lambda c, seen: c.compile(dense(), loss=witnessing_loss(seen)),
    "loss function": lambda c, seen: c.compile(dense(), loss=witnessing_function(seen)),
    "train_step": lambda c, seen: c.compile(witnessing_step(seen)),
    "compute_loss": lambda c, seen: c.compile(witnessing_compute_loss(seen)),
}


@pytest.mark.parametrize("name", WITNESSES)
def test_own_python_sees_what_it_was_given(name):
    def types_seen(is_terra):
        keras.utils.set_random_seed(1)
        seen = []
        model = WITNESSES[name](Contestant(is_terra), seen)
        x, y = np.ones((BATCH_SIZE, 5)), np.ones((BATCH_SIZE, 1), np.float32)
        losses = [model.train_on_batch(x, y) for _ in range(6)]
        return seen, plain(losses)

    assert types_seen(True) == types_seen(False)


def test_texts_stay_arrays():
    """What is no number is not converted: Keras and TensorFlow say what they think of it."""
    told = []
    for is_terra in (False, True):
        model = Contestant(is_terra).compile(dense())
        with pytest.raises(tf.errors.UnimplementedError) as caught:
            model.predict_on_batch(np.array([["a"] * 5]))
        told.append(str(caught.value).replace(model.name, "the model"))
    assert told[0] == told[1]
