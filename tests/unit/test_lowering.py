"""Cases that are written out do what TensorFlow's own lowering makes of them, with fewer ops."""

import itertools

import pytest
import tensorflow as tf

from terra_tf._tf_internals import atomic_function, context
from terra_tf.graph.lean_graph import LeanGraph
from terra_tf.graph.lowering import lower_cases
from terra_tf.graph.switch_case import add_case, make_branch_graph

_serial = itertools.count()
NUM_BRANCHES = 3


class Case:
    """A function of `(index, x)` with one Case, before and after it is lowered.

    `bodies` are called in the branches' graphs with x and handles of the variables, and return
    (outputs, control outputs); `finish(case, x)`, in the main graph, and with handles, too, returns
    what the function returns.
    """

    def __init__(
        self,
        bodies,
        finish=lambda case, x, *handles: list(case.outputs),
        after=lambda x, *handles: [],
        variables=(),
    ):
        name = f"lowering_test_{next(_serial)}"
        main = LeanGraph(name)
        with main.as_default():
            index = tf.compat.v1.placeholder(tf.int32, [])
            x = tf.compat.v1.placeholder(tf.float32, [2])
            self.captures = [variable.handle for variable in variables]
            given = [x, *map(main.placeholder_for, self.captures)]
            branches = [self._branch(f"{name}_{i}", main, b, *given) for i, b in enumerate(bodies)]
            case = add_case(index, branches, after(*given))
            outputs = finish(case, *given)
        main.inputs, main.outputs = [index, *given], outputs
        main.structured_outputs = tuple(outputs)
        main.control_outputs = [case]
        self.original = atomic_function.from_func_graph(name, main, {})
        self.lowered = lower_cases(self.original)

    @staticmethod
    def _branch(name, main, body, *given):
        graph = make_branch_graph(name, main)
        with graph.as_default():
            graph.outputs, graph.control_outputs = body(*given)
        return graph

    def types(self):
        return [node.op for node in self.lowered.definition.node_def]

    def run(self, function, index):
        arguments = [tf.constant(index), tf.constant([1.0, 2.0]), *self.captures]
        outputs = function.call_flat(*arguments)
        return [tensor.numpy().tolist() for tensor in outputs or ()]

    def assert_equal(self):
        """Assert that every branch gives the same, and that they do not all give the same."""
        assert "Case" not in self.types()
        for index in range(NUM_BRANCHES):
            expected = self.run(self.original, index)
            assert self.run(self.lowered, index) == expected, f"branch {index}"
            yield expected


def own(tensor):
    return tf.raw_ops.Identity(input=tensor)


def test_values_constants_and_what_is_handed_through():
    case = Case(
        [
            lambda x: ([tf.sin(x), tf.cos(x)], []),
            lambda x: ([own(x), tf.constant([3.0, 4.0])], []),
            lambda x: ([tf.constant([0.5, 0.5]), tf.constant([0.5, 0.5])], []),
        ]
    )
    first, second, third = case.assert_equal()
    assert second == [[1.0, 2.0], [3.0, 4.0]]
    assert third == [[0.5, 0.5]] * 2 and first != second


def test_what_a_branch_takes_from_outside_is_switched_once():
    case = Case([lambda x: ([x * x + x], []), lambda x: ([x - x], []), lambda x: ([own(x)], [])])
    assert [outputs for (outputs,) in case.assert_equal()] == [[2.0, 6.0], [0.0, 0.0], [1.0, 2.0]]
    types = case.types()
    assert types.count("_SwitchN") == 1, "no op needs a pivot"
    assert types.count("Merge") == 1
    assert "NoOp" not in types, "the output's Merge says that the Case is done"


def test_op_of_constants_alone_runs_only_in_its_branch():
    """`Assert` of a constant would fail whichever branch is taken."""

    def fail(x):
        false = tf.constant(False)
        return [own(x)], [tf.raw_ops.Assert(condition=false, data=[tf.constant("taken")])]

    case = Case([lambda x: ([tf.sin(x)], []), lambda x: ([tf.cos(x)], []), fail])
    for index in range(2):
        assert case.run(case.lowered, index) == case.run(case.original, index)
    with pytest.raises(tf.errors.InvalidArgumentError, match="taken"):
        case.run(case.lowered, 2)


def test_effects_happen_in_the_branch_that_is_taken_before_what_comes_after_the_case():
    counts = [tf.Variable(0.0) for _ in range(NUM_BRANCHES)]

    def counting(number):
        def body(x, *handles):
            delta = tf.constant(1.0) if number == 0 else x[0]
            add = tf.raw_ops.AssignAddVariableOp(resource=handles[number], value=delta)
            return [], [add]

        return body

    def read_all(case, x, *handles):
        with tf.control_dependencies([case]):
            return [tf.raw_ops.ReadVariableOp(resource=h, dtype=tf.float32) for h in handles]

    case = Case([counting(i) for i in range(NUM_BRANCHES)], read_all, variables=counts)
    expected = [0.0] * NUM_BRANCHES
    for index in (0, 2, 1, 2, 2):
        expected[index] += 1.0
        assert case.run(case.lowered, index) == expected


def test_branches_wait_for_what_comes_before_the_case():
    variable = tf.Variable(0.0)

    def assign(x, handle):
        add = tf.raw_ops.AssignAddVariableOp(resource=handle, value=x[1])
        return [add]

    def read(factor):
        def body(x, handle):
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
            return [value * factor], []

        return body

    bodies = [read(f) for f in (1.0, 10.0, 100.0)]
    case = Case(bodies, after=assign, variables=[variable])
    assert [case.run(case.lowered, index) for index in range(3)] == [[2.0], [40.0], [600.0]]


def test_a_case_behind_a_case_and_a_while_in_a_branch():
    def looping(x):
        (result,) = tf.while_loop(
            lambda v: tf.reduce_sum(v) < 100.0, lambda v: [v * 3.0], [x], back_prop=False
        )
        return [result], []

    def second(case, x):
        (value,) = case.outputs
        main = value.graph
        branches = [
            Case._branch(f"scale_{next(_serial)}", main, lambda v, f=f: ([v * f], []), value)
            for f in (1.0, -1.0, 0.5)
        ]
        return list(add_case(case.inputs[0], branches, [case]).outputs)

    case = Case(
        [looping, lambda x: ([x + 1.0], []), lambda x: ([tf.constant([7.0, 8.0])], [])], second
    )
    values = [outputs for (outputs,) in case.assert_equal()]
    assert values == [[81.0, 162.0], [-2.0, -3.0], [3.5, 4.0]]


def test_function_without_a_case_is_left_alone():
    main = LeanGraph(f"lowering_test_{next(_serial)}")
    with main.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [2])
        main.outputs = [tf.sin(x)]
    main.inputs, main.structured_outputs = [x], tuple(main.outputs)
    function = atomic_function.from_func_graph(main.name, main, {})
    assert lower_cases(function) is function


def test_lowered_function_is_registered_while_it_lives():
    case = Case([lambda x: ([tf.sin(x)], [])] * NUM_BRANCHES)
    name = case.lowered.name
    assert context.context().has_function(name)
    del case
    assert not context.context().has_function(name)
