"""Traces of several paths in one TraceGraph: forks, what is covered, and what is forgotten."""


import tensorflow as tf

from terra_tf.config import config
from terra_tf.trace.merging import merge, mismatch
from terra_tf.trace.structure import structure_of
from terra_tf.trace.trace_graph import END, START, Feed, Joined, MergeKind, Output, TraceGraph
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import (
    Line,
    TraceBuilder,
    last_path,
    make_trace_graph,
    merge_all,
    merge_each,
    types_of,
)


def at(line):
    """Make a trace of one op at a line."""
    b = TraceBuilder()
    b.op("Op", b.feed(1.0), location=Line(line))
    return b.trace


# --------------------------------------------------------- forks and rejoining


def branching(*lines):
    """Make a trace of one op at each line, of types A, B, C ...; each takes the one before."""
    b = TraceBuilder()
    x = b.feed([1.0, 2.0])
    for line in lines:
        x = b.op("ABCDEFGHIJ"[line], x, location=line)
    return b.trace


def test_paths_fork_and_rejoin():
    graph, result = merge_all(branching(0, 1, 3), branching(0, 2, 3))
    assert (result.kind, result.detail) == (MergeKind.NEW_PATH, "op 1 was not known there")
    assert types_of(graph) == ["A", "B", "D", "C"]
    after = {START: {0: 2}, 0: {1: 1, 3: 1}, 1: {2: 1}, 3: {2: 1}, 2: {END: 2}}
    assert graph.successors == after
    assert [path.nodes for path in graph.paths] == [(0, 1, 2), (0, 3, 2)]
    assert [node.hits for node in graph.nodes] == [2, 1, 2, 1]


def test_path_that_ends_early_is_kept():
    graph, result = merge_all(branching(0, 1), branching(0))
    assert (result.kind, result.detail) == (MergeKind.NEW_PATH, "a way from op 0 A to the end")
    assert graph.successors[0] == {1: 1, END: 1}


def test_path_without_ops_is_kept():
    graph, result = merge_all(branching(0), branching())
    assert (result.kind, result.detail) == (MergeKind.NEW_PATH, "a way from the start to the end")
    assert graph.successors[START] == {0: 1, END: 1}


def optional_blocks(*lines):
    """Make a trace of eight adjacent `if r: x = layer(x)`, those at `lines` taken."""
    b = TraceBuilder()
    x = b.op("Start", b.feed([1.0, 2.0]), location=100)
    for line in lines:
        x = b.op("Layer", x, location=line)
    b.op("End", x, location=101)
    return b.trace


def test_adjacent_optional_blocks_are_covered_by_nodes_not_by_edges():
    """All 256 ways are legal once each block has been seen and skipped."""
    chosen = ([0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6], [1, 3, 5, 7])
    graph, results = merge_each(*(optional_blocks(*lines) for lines in chosen))
    assert [result.kind for result in results] == [MergeKind.NEW_PATH] * 3
    for chosen in range(256):
        trace = optional_blocks(*(i for i in range(8) if chosen >> i & 1))
        assert mismatch(graph, trace) is None
    assert (len(list(graph.edges())), len(graph.nodes)) == (19, 10)  # of 47 edges there could be


def test_covered_trace_adds_its_edge_and_path():
    graph, results = merge_each(
        optional_blocks(0, 1, 2), optional_blocks(1), optional_blocks(0, 2), optional_blocks(0)
    )
    assert results[-1].kind is MergeKind.COVERED
    assert [types_of(graph, path.nodes) for path in graph.paths][-1] == ["Start", "Layer", "End"]
    assert last_path(graph).nodes == (0, 1, 4)
    assert graph.successors[1] == {2: 1, 3: 1, 4: 1}


# ------------------------------------------------------------------ forgetting


