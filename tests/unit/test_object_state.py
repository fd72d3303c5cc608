"""What a guard of Keras' objects refuses, since a change of it could go unseen."""

import math
import types

import keras
import pytest
import tensorflow as tf

import terra_tf
from terra_tf.runtime.object_state import UnseenStateError, guard_of


@pytest.fixture
def layer():
    terra_tf.function(lambda: tf.ones([1]))()  # loads what guards are made of
    return keras.layers.Dense(2)


def function_with_an_empty_cell():
    """Return a function of the library's, as far as one can tell, that has a name without value."""

    def make():
        def use():
            return later

        code = use.__code__
        later = None
        return code, later

    code, _ = make()
    module, cells = {"__name__": "keras.of_a_test"}, (types.CellType(),)
    return types.FunctionType(code, module, "use", None, cells)


def test_functions_of_modules_are_what_they_are(layer):
    layer.note = math.sqrt
    guard = guard_of([layer])
    assert guard.is_unchanged
    layer.note = math.exp
    assert not guard.is_unchanged


def test_methods_of_containers_are_refused(layer):
    layer.note = [].append
    with pytest.raises(UnseenStateError, match=r"note is a list's method"):
        guard_of([layer])


def test_functions_with_names_without_values_are_refused(layer):
    layer.note = function_with_an_empty_cell()
    with pytest.raises(UnseenStateError, match="without a value"):
        guard_of([layer])


def test_functions_of_the_users_are_refused(layer):
    layer.note = lambda x: x
    with pytest.raises(UnseenStateError, match="a function of the user's"):
        guard_of([layer])


def test_tensor_that_is_an_attribute_is_what_it_is(layer):
    layer.note = tf.constant([1.0])
    guard = guard_of([layer])
    assert guard.is_unchanged
    layer.note = tf.constant([1.0])
    assert not guard.is_unchanged


def test_tensor_that_has_died_is_noticed(layer):
    layer.note = tf.constant([1.0])
    guard = guard_of([layer])
    del layer.note
    assert not guard.is_unchanged


def test_tensors_with_masks_are_refused(layer):
    layer.note = tf.constant([1.0])
    layer.note._keras_mask = tf.constant([True])
    with pytest.raises(UnseenStateError, match="note is a tensor with attributes"):
        guard_of([layer])


def test_lists_of_tensors_are_refused(layer):
    layer.note = [tf.constant([1.0])]
    with pytest.raises(UnseenStateError, match="note holds a tensor"):
        guard_of([layer])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras'
def test_saving_again_changes_nothing(layer, tmp_path):
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    guard = guard_of([model])
    for _ in range(2):
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        assert guard.is_unchanged
