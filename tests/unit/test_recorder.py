"""The recorder turns what passes the hooks into a trace; a dictionary stands in for the session."""

import types

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf._tf_internals import dtypes
from terra_tf.config import config
from terra_tf.errors import ImperativeReason
from terra_tf.trace.location import LocationTracker
from terra_tf.trace.markers import (
    MARKER,
    GradientMarkers,
    gradient_function_wrapper,
    marked_caller,
    marker_for,
    marker_of,
)
from terra_tf.trace.merging import merge
from terra_tf.trace.recorder import Recorder
from terra_tf.trace.records import ExternalRef, OutputRef, TensorSpec, VariableRef
from terra_tf.trace.trace_graph import TraceGraph
from terra_tf.trace.verify import check_trace_graph

FLOAT, INT = dtypes.float32.as_datatype_enum, dtypes.int32.as_datatype_enum


class Session:
    """Runs ops for real and has them recorded, as the hooks do."""

    def __init__(self, arguments=(), tracker=None, numpy_memory=(), internal_pairs=()):
        self.made = {}
        self.outputs = []  # kept, or another tensor gets a dead one's id
        self.markers = GradientMarkers()
        numpy_memory = {id(tensor) for tensor in numpy_memory}
        native = types.SimpleNamespace(
            handle_id=id,
            resource_key=id,
            owns_memory=lambda tensor: id(tensor) not in numpy_memory,
            copy_tensor=lambda tensor: tf.constant(tensor.numpy()),
        )
        self.recorder = Recorder(
            self, native, arguments, tracker, self.markers,
            lambda seed, seed2: (seed, seed2) in internal_pairs,
        )  # fmt: skip

    @property
    def trace(self):
        return self.recorder.trace

    def made_index(self, tensor):
        return self.made.get(id(tensor))

    def begin(self, op_type, *inputs, attrs=(), counts=None, device="", is_fast=True):
        counts = (-1,) * len(inputs) if counts is None else counts
        return self.recorder.begin_op(op_type, is_fast, attrs, inputs, counts, None, device)

    def end(self, index, *outputs):
        self.recorder.end_op(index, list(outputs))
        self.outputs += outputs
        self.made.update({id(tensor): (index, i) for i, tensor in enumerate(outputs)})

    def run(self, op_type, *inputs, result=None, **fields):
        """Record an op with one result; return it."""
        output = tf.constant([1.0, 2.0]) if result is None else tf.identity(result)
        self.end(self.begin(op_type, *inputs, **fields), output)
        return output


# ---------------------------------------------------------------- references


def test_input_made_in_the_step_is_an_output_reference():
    session, x = Session(), tf.constant([1.0])
    y = session.run("Neg", x)
    session.run("Mul", y, x)
    assert session.trace.ops[1].inputs == (OutputRef(0, 0), ExternalRef(0))
    assert len(session.trace.externals) == 1


def test_second_output_is_referred_to_as_such():
    session = Session()
    first, second = tf.constant(1.0), tf.constant(2.0)
    session.end(session.begin("Split", tf.constant(0)), first, second)
    session.run("Neg", second)
    assert session.trace.ops[1].inputs == (OutputRef(0, 1),)


def test_each_variable_gets_a_slot_at_its_first_use():
    session = Session()
    v, w = tf.Variable(1.0).handle, tf.Variable(2.0).handle
    for handle in (w, v, w):
        session.run("ReadVariableOp", handle)
    slots = [op.inputs for op in session.trace.ops]
    assert slots == [(VariableRef(0),), (VariableRef(1),), (VariableRef(0),)]
    assert [id(handle) for handle in session.trace.variables] == [id(w), id(v)]


def test_attributes_type_device_and_route_are_kept():
    session = Session()
    attrs = ("transpose_a", True, "T", 1)
    session.run(b"MatMul", tf.ones([2, 2]), attrs=attrs, device="/CPU:0", is_fast=False)
    (op,) = session.trace.ops
    assert (op.op_type, op.attrs, op.device, op.is_fast) == ("MatMul", attrs, "/CPU:0", False)
    assert op.canonical == (("transpose_a", ("bool", True)),)
    assert op.attribute("T") == 1
    assert op.attribute("grad_a") is None


def test_results_are_described_by_type_and_shape():
    session = Session()
    session.run("Cast", tf.constant(1.0), result=tf.zeros([2, 3], tf.int32))
    assert session.trace.ops[0].outputs == (TensorSpec(INT, (2, 3)),)


