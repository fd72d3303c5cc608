"""What Python may have seen is what a replay goes on with: it is not computed a second time."""

import numpy as np
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime import replay


def make_function():
    """Return a function that reads a value in mid-step, and may leave its graph afterwards."""

    @terra.function
    def function(x, is_late):
        y = tf.tanh(x)
        seen = y.numpy()
        z = tf.exp(y)  # nobody reads it, so only a replay can set it
        return (tf.sin(z) if is_late else tf.square(z)), seen

    for _ in range(5):
        function(tf.ones([2]), False)
    assert function.stats().phase == "co-execution"
    return function


def test_replay_goes_on_with_what_python_has_read(monkeypatch):
    function = make_function()
    run_fast = replay.Replay._run_fast

    def run_with_another_tanh(self, index, op_type, *arguments):
        """Eager and graph may differ in the last bits; here they differ more."""
        run_fast(self, index, op_type, *arguments)
        if op_type == "Tanh":
            self._returned[index] = tf.zeros([2])

    monkeypatch.setattr(replay.Replay, "_run_fast", run_with_another_tanh)
    result, seen = function(tf.ones([2]), True)
    assert function.stats().fallbacks == {"new_path": 1}
    np.testing.assert_allclose(seen, np.tanh(np.ones(2)), rtol=1e-6)
    np.testing.assert_allclose(result.numpy(), np.sin(np.exp(seen)), rtol=1e-6)


def test_op_whose_value_python_has_read_is_not_run_again(monkeypatch):
    function = make_function()
    execute, executed = replay.Replay._execute, []

    def note_and_execute(self, index, node):
        executed.append(node.record.op_type)
        return execute(self, index, node)

    monkeypatch.setattr(replay.Replay, "_execute", note_and_execute)
    function(tf.ones([2]), True)
    assert function.stats().fallbacks == {"new_path": 1}
    assert "Tanh" not in executed
