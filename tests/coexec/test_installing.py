"""The hooks: all of them or none, from anywhere, and without a look at TensorFlow's context.

What a process does first can be tried once in it; so most programs here have one of their own.
"""

import os
import pathlib
import subprocess
import sys
import textwrap
import threading

import pytest
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import backprop, context
from tensorflow.python.framework import ops
from tensorflow.python.ops.parallel_for import control_flow_ops as pfor_ops

import terra_tf as terra
from terra_tf.runtime import interception, replacements

ROOT = pathlib.Path(__file__).resolve().parents[2]

HEAD = """
import threading
import tensorflow as tf
import terra_tf as terra
from tensorflow.python.eager import context


def is_context_untouched():
    return context._context is None or not context._context._initialized


def train(wrap, num_steps=12):
    # tapes, a write, a random op, a read in the middle, a branch
    tf.random.set_seed(5)
    weight, seen = tf.Variable([1.0, 2.0, 3.0]), []

    def step(x):
        with tf.GradientTape() as tape:
            hidden = tf.nn.dropout(weight * x, 0.3) + tf.random.normal([3])
            loss = tf.reduce_sum(hidden**2)
        gradient = tape.gradient(loss, weight)
        if float(loss) > 3:
            gradient = tf.clip_by_norm(gradient, 1.0)
        weight.assign_sub(0.1 * gradient)
        seen.append(hidden.numpy().tolist())
        return loss

    function = wrap(step)
    losses = [float(function(tf.constant(float(i)))) for i in range(num_steps)]
    return (losses, seen, weight.numpy().tolist()), function


def check_training():
    expected, _ = train(lambda f: f)
    found, function = train(terra.function)
    assert found == expected, (found, expected)
    stats = function.stats()
    assert stats.phase == "co-execution" and stats.co_executed_steps >= 6, function.explain()
"""


