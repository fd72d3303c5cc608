"""Arguments and results whose shapes change equal eager, and settle on one graph for all."""

import numpy as np
import pytest
import shape_programs as programs
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import assert_co_executing, find_difference, freeze

pytestmark = pytest.mark.timeout(300)

SHUFFLED = [int(n) for n in np.random.default_rng(0).permutation(np.arange(5, 35))]
NEVER_SEEN = [3, 35, 36, 41, 2, 50]


class Pair:
    """One program, eagerly and under Terra, compared bit for bit after every call."""

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

    def run(self, cases):
        for number, case in enumerate(cases):
            outcomes = []
            for program in (self.eager, self.under_test):
                tf.random.set_seed(number)
                outcomes.append(freeze(program.step(case)))
            found = find_difference(*outcomes, path=f"call {number}, case {case}")
            assert not found, f"{found}\n{self.function.explain()}"
        terra.synchronize()
        variables = [freeze(list(p.variables)) for p in (self.eager, self.under_test)]
        assert not find_difference(*variables, path="variables")

    @property
    def counts(self):
        stats = self.function.stats()
        return stats.traced_steps, stats.graph_builds, sum(stats.fallbacks.values())


def assert_settles(make, warm_up, further, imperative_ops=()):
    """Assert that after some cases no further one brings anything new; return the Pair."""
    pair = Pair(make)
    pair.run(warm_up)
    before = pair.function.stats()
    pair.run(further)
    assert_co_executing(pair.function, after=before, imperative_ops=imperative_ops)
    return pair


# ----------------------------------------------------------- relaxed entries


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_one_graph_serves_every_length(training):
    """Four exact signatures are traced once each, then two steps make the relaxed graph."""
    pair = Pair(lambda wrap: programs.make_sequence_model(wrap, training))
    pair.run(SHUFFLED)
    assert pair.counts == (6, 1, 0), pair.function.explain()
    pair.run(SHUFFLED + NEVER_SEEN)
    assert pair.counts == (6, 1, 0), pair.function.explain()
    assert_co_executing(pair.function)
    assert pair.function.stats().co_executed_steps == 60


@pytest.mark.parametrize("cases", [[4] * 10, SHUFFLED[:10]], ids=["static", "varying"])
def test_python_waits_for_no_shape_of_a_kernels_own(cases):
    """What `FusedBatchNormV3` keeps for its gradient has a shape that only its kernel knows."""
    pair = Pair(programs.make_batch_norms)
    pair.run(cases)
    assert_co_executing(pair.function)
    assert pair.function.stats().num_fetches == 1  # the loss


def test_python_waits_for_no_shape():
    """Shapes are inferred: what is fetched is only what Python keeps."""
    pair = Pair(lambda wrap: programs.make_sequence_model(wrap, training=True))
    pair.run(SHUFFLED[:10])
    assert pair.function.stats().num_fetches <= 4


@pytest.mark.parametrize(
    "make", [programs.make_dropout, programs.make_embedding, programs.make_batches]
)
def test_length_agnostic_programs_settle_for_lengths_never_seen(make):
    assert_settles(make, SHUFFLED[:8], [*SHUFFLED, *NEVER_SEEN])


def test_loop_over_the_length_settles_between_the_lengths_seen():
    with terra.config.override(max_exact_shapes=1):
        assert_settles(programs.make_time_loop, [7, 5, 12, 6, 9, 5, 12, 8, 7], range(6, 12))


def test_last_smaller_batch_has_a_graph_of_its_own():
    epoch = [31] * 12 + [17]
    pair = Pair(programs.make_batches)
    pair.run(epoch)
    assert pair.counts == (3, 1, 0)
    pair.run(epoch)
    assert pair.counts == (4, 2, 0)
    pair.run(epoch)
    assert pair.counts == (4, 2, 0)
    assert pair.function.stats().co_executed_steps == 3 * 13 - 4


def test_exact_entries_with_a_graph_stay_in_use():
    pair = Pair(programs.make_batches)
    pair.run([8, 8, 8, 3, 4, 5, 6, 7])
    assert pair.counts == (2 + 3 + 2, 2, 0)
    before = pair.function.stats()
    pair.run([8])
    assert not has_unknown_dimensions(pair.function)
    pair.run([9, 3])
    assert has_unknown_dimensions(pair.function)
    assert_co_executing(pair.function, after=before)


