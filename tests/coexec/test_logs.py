"""What `TERRA_LOGS` shows, as it happens: phases, fallbacks, graphs, each by itself."""

import logging

import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.errors import ConfigError

pytestmark = pytest.mark.timeout(60)


def run_program():
    """Trace, co-execute, leave the graph once, and come back."""
    changed = []

    @terra.function
    def train(x):
        return tf.sin(x) if changed else tf.cos(x)

    for i in range(8):
        if i == 4:
            changed.append(True)
        train(tf.constant(1.0))


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, "terra_tf")

    def of(categories):
        caplog.clear()
        with terra.config.override(log=categories):
            run_program()
        return [record.getMessage() for record in caplog.records]

    return of


def test_phases_are_logged_with_step_and_function(messages):
    first, *_ = messages("phases")
    assert first == "run_program.<locals>.train: step 2: tracing -> co-execution"


def test_fallbacks_are_logged_with_reason_and_line(messages):
    (message,) = messages("fallbacks")
    assert message.startswith("run_program.<locals>.train: step 5: new_path; ")
    assert "at test_logs.py:" in message


def test_graphs_are_logged_with_their_size(messages):
    first, *_ = messages("graphs")
    assert first == "run_program.<locals>.train: step 2: a graph of 1 ops was built"


def test_categories_add_up_and_none_is_silent(messages):
    every = messages("phases, fallbacks,graphs")
    apart = [message for name in ("phases", "fallbacks", "graphs") for message in messages(name)]
    assert sorted(every) == sorted(apart)
    assert messages("") == []


def test_category_that_is_none_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="phases, fallbacks, graphs"):
        terra.config.log = "phase"


def test_wait_that_takes_long_is_warned_of(caplog):
    """A hang would else say nothing; a long wait says what for."""
    square = tf.random.stateless_uniform([1400, 1400], [1, 2]) / 1400.0

    @terra.function
    def multiply(x):
        for _ in range(12):
            x = tf.matmul(x, square)
        return x

    for _ in range(4):
        multiply(square)
    terra.synchronize()
    caplog.set_level(logging.WARNING, "terra_tf")
    with terra.config.override(stall_warning_s=0.01):
        result = multiply(square)
        result.numpy()
        assert multiply.stats().co_executed_steps >= 2
    (first, *_) = [record.getMessage() for record in caplog.records]
    assert "0." in first
    assert "MatMul" in first or "the end of the graph" in first
