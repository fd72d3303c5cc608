"""The collector is on again after a pause, however that ends; and stays off where it was."""

import gc

import pytest

from terra_tf.runtime.gc_pause import end_pause, without_gc


def test_pause():
    with without_gc():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_pause_that_raises():
    with pytest.raises(KeyError), without_gc():
        raise KeyError
    assert gc.isenabled()


def test_pause_that_was_left_before_its_end():
    pause = without_gc()
    pause.__enter__()
    assert not gc.isenabled()
    end_pause()
    assert gc.isenabled()
    end_pause()


def test_collector_that_the_program_has_off():
    gc.disable()
    try:
        with without_gc():
            pass
        end_pause()
        assert not gc.isenabled()
    finally:
        gc.enable()
