"""Keras as its users run it: `fit` accelerated is `fit` with `run_eagerly=True`, bit for bit.

From the fourth batch on the graph is in use, and what runs its Python again is the program's own.
"""

import keras
import keras_model_programs
import keras_training_programs
import pytest
from keras_training import check_program

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras'
]
PROGRAMS = {**keras_model_programs.PROGRAMS, **keras_training_programs.PROGRAMS}


@pytest.mark.parametrize("name", PROGRAMS)
def test_training_is_eagers(name, tmp_path):
    check_program(PROGRAMS[name], tmp_path)


def test_training_with_tensorboard_is_eagers(tmp_path):
    def program(contestant):
        setup = keras_training_programs.one_hot(contestant)
        board = keras.callbacks.TensorBoard(tmp_path / str(contestant.is_terra), histogram_freq=1)
        setup.options["callbacks"] = [board]
        return setup

    check_program(program, tmp_path)
    for folder in ("False", "True"):
        assert list((tmp_path / folder).rglob("events.out.tfevents*")), folder
