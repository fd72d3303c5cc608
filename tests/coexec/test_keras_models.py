"""What else is done with a model under `terra.keras.accelerate`, and how it ends."""

import copy
import gc
import pickle
import subprocess
import sys
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.errors import NoModelError, NothingToShowError

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras'
]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 5)).astype(np.float32)
Y = RNG.standard_normal((24, 1)).astype(np.float32)
calls = []


class Counting(keras.Model):
    """Counts the calls of its step, in Python."""

    def train_step(self, data):
        calls.append(self.run_eagerly)
        return super().train_step(data)


def make_model(kind=keras.Model, **options):
    keras.utils.set_random_seed(0)
    x = keras.Input((5,))
    model = kind(x, keras.layers.Dense(1)(keras.layers.Dense(4, "relu")(x)))
    model.compile("sgd", "mse", **options)
    return model


def fit(model, **options):
    options = {"batch_size": 4, "verbose": 0, "shuffle": False, **options}
    return model.fit(X, Y, **options).history


def attributes_of(model):
    of_fit = {"history", "_eval_epoch_iterator"}
    return {key: value for key, value in vars(model).items() if key not in of_fit}


def test_batch_methods_are_eagers():
    results = []
    for accelerates in (False, True):
        model = make_model(run_eagerly=not accelerates)
        if accelerates:
            terra.keras.accelerate(model)
        results.append([
            [
                model.train_on_batch(X[i : i + 4], Y[i : i + 4]),
                model.test_on_batch(X[:8], Y[:8], return_dict=True),
                model.predict_on_batch(X[i : i + 4]).tobytes(),
            ]
            for i in range(0, 21, 3)
        ])  # fmt: skip
    assert results[0] == results[1]
    stats = terra.keras.stats(model)
    assert {kind: counters.phase for kind, counters in stats.items()} == {
        "train": "co-execution", "test": "co-execution", "predict": "co-execution"
    }  # fmt: skip


def test_acceleration_survives_compile_and_is_undone():
    model = make_model(Counting)
    before = attributes_of(model)
    assert terra.keras.accelerate(model) is terra.keras.accelerate(model) is model
    calls.clear()
    fit(model)
    model.compile("adam", "mae")
    fit(model)
    assert calls == [True] * 12
    assert terra.keras.restore(model) is model
    assert list(attributes_of(model)) == list(before)
    assert not model.run_eagerly and model.train_function is None
    calls.clear()
    fit(model)
    assert 1 <= len(calls) <= 2  # the graph is built
    assert terra.keras.restore(model) is model


def test_what_was_made_before_is_back_after_it():
    model = make_model()
    fit(model)
    made = model.train_function
    terra.keras.accelerate(model)
    fit(model)
    assert model.train_function is not made
    assert terra.keras.restore(model).train_function is made
    assert not model.run_eagerly


def test_models_are_saved_cloned_and_pickled_as_before(tmp_path, capsys):
    model, plain = make_model(), make_model()
    configs = model.get_config(), model.get_compile_config()
    fit(terra.keras.accelerate(model))
    plain.set_weights(model.get_weights())
    assert (model.get_config(), model.get_compile_config()) == configs
    model.save(tmp_path / "m.keras")
    model.export(tmp_path / "exported", verbose=False)
    model.summary()
    copies = [
        keras.models.load_model(tmp_path / "m.keras"),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ]
    expected = plain.predict(X, verbose=0)
    for other in [*copies, model]:
        np.testing.assert_array_equal(other.predict(X, verbose=0), expected)
    for other in [*copies, keras.models.clone_model(model)]:
        with pytest.raises(NothingToShowError, match="accelerate"):
            terra.keras.stats(other)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(X), expected, rtol=1e-5)
    assert "Total params" in capsys.readouterr().out
    fit(model)  # and it goes on


def test_models_have_functions_of_their_own():
    models = [terra.keras.accelerate(make_model()) for _ in range(2)]
    for _ in range(3):
        for model in models:
            fit(model)
    for model in models:
        stats = terra.keras.stats(model)["train"]
        assert stats.steps == 18 and stats.co_executed_steps >= 15
        assert not stats.fallbacks, stats


def test_block_accelerates_every_model_in_it():
    model, other = make_model(Counting), terra.keras.accelerate(make_model())
    calls.clear()
    with terra.keras.accelerated():
        fit(model, epochs=2)
        fit(other)
        assert terra.keras.stats(model)["train"].co_executed_steps >= 8
    assert calls == [True] * 12
    assert terra.keras.stats(other)["train"].steps == 6
    with pytest.raises(NothingToShowError):
        terra.keras.explain(model)
    calls.clear()
    fit(model)
    assert len(calls) <= 2


def test_restored_model_is_freed():
    model = terra.keras.accelerate(make_model())
    fit(model)
    gone = weakref.ref(terra.keras.restore(model))
    del model
    terra.synchronize()
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


