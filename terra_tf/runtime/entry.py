"""The state of one entry signature: what is known of it, and what to do next.

A TraceGraph holds one path so far, so an entry keeps a few of them and guesses, from the path
that came last, which one a step will take:

    next_graph()        the built graph to co-execute, or None: trace
    add_trace(trace)    after a traced or diverged step: merge, and build when it is time

Policy. Every divergence, and every traced step on a new path, costs a point;
`_STEPS_PER_POINT` co-executed steps win one back. At `max_divergences` points the entry runs
imperatively for `retry_after_steps` steps, then starts anew; each time it gives up it waits
twice as long.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
from typing import Any

from terra_tf import _native
from terra_tf.config import config
from terra_tf.errors import Reason
from terra_tf.runtime import logs
from terra_tf.runtime.built_graph import BuiltGraph, build_graph
from terra_tf.runtime.stats import Counters
from terra_tf.trace.records import Trace
from terra_tf.trace.trace_graph import MergeKind, TraceGraph

_logger = logging.getLogger("terra_tf")

_MAX_PATHS = 4
_STEPS_PER_POINT = 4


@dataclasses.dataclass(slots=True, eq=False)
class _Path:
    """One path: its TraceGraph and, once two traces agree, the built graph."""

    trace_graph: TraceGraph
    built: BuiltGraph | None = None
    num_traces: int = 0
    uses: int = 0
    serial: int = dataclasses.field(default_factory=itertools.count().__next__)
    successors: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)


class Entry:
    """One entry signature of one function. Guarded by the co-execution lock."""

    def __init__(self, stats: Counters) -> None:
        self.stats = stats
        self._paths: list[_Path] = []
        self._last: _Path | None = None
        self._points = 0.0
        self._imperative_steps_left = 0
        self._num_given_up = 0
        self._why_imperative: Reason = Reason.TOO_MANY_DIVERGENCES

    # ------------------------------------------------------------ deciding

    def is_imperative(self) -> bool:
        """Says whether the next step must not even be traced; counts it if so."""
        if self._imperative_steps_left == 0:
            return False
        self._imperative_steps_left -= 1
        self.stats.fallbacks[str(self._why_imperative)] += 1
        if self._imperative_steps_left == 0:
            self._points = 0.0
            self.stats.set_phase("tracing", "co-execution is tried again")
        return True

    def next_graph(self) -> BuiltGraph | None:
        """Returns the graph the next step most likely fits, or None."""
        path = self._predict()
        return None if path is None else path.built

    def _predict(self) -> _Path | None:
        if self._last is not None:
            known = {path.serial: path for path in self._paths}
            for serial, _ in self._last.successors.most_common():
                if serial in known:
                    return known[serial]
            if self._last.serial in known:
                return self._last  # nothing has followed it yet: a program that has moved on
        built = [path for path in self._paths if path.built is not None]
        return max(built, key=lambda path: path.uses, default=None)

    @property
    def current(self) -> TraceGraph | None:
        """The TraceGraph of the path taken last, or None."""
        return None if self._last is None else self._last.trace_graph

    @property
    def current_built(self) -> BuiltGraph | None:
        """The built graph of the path taken last, or None."""
        return None if self._last is None else self._last.built

    # ------------------------------------------------------------ learning

    def count_co_executed(self, built: BuiltGraph) -> None:
        """A step was matched to its end."""
        self.stats.co_executed_steps += 1
        self._points = max(0.0, self._points - 1 / _STEPS_PER_POINT)
        for path in self._paths:
            if path.built is built:
                self._follow(path)
        self.stats.set_phase("co-execution")

    def count_divergence(self, reason: Reason, detail: str, where: str) -> None:
        """A step left its graph."""
        self.stats.count_fallback(reason, detail, where)
        self._points += 1
        self._give_up_if_hopeless()

    def add_fetches(self, built: BuiltGraph, outputs: set[tuple[int, int]]) -> None:
        """Python needs more values than the graph delivers: the next build has them."""
        for path in self._paths:
            if path.built is built:
                path.trace_graph.add_fetches(outputs)
                path.built = None

    def drop_graph(self, built: BuiltGraph) -> None:
        """The graph must be built anew."""
        for path in self._paths:
            if path.built is built:
                path.built = None

    def note_raised_location(self, location: Any) -> None:
        """An op has raised there: it runs imperatively from now on."""
        for path in self._paths:
            path.trace_graph.note_raised(location)

    def add_trace(self, trace: Trace, diverged: bool) -> None:
        """Merges the trace of a step that was not co-executed to its end.

        Args:
          trace: The whole step, the co-executed prefix too.
          diverged: Whether it has such a prefix; its divergence has been counted.
        """
        if len(trace.ops) > config.max_trace_ops:
            self.stats.count_fallback(Reason.TRACE_TOO_LONG, f"{len(trace.ops)} ops")
            self._give_up(Reason.TRACE_TOO_LONG)
            return
        detail = "" if self.current is None else self.current.path_mismatch(trace) or ""
        path = self._find_path(trace, diverged)
        result = path.trace_graph.merge(trace)
        path.num_traces += 1
        if result.kind is not MergeKind.COVERED:
            path.built = None
            is_new = result.kind is MergeKind.NEW_PATH
            self.stats.note(result.kind.value, detail if is_new else result.detail, "")
        self._follow(path)
        if path.built is None and path.num_traces >= config.traces_before_build:
            self._build(path)
        ready = self._predict()
        phase = "co-execution" if ready is not None and ready.built is not None else "tracing"
        if self._imperative_steps_left == 0:
            self.stats.set_phase(phase)

    def _find_path(self, trace: Trace, diverged: bool) -> _Path:
        for path in self._paths:
            if path.trace_graph.path_mismatch(trace) is None:
                return path
        if self._paths and not diverged:
            self._points += 1
            self._give_up_if_hopeless()
        if len(self._paths) >= _MAX_PATHS:
            self._paths.remove(min(self._paths, key=lambda path: path.uses))
        path = _Path(TraceGraph(_native.load().module.handle_id))
        self._paths.append(path)
        return path

    def _follow(self, path: _Path) -> None:
        path.uses += 1
        if self._last is not None:
            self._last.successors[path.serial] += 1
        self._last = path

    def _build(self, path: _Path) -> None:
        try:
            path.built = build_graph(path.trace_graph)
        except Exception as error:
            _logger.warning("no graph could be built", exc_info=True)
            self.stats.count_fallback(
                Reason.GRAPH_BUILD_FAILED, f"{type(error).__name__}: {error}"
            )
            self._give_up(Reason.GRAPH_BUILD_FAILED)
            return
        self.stats.graph_builds += 1
        num_ops = len(path.trace_graph.nodes)
        logs.emit("graphs", "step %d: a graph of %d ops was built", self.stats.steps, num_ops)

    def _give_up_if_hopeless(self) -> None:
        if self._points >= config.max_divergences:
            self._give_up(Reason.TOO_MANY_DIVERGENCES)

    def give_up_on_forward_accumulator(self) -> None:
        """A forward-mode accumulator needs every op to run at once."""
        self.stats.count_fallback(Reason.FORWARD_ACCUMULATOR)
        self._give_up(Reason.FORWARD_ACCUMULATOR)

    def _give_up(self, reason: Reason) -> None:
        self._why_imperative = reason
        self._imperative_steps_left = config.retry_after_steps << min(self._num_given_up, 10)
        self._num_given_up += 1
        self._points = 0.0
        self.stats.set_phase(
            "imperative", f"for {self._imperative_steps_left} steps: {reason.explanation}"
        )
