"""The collector looks as the program has it after a pause, however that ends."""

import contextlib
import gc
import multiprocessing
import os

import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.config import config
from terra_tf.runtime import budget, gc_pause
from terra_tf.runtime.gc_pause import end_pause, relax_gc, without_gc


@pytest.fixture(autouse=True)
def own():
    before = gc.get_threshold()
    gc.set_threshold(650, 9, 8)
    yield (650, 9, 8)
    gc.set_threshold(*before)


def is_slow():
    return gc.get_threshold()[0] > 10_000


def test_pause(own):
    with without_gc():
        assert is_slow() and gc.isenabled()
    assert gc.get_threshold() == own


def test_pause_that_raises(own):
    with pytest.raises(KeyError), without_gc():
        raise KeyError
    assert gc.get_threshold() == own


def test_pause_that_was_left_before_its_end(own):
    pause = without_gc()
    pause.__enter__()
    assert is_slow()
    end_pause()
    end_pause()
    assert gc.get_threshold() == own


def test_relaxed_collector(own):
    relax_gc()
    relax_gc()
    assert is_slow()
    with without_gc():
        assert is_slow()
    assert gc.get_threshold() == own
    end_pause()
    assert gc.get_threshold() == own


@pytest.mark.parametrize("pause", [relax_gc, lambda: without_gc().__enter__()])
def test_collector_that_the_program_has_off(pause):
    gc.disable()
    try:
        pause()
        end_pause()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_collector_that_is_turned_off_meanwhile():
    """By another thread, say: it stays off."""
    try:
        with without_gc():
            gc.disable()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("first", [0, 10**6], ids=["off", "rarer"])
def test_collector_that_looks_more_rarely_anyway(first):
    gc.set_threshold(first, 10, 10)
    relax_gc()
    assert gc.get_threshold()[0] == first
    end_pause()
    assert gc.get_threshold()[0] == first


def test_threshold_that_the_program_sets_meanwhile():
    relax_gc()
    gc.set_threshold(123, 4, 5)
    end_pause()
    assert gc.get_threshold() == (123, 4, 5)


def test_program_that_restores_what_it_saw_in_a_pause(own):
    relax_gc()
    seen = gc.get_threshold()
    gc.set_threshold(123, 4, 5)
    end_pause()
    gc.set_threshold(*seen)
    for _ in range(2):
        relax_gc()
        end_pause()
        assert gc.get_threshold() == own


@pytest.mark.parametrize("raises", [False, True])
def test_recorded_step(raises, own):
    seen = []

    @terra.function
    def step(x):
        seen.append(is_slow())
        if raises:
            raise KeyError
        return x + 1.0

    with pytest.raises(KeyError) if raises else contextlib.nullcontext():
        step(tf.constant(1.0))
    assert seen == [True]
    assert gc.get_threshold() == own


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self):
        self.me = self


def test_collector_looks_again_where_recording_is_stopped(own):
    """The rest of a step that is a whole program runs eagerly, and may leave much garbage."""
    seen = []

    @terra.function
    def step(x):
        for _ in range(3000):
            x = tf.tanh(x)
            seen.append(is_slow())
        return x

    budget.begin_program()
    try:
        with config.override(weigh_costs=True, budget_s=0.04):
            step(tf.constant(1.0))
    finally:
        budget.begin_program()
    assert step.stats().co_executed_steps == 0
    assert seen[0] and not seen[-1]


def test_garbage_of_a_recorded_step_is_bounded():
    alive = []

    @terra.function
    def step(x):
        for _ in range(3000):
            Cycle()
        alive.append(sum(isinstance(thing, Cycle) for thing in gc.get_objects()))
        for _ in range(30_000):
            Cycle()
        alive.append(sum(isinstance(thing, Cycle) for thing in gc.get_objects()))
        return x + 1.0

    step(tf.constant(1.0))
    assert alive[0] < 10_100 and alive[1] < 10_100, alive


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows starts processes in another way")
@pytest.mark.parametrize("thresholds", [gc_pause._MORE_RARELY, gc_pause._HARDLY_EVER])
def test_forked_child_has_the_programs_thresholds(thresholds, own):
    gc_pause._slow_down(thresholds)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=lambda: there.send(gc.get_threshold()))
    child.start()
    assert here.poll(30) and here.recv() == own
    child.join(30)
    assert gc.get_threshold() == thresholds
    end_pause()