def test_under_a_strategy_keras_own_function_runs_eagerly():
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        model, expected = (make_model(Counting, run_eagerly=e) for e in (False, True))
    terra.keras.accelerate(model)
    calls.clear()
    assert fit(model) == fit(expected)
    assert len(calls) == 12
    assert "OneDeviceStrategy" in str(terra.keras.explain(model))
    assert terra.keras.stats(model)["train"].steps == 0


class Own(keras.Model):
    def make_train_function(self, force=False):
        super().make_train_function(force)
        made = self.train_function
        self.train_function = lambda iterator: {**made(iterator), "more": 1.0}


def test_a_function_of_the_programs_own_runs_eagerly():
    model = terra.keras.accelerate(make_model(Own))
    assert fit(model, epochs=2)["more"] == [1.0, 1.0]
    text = str(terra.keras.explain(model))
    assert "train: runs eagerly, for make_train_function is the program's own" in text


def test_datasets_end_where_they_end():
    """Also in the middle of what one call takes, and before the epoch's number of steps."""
    results = []
    for accelerates in (False, True):
        model = make_model(run_eagerly=True, steps_per_execution=4)
        if accelerates:
            terra.keras.accelerate(model)
        pairs = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).filter(lambda x, y: True)
        generator = ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 24, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras says that data ran out
            results.append([
                model.fit(pairs, epochs=2, verbose=0).history,
                model.fit(generator, steps_per_epoch=9, epochs=1, verbose=0).history,
                model.predict(pairs, verbose=0).tobytes(),
            ])  # fmt: skip
    assert results[0] == results[1]


def test_explanation_has_each_step():
    model = terra.keras.accelerate(make_model())
    assert "nothing has run yet" in str(terra.keras.explain(model))
    fit(model, epochs=2, validation_data=(X, Y), validation_batch_size=4)
    explanation = terra.keras.explain(model)
    text = str(explanation)
    assert "train: " in text and "test: " in text and "co-execution" in text
    assert set(explanation.to_dict()["steps"]) == {"train", "test"}
    assert "<h3>train</h3>" in explanation._repr_html_()


class Shift(keras.layers.Layer):
    def call(self, x):
        return x + 1.0


def test_explanation_names_layers_whose_python_runs():
    dense, function = keras.layers.Dense, keras.layers.Activation(lambda x: x * 2.0, name="twice")
    inner = keras.Sequential([keras.Input((4,)), Shift(name="shift"), dense(2, name="last")])
    parts = [keras.Input((5,)), dense(4, "relu", name="first"), inner, function]
    model = keras.Sequential(parts, name="outer")
    model.compile("sgd", "mse")
    explanation = terra.keras.explain(terra.keras.accelerate(model))
    assert set(explanation.layers) == {
        "shift (Shift)", f"{inner.name} (Sequential)", "twice (Activation)", "outer (Sequential)"
    }  # fmt: skip
    assert "the program's own; what it calls is replayed" in explanation.layers["shift (Shift)"]
    assert "a function of the user's" in explanation.layers["twice (Activation)"]
    for told in (str(explanation), explanation._repr_html_(), str(explanation.to_dict())):
        assert "shift (Shift)" in told
        assert "first (Dense)" not in told
    assert not terra.keras.explain(terra.keras.accelerate(make_model())).layers


def test_other_things_are_refused():
    with pytest.raises(NoModelError, match=r"models of Keras 3[\s\S]*") as error:
        terra.keras.accelerate(lambda x: x)
    assert error.value.code == "TERRA-NO-MODEL"
    legacy = pytest.importorskip("tf_keras")
    with pytest.raises(NoModelError, match="tf_keras, the old Keras"):
        terra.keras.accelerate(legacy.Sequential([legacy.layers.Dense(1)]))


def test_package_does_not_import_keras():
    program = (
        "import sys, tensorflow; before = 'keras.src' in sys.modules; import terra_tf;"
        "assert before or 'keras.src' not in sys.modules; terra_tf.keras.accelerate"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ------------------------------------------------------- Keras builds a graph


class Decorated(keras.Model):
    @terra.function
    def train_step(self, data):
        calls.append(None)
        return super().train_step(data)


def test_function_in_keras_graph_is_warned_of_once():
    Decorated.train_step.reset()
    model = make_model(Decorated)
    with pytest.warns(UserWarning, match=r"accelerate\(model\)") as caught:
        fit(model, epochs=2)
    ours = [str(w.message) for w in caught if "TERRA-KERAS-GRAPH" in str(w.message)]
    assert len(ours) == 1 and "Decorated.train_step" in ours[0]
    assert Decorated.train_step.stats().fallbacks["graph_mode"] >= 1


def test_function_in_a_graph_of_the_programs_own_is_not_warned_of():
    inner = terra.function(lambda x: x * 2.0)
    outer = tf.function(lambda x: inner(x) + 1.0)

    class Net(keras.Model):
        def train_step(self, data):
            outer(data[0])
            return super().train_step(data)

    assert float(outer(tf.constant(1.0))) == 3.0
    assert set(fit(make_model(Net))) == {"loss"}  # a warning would be an error
