"""Plans as text, the golden ones.

The expected texts are in golden/; TERRA_UPDATE_GOLDEN=1 writes them.
"""

import os
import pathlib

import pytest
import tensorflow as tf

import terra_tf as terra

pytestmark = pytest.mark.timeout(60)

GOLDEN_FILES = pathlib.Path(__file__).parent / "golden"


def straight():
    """Run ops on a variable, a feed, a constant; update the variable."""
    weight = tf.Variable([1.0, 2.0])

    @terra.function
    def step(x):
        y = x * weight + 0.5
        weight.assign_sub(0.1 * y)
        return tf.reduce_sum(y)

    for i in range(6):
        step(tf.constant([1.0, float(i)]))
    return step


def branches():
    """Take one of two branches, and maybe one more; join what they give."""
    weight = tf.Variable(2.0)

    @terra.function
    def step(x, is_deep, is_negative):
        x = tf.sin(x) * weight if is_deep else tf.cos(x)
        if is_negative:
            x = -x
        return x + 1.0

    for i in range(12):
        step(tf.constant(float(i)), i % 2 == 0, i % 3 == 0)
    return step


def rolled_loop():
    """Turn a loop that varies so often that it is a While."""

    @terra.function
    def step(x, num_trips):
        for _ in range(num_trips):
            x = tf.sin(x) * 2.0
        return x + 1.0

    for i in range(12):
        step(tf.constant([0.5, float(i)]), 6 + i % 3)
    return step


def epoch():
    """Run an op in Python that may use any variable, between a write and a read of one."""
    weight = tf.Variable([1.0, 2.0])

    @terra.function
    def step(x):
        weight.assign_add(x)
        doubled = tf.py_function(lambda value: value * 2.0, [x], tf.float32)
        return weight * doubled

    for i in range(6):
        step(tf.constant([1.0, float(i)]))
    return step


def read_in_the_middle():
    """Read a value, and go on with what Python makes of it."""

    @terra.function
    def step(x):
        norm = tf.norm(x)
        return x / max(float(norm), 1.0)

    for i in range(6):
        step(tf.constant([1.0, float(i)]))
    return step


PROGRAMS = [straight, branches, rolled_loop, epoch, read_in_the_middle]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_text_is_the_golden_one(program):
    step = program()
    assert step.stats().phase == "co-execution"
    assert step.stats().co_executed_steps > 0
    path = GOLDEN_FILES / f"{program.__name__}.plan.txt"
    text = step.built_graph.plan_text() + "\n"
    if os.environ.get("TERRA_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_text_is_the_same_again():
    assert branches().built_graph.plan_text() == branches().built_graph.plan_text()
