"""Whatever the traces of one path are: merging them is idempotent, ordered by no one, one-way."""

import re

import hypothesis
import tensorflow as tf
from hypothesis import strategies

from terra_tf.trace.dump import dump
from terra_tf.trace.merging import merge
from terra_tf.trace.records import OutputRef
from terra_tf.trace.trace_graph import Feed, MergeKind
from terra_tf.trace.verify import check_trace_graph
from tests.unit.synthetic_traces import TraceBuilder, make_trace_graph, merge_all, spec


def shape_of(graph):
    """Return what later merging must keep: the text without the number of traces."""
    return re.sub(r"\d+ traces?", "", dump(graph))


_HANDLES = [[tf.constant(0.0) for _ in range(2)] for _ in range(2)]  # for each variable
_TENSORS = [tf.constant([float(i)]) for i in range(2)]


class Program:
    """A random straight-line program, whose data differ from step to step but not its path."""

    def __init__(self, draw):
        self.draw = draw
        self.num_ops = draw(strategies.integers(1, 5))
        self.num_variables = draw(strategies.integers(0, 2))
        self.num_externals = draw(strategies.integers(1, 3))
        self.inputs = [draw(strategies.lists(self.references(i), max_size=3))
                       for i in range(self.num_ops)]  # fmt: skip

    def references(self, index):
        kinds = [strategies.tuples(strategies.just("external"), self.below(self.num_externals))]
        if self.num_variables:
            kinds.append(strategies.tuples(strategies.just("variable"),
                                           self.below(self.num_variables)))  # fmt: skip
        if index:
            kinds.append(strategies.tuples(strategies.just("output"), self.below(index)))
        return strategies.one_of(kinds)

    @staticmethod
    def below(limit):
        return strategies.integers(0, limit - 1)

    def run(self):
        """Trace one step with data of its own."""
        b, bound, seen = TraceBuilder(), {}, {}
        handles = [self.draw(strategies.sampled_from(pool)) for pool in _HANDLES]
        for index, inputs in enumerate(self.inputs):
            references = [self.reference(b, kind, number, handles, bound, seen, index)
                          for kind, number in inputs]  # fmt: skip
            # With an external, another shape may well be another node: see test_placing.
            depends_on_data = all(kind != "external" for kind, _ in inputs)
            rows = self.draw(strategies.sampled_from([2, 2, 3] if depends_on_data else [2]))
            y = b.op(f"Op{index}", *references, outputs=[spec(rows, 4)])
            if self.draw(strategies.booleans()):
                b.keep(y)
        return b.trace

    def reference(self, b, kind, number, handles, bound, seen, index):
        if kind == "output":
            return OutputRef(number, 0)
        if kind == "variable":
            if number not in bound:
                bound[number] = b.variable(handles[number])
            return bound[number]
        # Uses of one external are usually one tensor; sometimes they come apart.
        part = (number, self.draw(strategies.sampled_from([0, 0, 0, index])))
        if part not in seen:
            seen[part] = self.external(b)
        return seen[part]

    def external(self, b):
        kind = self.draw(strategies.sampled_from(["constant", "captured", "feed"]))
        if kind == "constant":
            return b.constant([self.draw(strategies.sampled_from([0.0, 1.0]))])
        if kind == "captured":
            return b.captured(self.draw(strategies.sampled_from(_TENSORS)))
        return b.feed([2.0])


@strategies.composite
def traces_of_one_path(draw):
    program = Program(draw)
    return [program.run() for _ in range(draw(strategies.integers(1, 4)))]


relaxed = hypothesis.settings(
    deadline=None, max_examples=60, suppress_health_check=list(hypothesis.HealthCheck)
)


@relaxed
@hypothesis.given(traces_of_one_path())
def test_merging_a_trace_twice_changes_nothing(traces):
    graph, _ = merge_all(*traces)
    before = shape_of(graph)
    for trace in [*traces, *reversed(traces)]:
        assert merge(graph, trace).kind is MergeKind.COVERED
        check_trace_graph(graph, traces)
        assert shape_of(graph) == before


@relaxed
@hypothesis.given(traces_of_one_path(), strategies.randoms())
def test_order_of_merging_does_not_matter(traces, random):
    shuffled = random.sample(traces, len(traces))
    assert shape_of(merge_all(*traces)[0]) == shape_of(merge_all(*shuffled)[0])


@relaxed
@hypothesis.given(traces_of_one_path())
def test_merging_only_ever_generalizes(traces):
    graph = make_trace_graph()
    for trace in traces:
        before = graph.snapshot()
        merge(graph, trace)
        for old, new in zip(before.nodes, graph.nodes, strict=False):
            for one, other in zip(old.inputs, new.inputs, strict=True):
                assert type(one) is type(other) or isinstance(other, Feed)
        assert before.fetches <= graph.fetches
        assert not any(new.captured and not old.captured for old, new in
                       zip(before.variables, graph.variables, strict=False))  # fmt: skip
