"""`terra.profile`: what PythonRunner and GraphRunner did when, of some steps of a program.

    with terra.profile("steps.json") as profile:
        for x, y in batches:
            train_step(x, y)
    print(profile)

The file opens in https://ui.perfetto.dev. The events are TensorFlow's own profiler's; with
`tensorboard="logs"` the same run is kept there for TensorBoard's profile plugin too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import pathlib
import statistics
import tempfile
import time
import weakref
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from terra_tf import _native
from terra_tf.errors import ProfilerBusyError, UnwritableError, format_message
from terra_tf.runtime import in_flight, observation
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.runtime.python_shares import PythonSampler, describe
from terra_tf.viz.chrome_trace import to_json
from terra_tf.viz.graph_def import FlatGraph, flatten
from terra_tf.viz.measurement import Measurement, measure
from terra_tf.viz.scopes import find_scopes
from terra_tf.viz.timeline import Names, Timeline, make_timeline
from terra_tf.viz.xplane import Spans, read_spans

_HOST_TRACER_LEVEL = 3  # every kernel, and when asynchronous ones start and end
_NUM_CALIBRATION_SPANS = 200

_measured: weakref.WeakKeyDictionary[Any, dict[str, Measurement]] = weakref.WeakKeyDictionary()


def flat_graph_of(built: BuiltGraph) -> FlatGraph:
    """Returns a built graph as one GraphDef, named by the user's program."""
    graph, generated = built.trace_graph, built.generated
    return flatten(graph, generated, find_scopes(graph, generated.cases))


def name_of(function: Any) -> str:
    """Returns what a `Function` is called; a callable object is called by its class."""
    python_function = function.python_function
    return getattr(python_function, "__name__", type(python_function).__name__)


def last_measurement(function: Any, built: BuiltGraph) -> Measurement | None:
    """Returns what a graph of a function cost when it was profiled last, or None."""
    return _measured.get(function, {}).get(built.generated.name)


@dataclasses.dataclass(frozen=True)
class ProfilingCost:
    """What profiling itself cost.

    Attributes:
      start_s: To start the profiler, before the first step.
      stop_s: To stop it and read what it had, after the last.
      num_spans: How many spans were recorded.
      span_s: What recording one took, as timed with empty ones in the same process.
      profiled_s: From the profiler's start to its stop.
    """

    start_s: float
    stop_s: float
    num_spans: int
    span_s: float
    profiled_s: float

    @property
    def recording_s(self) -> float:
        """About how long recording took while the steps ran, over all threads."""
        return self.num_spans * self.span_s

    def __str__(self) -> str:
        share = 100 * self.recording_s / max(self.profiled_s, 1e-9)
        return (
            f"profiling itself: about {1e3 * self.recording_s:.2f} ms ({share:.1f} %) for"
            f" {self.num_spans} spans while the steps ran, over all threads;"
            f" {1e3 * self.start_s:.0f} ms to start and {1e3 * self.stop_s:.0f} ms to stop"
        )


class _Recording:
    """A profile under way: TensorFlow's profiler, and the functions whose steps are seen."""

    def __init__(self, logdir: str) -> None:
        self._logdir = logdir
        self._graphs: dict[str, tuple[weakref.ref, BuiltGraph]] = {}
        self._start_s = self._started = 0.0
        self.spans: Spans | None = None
        self.cost: ProfilingCost | None = None
        self.sampler = PythonSampler()

    # ------------------------------------------------------------- observing

    @contextlib.contextmanager
    def watch(self, function: Any, number: int) -> Iterator[None]:
        """Around a step of a function: a span, and the graphs it may use."""
        self._note(function)
        with tf.profiler.experimental.Trace(
            "TerraStep", function=name_of(function), step_num=number, _r=1
        ), self.sampler.watch(function):
            yield
        self._note(function)

    def _note(self, function: Any) -> None:
        built = function.built_graph
        if built is not None:
            self._graphs.setdefault(built.generated.name, (weakref.ref(function), built))

    # -------------------------------------------------------------- lifetime

    def start(self) -> None:
        """Starts the profiler.

        Raises:
          ProfilerBusyError: Somebody else is profiling.
        """
        native = _native.load().module
        in_flight.settle()
        begun = time.perf_counter()
        if observation.observer is not None:
            raise _busy("a terra.profile block is open")
        options = tf.profiler.experimental.ProfilerOptions(
            host_tracer_level=_HOST_TRACER_LEVEL, python_tracer_level=0
        )
        try:
            tf.profiler.experimental.start(self._logdir, options)
        except tf.errors.AlreadyExistsError as error:
            raise _busy(str(error)) from error
        native.trace_cpu_memory(True)
        observation.observer = self
        self.sampler.start()
        self._started = time.perf_counter()
        self._start_s = self._started - begun

    def stop(self) -> tuple[Spans, ProfilingCost]:
        """Stops the profiler and returns what it saw. The graphs of all steps have ended.

        Raises:
          Exception: What an op of a step in flight raised; the profiler has been stopped.
        """
        observation.observer = None
        self.sampler.stop()
        try:
            in_flight.settle()
        finally:
            stopping = time.perf_counter()
            span_s = _time_of_a_span()
            profiled_s = stopping - self._started
            _native.load().module.trace_cpu_memory(False)
            tf.profiler.experimental.stop()
        spans = read_spans(_newest_xplane(self._logdir).read_bytes())
        stop_s = time.perf_counter() - stopping
        num_spans = spans.num_spans - len(spans.named(_CALIBRATION))
        return spans, ProfilingCost(self._start_s, stop_s, num_spans, span_s, profiled_s)

    def keep_measurements(self, spans: Spans) -> None:
        """Remembers what each function's graphs cost, for pictures of them."""
        for name, measurement in measure(spans).items():
            reference, _ = self._graphs.get(name, (lambda: None, None))
            function = reference()
            if function is not None:
                _measured.setdefault(function, {})[name] = measurement

    def names(self) -> dict[str, Names]:
        """Returns what is known of each generated function that ran."""
        known = {}
        for name, (reference, built) in self._graphs.items():
            function = reference()
            user_name = "a function" if function is None else name_of(function)
            known[name] = Names(user_name, flat_graph_of(built))
        return known


