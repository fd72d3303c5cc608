"""Whatever the program branches on: its merged traces stay covered, and every input is decided."""

import random

import hypothesis
from hypothesis import strategies

from terra_tf.trace.joins import Rule
from terra_tf.trace.merging import merge, mismatch
from terra_tf.trace.structure import structure_of
from terra_tf.trace.trace_graph import Joined, MergeKind, Output
from terra_tf.trace.verify import check_trace_graph
from tests.property.branching_programs import programs_and_steps
from tests.unit.synthetic_traces import TraceBuilder, make_trace_graph

relaxed = hypothesis.settings(
    deadline=None, max_examples=100, suppress_health_check=list(hypothesis.HealthCheck)
)


def merged(traces):
    graph = make_trace_graph()
    for trace in traces:
        merge(graph, trace)
    return graph


@relaxed
@hypothesis.given(programs_and_steps())
def test_merged_traces_stay_covered(program_and_steps):
    _, traces = program_and_steps
    graph = make_trace_graph()
    for count, trace in enumerate(traces, start=1):
        was_predicted = mismatch(graph, trace) is None
        assert (merge(graph, trace).kind is MergeKind.NEW_PATH) == (not was_predicted)
        check_trace_graph(graph, traces[:count])
        num_nodes = len(graph.nodes)
        assert merge(graph, trace).kind is MergeKind.COVERED
        assert len(graph.nodes) == num_nodes
    for trace in traces:
        assert merge(graph, trace).kind is MergeKind.COVERED
        check_trace_graph(graph, traces)


@relaxed
@hypothesis.given(programs_and_steps(), strategies.randoms())
def test_order_of_merging_does_not_change_the_nodes(program_and_steps, randomness):
    _, traces = program_and_steps
    graph, other = merged(traces), merged(randomness.sample(traces, len(traces)))
    keys, other_keys = ([node.key for node in g.nodes] for g in (graph, other))
    assert sorted(map(repr, keys)) == sorted(map(repr, other_keys))
    assert len(set(keys)) == len(keys)  # such programs need no siblings
    assert len(list(graph.edges())) == len(list(other.edges()))
    assert kinds_of_inputs(graph) == kinds_of_inputs(other)


def kinds_of_inputs(graph):
    """Return what each input is, told by keys instead of numbers."""
    kinds = {}
    for node in graph.nodes:
        for position, source in enumerate(node.inputs):
            outputs = source.sources if isinstance(source, Joined) else ()
            outputs = (source,) if isinstance(source, Output) else outputs
            is_outside = not outputs or (isinstance(source, Joined) and source.external is not None)
            sources = frozenset(graph.nodes[output.node].key for output in outputs)
            kinds[node.key, position] = sources, is_outside
    return kinds


@relaxed
@hypothesis.given(programs_and_steps(max_steps=8))
def test_every_merged_path_gets_its_inputs_from_the_joins(program_and_steps):
    """The rules, simulated as `joins` tells them."""
    _, traces = program_and_steps
    graph = merged(traces)
    joins = structure_of(graph).joins
    for path in graph.paths:
        has_run, decided = [], {}
        for node, sources in zip(path.nodes, path.sources, strict=True):
            for position, source in enumerate(sources):
                join = joins.of_input.get((node, position))
                if join is None:
                    known = graph.nodes[node].inputs[position]
                    assert source == (known if isinstance(known, Output) else None)
                else:
                    value = simulate(join, joins.webs, has_run, decided, source)
                    assert value == source
                    decided[node, position] = value
            has_run.append(node)


def simulate(join, webs, has_run, decided, source):
    """Return what a join gives; `source` is what Python would say, where the rule lets it."""
    if join.rule is Rule.SAME:
        assert not join.needs_message
        return decided[join.same]
    if source is None:
        assert join.external is not None
        return None
    if join.rule is Rule.SELECT:
        assert source in join.alternatives
        return source
    ways = [output for node in has_run for output in webs[join.web] if output.node == node]
    return ways[-1]


def independent_branches(chosen, has_else):
    """Make a trace of adjacent branches `if r: x = layer(x)`, with another layer if not."""
    b = TraceBuilder()
    x = b.op("Start", b.feed([1.0, 2.0]), location=0)
    for number, is_true in enumerate(chosen):
        if is_true:
            x = b.op("Layer", x, location=(number, "then"))
        elif has_else:
            x = b.op("Layer", x, location=(number, "else"))
    b.op("End", x, location=1)
    return b.trace


@hypothesis.settings(relaxed, max_examples=25)
@hypothesis.given(
    strategies.integers(1, 7), strategies.booleans(), strategies.integers(0, 2**32 - 1)
)
def test_independent_branches_are_covered_by_few_traces(num_branches, has_else, seed):
    """Each trace that is not covered brings a node, an order of two, or what an input can be."""
    randomness, graph = random.Random(seed), make_trace_graph()
    num_uncovered = 0
    for _ in range(40):
        chosen = [randomness.random() < 0.5 for _ in range(num_branches)]
        result = merge(graph, independent_branches(chosen, has_else))
        num_uncovered += result.kind is not MergeKind.COVERED
    assert num_uncovered <= 3 * num_branches + 2
    all_chosen = ([way >> i & 1 for i in range(num_branches)] for way in range(2**num_branches))
    all_traces = [independent_branches(chosen, has_else) for chosen in all_chosen]
    if len(graph.nodes) == 2 + num_branches * (2 if has_else else 1):
        num_missing = sum(mismatch(graph, trace) is not None for trace in all_traces)
        assert num_missing <= len(all_traces) // 4
