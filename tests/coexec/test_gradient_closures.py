"""Gradient functions of the library's are closures: what they hold, and who else can change it.

The forward ops of each program are the same in every step, so that only what a tape was handed
tells which gradient follows.
"""

import numpy as np
import pytest
import tensorflow as tf
from hazards import NUM_STEPS, Counter, assert_like_eager, draw_inputs, make_weight, num_gradients
from tensorflow.python.eager import record
from test_library_gradients import differentiated

pytestmark = pytest.mark.timeout(120)


def library(source, **names):
    """Run source as if it were in a module of TensorFlow's; return its `f`."""
    module = {"__name__": "tensorflow.made.up", "tf": tf, "np": np, **names}
    exec(source, module)
    return module["f"]


HOLDING = """
OPS = (tf.sin, tf.cos, tf.tanh)

def gradient_by(held, upstream):
    {body}

def f(x, n):
    other = x * 2.0
    held = {held}
    y = tf.identity(x)
    def gradient(upstream{more}):
        return [gradient_by({what}, upstream)]
    record("Made", [y], [x], gradient)
    return y
"""


def holding(held, index=None, body="return OPS[{}](upstream)", more="", **names):
    """Return a function with a gradient function of the library's that holds something.

    Args:
      held: What it holds in call `n` of the program.
      index: Which op its gradient is, by what is `held`.
    """
    source = HOLDING.format(
        held=held, body=body.format(index), more=more, what="by" if more else "held"
    )
    return library(source, record=record.record_operation, **names)


HELD = {
    "number": ("-1 - n % 2", "held % 3"),  # to Python -1 and -2 have one hash
    "real": ("(0.0, -0.0, 0.5)[n % 3]", "0 if held > 0 else int(np.copysign(1, held))"),
    "type of a number": ("(1, 1.0, True)[n % 3]", "len(type(held).__name__) % 3"),
    "text": ("('a', 'bb')[n % 2]", "len(held)"),
    "bytes": ("('a', b'a')[n % 2]", "isinstance(held, bytes)"),
    "tuple": ("(1.0, (2.0, n % 3))", "held[1][1]"),
    "length": ("(1.0,) * (1 + n % 2)", "len(held)"),
    "list or tuple": ("([], ())[n % 2]", "isinstance(held, tuple)"),
    "list": ("[1.0] * (n % 3)", "len(held)"),
    "dict": ("{'ab'[n % 2]: 2.0, 'c': n % 2}", "held.get('a', 1.0) == 1.0 and 1 + held['c']"),
    "none": ("None if n % 2 else 1", "held is None"),
    "dtype": ("(tf.float32, tf.int32)[n % 2]", "held.is_integer"),
    "type": ("(int, str)[n % 2]", "held is str"),
    "code": ("(lambda: 1) if n % 2 else (lambda: 2)", "held()"),
    "closure": ("(lambda k: lambda: k)(n % 3)", "held()"),
}


@pytest.mark.parametrize("case", HELD.values(), ids=HELD)
def test_gradient_function_that_holds_something_else_each_time(case):
    stats = assert_like_eager(differentiated(holding(*case)), 40)
    assert num_gradients(stats) > 10, stats.calls_not_replayed


@pytest.mark.parametrize("more", [", by=n % 3", ", *, by=n % 3"])
def test_gradient_function_with_other_defaults_each_time(more):
    stats = assert_like_eager(differentiated(holding("0", "held", more=more)), 40)
    assert num_gradients(stats) > 10, stats.calls_not_replayed


SCALES = {
    "other tensor": "x if n % 2 else other",
    "new tensor": "tf.constant(1.0 + n % 3)",
    "in a list": "[x, other][::(-1) ** n]",
    "number": "1.0 + n % 3",  # Python makes a tensor of it, so that it is not replayed
}


@pytest.mark.parametrize("held", SCALES.values(), ids=SCALES)
def test_gradient_function_that_multiplies_by_what_it_holds(held):
    body = "return upstream * (held[0] if type(held) is list else held)"
    stats = assert_like_eager(differentiated(holding(held, body=body)), 40)
    assert num_gradients(stats) > 10 or held == SCALES["number"], stats.calls_not_replayed


KEPT = []


class Thing:
    value = 2.0


UNKNOWN = {
    "list that others hold": ("(kept.append(n % 3), kept)[1]", "held[-1]"),
    "object": ("thing", "int(held.value)"),
    "array": ("np.float32([n % 3])", "int(held[0])"),
    "class": ("type(thing)", "int(held.value)"),
    "method": ("'ab'.count", "held('a')"),
    "itself": ("lambda: held", "len([held])"),
    "attributes": ("(tf.nn.relu, tf.nn.elu)[n % 2]", "held is tf.nn.relu"),
}


@pytest.mark.parametrize("case", UNKNOWN.values(), ids=UNKNOWN)
def test_gradient_function_that_holds_what_is_not_known(case):
    def make(wrap):
        KEPT.clear()
        return differentiated(holding(*case, kept=KEPT, thing=Thing()))(wrap)

    stats = assert_like_eager(make, 16)
    assert num_gradients(stats) == 0
    assert "GradientTape.gradient: it runs a gradient of the user's" in stats.calls_not_replayed


def test_list_that_is_changed_between_forward_and_backward():
    def make(wrap):
        draw, weight, count, kept = draw_inputs(), make_weight(), Counter(), []
        apply = holding("kept", "held[-1]", kept=kept)

        @wrap
        def step(x, n):
            kept[:] = [0]
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(apply(x @ weight, n))
            kept.append(n % 3)
            return tape.gradient(loss, weight)

        return lambda: step(draw(), count.advance())

    assert num_gradients(assert_like_eager(make, 16)) == 0


def test_tensor_whose_value_the_gradient_function_reads():
    def make(wrap):
        draw, count = draw_inputs(), Counter()
        apply = holding("n", "float(held) > 2.0")

        @wrap
        def step(x, n):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(apply(x, n))
            return tape.gradient(loss, x)

        return lambda: step(draw(), tf.constant(float(count.advance() % 5)))

    assert_like_eager(make, NUM_STEPS + 8)