def run(program):
    """Runs a program in a process of its own, after what every program here has."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="3")
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(program)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


DECORATED = {
    "in a graph": """
        with tf.Graph().as_default():
            double = terra.function(lambda y: y * 2)
    """,
    "in a pipeline": """
        made = []
        def mapped(x):
            made.append(terra.function(lambda y: y * 2))
            return made[-1](x)
        assert [int(v) for v in tf.data.Dataset.range(3).map(mapped)] == [0, 2, 4]
        double = made[-1]
    """,
    "in tf.function": """
        @tf.function
        def outer(x):
            return terra.function(lambda y: y * 2)(x)
        assert outer(tf.constant(3)).numpy() == 6
        double = terra.function(lambda y: y * 2)
    """,
    "by terra.pure in tf.function": """
        @tf.function
        def outer(x):
            return terra.pure(lambda y: y * 2)(x)
        assert outer(tf.constant(3)).numpy() == 6
        double = terra.function(terra.pure(lambda y: y * 2))
    """,
    "in another thread": """
        made = []
        thread = threading.Thread(target=lambda: made.append(terra.function(lambda y: y * 2)))
        thread.start(); thread.join()
        double = made[0]
    """,
    "in a gradient function": """
        made = []
        @tf.custom_gradient
        def cube(x):
            def gradient(upstream):
                made.append(terra.function(lambda y: y * 2))
                return upstream * made[-1](x)
            return x**3, gradient
        x = tf.constant(3.0)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = cube(x) * x
        assert tape.gradient(y, x).numpy() == 3 * 6 + 27
        double = made[0]
    """,
}


@pytest.mark.parametrize("program", DECORATED.values(), ids=DECORATED)
def test_first_function_may_be_made_anywhere(program):
    asserts = """
        for _ in range(4):
            assert double(tf.constant(4)).numpy() == 8
        check_training()
    """
    run(textwrap.dedent(program) + textwrap.dedent(asserts))


def test_nothing_before_the_first_call_touches_the_context():
    run("""
        import terra_tf.testing
        assert is_context_untouched()

        @terra.function
        def step(x):
            return pure(x) + 1.0

        pure = terra.pure(lambda x: x * 2.0)
        assert step.stats().steps == 0
        assert "step" in str(step.explain())
        assert not step.trace_graph.nodes and step.built_graph is None
        step.reset()
        terra.synchronize()
        with terra.set_stance("imperative"), terra.config.override(replay_calls=False):
            pass
        terra.config.max_divergences = 3
        assert is_context_untouched()

        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        tf.config.threading.set_intra_op_parallelism_threads(1)
        for _ in range(4):
            assert step(tf.constant(1.0)).numpy() == 3.0
        assert len(tf.config.list_logical_devices("CPU")) == 2
        assert step.stats().co_executed_steps == 2
    """)


def test_first_call_may_be_in_a_graph():
    run("""
        step = terra.function(lambda x: x * 2.0)
        with tf.Graph().as_default():
            assert step(tf.constant(1.0)).shape == []
        assert step.stats().fallbacks == {"graph_mode": 1}
        check_training()
    """)


def test_tapes_and_watchers_older_than_the_hooks():
    run("""
        from tensorflow.python.eager import record
        weight, x = tf.Variable(2.0), tf.constant(3.0)
        with tf.GradientTape() as tape, record.VariableWatcher() as watcher:
            function = terra.function(lambda x: weight * weight * x)
            for _ in range(3):
                y = function(x)
        assert tape.gradient(y, weight).numpy() == 12.0
        assert [v is weight for v in watcher.watched_variables()] == [True]
        for _ in range(3):
            with record.VariableWatcher() as watcher, tf.GradientTape() as tape:
                y = function(x)
            assert tape.gradient(y, weight).numpy() == 12.0
            assert [v is weight for v in watcher.watched_variables()] == [True]
        check_training()
    """)


def test_context_made_anew_is_entered_by_every_function():
    run("""
        weight = tf.Variable(2.0)
        one, other = terra.function(lambda x: weight * x), terra.function(lambda x: weight - x)
        for _ in range(4):
            assert one(tf.constant(3.0)).numpy() == 6.0 and other(tf.constant(1.0)).numpy() == 1.0
        context._reset_context()
        weight = tf.Variable(5.0)
        check_training()
        for _ in range(4):
            assert one(tf.constant(3.0)).numpy() == 15.0 and other(tf.constant(1.0)).numpy() == 4.0
        for function in (one, other):
            stats = function.stats()
            assert (stats.traced_steps, stats.co_executed_steps) == (4, 4)
            assert stats.fallbacks == {} and stats.transitions == 3
            assert "context was made anew" in str(function.explain())
    """)


# ---------------------------------------------------------------- in this process

NUM_REPLACED = 40  # but for Keras


def hooked_state():
    """Returns everything of TensorFlow that hooks replace."""
    functions = [f for _, f, _ in interception.functions_of_tensorflow()]
    tape = backprop.GradientTape
    functions += [tape.gradient, tape.jacobian, tape.batch_jacobian]
    names = [name for name in dir(pywrap_tfe) if name.startswith("TFE_")]
    owners = (ops.EagerTensor, context.Context, context._EagerTensorCache)
    return (
        [function.__code__ for function in functions],
        [getattr(pywrap_tfe, name) for name in names],
        [dict(vars(owner)) for owner in owners],
        pfor_ops.def_function,
    )


@pytest.fixture
def uninstalled():
    """Takes the hooks away, and puts them back at the end."""
    terra.synchronize()
    interception.uninstall()
    yield hooked_state()
    interception.install()
    assert interception.is_installed()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("num_before", [0, 1, 2, 4, 5, 10, 20, 36, 37, NUM_REPLACED - 1])
def test_failed_installation_leaves_nothing(uninstalled, monkeypatch, num_before, error):
    calls, note = [], replacements.Replacements.note

    def fail(self, undo):
        calls.append(undo)
        if len(calls) > num_before:
            raise error("in the midst of it")
        note(self, undo)

    with monkeypatch.context() as patch:
        patch.setattr(replacements.Replacements, "note", fail)
        with pytest.raises(error, match="in the midst of it"):
            terra.function(abs)
    assert len(calls) == num_before + 1 <= NUM_REPLACED
    assert not interception.is_installed() and not interception.originals
    assert hooked_state() == uninstalled
    terra.function(abs)
    assert interception.is_installed() and hooked_state() != uninstalled


def test_threads_that_install_at_once_replace_once(uninstalled):
    barrier, num_installed = threading.Barrier(8), []

    def install():
        barrier.wait(60)
        interception.install()
        num_installed.append(interception.is_installed())

    threads = [threading.Thread(target=install) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert num_installed == [True] * 8
    interception.uninstall()
    assert hooked_state() == uninstalled


def test_failure_while_the_context_is_bound_can_be_tried_again():
    run("""
        from terra_tf import _native
        function = terra.function(lambda x: x * 2.0)
        initialize, fails = context.Context.ensure_initialized, [True]

        def ensure_initialized(self):
            if fails:
                raise KeyboardInterrupt(fails.pop())
            return initialize(self)

        x = tf.constant(1.0)
        context.Context.ensure_initialized = ensure_initialized
        try:
            function(x)
        except KeyboardInterrupt:
            assert not _native.load().module.in_step()
        else:
            raise AssertionError("nothing was raised")
        for _ in range(4):
            assert function(x).numpy() == 2.0
        assert function.stats().co_executed_steps == 2
        check_training()
    """)
