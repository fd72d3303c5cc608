"""Which entry serves a call, and which tensors of its arguments decide that."""

import pytest
import tensorflow as tf

from terra_tf.config import config
from terra_tf.runtime.arguments import find_tensors
from terra_tf.runtime.entries import Entries
from terra_tf.runtime.stats import Counters


@pytest.fixture
def entries():
    with config.override(max_exact_shapes=3, max_entry_signatures=6):
        yield Entries(Counters(), {})


def find(entries, *shape, dtype=tf.float32):
    return entries.find([tf.zeros(shape, dtype)])


def dims(entry):
    return [spec.shape for spec in entry.pattern]


def give_graph(entry):
    """Make an entry look as if a graph had been built for it."""
    entry.built = object()
    return entry


# ------------------------------------------------------------------ arguments


class Pair(tf.experimental.ExtensionType):
    first: tf.Tensor
    second: tf.RaggedTensor


def shapes_in(value):
    return [tuple(tensor.shape) for tensor in find_tensors(value)]


def test_tensors_are_found_in_nested_containers_in_order():
    value = ([tf.zeros([1]), {"b": tf.zeros([2]), "a": (tf.zeros([3]), 4, "x", None)}],)
    assert shapes_in(value) == [(1,), (2,), (3,)]


def test_a_container_that_contains_itself_is_looked_at_once():
    value = [tf.zeros([1])]
    value.append(value)
    assert shapes_in(value) == [(1,)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tf.ragged.constant([[1, 2], [3]]), [(3,), (3,)]),
        (tf.ragged.constant([[[1], [2, 3]], [[4]]]), [(4,), (3,), (4,)]),
        (tf.sparse.from_dense([[0.0, 1.0]]), [(1, 2), (1,), (2,)]),
        (tf.IndexedSlices(tf.zeros([2, 3]), tf.constant([0, 1])), [(2, 3), (2,)]),
        (Pair(tf.zeros([5]), tf.ragged.constant([[1]])), [(5,), (1,), (2,)]),
    ],
    ids=["ragged", "ragged_twice", "sparse", "slices", "extension_type"],
)
def test_components_of_composite_tensors_are_found(value, expected):
    assert shapes_in([{"batch": value}]) == expected


def test_variables_iterators_and_datasets_are_no_tensors():
    dataset = tf.data.Dataset.range(3)
    assert find_tensors([tf.Variable(1.0), dataset, iter(dataset)]) == []


# -------------------------------------------------------------------- entries


def test_each_of_the_first_signatures_has_an_exact_entry(entries):
    found = [find(entries, n) for n in (1, 2, 3)]
    assert len(set(map(id, found))) == 3
    assert all(entry.pattern is None for entry in found)
    assert [find(entries, n) for n in (1, 2, 3)] == found


def test_the_next_signature_makes_a_relaxed_entry(entries):
    for length in (5, 6, 7):
        find(entries, 4, length)
    relaxed = find(entries, 4, 8)
    assert dims(relaxed) == [(4, -1)]
    assert find(entries, 4, 9) is relaxed
    assert find(entries, 4, 5) is relaxed  # its exact entry had no graph


def test_an_exact_entry_with_a_graph_is_kept(entries):
    exact = give_graph(find(entries, 5))
    for length in (6, 7, 8):
        find(entries, length)
    assert find(entries, 5) is exact
    assert find(entries, 6) is not exact


def test_another_dimension_that_varies_widens_the_pattern_and_drops_the_graph(entries):
    for length in (5, 6, 7, 8):
        relaxed = find(entries, 4, length)
    built = give_graph(relaxed).built
    assert find(entries, 4, 9).built is built
    assert find(entries, 3, 9) is relaxed
    assert dims(relaxed) == [(-1, -1)]
    assert relaxed.built is None


def test_other_types_and_ranks_are_another_family(entries):
    for length in (5, 6, 7, 8):
        relaxed = find(entries, length)
    assert find(entries, 5, 1).pattern is None
    assert find(entries, 5, dtype=tf.int32).pattern is None
    assert find(entries, 9) is relaxed


def test_when_all_entries_are_taken_shapes_are_relaxed_sooner(entries):
    for rank in range(1, 7):
        give_graph(find(entries, *[2] * rank))
    relaxed = find(entries, 3)
    assert dims(relaxed) == [(-1,)]
    assert find(entries, *[2] * 7) is None
    assert entries.find([]) is None


def test_a_relaxed_entry_counts_every_signature_that_made_it(entries):
    for shape in ((5, 1), (6, 1), (5, 2)):
        find(entries, *shape)
    assert dims(find(entries, 5, 3)) == [(-1, -1)]
