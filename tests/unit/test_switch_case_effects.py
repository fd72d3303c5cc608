"""What the branches of a generated function do: writes of variables, fetches, epochs; lowering."""

import collections

import numpy as np
import tensorflow as tf

from terra_tf._tf_internals import context
from tests.unit.test_switch_case import WRITES, Generated, X, ancestors, if_else

# --------------------------------------------------------------------- variables


def test_assignment_in_a_branch_comes_out_as_a_value_and_is_assigned_once():
    weight = tf.Variable(X)

    def program(x, case):
        if case:
            weight.assign(tf.tanh(x))
        else:
            weight.assign_add(x)
        return tf.multiply(weight, 2.0)  # `weight * 2.0` may be compiled into each branch

    generated = Generated(program)
    ((case, branches),) = generated.cases
    (write,) = generated.of(*WRITES)
    assert write.type == "AssignVariableOp"
    assert write.inputs[1].op is case
    assert not set(WRITES) & {op_type for branch in branches for op_type in branch.types}
    (mul,) = generated.of("Mul")
    assert case in ancestors(mul)
    assert write not in ancestors(mul)


def test_branch_that_does_not_write_hands_on_what_was_there():
    weight = tf.Variable(X)

    def program(x, case):
        y = tf.tanh(x)
        if case:
            weight.assign(y)
        return weight * y

    generated = Generated(program)
    ((case, (_, skipped)),) = generated.cases
    (read,) = generated.of("ReadVariableOp")
    assert read in ancestors(case)
    assert skipped.types == []
    assert len(generated.of(*WRITES)) == 1


def test_variable_that_only_a_branch_reads_is_read_there():
    weight = tf.Variable(X)

    def program(x, case):
        y = tf.tanh(x)
        if case:
            y = y * weight
        return y + 1.0

    generated = Generated(program)
    taken, skipped = generated.branches
    assert (taken.types.count("Terra>ReadVariable"), skipped.types) == (1, [])
    assert generated.of("ReadVariableOp") == []
    (case,) = generated.of("Case")
    assert all(tensor.dtype != tf.resource for tensor in case.inputs)


def test_handle_of_a_variable_does_not_pass_the_case():
    table = tf.Variable(X)

    def program(x, case):
        y = tf.tanh(x)
        if case:
            y = y + tf.gather(table, [0])
        return y + 1.0

    generated = Generated(program)
    taken, _ = generated.branches
    assert taken.types.count("Terra>Handle") == 1
    (case,) = generated.of("Case")
    assert all(tensor.dtype != tf.resource for tensor in case.inputs)


def test_in_place_write_of_a_branch_is_held_back_until_the_commit():
    weight = tf.Variable(np.zeros([4, 3], np.float32))

    def program(x, case):
        y = tf.tanh(x)
        if case:
            weight.scatter_add(tf.IndexedSlices(y[tf.newaxis], [2]))
        return y + 1.0

    generated = Generated(program)
    (_, (taken, _)), (apply, (write, *others)) = generated.cases
    assert "ResourceScatterAdd" not in taken.types
    assert write.types == ["ResourceScatterAdd"]
    assert [other.types for other in others] == [[]] * len(others)
    (commit,) = (
        op
        for op in generated.of("Terra>AwaitCommit")
        if op.get_attr("channel") == generated.generated.epochs[-1].commit
    )
    assert commit in ancestors(apply)
    assert generated.cases[0][0] in ancestors(commit)
    assert apply.inputs[0].op is generated.cases[0][0].inputs[0].op
    assert write.controls == ["ResourceScatterAdd"]


def test_in_place_writes_of_a_branch_keep_their_order():
    weight = tf.Variable(np.zeros([4, 3], np.float32))
    other = tf.Variable(np.zeros([4, 3], np.float32))

    def program(x, case):
        y = tf.tanh(x)
        if case:
            other.scatter_sub(tf.IndexedSlices(y[tf.newaxis], [1]))
            weight.scatter_add(tf.IndexedSlices(y[tf.newaxis], [2]))
        return y + 1.0

    generated = Generated(program)
    write = generated.cases[1][1][0].definition
    first, second = (n for n in write.node_def if n.op.startswith("ResourceScatter"))
    assert (first.op, second.op) == ("ResourceScatterSub", "ResourceScatterAdd")
    assert f"^{first.name}" in second.input