def test_fifth_shape_that_stays_alone_is_built_soon():
    """The octaves of a pyramid, one after the other."""
    pair = Pair(programs.make_batches)
    pair.run([4, 5, 6, 7, 8] * 4)
    before = pair.function.stats()
    pair.run([4, 5, 6, 7, 8] * 3)
    assert_co_executing(pair.function, after=before)
    pair.run([9, 10, 11, 12, 8])  # others after all
    before = pair.function.stats()
    pair.run([13, 9, 30, 8, 4])
    assert_co_executing(pair.function, after=before)


def has_unknown_dimensions(function):
    """Say whether the graph used last is a relaxed entry's."""
    return function.trace_graph.has_unknown_dimensions


def test_knob_says_how_many_exact_shapes_there_are():
    with terra.config.override(max_exact_shapes=1):
        pair = Pair(programs.make_batches)
        pair.run([4, 5, 6, 7, 8])
    assert pair.counts == (3, 1, 0)


def test_a_dimension_that_starts_to_vary_widens_the_entry():
    @terra.function
    def step(x):
        return tf.reduce_sum(tf.tanh(x) * 2.0, 1), tf.shape(x)

    def run(*shape):
        x = tf.constant(programs.draw(*shape))
        sums, dims = step(x)
        assert dims.numpy().tolist() == list(shape)
        assert np.array_equal(sums, tf.reduce_sum(tf.tanh(x) * 2.0, 1))

    for length in (5, 6, 7, 8, 9, 10, 11):
        run(4, length)
    stats = step.stats()
    assert (stats.traced_steps, stats.graph_builds) == (6, 1)
    run(3, 12)
    stats = step.stats()
    assert (stats.traced_steps, stats.graph_builds, stats.fallbacks) == (7, 2, {})
    run(2, 13)
    assert_co_executing(step, after=stats)


def test_other_types_and_ranks_are_other_signatures():
    step = terra.function(lambda x: x + x)
    for make in (tf.float32, tf.int32, tf.float64):
        for _ in range(4):
            step(tf.ones([3], make))
    step(tf.ones([3, 1]))
    assert step.stats().graph_builds == 3
    assert step.stats().traced_steps == 7


def test_too_many_signatures_are_relaxed_where_they_can_be():
    step = terra.function(lambda x: x * 2.0)
    with terra.config.override(max_entry_signatures=2):
        for length in (1, 1, 2, 2, 3, 4, 5, 6):
            assert step(tf.ones([length])).shape == [length]
        assert step.stats().fallbacks == {}
        assert step.stats().graph_builds == 3
        step(tf.ones([2, 2]))
        assert step.stats().fallbacks == {"too_many_signatures": 1}


# ------------------------------------------------------------- shapes by data


@pytest.mark.parametrize(
    "make",
    [
        programs.make_where,
        programs.make_boolean_mask,
        programs.make_unique,
        programs.make_nms,
        programs.make_joined_lengths,
    ],
)
def test_shapes_that_depend_on_data_are_co_executed(make):
    assert_settles(make, range(10), range(10, 30))


# ------------------------------------------------------- ragged, sparse, others


def test_ragged_tensors_of_one_size():
    assert_settles(programs.make_ragged(lambda rng: [2, 3, 1]), range(4), range(4, 12))


def test_ragged_tensors_of_varying_size():
    make = programs.make_ragged(lambda rng: [int(n) for n in rng.integers(1, 6, size=4)])
    assert_settles(make, range(10), range(10, 30))


def test_ragged_tensors_with_a_varying_number_of_rows():
    make = programs.make_ragged(
        lambda rng: [int(n) for n in rng.integers(1, 4, size=rng.integers(2, 7))]
    )
    assert_settles(make, range(16), range(16, 36))


def test_sparse_tensors():
    assert_settles(programs.make_sparse, range(20), range(20, 40))


@pytest.mark.parametrize("make", [programs.make_slices, programs.make_extension_type])
def test_other_composite_tensors(make):
    assert_settles(make, range(4), range(4, 12))


def test_outside_tensor_of_another_shape_leaves_the_graph():
    """It is no argument, so no entry signature tells it: the cursor has to look."""
    outside = {}

    @terra.function
    def function():
        y = outside["x"] * 2.0
        return y, tf.reduce_sum(tf.exp(-y))

    def call(i, num_elements):
        outside["x"] = tf.fill([num_elements], float(i))
        y, total = function()
        assert y.shape == (num_elements,)
        np.testing.assert_array_equal(y.numpy(), np.full(num_elements, 2.0 * i, np.float32))
        np.testing.assert_allclose(total.numpy(), num_elements * np.exp(-2.0 * i), rtol=1e-6)

    for i in range(6):
        call(i, 4)
    assert function.stats().phase == "co-execution"
    known = function.stats().fallbacks
    call(6, 7)
    assert function.stats().fallbacks == {**known, "feed_changed": 1}
