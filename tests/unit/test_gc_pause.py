"""The collector is on again after a pause, however that ends; and stays off where it was."""

import contextlib
import gc

import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime.gc_pause import end_pause, relax_gc, without_gc


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


@pytest.fixture
def threshold():
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_relaxed_collector(threshold):
    relax_gc()
    relax_gc()
    assert gc.isenabled()
    assert gc.get_threshold()[0] > threshold[0]
    with without_gc():
        pass
    assert gc.get_threshold()[0] > threshold[0]
    end_pause()
    assert gc.get_threshold() == threshold


@pytest.mark.parametrize("own", [0, 10**6], ids=["off", "rarer"])
def test_collector_that_looks_more_rarely_anyway(own, threshold):
    gc.set_threshold(own, 10, 10)
    relax_gc()
    assert gc.get_threshold()[0] == own
    end_pause()
    assert gc.get_threshold()[0] == own


def test_threshold_that_the_program_sets_meanwhile(threshold):
    relax_gc()
    gc.set_threshold(123, 4, 5)
    end_pause()
    assert gc.get_threshold() == (123, 4, 5)


@pytest.mark.parametrize("raises", [False, True])
def test_recorded_step(raises, threshold):
    seen = []

    @terra.function
    def step(x):
        seen.append(gc.get_threshold()[0])
        if raises:
            raise KeyError
        return x + 1.0

    with pytest.raises(KeyError) if raises else contextlib.nullcontext():
        step(tf.constant(1.0))
    assert seen[0] > threshold[0]
    assert gc.get_threshold() == threshold