def test_type_includes_those_of_its_dtype_that_say_no_less():
    f32, i32 = dtypes.float32.as_datatype_enum, dtypes.int32.as_datatype_enum
    assert TensorSpec(f32, (-1, 3)).includes(TensorSpec(f32, (2, 3)))
    assert TensorSpec(f32, None).includes(TensorSpec(f32, (2, 3)))
    assert not TensorSpec(f32, (2, 3)).includes(TensorSpec(f32, None))
    assert not TensorSpec(f32, None).includes(TensorSpec(i32, (2, 3)))


def test_lists_are_flat_with_their_counts():
    session, x, y = Session(), tf.constant([1.0]), tf.constant([2.0])
    session.run("ConcatV2", x, y, tf.constant(0), counts=(2, -1))
    (op,) = session.trace.ops
    assert (op.counts, len(op.inputs)) == ((2, -1), 3)


# ---------------------------------------------------------------- externals


def test_small_host_value_carries_its_bytes():
    session, x = Session(), tf.constant([1.0, 2.0])
    session.run("Neg", x)
    (external,) = session.trace.externals
    assert external.value == np.float32([1.0, 2.0]).tobytes()
    assert external.spec == TensorSpec(FLOAT, (2,))
    assert (external.is_argument, external.owns_memory) == (False, True)
    assert external.tensor is x


def test_argument_is_known_as_such_and_carries_no_bytes():
    x = tf.constant([1.0])
    session = Session(arguments=[x])
    session.run("Neg", x)
    (external,) = session.trace.externals
    assert (external.is_argument, external.value) == (True, None)


