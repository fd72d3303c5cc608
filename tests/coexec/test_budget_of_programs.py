"""Programs under a budget, by a clock of the test's own: whatever is stopped, they are eager's."""

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.config import config
from terra_tf.runtime import budget


class Ticking:
    """A clock that goes on by the same time whenever somebody looks at it."""

    def __init__(self, tick_s=0.0):
        self.tick_s = tick_s
        self._now_s = 0.0

    def __call__(self):
        self._now_s += self.tick_s
        return self._now_s


@pytest.fixture
def clock():
    clock = Ticking()
    budget.begin_program(clock)
    with config.override(weigh_costs=True, budget_s=2.0, budget_share=0.1, verify=False):
        yield clock
    budget.begin_program()


class Program:
    """A step with state, random numbers, Python effects, and as many trips as it is told."""

    def __init__(self, wrap):
        self.total = tf.Variable(0.0)
        self.seen = []
        tf.random.set_seed(7)
        self.step = wrap(self._step)

    def _step(self, x, trips):
        for k in range(trips):
            noise = tf.random.uniform([3])
            self.total.assign_add(tf.reduce_sum(x * noise))
            self.seen.append(float(self.total))
            x = tf.tanh(x + float(k))
        return x + self.total

    def outcome(self, lengths):
        results = [self.step(tf.ones([3]) * k, trips).numpy() for k, trips in enumerate(lengths)]
        return results, list(self.seen), float(self.total)


def check(lengths):
    """Run a program eagerly and under Terra; return the latter."""
    eager = Program(lambda f: f).outcome(lengths)
    program = Program(terra.function)
    np.testing.assert_equal(program.outcome(lengths), eager)
    return program


def test_nothing_is_begun_without_a_budget(clock):
    clock.tick_s = 0.001
    with config.override(budget_s=0.0, budget_share=0.0):
        program = check([2] * 10)
        stats = program.step.stats()
        text = str(program.step.explain())
        assert (stats.phase, stats.traced_steps, stats.graph_builds) == ("imperative", 0, 0)
        assert stats.fallbacks == {"over_budget": 10}
        assert "tracing may cost 0.02 s" in text and "with config.budget_s = 0.1" in text
    with config.override(budget_s=1e6):
        program.outcome([2] * 10)
    assert program.step.stats().phase == "co-execution"
    assert program.step.stats().co_executed_steps >= 7


def test_small_program_co_executes_at_once(clock):
    clock.tick_s = 1e-5
    stats = check([2] * 12).step.stats()
    assert (stats.traced_steps, stats.co_executed_steps) == (2, 10)
    assert stats.fallbacks == {}
    assert 0 < stats.invested_s < 0.1


def test_recording_is_stopped_in_the_middle_of_a_step(clock):
    clock.tick_s = 0.05  # the 2 s are used up after some ops
    program = check([20] * 4)
    stats = program.step.stats()
    assert stats.traced_steps >= 1 and stats.graph_builds == 0
    assert len(program.step.trace_graph.nodes) == 0
    assert stats.fallbacks["over_budget"] >= 1
    assert "recording" in str(program.step.explain())


def test_build_is_stopped_where_the_budget_ends(clock):
    lengths = [4] * 2
    with config.override(budget_s=1e6):
        program = check(lengths[:1])
    clock.tick_s = 0.02
    program.outcome(lengths)
    stats = program.step.stats()
    assert stats.graph_builds == 0 and stats.phase == "imperative"
    assert any("was stopped after" in event.detail for event in program.step.explain().events)
    with config.override(budget_s=1e6):
        program.outcome(lengths)
    assert program.step.stats().graph_builds == 1
    assert program.step.stats().phase == "co-execution"


@pytest.mark.parametrize("lengths", [[3] * 80, [3, 4, 5, 4] * 20], ids=["one length", "several"])
def test_eager_samples_change_no_result(clock, lengths):
    clock.tick_s = 1e-5
    program = Program(terra.function)
    got = [program.outcome(lengths[:8])]
    assert program.step.stats().phase == "co-execution"
    clock.tick_s = 0.3  # a stretch is over after each step
    with config.override(budget_s=1e6, rebuild_share=1e6):
        got.append(program.outcome(lengths[8:]))
    eager = Program(lambda f: f)
    np.testing.assert_equal(got, [eager.outcome(lengths[:8]), eager.outcome(lengths[8:])])
    assert program.step.stats().fallbacks["eager_measured"] >= 3


def test_first_graph_with_a_long_warm_up_is_not_taken_for_slow(clock):
    clock.tick_s = 1e-5
    program = Program(terra.function)
    program.outcome([3] * 2)
    clock.tick_s = 1.0
    program.outcome([3])
    clock.tick_s = 1e-5
    program.outcome([3] * 60)
    stats = program.step.stats()
    assert stats.co_executed_steps >= 60 and "slower_than_eager" not in stats.fallbacks
