"""What `TERRA_LOGS` shows, as it happens: each category by itself, and one step op by op."""

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


# ------------------------------------------------------------------ a step, op by op


@pytest.fixture
def step_lines(caplog):
    """Return what is logged of one call, without function and step."""
    caplog.set_level(logging.INFO, "terra_tf")

    def of(categories, function, *args):
        caplog.clear()
        with terra.config.override(log=categories):
            result = function(*args)
        lines = [record.getMessage().split(": ", 2) for record in caplog.records]
        assert {step for _, step, _ in lines} <= {f"step {function.stats().steps}"}
        return result, [line for _, _, line in lines]

    return of


def make_forking(library_calls=False):
    """Make a step of raw ops, so that none is replayed, with a branch that may be skipped."""
    weight = tf.Variable(2.0)

    @terra.function
    def step(x, is_deep):
        x = tf.raw_ops.Mul(x=x, y=weight)
        if is_deep:
            x = tf.raw_ops.Neg(x=x)
        return tf.raw_ops.Exp(x=x)

    for i in range(8):
        step(tf.constant(float(i)), i % 2 == 0)
    return step


@pytest.mark.parametrize(
    ("is_deep", "at_fork", "lines"),
    [
        (
            True,
            "Neg is at the place of op 2",
            [
                "takes branch 0 of level 1",
                "matched op 2 Neg; join 0 is %1.0",
                "matched op 3 Exp; join 1 is %2.0",
            ],
        ),
        (
            False,
            "Exp is at the place of op 3",
            ["skips level 1", "matched op 3 Exp; join 1 is %1.0"],
        ),
    ],
)
def test_each_op_and_decision_of_a_step_is_logged(is_deep, at_fork, lines, step_lines):
    step = make_forking()
    result, found = step_lines("cursor", step, tf.constant(1.0), is_deep)
    assert float(result) == float(tf.exp(-2.0 if is_deep else 2.0))
    at_forks = [line for line in found if " is at the place of " in line]
    assert [line for line in found if line not in at_forks] == [
        "matched op 0 ReadVariableOp",
        "matched op 1 Mul; feeds feed 0",
        *lines,
    ]
    assert at_forks == [at_fork + "; in other trips: no op"]


def test_it_is_logged_why_a_step_leaves_its_graph(step_lines):
    factors = [tf.constant(2.0)] * 4 + [tf.constant(3.0)]

    @terra.function
    def step(x, i):
        return tf.raw_ops.Neg(x=tf.raw_ops.Mul(x=tf.raw_ops.Exp(x=x), y=factors[i]))

    for i in range(4):
        step(tf.constant(float(i)), i)
    result, found = step_lines("cursor", step, tf.constant(0.0), 4)
    assert float(result) == -3.0
    assert found[0] == "matched op 0 Exp; feeds feed 0"
    assert found[1].startswith("Mul is not op 1 Mul: constant_changed; 2 became 3")
    assert found[-1] == "leaves its graph after 1 ops; constant_changed; 2 became 3"


def test_replayed_and_refused_calls_are_logged(step_lines):
    @terra.function
    def step(x, names):
        return tf.reduce_sum(tf.nn.relu(x), name=names)

    for i in range(5):
        step(tf.constant([1.0, float(i)]), None)
    _, found = step_lines("replay", step, tf.constant([1.0, 2.0]), None)
    assert found == ["tf.nn.relu is replayed: op 0", "tf.reduce_sum is replayed: op 1"]
    _, found = step_lines("replay", step, tf.constant([1.0, 2.0]), object())
    assert found[0] == "tf.nn.relu is replayed: op 0"
    assert found[1].startswith("tf.reduce_sum is not replayed: ")


def test_call_that_is_learned_is_logged(step_lines):
    @terra.function
    def step(x):
        return tf.nn.relu(x)

    for i in range(2):
        step(tf.constant([1.0, float(i)]))
    _, found = step_lines("replay", step, tf.constant([1.0, 2.0]))
    assert found == ["tf.nn.relu is not known here", "tf.nn.relu is learned"]


def test_commits_are_logged_epoch_by_epoch(step_lines):
    weight = tf.Variable(1.0)

    @terra.function
    def step(x):
        weight.assign_add(x)
        tf.py_function(lambda: None, [], [])
        return weight * x

    for i in range(5):
        step(tf.constant(float(i)))
    _, found = step_lines("commits", step, tf.constant(1.0))
    assert found == [
        "epoch 0 is committed, after 1 ops",
        "epoch 0 is done",
        "epoch 1 begins",
        "the step is committed, after 4 ops",
    ]


def test_a_step_is_logged_up_to_where_it_waits(step_lines):
    """Who hangs is seen, although its op never returns."""
    seen = []

    @terra.function
    def step(x):
        y = tf.raw_ops.Exp(x=x)
        value = float(y)
        seen.append(len(handler.lines))
        return tf.raw_ops.Neg(x=y) * value

    class Handler(logging.Handler):
        lines: list[str] = []  # noqa: RUF012

        def emit(self, record):
            self.lines.append(record.getMessage())

    handler = Handler()
    logger = logging.getLogger("terra_tf")
    for i in range(5):
        step(tf.constant(float(i)))
    logger.addHandler(handler)
    try:
        step_lines("cursor", step, tf.constant(1.0))
    finally:
        logger.removeHandler(handler)
    assert seen[-1] >= 1
    assert "matched op 0 Exp; feeds feed 0" in handler.lines[0]


def test_handler_that_runs_ops_is_no_part_of_the_step(caplog):
    class Handler(logging.Handler):
        num_lines = 0

        def emit(self, record):
            self.num_lines += int(tf.constant(1) + 0)

    step = make_forking()
    handler = Handler()
    logger = logging.getLogger("terra_tf")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, "terra_tf")
    before = step.stats()
    try:
        with terra.config.override(log="cursor,commits"):
            result = step(tf.constant(1.0), True)
    finally:
        logger.removeHandler(handler)
    assert float(result) == float(tf.exp(-2.0))
    assert handler.num_lines > 4
    assert step.stats().co_executed_steps == before.co_executed_steps + 1
    assert step.stats().fallbacks == before.fallbacks


def test_handler_that_raises_ends_the_step_as_a_signal_would(caplog):
    class Handler(logging.Handler):
        is_armed = True

        def emit(self, record):
            if "op 1 Mul" in record.getMessage() and self.is_armed:
                self.is_armed = False
                raise KeyboardInterrupt

    step = make_forking()
    handler = Handler()
    logger = logging.getLogger("terra_tf")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, "terra_tf")
    try:
        with terra.config.override(log="cursor"), pytest.raises(KeyboardInterrupt):
            step(tf.constant(1.0), True)
    finally:
        logger.removeHandler(handler)
    for _ in range(4):
        result = step(tf.constant(1.0), True)
    assert float(result) == float(tf.exp(-2.0))
    assert not handler.is_armed
