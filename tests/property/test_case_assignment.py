"""Whatever the DAG: the case assignment covers every path, compared with brute force."""

import hypothesis
from hypothesis import strategies

from terra_tf.trace.case_assignment import END, START, assign_cases

relaxed = hypothesis.settings(
    deadline=None, max_examples=200, suppress_health_check=list(hypothesis.HealthCheck)
)


@strategies.composite
def graphs(draw):
    """Draw a DAG in which every node is on a way from START to END, numbered in any order."""
    num_nodes = draw(strategies.integers(0, 8))
    number = draw(strategies.permutations(range(num_nodes)))
    ends = strategies.integers(-1, num_nodes)
    edges = set()
    for low, high in draw(strategies.lists(strategies.tuples(ends, ends), max_size=16)):
        if low < high:
            edges.add((low, high))
    for node in range(num_nodes):
        if not any(after == node for _, after in edges):
            edges.add((draw(strategies.integers(-1, node - 1)), node))
        if not any(before == node for before, _ in edges):
            edges.add((node, draw(strategies.integers(node + 1, num_nodes))))
    if not edges:
        edges.add((-1, num_nodes))
    name = {-1: START, num_nodes: END} | dict(enumerate(number))
    return num_nodes, {(name[low], name[high]) for low, high in edges}


def ways(edges):
    """Return every path from START to END, without the ends."""
    found, waiting = [], [(START,)]
    while waiting:
        way = waiting.pop()
        for before, after in edges:
            if before == way[-1] and after == END:
                found.append(way[1:])
            elif before == way[-1]:
                waiting.append((*way, after))
    return found


@relaxed
@hypothesis.given(graphs())
def test_every_node_is_in_one_block(graph):
    num_nodes, edges = graph
    cases = assign_cases(num_nodes, edges)
    blocks = [block for level in cases.levels for block in level.blocks]
    assert sorted(node for block in blocks for node in block.nodes) == list(range(num_nodes))
    for number, level in enumerate(cases.levels):
        assert level.blocks
        heads = [block.nodes[0] for block in level.blocks]
        assert heads == sorted(heads)
        for index, block in enumerate(level.blocks):
            assert (block.level, block.index) == (number, index)
            assert [cases.block_of[node] for node in block.nodes] == [block] * len(block.nodes)
            assert [cases.position_of[n] for n in block.nodes] == list(range(len(block.nodes)))
            into = {edge for edge in edges if edge[1] == block.nodes[0]}
            assert set(block.control_edges) == into


@relaxed
@hypothesis.given(graphs())
def test_blocks_are_maximal_chains(graph):
    num_nodes, edges = graph
    cases = assign_cases(num_nodes, edges)
    num_after = {node: sum(before == node for before, _ in edges) for node in range(num_nodes)}
    num_before = {node: sum(after == node for _, after in edges) for node in range(num_nodes)}
    for before, after in edges:
        is_chain = before != START and after != END
        is_chain = is_chain and num_after[before] == num_before[after] == 1
        is_inside = before != START and after != END
        is_inside = is_inside and cases.block_of[before] is cases.block_of[after]
        assert is_inside == is_chain
        if is_inside:
            assert cases.position_of[after] == cases.position_of[before] + 1
        else:
            assert cases.level_of(before) < cases.level_of(after)


@relaxed
@hypothesis.given(graphs())
def test_every_path_passes_at_most_one_block_of_each_level_in_order(graph):
    num_nodes, edges = graph
    cases = assign_cases(num_nodes, edges)
    for way in ways(edges):
        blocks = []
        for node in way:
            if not blocks or cases.block_of[node] is not blocks[-1]:
                blocks.append(cases.block_of[node])
        levels = [block.level for block in blocks]
        assert levels == sorted(set(levels))
        assert way == tuple(node for block in blocks for node in block.nodes)
        assert all(cases.is_legal(*edge) for edge in zip((START, *way), (*way, END), strict=True))


@relaxed
@hypothesis.given(graphs())
def test_levels_are_longest_ways(graph):
    num_nodes, edges = graph
    cases = assign_cases(num_nodes, edges)
    longest = {}
    for way in ways(edges):
        seen = []
        for node in way:
            block = cases.block_of[node]
            if block.nodes not in seen:
                seen.append(block.nodes)
            longest[block.nodes] = max(longest.get(block.nodes, 0), len(seen) - 1)
    assert longest == {b.nodes: b.level for level in cases.levels for b in level.blocks}


@relaxed
@hypothesis.given(graphs())
def test_inline_levels_are_those_that_every_path_passes(graph):
    num_nodes, edges = graph
    cases = assign_cases(num_nodes, edges)
    all_ways = ways(edges)
    for level in cases.levels:
        for block in level.blocks:
            is_passed = all(block.nodes[0] in way for way in all_ways)
            assert is_passed == level.is_inline
    assert cases.num_switch_cases == sum(not level.is_inline for level in cases.levels)


@relaxed
@hypothesis.given(graphs())
def test_mandatory_levels_are_those_that_every_path_passes(graph):
    num_nodes, edges = graph
    cases = assign_cases(num_nodes, edges)
    levels_of_ways = [{cases.level_of(node) for node in way} for way in ways(edges)]
    for number, level in enumerate(cases.levels):
        assert level.is_mandatory == all(number in passed for passed in levels_of_ways)


@relaxed
@hypothesis.given(graphs(), strategies.data())
def test_legal_steps_pass_over_no_mandatory_level(graph, data):
    num_nodes, edges = graph
    cases = assign_cases(num_nodes, edges)
    nodes = [START, *range(num_nodes), END]
    node = data.draw(strategies.sampled_from(nodes[:-1]))
    for successor in nodes[1:]:
        is_next = node != START and successor != END
        is_next = is_next and cases.block_of[node] is cases.block_of[successor]
        if is_next:
            following = cases.position_of[node] + 1
            assert cases.is_legal(node, successor) == (cases.position_of[successor] == following)
            continue
        is_end = node == START or cases.block_of[node].nodes[-1] == node
        is_start = successor == END or cases.block_of[successor].nodes[0] == successor
        over = cases.levels[cases.level_of(node) + 1 : max(cases.level_of(successor), 0)]
        is_up = cases.level_of(node) < cases.level_of(successor)
        is_free = not any(level.is_mandatory for level in over)
        assert cases.is_legal(node, successor) == (is_end and is_start and is_up and is_free)


@relaxed
@hypothesis.given(graphs(), strategies.data())
def test_cuts_begin_blocks(graph, data):
    num_nodes, edges = graph
    cuts = data.draw(strategies.sets(strategies.integers(0, max(0, num_nodes - 1))))
    cases = assign_cases(num_nodes, edges, cuts)
    assert all(cases.position_of[node] == 0 for node in cuts if node < num_nodes)
    assert sorted(cases.block_of) == list(range(num_nodes))
