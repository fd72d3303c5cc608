"""The models that benchmarks/keras_fit.py measures: accelerated they are eager's, and replayed."""

import keras
import pytest
from keras_training import plain, refusals_of

import terra_tf as terra
from benchmarks.keras_models import BATCH_SIZE, MODELS, can_call, make_data, make_model

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras'
]
NUM_BATCHES, NUM_EPOCHS = 4, 3
QUICK = ("dense", "cnn_bn")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


class BeforeLast(keras.callbacks.Callback):
    refused = None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == NUM_EPOCHS - 1:
            self.refused = refusals_of(self.model)


def run(name, contestant):
    """Return what can be seen of a model, what ran its Python again at last, and the model."""
    keras.backend.clear_session()
    data, model = make_data(name, NUM_BATCHES), make_model(name, contestant)
    options, before = {"batch_size": BATCH_SIZE, "verbose": 0}, BeforeLast()
    seen = [model.fit(*data, epochs=NUM_EPOCHS, callbacks=[before], **options).history]
    if can_call(name, "evaluate"):
        seen += [model.evaluate(*data, **options), model.predict(data[0], **options)]
    return plain([seen, model.get_weights()]), refusals_of(model) - before.refused, model


@pytest.mark.parametrize("name", NAMES)
def test_model_is_eagers_and_replayed(name):
    eager, *_ = run(name, "eager")
    ours, again, model = run(name, "terra")
    assert ours == eager
    stats = terra.keras.stats(model)["train"]
    assert stats.co_executed_steps >= NUM_BATCHES * NUM_EPOCHS - 3, stats
    # Layers and models of the program's own run their Python; what they call does not.
    again = {call: n for call, n in again.items() if "changes would go unseen" not in call}
    assert not again, again
