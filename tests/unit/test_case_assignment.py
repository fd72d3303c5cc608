"""The case assignment of small graphs; tests/property has the laws for all graphs."""

import pytest

from terra_tf.trace.case_assignment import END, START, assign_cases


def assign(*ways, cuts=()):
    """Assign cases to the graph of some ways, and return the blocks of each level."""
    num_nodes = max((node for way in ways for node in way), default=-1) + 1
    edges = {edge for way in ways for edge in zip((START, *way), (*way, END), strict=True)}
    cases = assign_cases(num_nodes, edges, cuts)
    return cases, [[block.nodes for block in level.blocks] for level in cases.levels]


def test_straight_line_is_one_inline_block():
    cases, levels = assign((0, 1, 2))
    assert levels == [[(0, 1, 2)]]
    assert cases.num_switch_cases == 0
    assert cases.levels[0].blocks[0].control_edges == ((START, 0),)


def test_empty_path_has_no_levels():
    cases, levels = assign(())
    assert levels == []
    assert cases.is_legal(START, END)


def test_branches_are_the_blocks_of_one_switch_case():
    cases, levels = assign((0, 1, 2, 5), (0, 3, 4, 5))
    assert levels == [[(0,)], [(1, 2), (3, 4)], [(5,)]]
    assert [level.is_inline for level in cases.levels] == [True, False, True]
    assert [block.index for block in cases.levels[1].blocks] == [0, 1]
    assert cases.levels[2].blocks[0].control_edges == ((2, 5), (4, 5))


def test_block_that_a_path_goes_past_is_a_switch_case_of_its_own():
    cases, levels = assign((0, 1, 2), (0, 2))
    assert levels == [[(0,)], [(1,)], [(2,)]]
    assert [level.is_inline for level in cases.levels] == [True, False, True]
    assert cases.num_switch_cases == 1


def test_example_of_the_module():
    """`if a: B1; if b: B2` in one arm of an if whose other arm is C."""
    a, b1, b2, c, d = range(5)
    cases, levels = assign((a, b1, b2, d), (a, b1, d), (a, c, d))
    assert levels == [[(a,)], [(b1,), (c,)], [(b2,)], [(d,)]]
    assert [level.is_inline for level in cases.levels] == [True, False, False, True]
    assert cases.is_legal(c, b2)  # of a higher level: legal, though never seen
    assert not cases.is_legal(b2, c)


def test_step_over_an_inline_block_is_not_legal():
    cases, _ = assign((0, 1, 3, 4, 6), (0, 2, 3, 5, 6))
    assert cases.is_legal(1, 3)
    assert not cases.is_legal(1, 4)
    assert not cases.is_legal(START, 1)


def test_level_that_no_path_goes_over_is_mandatory():
    cases, levels = assign((0, 1, 3), (0, 2, 3))
    assert levels == [[(0,)], [(1,), (2,)], [(3,)]]
    assert [level.is_mandatory for level in cases.levels] == [True, True, True]
    assert not cases.is_legal(0, 3)


def test_level_that_some_path_goes_over_may_be_skipped_from_everywhere():
    cases, levels = assign((0, 1, 3), (0, 2, 3), (0, 3))
    assert levels == [[(0,)], [(1,), (2,)], [(3,)]]
    assert [level.is_mandatory for level in cases.levels] == [True, False, True]
    assert cases.is_legal(0, 3)


def test_inside_of_a_block_leads_to_its_next_node_only():
    cases, _ = assign((0, 1, 2, 4), (0, 3, 4))
    assert cases.is_legal(1, 2)
    assert not cases.is_legal(1, 4)
    assert not cases.is_legal(0, 2)
    assert not cases.is_legal(1, END)


def test_fork_at_the_start_and_at_the_end():
    cases, levels = assign((0,), (1,), ())
    assert levels == [[(0,), (1,)]]
    assert not cases.levels[0].is_mandatory
    assert cases.is_legal(START, END)


def test_trip_counts_share_a_chain():
    cases, levels = assign((0, 3), (0, 1, 3), (0, 1, 2, 3))
    assert levels == [[(0,)], [(1,)], [(2,)], [(3,)]]
    assert cases.num_switch_cases == 2


def test_cut_begins_a_block():
    cases, levels = assign((0, 1, 2), cuts=[1])
    assert levels == [[(0,)], [(1, 2)]]
    assert cases.num_switch_cases == 0


def test_numbers_of_the_ends():
    cases, _ = assign((0, 1))
    assert (cases.level_of(START), cases.level_of(0), cases.level_of(END)) == (-1, 0, 1)


@pytest.mark.parametrize(
    "edges",
    [
        [(START, 0), (0, 1), (1, 0), (1, END)],
        [(START, 0), (0, END), (1, 2), (2, 1)],
        [(START, 0), (0, END)],
    ],
    ids=["cycle", "cycle that nothing reaches", "node that nothing reaches"],
)
def test_graph_that_cannot_be_ordered_is_refused(edges):
    with pytest.raises(ValueError, match="a cycle, or nodes that no path reaches"):
        assign_cases(3 if len(edges) > 2 else 2, edges)
