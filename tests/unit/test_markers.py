"""Names of forward ops: unique where they are given, and translated where ops go by other names."""

import pytest

from terra_tf.trace.markers import SUM, ZEROS, translated, unique_marker


def test_a_name_is_given_once():
    given = set()
    names = [unique_marker(7, given) for _ in range(3)] + [unique_marker(8, given)]
    assert names[0] == 7
    assert names[3] == 8
    assert len(set(names)) == 4
    assert given == set(names)


def test_names_that_are_given_in_the_same_order_are_the_same():
    first, second = set(), set()
    for marker in (1, 1, 2, 1, ("again", 1, 2)):
        assert unique_marker(marker, first) == unique_marker(marker, second)


NAMES = {3: 30, ("again", 3, 2): 31, 4: 3}


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        (None, None),
        (3, 30),
        (4, 3),  # once: the result is no name to translate
        (5, 5),
        (("again", 3, 2), 31),
        (("again", 5, 2), ("again", 5, 2)),
        ((SUM, 3, 0, 1), (SUM, 30, 0, 1)),
        ((SUM, 5, 3, 4), (SUM, 5, 3, 4)),  # an output's number and a count are no names
        ((ZEROS, ("again", 3, 2), 1), (ZEROS, 31, 1)),
        ((ZEROS, (SUM, 3, 0, 1), 2), (ZEROS, (SUM, 30, 0, 1), 2)),
        ((ZEROS, None, 1), (ZEROS, None, 1)),
    ],
)
def test_translation(marker, expected):
    assert translated(marker, NAMES) == expected
