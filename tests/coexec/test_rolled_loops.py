"""Loops that become a `While` of the graph equal eager, bit for bit, and bring few graphs."""

import numpy as np
import pytest
import rolled_loop_programs as programs
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import set_seeds
from terra_tf.viz.graph_def import flatten
from terra_tf.viz.scopes import find_scopes

pytestmark = pytest.mark.timeout(180)

NUM_CALLS = 32
ROLLED = (
    programs.make_constant_length,
    programs.make_varying_length,
    programs.make_two_values_handed_on,
    programs.make_while_with_break,
    programs.make_reads,
    programs.make_feeds,
    programs.make_random_numbers,
    programs.make_constants_of_each_trip,
    programs.make_variables,
    programs.make_chosen_variable,
    programs.make_loop_in_a_branch,
    programs.make_generator,
    programs.make_branches,
    programs.make_nested,
    programs.make_nested_with_reads,
    programs.make_start_from_outside,
    programs.make_start_in_two_branches,
    programs.make_callback_in_each_trip,
    programs.make_constants_of_two_loops,
    programs.make_constant_handed_on,
    programs.make_count_by_data,
)
UNROLLED = (
    programs.make_kept_values,
    programs.make_growing_value,
    programs.make_shape_of_each_trip,
    programs.make_layers,
    programs.make_value_of_some_trips,
    programs.make_writes_in_place,
    programs.make_divisions_of_integers,
)


@pytest.fixture
def roll_all():
    """Rolls every loop that can be."""
    with terra.config.override(roll_loops_from=3, roll_constant_loops_from=3):
        yield


def draw_inputs():
    return [tf.random.stateless_normal([4, 4], [i, 7]) for i in range(NUM_CALLS)]


def run(step):
    """Return the results of all calls, as arrays."""
    set_seeds(5)
    return [tf.nest.map_structure(np.asarray, step(x, i)) for i, x in enumerate(draw_inputs())]


def assert_equals_eager(make):
    """Assert that a program does under Terra what it does eagerly; return the function."""
    expected = run(make())
    function = terra.function(make())
    for i, (want, got) in enumerate(zip(expected, run(function), strict=True)):
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_array_equal(a, b, f"call {i}"), want, got  # noqa: B023
        )
    return function


@pytest.mark.parametrize("make", ROLLED)
def test_loop_is_rolled_and_equals_eager(make, roll_all):
    function = assert_equals_eager(make)
    stats = function.stats()
    assert stats.num_loops >= 1, function.explain()
    assert stats.co_executed_steps > NUM_CALLS // 2, function.explain()


@pytest.mark.parametrize("make", UNROLLED)
def test_loop_that_cannot_be_rolled_stays_unrolled(make, roll_all):
    function = assert_equals_eager(make)
    assert function.stats().num_loops == 0
    assert function.stats().num_switch_cases > 0


@pytest.mark.parametrize("make", ROLLED)
def test_with_delays_it_is_the_same(make, roll_all):
    with terra.config.override(inject_delays="graph,python"):
        assert_equals_eager(make)


def test_lengths_below_the_longest_are_no_divergence(roll_all):
    function = assert_equals_eager(programs.make_varying_length)
    stats = function.stats()
    # Traced: the first two calls (7 trips, 8), and the first call of no trip.
    assert stats.fallbacks == {"new_path": 1}
    assert stats.graph_builds == 2
    assert stats.num_switch_cases <= 1


