"""Raises an exception at the k-th line of Terra's own Python, as a signal's handler could.

    with raising_at(k) as injection:
        step(x)
    injection.where   the line, or None if fewer were run

A tracing function counts the lines that are run in `terra_tf/` on this thread; at the k-th it
raises, and Python runs on as if the line had.

`Twins` are a program under Terra and the same in eager. After an interrupted call, Terra's
variables have to be as eager has them somewhere in that call; from there on both go on alike.
"""

import contextlib
import dataclasses
import gc
import pathlib
import sys

import numpy as np
import tensorflow as tf

import terra_tf as terra

PACKAGE = str(pathlib.Path(terra.__file__).parent)


@dataclasses.dataclass
class Injection:
    """What has been done: how many lines were run, where it was raised, if Python ignored it."""

    number: int
    error: type[BaseException]
    num_lines: int = 0
    where: str | None = None
    is_ignored: bool = False  # raised in a finalizer or weak reference's callback


@contextlib.contextmanager
def raising_at(number, error=KeyboardInterrupt, within=""):
    """Raise `error` at line `number` (counted from 0) that is run in the package.

    Args:
      number: Which line.
      error: What is raised.
      within: The part of the package whose lines count: the beginning of a path in it.
    """
    counted = f"{PACKAGE}/{within}"
    injection = Injection(number, error)

    def on_line(frame, event, _):
        if event == "line":
            injection.num_lines += 1
            if injection.num_lines > number and injection.where is None:
                code = frame.f_code
                name = code.co_filename[len(PACKAGE) + 1 :]
                injection.where = f"{name}:{frame.f_lineno} in {code.co_name}"
                sys.settrace(None)
                raise error(f"at line {number}: {injection.where}")
        return on_line

    def on_call(frame, event, _):
        return on_line if frame.f_code.co_filename.startswith(counted) else None

    def on_ignored(unraisable):
        injection.is_ignored = True

    before, hook = sys.gettrace(), sys.unraisablehook
    sys.unraisablehook = on_ignored
    # Checkers change nothing, and would be most of the lines.
    with terra.config.override(verify=False):
        sys.settrace(on_call)
        try:
            yield injection
        finally:
            sys.settrace(before)
            sys.unraisablehook = hook


class Program:
    """A step with what makes its end, its epochs and its errors interesting.

    Args:
      wrap: Decorates the step.
      is_eager: Whether to note the variables after each write.
    """

    def __init__(self, wrap, is_eager):
        rng = np.random.default_rng(0)
        self.w = tf.Variable(rng.standard_normal((4, 4)).astype(np.float32))
        self.a = tf.Variable(0.0)
        self.log, self.states = [], []
        self._is_eager = is_eager
        self.step = wrap(self._step)

    @property
    def variables(self):
        return [self.w, self.a]

    def state(self):
        return b"".join(v.numpy().tobytes() for v in self.variables)

    def _note(self):
        if self._is_eager:
            self.states.append(self.state())

    def _step(self, x, kind=""):
        self.a.assign_add(1.0)
        self._note()
        with tf.GradientTape() as tape:
            h = tf.tanh(x @ self.w)
            if kind == "new":
                h = tf.sin(h)
            if kind == "checked":
                h = tf.debugging.check_numerics(h, "a number")
            loss = tf.reduce_mean(h**2)
        self.log.append(float(loss))
        if kind == "epochs":
            self.log.append(float(tf.numpy_function(lambda: self.a.numpy(), [], tf.float32)))
        self.a.assign_add(10.0)
        self._note()
        self.w.assign_sub(0.1 * tape.gradient(loss, self.w))
        self._note()
        if kind == "raises":
            raise ValueError("of the user's")
        return loss + self.a


class Twins:
    """The program under Terra and in eager."""

    def __init__(self):
        self.terra = Program(terra.function, False)
        self.eager = Program(lambda function: function, True)
        self._rng = np.random.default_rng(1)

    def batch(self, bad=False):
        x = self._rng.standard_normal((2, 4)).astype(np.float32)
        return tf.constant(x * np.nan if bad else x)

    def run(self, num_steps, kind=""):
        """Steps both; results and variables have to be equal, bit for bit."""
        for number in range(num_steps):
            x = self.batch()
            outcomes = [_outcome(program.step, x, kind) for program in (self.eager, self.terra)]
            assert outcomes[0] == outcomes[1], f"step {number}"
        assert self.eager.state() == self.terra.state()
        assert self.eager.log == self.terra.log
        assert gc.isenabled()

    def interrupt(self, number, error, kind="", within=""):
        """Interrupts a call at a line; returns the injection."""
        x = self.batch()
        self.eager.states = [self.eager.state()]
        _outcome(self.eager.step, x, kind)
        raised = None
        with raising_at(number, error, within) as injection:
            try:
                self.terra.step(x, kind)
            except BaseException as caught:
                raised = type(caught)
        if injection.where is None:
            return injection
        at = f"line {number}, {injection.where}"
        assert raised is error or injection.is_ignored or kind == "raises", f"{at}: {raised}"
        assert self.terra.state() in self.eager.states, at
        assert self.terra.log == self.eager.log[: len(self.terra.log)], at
        for ours, theirs in zip(self.terra.variables, self.eager.variables, strict=True):
            theirs.assign(ours)
        self.eager.log = list(self.terra.log)
        return injection


def _outcome(step, x, kind):
    try:
        return step(x, kind).numpy().tobytes()
    except ValueError as error:
        return str(error)
