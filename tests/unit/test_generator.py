"""The function that is generated of real traces: what is in it, and what comes after what."""

import collections
import re

import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf._tf_internals import context
from terra_tf.graph.generator import generate
from terra_tf.runtime import built_graph
from terra_tf.trace.verify import check_trace_graph

X = np.float32([[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]])
WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatterAdd")
NOT_KERNELS = ("Const", "_Arg", "_Retval", "Placeholder", "Identity", "NoOp")


# Python runs a function with an effect, here that of drawing: it might do anything.
run_in_python = tf.function(lambda value: value + tf.round(tf.random.uniform([], 1.0, 1.1)))


@pytest.fixture(autouse=True, scope="module")
def _run_in_python_once():
    """Its first call comes another way through TensorFlow's code."""
    run_in_python(tf.constant(X))


class Generated:
    """The graph of a function that has been traced often enough, and how to ask about it."""

    def __init__(self, program, num_steps=3, make_argument=lambda: tf.constant(X)):
        self.step = terra.function(program)
        for _ in range(num_steps):
            self.step(make_argument())
        terra.synchronize()
        assert self.step.stats().phase == "co-execution", self.step.explain()
        self.built = self.step._last_entry.current_built
        check_trace_graph(self.built.trace_graph)
        self.generated = self.built.generated
        self.graph = self.generated.function.graph
        self.ops = self.graph.get_operations()

    def of(self, *types):
        return [op for op in self.ops if op.type in types]

    def the(self, op_type):
        (op,) = self.of(op_type)
        return op

    def await_on(self, channel):
        (op,) = (op for op in self.of("Terra>AwaitCommit") if op.get_attr("channel") == channel)
        return op

    def fetch_on(self, channel):
        (op,) = (op for op in self.of("Terra>Fetch") if op.get_attr("channel") == channel)
        return op

    @property
    def commit(self):
        """What waits for Python's word, at the end of the step."""
        return self.await_on(self.generated.epochs[-1].commit)

    def counts(self):
        return collections.Counter(op.type for op in self.ops if op.type not in NOT_KERNELS)

    def traced_counts(self):
        return collections.Counter(n.record.op_type for n in self.built.trace_graph.nodes)


def ancestors(*ops):
    """Return the ops that run before any of these, by data or by control."""
    found, pending = set(), list(ops)
    while pending:
        op = pending.pop()
        for before in [*(tensor.op for tensor in op.inputs), *op.control_inputs]:
            if before not in found:
                found.add(before)
                pending.append(before)
    return found


def plain(op_type):
    """Return the op that a kernel of oneDNN, which eager takes too, stands for."""
    return re.sub("^_Mkl(Native)?", "", op_type)


def optimized_counts(program):
    """Return how many kernels of each type run in a step of the function, after Grappler."""
    context.context().enable_run_metadata()
    try:
        generated = Generated(program)
        metadata = context.context().export_run_metadata()
    finally:
        context.context().disable_run_metadata()
    found = [
        collections.Counter(plain(node.op) for node in partition.node if node.op not in NOT_KERNELS)
        for function in metadata.function_graphs
        for partition in function.partition_graphs
    ]
    (counts,) = (counts for counts in found if counts["Terra>AwaitCommit"])
    return generated, counts


def make_weight(value=None):
    return tf.Variable(np.full([4, 4], 0.1, np.float32) if value is None else value)


def make_training_step(momentum=False):
    w, b, m = make_weight(), make_weight(np.zeros([4], np.float32)), make_weight()

    def train(x):
        with tf.GradientTape() as tape:
            h = tf.tanh(x @ w + b)
            loss = tf.reduce_mean(tf.square(tf.tanh(h @ w)))
        dw, db = tape.gradient(loss, [w, b])
        if momentum:
            m.assign(0.9 * m + dw)
            dw = m + 0.0
        w.assign_sub(0.1 * dw)
        b.assign_sub(0.1 * db)
        return loss

    return train


# ------------------------------------------------------------------- kernels


@pytest.mark.parametrize("momentum", [False, True])
def test_no_kernel_is_doubled_or_lost_by_grappler(momentum):
    generated, counts = optimized_counts(make_training_step(momentum))
    traced = generated.traced_counts()
    for op_type in ("MatMul", "Tanh", "TanhGrad", "Square", "Mean", "AddN", "AddV2"):
        assert counts[op_type] == traced[op_type], op_type
    more = {op: n for op, n in counts.items() if n > traced[op] and not op.startswith("Terra>")}
    # A dense write is one AssignVariableOp whatever it was; its arithmetic is the graph's.
    assert set(more) <= {"Sub", "AssignVariableOp"}
    assert (counts["Terra>Feed"], counts["Terra>Fetch"], counts["Terra>AwaitCommit"]) == (1, 1, 1)


def test_each_variable_is_read_once_and_written_once():
    _, counts = optimized_counts(make_training_step())
    assert counts["ReadVariableOp"] == 2
    assert counts["AssignSubVariableOp"] == 2
    assert counts["AssignVariableOp"] == 0


