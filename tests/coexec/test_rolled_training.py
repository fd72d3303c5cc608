"""Steps that train in a loop of their own: rolled, and equal to eager, bit for bit."""

import pytest
import training_loop_programs as programs
from test_rolled_loops import NUM_CALLS, assert_equals_eager

import terra_tf as terra

pytestmark = pytest.mark.timeout(240)

ROLLED = (
    programs.make_steps_by_hand,
    programs.make_constant_length,
    programs.make_adam,
    programs.make_momentum,
    programs.make_clipped,
    programs.make_batches,
    programs.make_until_converged,
    programs.make_branches,
    programs.make_nested,
    programs.make_input_gradients,
    programs.make_penalty,
    programs.make_two_uses,
    programs.make_accumulated_gradients,
    programs.make_dropout,
)


@pytest.fixture
def roll_all():
    """Rolls every loop that can be."""
    with terra.config.override(roll_loops_from=3, roll_constant_loops_from=3):
        yield


@pytest.mark.parametrize("make", ROLLED)
def test_training_is_rolled_and_equals_eager(make, roll_all):
    function = assert_equals_eager(make)
    stats = function.stats()
    assert stats.num_loops >= 1, function.explain()
    assert stats.co_executed_steps > NUM_CALLS // 2, function.explain()


@pytest.mark.parametrize("make", ROLLED[::3])
def test_with_delays_it_is_the_same(make, roll_all):
    with terra.config.override(inject_delays="graph,python"):
        assert_equals_eager(make)


def test_gradient_through_all_trips_is_not_rolled(roll_all):
    """The outer tape needs what every trip has made."""
    function = assert_equals_eager(programs.make_inner_and_outer)
    assert function.stats().num_loops == 0


def test_lengths_below_the_longest_are_no_divergence(roll_all):
    function = assert_equals_eager(programs.make_steps_by_hand)
    # Traced: the first two calls (7 trips, 8), and the first call of no trip.
    assert sum(function.stats().fallbacks.values()) == 1, function.explain()


def test_lengths_between_are_no_divergence_unrolled():
    """A loop that trains may end behind any trip; each trip's backward ops are other ones."""
    with terra.config.override(roll_loops_from=0):
        function = assert_equals_eager(programs.make_steps_by_hand)
    assert sum(function.stats().fallbacks.values()) <= 2, function.explain()


def test_loop_of_many_ops_is_rolled_though_its_trips_are_few(monkeypatch):
    monkeypatch.setattr("terra_tf.graph.loop_finder._MANY_OPS", 100)
    assert assert_equals_eager(programs.make_constant_length).stats().num_loops == 1
    with terra.config.override(roll_constant_loops_from=0):
        assert assert_equals_eager(programs.make_constant_length).stats().num_loops == 0