def test_latest_paths_are_kept():
    graph = make_trace_graph()
    for _ in range(2):
        for line in range(TraceGraph.MAX_PATHS + 3):
            merge(graph, at(line))
            check_trace_graph(graph)
    assert len(graph.paths) == TraceGraph.MAX_PATHS
    assert last_path(graph).nodes == (TraceGraph.MAX_PATHS + 2,)
    assert (0,) not in {path.nodes for path in graph.paths}
    assert len(graph.nodes) == TraceGraph.MAX_PATHS + 3


def test_path_taken_again_is_kept_longest():
    graph = make_trace_graph()
    for line in range(TraceGraph.MAX_PATHS):
        merge(graph, at(line))
    merge(graph, at(0))
    merge(graph, at(1000))
    kept = {path.nodes for path in graph.paths}
    assert (0,) in kept
    assert (1,) not in kept


def test_graph_that_grows_too_large_forgets_old_paths():
    with config.override(max_graph_nodes=4):
        traces = [branching(0, line, 9) for line in (1, 2, 3, 4)]
        traces[0].alive.add((1, 0))
        graph = make_trace_graph()
        results = [merge(graph, trace) for trace in traces]
    check_trace_graph(graph, traces[2:])
    assert results[-1].kind is MergeKind.NEW_PATH
    assert [node.record.op_type for node in graph.nodes] == ["A", "J", "D", "E"]
    assert graph.fetches == set()
    assert graph.nodes[1].inputs == (Joined((Output(2, 0), Output(3, 0)), None),)
    assert graph.num_traces == 4


def test_graph_of_one_path_that_is_too_large_is_kept():
    with config.override(max_graph_nodes=2):
        graph, results = merge_each(branching(0, 1, 2), branching(0, 1, 2))
    assert [result.kind for result in results] == [MergeKind.NEW_PATH, MergeKind.COVERED]
    assert len(graph.nodes) == 3


def test_compact_undoes_joins_of_what_is_forgotten():
    graph = make_trace_graph()
    for trace in (branching(0, 1, 2), branching(3, 2), branching(0, 2)):
        merge(graph, trace)
    assert graph.compact(1) == 2
    check_trace_graph(graph, [branching(0, 2)])
    assert graph.nodes[1].inputs == (Output(0, 0),)
    assert graph.successors == {START: {0: 1}, 0: {1: 1}, 1: {END: 1}}


def test_compact_keeps_the_feed_of_a_join_whose_outputs_are_forgotten():
    graph = make_trace_graph()
    for trace in (branching(0, 1, 2), branching(2)):
        merge(graph, trace)
    assert graph.compact(1) == 2
    check_trace_graph(graph, [branching(2)])
    (source,) = graph.nodes[0].inputs
    assert isinstance(source, Feed)


def test_compact_keeps_an_imperative_op_whose_known_input_is_forgotten():
    """A line of too many siblings: its input was another op's output, and is a variable now."""

    def make(number, is_output):
        b = TraceBuilder()
        handle = b.variable(tf.constant(0.0))
        source = b.op("Make", location=1) if is_output else handle
        b.op("Use", source, location=2, canonical=(number,))
        b.op("Other", handle, location=3)
        return b.trace

    graph = make_trace_graph()
    with config.override(max_siblings=1):
        for number in range(3):
            merge(graph, make(number, number == 0))
            check_trace_graph(graph)
    assert graph.compact(1) == 1
    check_trace_graph(graph)
    assert types_of(graph) == ["Use", "Other"]
    assert isinstance(graph.nodes[0].inputs[0], Feed)


# ------------------------------------------------------------------ structure


def test_structure_is_kept_while_traces_are_covered():
    def independent(*types):
        b = TraceBuilder()
        x = b.feed(1.0)
        for line in types:
            b.op("Op", x, location=line)
        return b.trace

    graph, _ = merge_all(independent(0, 1, 2, 3), independent(0, 1, 3), independent(0, 2, 3))
    structure = structure_of(graph)
    merge(graph, independent(0, 1, 3))
    assert structure_of(graph) is structure
    merge(graph, independent(0, 3))
    assert structure_of(graph) is structure  # past both switch-cases: that was legal already
    merge(graph, independent(0, 4, 3))
    assert structure_of(graph) is not structure


