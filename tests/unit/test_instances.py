"""Which sets of objects have entries of their own, and for how long."""

import gc

import tensorflow as tf

from terra_tf.runtime.instances import _MAX_LIVE, _MAX_SINGLE_CALLS, Instances


class Plain:
    """No module; it counts where the function is a method of it."""


class Entries:
    """Stands in for the entries of a set."""


def instances(*method_types):
    return Instances(Entries, method_types)


def test_each_set_of_objects_has_its_own():
    found, one, other = instances(), tf.Module(), tf.Module()
    x = tf.constant(1.0)
    own = found.find((one, x), {})
    assert found.find((one, 2.0), {}) is own
    assert found.find((other, x), {}) is not own
    assert found.find((one, other, x), {}) is not own
    assert found.find((x,), {"model": other}) is found.find((other, x), {})
    assert found.find(([one, x],), {}) is found.find(({"a": one},), {}) is own


def test_what_is_no_object_is_shared():
    found, dataset = instances(), tf.data.Dataset.range(3)
    shared = found.find((), {})
    for item in (1, "a", None, tf.constant(1), tf.Variable(1.0), dataset, iter(dataset), Plain()):
        assert found.find((item,), {"a": item, "b": [item], "c": {"d": item}}) is shared
    assert found.find(([[tf.Module()]],), {}) is shared  # too deep


def test_object_of_a_method_counts():
    found, one, other = instances(Plain), Plain(), Plain()
    own = found.find((one, 1), {})
    assert found.find((one, 2), {}) is own is not found.find((other, 1), {})
    assert found.find((1, one), {}) is found.find((), {})


def test_what_was_learned_for_the_dead_goes():
    found = instances()
    for _ in range(50):
        module = tf.Module()
        own = found.find((module,), {})
        assert found.find((module,), {}) is own
        del module
        gc.collect()
        assert len(found._of) == 1
    assert found.find((tf.Module(),), {}) is not found.find((), {})


def test_objects_that_are_new_in_each_call_count_for_nothing():
    found = instances()
    shared = found.find((), {})
    for _ in range(_MAX_SINGLE_CALLS):
        assert found.find((tf.Module(),), {}) is not shared
        gc.collect()
    kept = tf.Module()
    assert found.find((tf.Module(),), {}) is shared
    assert found.find((kept,), {}) is shared


def test_more_live_objects_than_that_share():
    found, modules = instances(), [tf.Module() for _ in range(_MAX_LIVE + 1)]
    own = {id(found.find((module,), {})) for module in modules}
    assert len(own) == _MAX_LIVE + 1
    assert found.find((modules[-1],), {}) is found.find((), {})
    assert found.find((modules[0],), {}) is not found.find((), {})


def test_an_address_that_is_used_again_is_another_object():
    found, seen = instances(), []
    for _ in range(20):
        module = tf.Module()
        seen.append(found.find((module,), {}))
        assert found.find((module,), {}) is seen[-1]
        del module
    assert len(set(map(id, seen))) == 20