# ----------------------------------------------------------- what can fail, epochs


def test_commit_and_later_fetches_come_after_a_branch_that_can_fail():
    def program(x, case):
        y = tf.tanh(x)
        if case:
            tf.debugging.check_numerics(y, "not used by anybody")
        return y + 1.0

    generated = Generated(program)
    ((case, (taken, _)),) = generated.cases
    assert generated.generated.is_fallible
    assert "CheckNumerics" in taken.types
    (commit,) = generated.of("Terra>AwaitCommit")
    assert case in ancestors(commit)
    assert all(case in ancestors(fetch) for fetch in generated.of("Terra>Fetch"))


def test_branch_that_fetches_comes_after_what_can_fail():
    def program(x, case):
        tf.debugging.check_numerics(x, "x")
        y = tf.tanh(x)
        if case:
            y = y * 2.0
            float(y[0])
        return y + 1.0

    generated = Generated(program)
    ((case, _),) = generated.cases
    (check,) = generated.of("CheckNumerics")
    assert check in ancestors(case)


def test_epoch_that_begins_with_a_switch_case_comes_before_it():
    weight = tf.Variable(np.zeros([4, 3], np.float32))

    def program(x, case):
        weight.scatter_add(tf.IndexedSlices(x[tf.newaxis], [2]))
        y = weight[0] if case else tf.tanh(x)
        return tf.exp(y)

    generated = Generated(program)
    first, second = generated.generated.epochs
    resume = [
        op for op in generated.of("Terra>AwaitCommit") if op.get_attr("channel") == first.resume
    ]
    case, _ = generated.cases[0]
    assert not generated.generated.cases.levels[second.start].is_inline
    assert set(resume) <= ancestors(case)


def test_input_of_what_python_runs_in_a_branch_is_fetched_and_its_result_fed_there():
    def program(x, case):
        y = tf.tanh(x)
        if case:
            y = tf.py_function(lambda t: t, [y * 2.0], tf.float32)
        return y + 1.0

    taken, skipped = Generated(program).branches
    assert taken.types.count("Terra>Feed") == 1
    assert taken.types.count("Terra>Fetch") >= 1
    assert skipped.types == []


# ----------------------------------------------------------------- instantiation


def partition_counts(program, cases):
    """Return how many kernels of each type the function has after lowering and Grappler."""
    context.context().enable_run_metadata()
    try:
        generated = Generated(program, cases)
        metadata = context.context().export_run_metadata()
    finally:
        context.context().disable_run_metadata()
    found = [
        collections.Counter(node.op for node in partition.node)
        for function in metadata.function_graphs
        for partition in function.partition_graphs
    ]
    return generated, [counts for counts in found if counts["Terra>AwaitCommit"]][-1]


def test_instantiated_function_has_the_branches_inlined():
    generated, counts = partition_counts(if_else, (0, 1, 0, 1, 0, 1))
    assert counts["Case"] == 0
    assert counts["_SwitchN"] >= 1
    assert counts["Merge"] >= 1
    assert (counts["Tanh"], counts["Exp"], counts["Terra>CaseSelect"]) == (1, 1, 1)
    assert generated.step.stats().fallbacks == {}


def test_held_back_writes_survive_lowering():
    weight = tf.Variable(np.zeros([4, 3], np.float32))

    def program(x, case):
        y = tf.tanh(x)
        if case:
            weight.scatter_add(tf.IndexedSlices(y[tf.newaxis], [2]))
        return y + 1.0

    _, counts = partition_counts(program, (0, 1, 0, 1, 0, 1))
    assert (counts["Case"], counts["ResourceScatterAdd"], counts["Terra>CaseSelect"]) == (0, 1, 1)
    np.testing.assert_array_equal(weight[2], tf.add_n([tf.tanh(X)] * 3))
