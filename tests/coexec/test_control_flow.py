"""Programs that take another way in every call equal eager, and settle within a few traces.

`SideBySide` runs a program eagerly and under Terra, call by call, and compares as it goes. Every
call that was not co-executed counts as a trace here: recorded from its start, or a fallback.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import control_flow_programs as programs
import numpy as np
import pytest
import reinforcement_programs

import terra_tf as terra
from terra_tf.testing import assert_co_executing, assert_matches_eager, find_difference, freeze

pytestmark = pytest.mark.timeout(300)

NUM_EQUAL_CALLS = 50
NUM_SETTLED_CALLS = 20
NUM_FURTHER_CALLS = 30


class Kind(NamedTuple):
    """A builder, and the rounds over all cases after which no call is new."""

    make: Callable
    num_rounds: int = 3


KINDS = {
    "tree_lstm": Kind(programs.make_tree_lstm),
    "beam_search": Kind(programs.make_beam_search),
    "early_exit": Kind(programs.make_early_exit),
    "stochastic_depth": Kind(
        functools.partial(programs.make_stochastic_depth, num_layers=3), num_rounds=10
    ),
    "optional_blocks": Kind(programs.make_optional_blocks, num_rounds=1),
    "branches": Kind(functools.partial(programs.make_branches, num_branches=3)),
    "reinforce": Kind(reinforcement_programs.make_reinforce, num_rounds=60),
    "dqn": Kind(reinforcement_programs.make_dqn, num_rounds=60),
    "dynamic_rnn": Kind(programs.make_dynamic_rnn),
    "dynamic_rnn_training": Kind(functools.partial(programs.make_dynamic_rnn, training=True)),
    "nested_loops": Kind(programs.make_nested_loops),
    "generator_loop": Kind(programs.make_generator_loop),
    "comprehensions": Kind(programs.make_comprehensions),
    "mixed_shapes": Kind(programs.make_mixed_shapes, num_rounds=6),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class SideBySide:
    """One program twice, eagerly and under Terra; every call is compared at once."""

    def __init__(self, make):
        self.functions = []
        self.eager = make(lambda function: function)
        self.under_test = make(self._wrap)

    def _wrap(self, function):
        self.functions.append(terra.function(function))
        return self.functions[-1]

    @property
    def function(self):
        (function,) = self.functions
        return function

    @property
    def num_traces(self):
        """How many calls were not co-executed from their start to their end."""
        stats = self.function.stats()
        return stats.traced_steps + sum(stats.fallbacks.values())

    def step(self, case=None):
        """Run one call in both, and assert that they agree."""
        outcomes = [freeze(program.step(case)) for program in (self.eager, self.under_test)]
        self._assert_equal(*outcomes, f"call {self.function.stats().steps}, case {case}")

    def run(self, cases):
        for case in cases:
            self.step(case)

    def draw(self, num_calls):
        """Let the program choose its cases itself; both draw the same ones."""
        self.run([None] * num_calls)

    def assert_variables_equal(self):
        terra.synchronize()
        values = [freeze(list(p.variables)) for p in (self.eager, self.under_test)]
        self._assert_equal(*values, "variables")

    def assert_settled(self, num_calls):
        """Assert that further calls are co-executed, one by one, and nothing new is learned."""
        before = self.function.stats()
        for i in range(num_calls):
            self.step()
            after = self.function.stats()
            story = f"call {i} after it should have settled\n{self.function.explain()}"
            assert after.co_executed_steps == before.co_executed_steps + i + 1, story
            assert after.fallbacks == before.fallbacks, story
        assert_co_executing(self.function, after=before)
        self.assert_variables_equal()

    def _assert_equal(self, eager, under_test, where):
        found = find_difference(eager, under_test, path=where)
        assert not found, f"{found}\n{self.function.explain()}"


# ------------------------------------------------------------------------ equal


@every_kind
def test_random_calls_equal_eager(kind):
    (function,) = assert_matches_eager(kind.make, NUM_EQUAL_CALLS)
    stats = function.stats()
    assert stats.steps == NUM_EQUAL_CALLS
    assert stats.traced_steps >= 1


@every_kind
def test_results_read_only_at_the_end_equal_eager(kind):
    (function,) = assert_matches_eager(
        kind.make, NUM_EQUAL_CALLS // 2, read_at_end=True
    )
    assert function.stats().steps == NUM_EQUAL_CALLS // 2


@every_kind
def test_programs_repeat_themselves_when_made_anew(kind):
    """A condition on the programs: all chance is in the generators that they make."""
    first, second = (kind.make(lambda function: function) for _ in range(2))
    outcomes = [[freeze(program.step()) for _ in range(12)] for program in (first, second)]
    assert find_difference(*outcomes) is None
    assert find_difference(outcomes[0][:1] * 12, outcomes[0]), "every call gave the same"


# ----------------------------------------------------------------------- settle


@every_kind
def test_settled_program_co_executes_every_call(kind):
    pair = SideBySide(kind.make)
    pair.run([*range(pair.under_test.num_cases)] * kind.num_rounds)
    pair.assert_settled(NUM_SETTLED_CALLS)


# ------------------------------------------------------------------- few traces


def assert_settles_within(pair, num_calls, max_traces):
    """Assert that random calls need few traces, and further random ones none."""
    pair.draw(num_calls)
    assert pair.num_traces <= max_traces, f"{pair.num_traces} traces\n{pair.function.explain()}"
    pair.assert_settled(NUM_FURTHER_CALLS)


@pytest.mark.parametrize("num_branches", [2, 8])
def test_independent_branches_need_a_trace_each_and_a_few(num_branches):
    pair = SideBySide(functools.partial(programs.make_branches, num_branches=num_branches))
    assert_settles_within(pair, num_calls=60, max_traces=num_branches + 4)
    assert pair.function.stats().num_switch_cases >= num_branches


@pytest.mark.parametrize(
    "make", [programs.make_optional_blocks, programs.make_stochastic_depth], ids=["lines", "loop"]
)
def test_adjacent_optional_blocks_need_three_traces_each(make):
    """What comes first has no gradient for its input: the last block is that in a call of 256."""
    pair = SideBySide(make)
    pair.draw(120)
    assert pair.num_traces <= 3 * 8, f"{pair.num_traces} traces\n{pair.function.explain()}"
    before = pair.num_traces
    pair.draw(60)
    assert pair.num_traces - before <= 1, str(pair.function.explain())


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_lengths_seen_once_are_known(training):
    pair = SideBySide(functools.partial(programs.make_dynamic_rnn, training=training))
    num_lengths = pair.under_test.num_cases
    pair.draw(4)
    pair.run(np.random.default_rng(5).permutation(num_lengths).tolist())
    assert pair.num_traces <= 4 + num_lengths
    num_diverged = sum(pair.function.stats().fallbacks.values())
    pair.draw(1)  # every length is known now; one step may be traced to see that it is covered
    pair.assert_settled(NUM_FURTHER_CALLS)
    assert sum(pair.function.stats().fallbacks.values()) == num_diverged


def test_a_settled_loop_diverges_at_a_longer_trip_once():
    pair = SideBySide(programs.make_dynamic_rnn)
    pair.run([*range(10)] * 3)
    before = pair.function.stats()
    pair.run([10, 11] * 3)
    after = pair.function.stats()
    assert sum(after.fallbacks.values()) <= sum(before.fallbacks.values()) + 2
    pair.run([*range(12)])
    assert_co_executing(pair.function, after=after)
