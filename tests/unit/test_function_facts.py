"""What a function's body tells of calls of it."""

import pytest
import tensorflow as tf

from terra_tf.errors import ImperativeReason
from terra_tf.trace.function_facts import facts_of, is_function

W = tf.Variable(tf.ones([2]))
V = tf.Variable(tf.zeros([2]))
TABLE = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(tf.constant([1]), tf.constant([2])), 0
)
X = tf.constant([1.0, -1.0])


def name_of(function, *args):
    return function.get_concrete_function(*args).function_def.signature.name


def loop(x):
    for _ in tf.range(3):
        x = x * W
    return x


def branch(x):
    if tf.reduce_sum(x) > 0.0:
        return x + W
    return x - V


def checked(x):
    tf.debugging.assert_greater(x, -5.0)
    return tf.debugging.check_numerics(x, "no number")


def calling(x):
    return tf.function(loop)(x) + tf.function(branch)(x)


def writing(x):
    W.assign_add(x)
    return x


def writing_in_a_branch(x):
    if tf.reduce_sum(x) > 0.0:
        W.assign_add(x)
    return x


def printing_below(x):
    return tf.function(lambda y: [tf.print(y), y][1])(x)


@pytest.mark.parametrize("body", [lambda x: x + 1.0, lambda x: x * W, loop, branch, checked])
def test_a_body_without_an_effect_is_the_graphs_to_run(body):
    assert facts_of(name_of(tf.function(body), X)).reason is None


def calling_in_a_branch(x):
    if tf.reduce_sum(x) > 0.0:
        return tf.function(loop)(x)
    return x


@pytest.mark.parametrize("body", [calling, calling_in_a_branch])
def test_a_body_that_calls_functions_is_pythons(body):
    """TensorFlow would optimize those that are called twice: other last bits."""
    function = tf.function(body)
    concrete = function.get_concrete_function(X)
    reason = facts_of(concrete.function_def.signature.name).reason
    assert reason is ImperativeReason.NESTED_FUNCTIONS


@pytest.mark.parametrize(
    "body",
    [
        writing,
        writing_in_a_branch,
        printing_below,
        lambda x: x + tf.random.normal([2]),
        lambda x: x + float(1) * tf.cast(TABLE.lookup(tf.constant([1, 2])), tf.float32),
        lambda x: tf.py_function(lambda y: y, [x], tf.float32),
        lambda x: tf.numpy_function(lambda y: y, [x], tf.float32),
        lambda x: x + tf.strings.to_number(tf.io.read_file("no such file")),
    ],
)
def test_a_body_with_an_effect_is_pythons_to_run(body):
    assert facts_of(name_of(tf.function(body), X)).reason is ImperativeReason.NO_OP_DEFINITION


def test_a_compiled_body_is_pythons_to_run():
    name = name_of(tf.function(lambda x: x + 1.0, jit_compile=True), X)
    assert facts_of(name).reason is ImperativeReason.NO_OP_DEFINITION


def test_an_unknown_function_is_pythons_to_run():
    assert facts_of("__inference_nobody_1").reason is ImperativeReason.NO_OP_DEFINITION


def test_the_handle_that_a_forward_function_returns_is_known_by_its_input(monkeypatch):
    called = []
    run = tf.function(loop)
    context = __import__("tensorflow.python.eager.context", fromlist=["Context"]).Context
    call_function = context.call_function

    def note(self, name, inputs, num_outputs):
        called.append((name.decode(), [t.dtype for t in inputs]))
        return call_function(self, name, inputs, num_outputs)

    monkeypatch.setattr(context, "call_function", note)
    with tf.GradientTape() as tape:
        y = run(X)
    tape.gradient(y, W)
    (forward, types), (backward, _) = called
    assert set(facts_of(forward).returned_handles.values()) == {types.index(tf.resource)}
    assert facts_of(backward).reason is None


def test_names():
    assert is_function("__inference_f_1") and is_function("__forward_f_1")
    assert not is_function("MatMul")
