"""Shows a terra function's generated graph in TensorBoard, with measured times and memory.

    terra.tensorboard.write_graph(train_step, "logs")     # any time
    $ tensorboard --logdir logs

The graph is the one of the function's last used entry signature, as one GraphDef: grouped by the
user's functions, loops and switch-cases (`viz.graph_def` says what is what). Times and memory are
measured in a profiled step; docs/views.md says how to read the page.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import tensorflow as tf

from terra_tf.errors import (
    NotCallableError,
    NothingToShowError,
    ProfilerBusyError,
    UnwritableError,
    format_message,
)
from terra_tf.function import Function
from terra_tf.profiling import (
    flat_graph_of,
    last_measurement,
    name_of,
    record,
    unwritable,
)
from terra_tf.runtime import observation
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.viz.run_metadata import run_metadata

_logger = logging.getLogger("terra_tf")
_PLUGIN = "graph_run_metadata"


def write_graph(
    function: Function, logdir: Any, step: int = 0, *, run: Callable[[], Any] | None = None
) -> str:
    """Writes a function's graph for TensorBoard, with what each op cost.

    The costs are those of the last profile (`terra.profile`) that saw this graph run. Where there
    is none, `run` is called and profiled; without `run`, the graph is written at once, and the
    next step that co-executes is profiled and its costs are added to the same log. A step is
    slowed down by that once; before and after, nothing is.

    Args:
      function: A terra function that has co-executed, or is about to.
      logdir: A folder for TensorBoard. Give each function one of its own: TensorBoard shows one
        graph for each.
      step: The step the costs are filed under.
      run: Calls the function, for example `lambda: train_step(x, y)`. It is a real step.

    Returns:
      The path of the event file.

    Raises:
      NotCallableError: `function` is no terra function.
      NothingToShowError: It has not run, or has no graph, and why.
      UnwritableError: `logdir` cannot be written to.
      ProfilerBusyError: `run` was given, and TensorFlow's profiler is in use.
    """
    function = _as_function(function)
    built = _graph_of(function)
    log = _EventFile(logdir)
    log.add_graph(flat_graph_of(built).graph_def)
    if run is not None:
        with record() as recording:
            run()
        _logger.info("%s", recording.cost)
        _write_costs(function, log, step)
    elif last_measurement(function, built) is not None:
        _write_costs(function, log, step)
    else:
        _measure_next_step(function, log, step)
    return log.path


def _as_function(function: Any) -> Function:
    inner = function.__func__ if isinstance(function, MethodType) else function
    if isinstance(inner, Function):
        return inner
    raise NotCallableError(
        format_message(
            f"{function!r} is no terra function",
            "TERRA-NO-FUNCTION",
            why="only what terra_tf.function decorated has a graph to show.",
            suggestions=["terra_tf.function(f), and call the result"],
        )
    )


def _graph_of(function: Function) -> BuiltGraph:
    built = function.built_graph
    if built is not None:
        return built
    stats = function.stats()
    reasons = ", ".join(f"{reason} ({n}x)" for reason, n in stats.fallbacks.items())
    if stats.steps == 0:
        what, tip = "has not run yet", "call it a few times first"
    elif reasons:
        what = f"has no graph after {stats.steps} steps: {reasons}"
        tip = "print(f.explain()) says where, and what would help"
    else:
        what = f"has no graph yet, after {stats.steps} traced steps"
        tip = "call it a few times more: a graph is built when a step brings nothing new"
    raise NothingToShowError(
        format_message(
            f"there is nothing to show: {name_of(function)} {what}",
            "TERRA-NOTHING-TO-SHOW",
            why="a graph is generated once the function's ways are known.",
            suggestions=[tip],
        )
    )


def _write_costs(function: Function, log: _EventFile, step: int) -> None:
    """Adds the costs of the function's graph; if it was built anew meanwhile, that graph too."""
    built = function.built_graph
    measured = None if built is None else last_measurement(function, built)
    if built is None or measured is None:
        _logger.warning(
            "no co-executed step of %s was seen, so its graph in %s has no times; explain()"
            " says why",
            name_of(function),
            log.path,
        )
        return
    flat = flat_graph_of(built)
    log.add_graph(flat.graph_def)
    log.add_run_metadata(run_metadata(flat, measured), step)


class _NextStep:
    """Watches until one step of a function co-executes, and profiles it."""

    def __init__(self, function: Function, log: _EventFile, step: int) -> None:
        self._function = function
        self._log = log
        self._step = step

    @contextlib.contextmanager
    def watch(self, function: Function, number: int) -> Iterator[None]:
        if function is not self._function:
            yield
            return
        observation.observer = None
        before = function.stats().co_executed_steps
        with contextlib.ExitStack() as profiled:
            try:
                recording = profiled.enter_context(record())
                profiled.enter_context(recording.watch(function, number))
            except ProfilerBusyError as error:
                _logger.warning("the graph in %s has no times: %s", self._log.path, error)
                yield
                return
            yield
        if function.stats().co_executed_steps > before:
            self._write()
        elif observation.observer is None:
            observation.observer = self  # it was traced, or left its graph

    def _write(self) -> None:
        try:
            _write_costs(self._function, self._log, self._step)
        except UnwritableError:
            # The step itself went well: it is no place for this error.
            _logger.exception("the times of a graph could not be written")


def _measure_next_step(function: Function, log: _EventFile, step: int) -> None:
    if observation.observer is None:
        observation.observer = _NextStep(function, log, step)
        return
    _logger.warning(
        "the graph in %s has no times: a profile is under way, and one is made at a time."
        " Write it once more after the profile, which will have seen the function",
        log.path,
    )


class _EventFile:
    """TensorBoard's event file, written whole: each addition is one more record."""

    def __init__(self, logdir: Any) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.terra"
        self.path = os.path.join(os.fspath(logdir), name)
        self._events: list[bytes] = []
        self._add(file_version="brain.Event:2")

    def add_graph(self, graph_def: Any) -> None:
        """Adds a graph in place of one added before: TensorBoard shows the last."""
        self._events = self._events[:1]
        self._add(graph_def=graph_def.SerializeToString())

    def add_run_metadata(self, metadata: Any, step: int) -> None:
        """Adds measured costs."""
        value = tf.compat.v1.Summary.Value(tag=f"step {step}")
        value.metadata.plugin_data.plugin_name = _PLUGIN
        value.metadata.plugin_data.content = b"1"  # of the plugin's data, the version
        value.tensor.CopyFrom(tf.make_tensor_proto(metadata.SerializeToString()))
        self._add(step=step, summary=tf.compat.v1.Summary(value=[value]))

    def _add(self, **fields: Any) -> None:
        event = tf.compat.v1.Event(wall_time=time.time(), **fields)
        self._events.append(event.SerializeToString())
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "wb"):
                pass  # says why not, where it is not possible
            with tf.io.TFRecordWriter(self.path) as writer:
                for record_ in self._events:
                    writer.write(record_)
        except OSError as error:
            raise unwritable(os.path.dirname(self.path), error) from error