def test_folded_ops_are_not_in_the_graph():
    generated = Generated(lambda x: tf.reshape(x, [tf.shape(x)[1], tf.size(x) // 4]))
    assert generated.traced_counts()["Shape"] >= 1
    assert not {"Shape", "Size", "StridedSlice", "FloorDiv"} & set(generated.counts())
    assert generated.counts()["Reshape"] == 1
    assert not generated.generated.is_fallible


@pytest.fixture
def seeded():
    """A global seed for one test."""
    tf.random.set_seed(1)
    yield
    context.context()._seed = None


@pytest.mark.usefixtures("seeded")
def test_random_op_becomes_stateless_with_a_fed_seed():
    generated = Generated(lambda x: x + tf.random.uniform([2, 4]))
    assert generated.counts()["StatelessRandomUniformV2"] == 1
    assert "RandomUniform" not in generated.counts()
    assert len(generated.generated.seed_channels) == 1
    assert len(generated.of("Terra>Feed")) == 2


# ----------------------------------------------------------- interface, channels


def test_function_takes_its_step_and_captures_and_returns_nothing():
    generated = Generated(make_training_step())
    dtypes = [tensor.dtype for tensor in generated.graph.inputs]
    assert dtypes == [tf.int64, tf.resource, tf.resource]
    assert generated.graph.outputs == []
    assert generated.generated.captured_variables == [0, 1]


@pytest.mark.usefixtures("seeded")
def test_each_channel_has_one_op():
    def program(x):
        tf.debugging.check_numerics(x, "x")
        x = run_in_python(x)
        return x + tf.random.uniform([2, 4]), x * 2.0

    generated = Generated(program)
    channels = [
        op.get_attr("channel") for op in generated.of("Terra>Feed", "Terra>Fetch",
                                                      "Terra>AwaitCommit")
    ]  # fmt: skip
    assert sorted(channels) == list(range(generated.generated.num_channels))


def test_all_that_acts_is_a_control_output():
    generated = Generated(make_training_step(momentum=True))
    acting = set(generated.of("Terra>Fetch", "Terra>AwaitCommit", *WRITES))
    assert acting == {op for op in generated.graph.control_outputs if op.type != "NoOp"}
    assert len(acting) >= 5


@pytest.mark.usefixtures("seeded")
def test_waiting_ops_are_not_chained():
    generated = Generated(lambda x: (x * 2.0, tf.random.uniform([2]), tf.random.uniform([3])))
    feeds = generated.of("Terra>Feed")
    assert len(feeds) == 3
    assert [list(op.control_inputs) for op in feeds] == [[], [], []]


# ------------------------------------------------------------- commit, fetches


def fallible_program(x):
    first = x * 2.0
    tf.debugging.check_numerics(x, "not used by anybody")
    second = x * 3.0
    picked = tf.gather(x, tf.cast(x[:, 0] * 0.0, tf.int32), axis=1)
    third = tf.reduce_sum(x)
    return first, second, picked, third


def test_commit_comes_after_every_fallible_op_even_if_nobody_uses_it():
    generated = Generated(fallible_program)
    before = ancestors(generated.commit)
    assert generated.generated.is_fallible
    assert generated.the("CheckNumerics") in before
    assert generated.the("GatherV2") in before


def test_commit_comes_after_every_fetch_and_every_new_value():
    generated = Generated(make_training_step(momentum=True))
    before = ancestors(generated.commit)
    assert set(generated.of("Terra>Fetch")) <= before
    for write in generated.of(*WRITES):
        assert write.inputs[1].op in before
        assert generated.commit in ancestors(write)


def test_fetch_comes_after_the_fallible_ops_before_it_and_no_later_ones():
    generated = Generated(fallible_program)
    nodes = generated.built.trace_graph.nodes
    check, gather = generated.the("CheckNumerics"), generated.the("GatherV2")
    order = {}
    for (node, output), channel in generated.generated.fetch_channels.items():
        before = ancestors(generated.fetch_on(channel))
        order[node, output] = (nodes[node].record.op_type, check in before, gather in before)
        assert generated.commit not in before
    assert [order[key] for key in sorted(order)] == [
        ("Mul", False, False),
        ("Mul", True, False),
        ("GatherV2", True, True),
        ("Sum", True, True),
    ]


def test_program_of_safe_ops_is_not_fallible():
    generated = Generated(make_training_step())
    assert not generated.generated.is_fallible
    assert generated.generated.written_slots == {0, 1}


# -------------------------------------------------------------------- writes


def test_delta_is_applied_in_place_when_the_value_is_not_read_again():
    w = make_weight()
    generated = Generated(lambda x: w.assign_add(tf.ones([4, 4])) is None)
    write = generated.the("AssignAddVariableOp")
    assert generated.commit in ancestors(write)
    assert generated.of("ReadVariableOp", "AssignVariableOp", "AddV2") == []


@pytest.mark.parametrize(("method", "arithmetic"), [("assign_add", "AddV2"), ("assign_sub", "Sub")])
def test_value_that_is_read_again_is_computed_before_the_commit(method, arithmetic):
    w = make_weight()

    def program(x):
        getattr(w, method)(tf.ones([4, 4]))
        return tf.reduce_sum(w)

    generated = Generated(program)
    (write,) = generated.of(*WRITES)
    assert write.type == "AssignVariableOp"
    new_value = generated.the(arithmetic)
    assert new_value in ancestors(generated.the("Sum"))
    assert write not in ancestors(generated.the("Sum"))
    assert new_value in ancestors(generated.commit)
    assert generated.commit in ancestors(write)


def test_second_delta_is_added_to_the_new_value():
    w = make_weight()

    def program(x):
        w.assign_add(tf.ones([4, 4]))
        w.assign_add(tf.ones([4, 4]))
        return x + 1.0

    generated = Generated(program)
    before = w.numpy()
    generated.step(tf.constant(X))
    terra.synchronize()
    assert len(generated.of("ReadVariableOp")) == 1
    assert [op.type for op in generated.of(*WRITES)] == ["AssignVariableOp"]
    np.testing.assert_array_equal(w.numpy(), before + 2.0)


def test_overwritten_values_are_never_assigned():
    w = make_weight()

    def program(x):
        w.assign(tf.zeros([4, 4]))
        w.assign(tf.ones([4, 4]))
        return x + 1.0

    generated = Generated(program)
    assert [op.type for op in generated.of(*WRITES)] == ["AssignVariableOp"]


def test_in_place_write_is_held_back_with_checked_indices():
    w = make_weight()

    def program(x):
        w.scatter_add(tf.IndexedSlices(tf.ones([1, 4]), tf.cast(x[0, :1] * 0.0, tf.int32)))
        return x + 1.0

    generated = Generated(program)
    write = generated.the("ResourceScatterAdd")
    check = generated.the("Terra>CheckIndices")
    assert write.inputs[1].op is check
    assert check in ancestors(generated.commit)
    assert generated.commit in ancestors(write)


# -------------------------------------------------------------------- epochs


def make_epochs():
    w = make_weight()

    def program(x):
        w.assign_add(tf.ones([4, 4]))
        y = run_in_python(x)
        return tf.reduce_sum(y @ w)

    return Generated(program)


def test_function_call_after_a_write_starts_an_epoch():
    generated = make_epochs()
    first, second = generated.generated.epochs
    (block,) = generated.generated.cases.levels[second.start].blocks
    node = generated.built.trace_graph.nodes[block.nodes[0]]
    assert first.start == 0
    assert node.record.op_type.startswith("__inference")
    assert (second.done, second.resume) == (-1, -1)
    assert len(generated.of("Terra>AwaitCommit")) == 3


def test_next_epoch_reads_after_the_writes_and_after_pythons_word():
    generated = make_epochs()
    first, _ = generated.generated.epochs
    (write,) = generated.of(*WRITES)
    done, resume = generated.fetch_on(first.done), generated.await_on(first.resume)
    read = generated.the("MatMul").inputs[1].op
    assert read.type == "ReadVariableOp"
    assert generated.await_on(first.commit) in ancestors(write)
    assert write in ancestors(done)
    assert done in ancestors(resume)
    assert resume in ancestors(read)
    assert resume in ancestors(generated.commit)


def test_result_of_what_python_runs_is_fed_and_its_input_fetched():
    def program(x):
        y = tf.tanh(x)
        z = run_in_python(y)
        return z * 2.0

    generated = Generated(program)
    types = [node.record.op_type for node in generated.built.trace_graph.nodes]
    tanh = types.index("Tanh")
    callback = tanh + 1
    assert (callback, 0) in generated.generated.output_feeds
    assert (tanh, 0) in generated.generated.fetch_channels
    assert generated.generated.check_channels == {}
    assert not [op for op in generated.ops if "lambda" in op.type]


def test_what_python_runs_waits_for_the_fallible_ops_before_it():
    def program(x):
        tf.debugging.check_numerics(x, "x")
        z = run_in_python(x)
        return z * 2.0

    generated = Generated(program)
    ((node, channel),) = generated.generated.check_channels.items()
    assert generated.built.trace_graph.nodes[node].record.op_type.startswith("__inference")
    assert generated.the("CheckNumerics") in ancestors(generated.fetch_on(channel))


# -------------------------------------------------- ops that cannot be in the function


def test_ops_that_cannot_be_in_the_function_are_found_in_one_build(monkeypatch):
    """A division by an integer may fail after the commit; here there is one in each trip."""
    num_trips, attempts = 12, []

    def count(*arguments, **options):
        attempts.append(arguments)
        return generate(*arguments, **options)

    monkeypatch.setattr(built_graph, "generate", count)
    variable = tf.Variable(tf.fill([4], 1000))

    def program(x):
        for _ in range(num_trips):
            variable.scatter_div(tf.IndexedSlices(x[:1] + 1, [1]))
        return tf.reduce_sum(variable)

    built = Generated(program, make_argument=lambda: tf.constant([1, 2]))
    imperative = [node for node in built.built.trace_graph.nodes if node.is_imperative]
    assert [node.record.op_type for node in imperative] == ["ResourceScatterDiv"] * num_trips
    assert len(attempts) <= 3  # rolled, unrolled to find them, and without them
