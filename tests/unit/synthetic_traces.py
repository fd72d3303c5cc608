"""Traces made by hand, as the recorder would make them, without running any op."""

from typing import NamedTuple

import tensorflow as tf

from terra_tf._tf_internals import dtypes
from terra_tf.trace.location_tree import SourceFrame
from terra_tf.trace.merging import merge
from terra_tf.trace.records import (
    External,
    ExternalRef,
    Materialization,
    OpRecord,
    OutputRef,
    TensorSpec,
    Trace,
    VariableRef,
)
from terra_tf.trace.trace_graph import TraceGraph
from terra_tf.trace.verify import check_trace_graph


class Line(NamedTuple):
    """Stands in for a Location: a line, and in which iteration of which loops."""

    lineno: int
    counters: tuple = ()

    @property
    def id(self):
        """What an op of a gradient function has as `forward`."""
        return ("forward", *self)

    def user_frame(self):
        return SourceFrame("/project/train.py", self.lineno, "step")


def make_trace_graph():
    """Make a TraceGraph in which the Python objects themselves are the handles."""
    return TraceGraph(id)


def spec(*shape, dtype=dtypes.float32):
    """Make a TensorSpec; -1 is an unknown dimension."""
    return TensorSpec(dtype.as_datatype_enum, shape)


def merge_all(*traces):
    """Merge traces, checking after each; return the graph and the last result."""
    graph, results = merge_each(*traces)
    return graph, results[-1]


def merge_each(*traces):
    """Merge traces, checking after each; return the graph and all results."""
    graph, results = make_trace_graph(), []
    for count, trace in enumerate(traces, start=1):
        results.append(merge(graph, trace))
        check_trace_graph(graph, traces[:count])
    return graph, results


def types_of(graph, nodes=None):
    """Return op types, of all nodes or of those given."""
    nodes = range(len(graph.nodes)) if nodes is None else nodes
    return [graph.nodes[node].record.op_type for node in nodes]


def last_path(graph):
    """Return the path that the latest trace took."""
    return max(graph.paths, key=graph.paths.__getitem__)


class TraceBuilder:
    """Write a trace op by op; what each method returns may be an input of a later op."""

    def __init__(self):
        self.trace = Trace()

    def external(self, tensor, *, is_constant=False, is_argument=False, owns_memory=True):
        """Bring in a tensor from outside of the step."""
        value = tensor.numpy().tobytes() if is_constant else None
        type_ = TensorSpec(tensor.dtype.as_datatype_enum, tuple(tensor.shape.as_list()))
        self.trace.externals.append(External(tensor, type_, value, is_argument, owns_memory))
        return ExternalRef(len(self.trace.externals) - 1)

    def constant(self, value, dtype=tf.float32):
        return self.external(tf.constant(value, dtype), is_constant=True)

    def captured(self, tensor):
        return self.external(tensor)

    def feed(self, value, dtype=tf.float32):
        return self.external(tf.constant(value, dtype), is_argument=True)

    def variable(self, handle):
        self.trace.variables.append(handle)
        return VariableRef(len(self.trace.variables) - 1)

    def op(self, op_type, *inputs, outputs=None, location="auto", canonical=(), **fields):
        """Run an op; return its first output, which need not exist.

        Its location is a line of its own by default: the number of ops before it. An int is
        that line.

        Args:
          op_type: any name.
          *inputs: references.
          outputs: the types of the results; one float32[2] by default.
          location: anything that can be compared, or a line's number.
          canonical: attributes.
          **fields: more of OpRecord's.
        """
        index = len(self.trace.ops)
        settings = dict(
            is_fast=True,
            attrs=(),
            counts=(-1,) * len(inputs),
            folded=(),
            library_call=None,
            device="",
            under_tape=False,
            forward=None,
            imperative=None,
        )
        settings.update(fields)
        if location == "auto":
            location = index
        location = Line(location) if isinstance(location, int) else location
        settings.setdefault("marker", getattr(location, "id", None))
        self.trace.ops.append(
            OpRecord(
                op_type=op_type,
                canonical=canonical,
                inputs=inputs,
                outputs=(spec(2),) if outputs is None else tuple(outputs),
                location=location,
                **settings,
            )
        )
        return OutputRef(index, 0)

    def read(self, output, *, shape_only=False):
        """Let Python read an output."""
        self.trace.materializations.append(Materialization(*output, shape_only, None))

    def keep(self, output):
        """Let Python still hold an output when the step ends."""
        self.trace.alive.add(tuple(output))