@pytest.mark.parametrize(("num_bytes", "is_constant"), [(64, True), (68, False)])
def test_large_value_carries_no_bytes(num_bytes, is_constant):
    session = Session()
    with config.override(max_constant_bytes=64):
        session.run("Neg", tf.zeros([num_bytes // 4]))
    assert (session.trace.externals[0].value is not None) == is_constant


def test_memory_shared_with_numpy_is_noted():
    x = tf.zeros([1000])
    session = Session(numpy_memory=[x])
    session.run("Neg", x)
    assert not session.trace.externals[0].owns_memory


def test_strings_are_compared_by_value():
    values = []
    for text in ("a", "a", "b"):
        session = Session()
        session.run("StringLength", tf.constant([text]))
        values.append(session.trace.externals[0].value)
    assert values[0] == values[1] != values[2]


def test_constants_of_strings_are_those_that_the_checker_computes():
    graph, session = TraceGraph(id), Session()
    for text in ("a", ["a", "bc"]):
        session.run("StringLength", tf.constant(text))
    merge(graph, session.trace)
    check_trace_graph(graph, [session.trace])
    assert [node.inputs[0].value for node in graph.nodes] == [b"b'a'", b"[b'a', b'bc']"]


def test_variant_carries_no_bytes():
    session = Session()
    session.run("TensorListLength", tf.raw_ops.EmptyTensorList(
        element_shape=tf.constant([1]), max_num_elements=1, element_dtype=tf.float32))  # fmt: skip
    assert session.trace.externals[0].value is None
    assert session.trace.ops[0].imperative is ImperativeReason.RESOURCE_OP


# ------------------------------------------------------------------ results


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64, tf.bool])
def test_small_integers_are_copied(dtype):
    session = Session()
    result = tf.cast([1, 0], dtype)
    session.run("Shape", tf.zeros([2, 3]), result=result)
    (copy,) = session.trace.ops[0].folded
    assert copy.dtype == dtype
    assert copy.numpy().tolist() == result.numpy().tolist()


@pytest.mark.parametrize("result", [tf.zeros([2]), tf.zeros([200], tf.int32)])
def test_floats_and_large_results_are_not_copied(result):
    session = Session()
    session.run("Op", tf.zeros([1]), result=result)
    assert session.trace.ops[0].folded == ()


def test_op_without_results_is_recorded():
    session = Session()
    session.end(session.begin("Assert", tf.constant(True)))
    assert (session.trace.ops[0].outputs, session.trace.ops[0].folded) == ((), ())


# ---------------------------------------------------------------- imperative


def test_reason_to_run_imperatively_is_recorded():
    session = Session()
    session.run("PyFunc", tf.zeros([1]))
    session.run("MatMul", tf.zeros([1, 1]))
    reasons = [op.imperative for op in session.trace.ops]
    assert reasons == [ImperativeReason.PYTHON_CALLBACK, None]


@pytest.mark.parametrize(
    ("op_type", "pair", "reason"),
    [
        ("RandomUniform", (0, 0), None),
        ("RandomUniform", (5, 7), ImperativeReason.OP_SEED),
        ("ParameterizedTruncatedNormal", (0, 0), ImperativeReason.STATEFUL_OP),
    ],
)
def test_random_op_is_delegated_only_with_seeds_of_tensorflows_own(op_type, pair, reason):
    session = Session(internal_pairs={(0, 0)})
    session.run(op_type, tf.constant([2]), attrs=("seed", pair[0], "seed2", pair[1]))
    assert session.trace.ops[0].imperative is reason


# -------------------------------------------------------- ops that raise, reads


def test_op_that_raised_is_recorded_without_results():
    session = Session()
    record = session.recorder.fail_op(session.begin("Cholesky", tf.zeros([2, 2])))
    y = session.run("Neg", tf.zeros([1]))
    assert [op.op_type for op in session.trace.ops] == ["Cholesky", "Neg"]
    assert (record.has_raised, record.outputs, record.imperative) == (True, (), None)
    assert not session.trace.ops[1].has_raised
    assert session.made_index(y) == (1, 0)


def test_op_that_has_not_run_leaves_no_record():
    session = Session()
    session.recorder.abandon_op(session.begin("Cholesky", tf.zeros([2, 2])))
    y = session.run("Neg", tf.zeros([1]))
    assert [op.op_type for op in session.trace.ops] == ["Neg"]
    assert session.made_index(y) == (0, 0)


def test_location_of_an_op_that_raised_is_known():
    tracker = LocationTracker(lambda filename: False)
    tracker.begin(None)
    session = Session(tracker=tracker)
    record = session.recorder.fail_op(session.begin("Cholesky", tf.zeros([2, 2])))
    assert record.location.user_frame().function


def test_reads_are_noted_in_order():
    session = Session()
    session.run("Neg", tf.zeros([1]))
    session.recorder.materialize(0, 0, False)
    session.recorder.materialize(0, 0, True)
    reads = [(m.node, m.output, m.shape_only) for m in session.trace.materializations]
    assert reads == [(0, 0, False), (0, 0, True)]
    assert session.trace.fetches() == session.trace.shape_reads() == {(0, 0)}


def test_what_is_kept_is_fetched_too():
    session = Session()
    session.trace.alive.add((3, 1))
    assert session.trace.fetches() == {(3, 1)}


# -------------------------------------------------------------- tape, gradients


def test_ops_under_a_tape_are_marked():
    session = Session()
    session.run("Neg", tf.zeros([1]))
    with tf.GradientTape():
        session.run("Neg", tf.zeros([1]))
    assert [op.under_tape for op in session.trace.ops] == [False, True]


def call_it(function, marker, *args):
    del marker
    return function(*args)


def test_op_of_a_gradient_function_names_its_forward_op():
    session = Session()
    x = session.run("Tanh", tf.zeros([2]))

    def gradient_function(op_name, attrs, *args):
        assert (op_name, attrs) == ("Tanh", ("T", 1))
        return session.run("TanhGrad", x, args[0])

    call_marked = marked_caller(lambda: session.markers)
    wrapper = gradient_function_wrapper(gradient_function, call_marked, call_it)
    wrapper("Tanh", ("T", 1, MARKER, "tanh"), tf.ones([2]))
    session.run("Neg", x)
    assert [op.forward for op in session.trace.ops] == [None, "tanh", None]
    assert session.markers.last == "tanh"


def test_op_of_nested_gradient_functions_names_the_innermost_forward_op():
    session = Session()
    call = marked_caller(lambda: session.markers)

    def outer():
        session.run("Neg", tf.zeros([1]))
        call("inner", session.run, "Exp", tf.zeros([1]))
        session.run("Neg", tf.zeros([1]))

    call("outer", outer)
    assert [op.forward for op in session.trace.ops] == ["outer", "inner", "outer"]
    assert (session.markers.stack, session.markers.last) == ([], "outer")


def test_marked_call_returns_what_the_function_returns():
    call = marked_caller(GradientMarkers)
    assert call("marker", divmod, 7, 2) == (3, 1)


def test_marker_of_an_op_is_its_locations_id_or_its_number():
    session = Session()
    session.run("Neg", tf.zeros([1]))
    index = session.begin("Neg", tf.zeros([1]))
    assert session.recorder.marker(index) == 1
    tracker = LocationTracker(lambda filename: False)
    tracker.begin(None)
    located = Session(tracker=tracker)
    index = located.begin("Neg", tf.zeros([1]))
    marker = located.recorder.marker(index)
    located.end(index, tf.zeros([1]))
    location = located.trace.ops[0].location
    assert marker == location.id == marker_for(location, index)


def test_marker_is_taken_off_when_the_gradient_function_raises():
    markers = GradientMarkers()

    def fail(op_name, attrs):
        assert markers.stack == [3]
        raise ValueError("no gradient")

    wrapper = gradient_function_wrapper(fail, marked_caller(lambda: markers), call_it)
    with pytest.raises(ValueError, match="no gradient"):
        wrapper("Op", (MARKER, 3))
    assert markers.stack == []


def test_gradient_function_without_a_marker_is_called_as_it_is():
    markers = GradientMarkers()
    wrapper = gradient_function_wrapper(
        lambda *args: (args, list(markers.stack)), marked_caller(lambda: markers), call_it
    )
    assert wrapper("Op", ("T", 1), 5) == (("Op", ("T", 1), 5), [])


def test_gradient_function_is_called_by_what_may_do_without():
    seen = []

    def run(function, marker, op_type, *args):
        seen.append((function, marker, op_type, args))

    wrapper = gradient_function_wrapper(len, marked_caller(GradientMarkers), run)
    wrapper("Op", ("T", 1, MARKER, 3), 5)
    assert seen == [(len, 3, "Op", (("T", 1), 5))]


@pytest.mark.parametrize(
    ("attrs", "marker"),
    [(None, None), ((), None), (("T", 1), None), ((MARKER, 4), 4), (("T", 1, MARKER, 0), 0)],
)
def test_marker_is_the_last_pair(attrs, marker):
    assert marker_of(attrs) == marker


# ------------------------------------------------------------- going on, merging


def test_adopted_trace_goes_on_with_its_externals_and_variables():
    before, handle, x = Session(), tf.Variable(1.0).handle, tf.constant([1.0])
    before.run("ReadVariableOp", handle)
    y = before.run("Neg", x)
    after = Session()
    after.made = dict(before.made)
    after.recorder.adopt(before.trace)
    after.run("Mul", y, x)
    after.run("ReadVariableOp", handle)
    after.run("Neg", tf.constant([2.0]))
    inputs = [op.inputs for op in after.trace.ops[2:]]
    assert inputs == [(OutputRef(1, 0), ExternalRef(0)), (VariableRef(0),), (ExternalRef(1),)]


def record_step(x, weight):
    tracker = LocationTracker(lambda filename: False)
    session = Session(arguments=[x], tracker=tracker)
    tracker.begin(None)
    for _ in range(3):
        w = session.run("ReadVariableOp", weight)
        x = session.run("Mul", x, w)
    session.recorder.materialize(*session.made_index(x), False)
    tracker.end()
    return session.trace


def test_recorded_steps_merge_and_have_locations_of_their_own():
    weight, graph = tf.Variable(1.0).handle, TraceGraph(id)
    traces = [record_step(tf.constant([1.0]), weight) for _ in range(3)]
    kinds = [merge(graph, trace).kind.value for trace in traces]
    check_trace_graph(graph, traces)
    assert kinds == ["new path", "covered", "covered"]
    assert len({node.key.location for node in graph.nodes}) == 6
    assert graph.fetches == {(5, 0)}


def test_read_of_an_ops_own_operand_turns_no_loop():
    variable = tf.Variable([1.0, 2.0])

    @terra.function
    def step(x):
        for _ in range(3):
            x = tf.tanh(x - variable)
        return x

    step(tf.ones([2]))
    trips = [
        node.key.location.innermost_user.level.counters[-1]
        for node in step.trace_graph.nodes
        if node.record.op_type in ("ReadVariableOp", "Sub", "Tanh")
    ]
    assert trips == [0, 0, 0, 1, 1, 1, 2, 2, 2]