_CALIBRATION = "TerraCalibration"


def _time_of_a_span() -> float:
    """Times empty spans while the profiler is on."""
    begun = time.perf_counter()
    for _ in range(_NUM_CALIBRATION_SPANS):
        with tf.profiler.experimental.Trace(_CALIBRATION):
            pass
    return (time.perf_counter() - begun) / _NUM_CALIBRATION_SPANS


def _busy(why: str) -> ProfilerBusyError:
    return ProfilerBusyError(
        format_message(
            f"TensorFlow's profiler is in use: {why}",
            "TERRA-PROFILER-BUSY",
            why="there is one profiler in a process.",
            suggestions=["end the other profile first (tf.profiler.experimental.stop())"],
        )
    )


def _newest_xplane(logdir: str) -> pathlib.Path:
    found = glob.glob(os.path.join(glob.escape(logdir), "plugins/profile/*/*.xplane.pb"))
    return pathlib.Path(max(found, key=os.path.getmtime))


def unwritable(path: Any, error: OSError) -> UnwritableError:
    """Returns the error for a place that cannot be written to."""
    return UnwritableError(
        format_message(
            f"{os.fspath(path)!r} cannot be written: {error.strerror or error}",
            "TERRA-UNWRITABLE",
            why="the view is a file there.",
            suggestions=["give a path in a folder that exists and that you may write to"],
        )
    )


@contextlib.contextmanager
def record(logdir: str | None = None) -> Iterator[_Recording]:
    """Profiles a block and keeps what each function's graphs cost.

    Args:
      logdir: Where TensorFlow's own profile stays; None: nowhere.
    """
    with contextlib.ExitStack() as stack:
        folder = logdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="terra_profile"))
        recording = _Recording(folder)
        recording.start()
        try:
            yield recording
        except BaseException:
            recording.stop()
            raise
        recording.spans, recording.cost = recording.stop()
        recording.keep_measurements(recording.spans)


class profile:  # noqa: N801 - reads as a function
    """Writes a timeline of the steps in a `with` block; see the module's docstring.

    Profile a few steps in the middle of a run, after `tracing` is over: the file is large.
    Steps of all terra functions and threads are seen. Off, it costs nothing.

    Args:
      path: The file to write, such as "steps.json".
      tensorboard: A log directory in which the run is kept for TensorBoard's profile plugin too.

    Attributes:
      timeline: After the block: what is in the file, as data.
      cost: After the block: what profiling itself cost.
      python_shares: After the block: whose Python ran in the steps, as shares of the time in them:
        "program", "tensorflow", "keras", "terra_tf", or "waiting" for the graph. Sampled, about
        once in a millisecond.

    Raises:
      UnwritableError: The path or the log directory cannot be written to; before the block runs.
      ProfilerBusyError: TensorFlow's profiler is in use.
    """

    def __init__(self, path: Any, *, tensorboard: Any = None) -> None:
        self._path = pathlib.Path(path)
        self._tensorboard = None if tensorboard is None else os.fspath(tensorboard)
        self._record: Any = None
        self._recording: Any = None
        self.timeline: Timeline | None = None
        self.cost: ProfilingCost | None = None
        self.python_shares: dict[str, float] = {}

    def __enter__(self) -> profile:
        self._check_writable()
        self._record = record(self._tensorboard)
        self._recording = self._record.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._record.__exit__(*exc_info)
        if exc_info[0] is not None:
            return
        self.timeline = make_timeline(self._recording.spans, self._recording.names())
        self.cost = self._recording.cost
        self.python_shares = self._recording.sampler.total()
        about = {"profiling": str(self.cost), "tensorflow": tf.__version__}
        self._path.write_text(to_json(self.timeline, about))

    def watch(self, function: Any, number: int) -> contextlib.AbstractContextManager[None]:
        """Sees a step; for an observer of its own that profiles only some of them."""
        return self._recording.watch(function, number)

    def _check_writable(self) -> None:
        try:
            self._path.write_text("")
            if self._tensorboard is not None:
                os.makedirs(self._tensorboard, exist_ok=True)
        except OSError as error:
            raise unwritable(error.filename or self._path, error) from error

    def __str__(self) -> str:
        if self.timeline is None or self.cost is None:
            return "terra.profile: nothing has been profiled yet"
        t = self.timeline
        sums = [("steps", t.steps), ("Python waited", t.stalls), ("graphs", t.graphs)]
        sums += [("the graph waited for Python", t.starved), ("kernels", t.ops)]
        lines = [f"{len(t.steps)} steps, {len(t.graphs)} of them with a graph: {self._path}"]
        for name, slices in sums:
            lines.append(f"  {name}: {sum(s.end_us - s.start_us for s in slices) / 1e3:.2f} ms")
        lines.append(f"  kernels ran while Python did, too: {t.overlap_us / 1e3:.2f} ms")
        if self.python_shares:
            lines.append(f"  time in the steps: {describe(self.python_shares)}")
        if t.steps:
            median_ms = statistics.median(s.end_us - s.start_us for s in t.steps) / 1e3
            lines.append(f"  median step, profiled: {median_ms:.2f} ms")
        return "\n".join([*lines, f"  {self.cost}"])