def test_tensor_that_two_loops_use_which_begin_together_is_fed_to_both():
    """An outer trip begins with its inner loop: at one level, and yet they are two places."""

    @terra.function
    def step(tensors, num_outer, num_inner):
        y, total = tf.ones([2]), tf.zeros([2])
        for i in range(num_outer):
            for _ in range(num_inner):
                y = tf.sin(y * tensors[i])
            total = total + tensors[i] * y
        return total

    for call in range(14):
        tensors = [tf.constant([float(call + i), 1.0]) for i in range(8)]
        lengths = (6 + call % 3, 6 + call // 2 % 3)
        expected = step.python_function(tensors, *lengths)
        np.testing.assert_array_equal(step(tensors, *lengths), expected, f"call {call}")
    places = step.built_graph.generated.trip_places.values()
    assert max(map(len, places)) == 2  # a loop is rolled in a rolled one
    assert step.stats().co_executed_steps > 6


def test_trip_may_be_left_where_only_later_ones_were(roll_all):
    """The body has a branch for that, whichever trip it is."""

    @terra.function
    def step(x, last):
        for trip in range(9):
            x = x * 0.5
            if trip == last:
                break
            x = x + 1.0
        return x

    for call, last in enumerate((5, 9, 7, 8, 1, 0, 2)):
        x = tf.constant([1.0, float(call)])
        np.testing.assert_array_equal(step(x, last), step.python_function(x, last))
    assert step.stats().num_loops == 1
    assert step.stats().fallbacks == {}
    assert step.stats().co_executed_steps >= 4


def test_body_is_in_the_graph_once(roll_all):
    rolled = assert_equals_eager(programs.make_constant_length)
    with terra.config.override(roll_constant_loops_from=0):
        unrolled = assert_equals_eager(programs.make_constant_length)
    built = [len(each.built_graph.generated.op_ranges) for each in (rolled, unrolled)]
    nodes = rolled.stats().num_nodes
    assert built[0] == nodes / 8
    assert built[1] == nodes
    assert rolled.stats().num_nodes == unrolled.stats().num_nodes


def test_short_and_constant_loops_stay_unrolled_by_default():
    assert assert_equals_eager(programs.make_constant_length).stats().num_loops == 0
    with terra.config.override(roll_loops_from=20):
        assert assert_equals_eager(programs.make_varying_length).stats().num_loops == 0
    assert assert_equals_eager(programs.make_varying_length).stats().num_loops == 1


def test_an_error_in_a_trip_surfaces_as_eagerly(roll_all):
    def make():
        def step(x, i):
            for t in range(programs.length_of(i)):
                x = tf.tanh(tf.gather(x, [0, 9 if i == 20 and t == 3 else 1, 2, 3]))
            return x

        return step

    function, eager = terra.function(make()), make()
    for i, x in enumerate(draw_inputs()):
        if i != 20:
            np.testing.assert_array_equal(function(x, i), eager(x, i))
            continue
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(x, i).numpy()
    assert function.stats().co_executed_steps > NUM_CALLS // 2


def test_an_exception_in_a_trip_commits_what_came_before(roll_all):
    def make():
        v = tf.Variable(0.0)

        def step(x, i):
            for t in range(programs.length_of(i)):
                v.assign_add(1.0)
                if i % 7 == 6 and t == 2:
                    raise KeyError(t)
            return v + 0.0

        return step, v

    (step, v), (eager_step, eager_v) = make(), make()
    function = terra.function(step)
    for i, x in enumerate(draw_inputs()):
        outcomes = []
        for each in (function, eager_step):
            try:
                outcomes.append(float(each(x, i)))
            except KeyError as error:
                outcomes.append(error.args)
        assert outcomes[0] == outcomes[1]
        assert float(v) == float(eager_v)
    assert function.stats().num_loops == 1


def test_report_says_which_loops_are_rolled_and_why_one_is_not(roll_all):
    rolled = assert_equals_eager(programs.make_nested)
    assert [loop.form for loop in rolled.explain().loops] == ["rolled", "rolled"]
    unrolled = assert_equals_eager(programs.make_shape_of_each_trip)
    (loop,) = unrolled.explain().loops
    assert loop.form.startswith("unrolled: a shape may depend on a constant")
    assert f"{loop.where}: up to 8 trips, {loop.form}" in str(unrolled.explain())


def test_view_shows_the_condition_and_one_trip(roll_all):
    built = assert_equals_eager(programs.make_while_with_break).built_graph
    scopes = find_scopes(built.trace_graph, built.generated.cases)
    flat = flatten(built.trace_graph, built.generated, scopes).graph_def
    names = [node.name for node in flat.node]
    assert [name for name in names if name.startswith("loop_0/goes_on")] == ["loop_0/goes_on"]
    num_trips = built.generated.loops[0].loop.num_trips
    of_type = [node for node in flat.node if node.op == "Mul"]
    assert len(of_type) <= 10 - num_trips + 1
    known = {node.name for node in flat.node}
    for node in flat.node:
        assert {name.lstrip("^").split(":")[0] for name in node.input} <= known
