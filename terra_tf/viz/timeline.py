"""What PythonRunner and GraphRunner did when, from a profile: the neutral form of the timeline.

    steps    calls of decorated functions, on the user's thread
    stalls   in them: Python waits for the graph, at a line of the user's
    graphs   runs of generated functions, on the GraphRunner's thread
    starved  in them: nothing of the graph runs, for it waits for Python
    ops      kernels of the graphs, by the thread that ran them
    arrows   feeds, decisions and commits from Python to the graph; fetches back

Times are microseconds since the profile began.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from terra_tf.viz.graph_def import ExecutedOp, FlatGraph
from terra_tf.viz.measurement import GraphRun, executed_op, graph_runs
from terra_tf.viz.xplane import Span, Spans

_LEAST_STARVED_US = 5.0
_KINDS = {
    "Terra>Feed": "feed",
    "Terra>CaseSelect": "case",
    "Terra>Select": "case",
    "Terra>LoopCond": "case",
    "Terra>AwaitCommit": "commit",
    "Terra>Fetch": "fetch",
}
_AWAITED = ("a value", "what comes before an op that Python runs", "the end of the step's graph")


class Slice(NamedTuple):
    """A stretch of time on some track, with what is said about it."""

    name: str
    start_us: float
    end_us: float
    details: dict[str, Any]
    lane: int = 0


class Arrow(NamedTuple):
    """Something that went from one track to the other.

    Attributes:
      kind: "feed", "case", "commit" (to the graph) or "fetch" (to Python).
      sent_us: When.
      received_us: When the other side took it.
      what: Which op it is for, and the user's line.
      step: The number of the step's mailbox.
    """

    kind: str
    sent_us: float
    received_us: float
    what: str
    step: int


@dataclasses.dataclass(frozen=True)
class Timeline:
    """See the module's docstring."""

    steps: list[Slice]
    stalls: list[Slice]
    graphs: list[Slice]
    starved: list[Slice]
    ops: list[Slice]
    arrows: list[Arrow]

    @property
    def overlap_us(self) -> float:
        """How long a kernel ran while Python was busy in a step too."""
        python = _subtract(_union(self.steps), _union(self.stalls))
        return _length(_intersect(python, _union(self.ops)))


class Names(NamedTuple):
    """What is known of a generated function.

    Attributes:
      function: The user's name of it.
      flat: Its graph, whose nodes have the user's lines.
    """

    function: str
    flat: FlatGraph


def make_timeline(spans: Spans, names_of: dict[str, Names]) -> Timeline:
    """Returns the timeline of a profile.

    Args:
      spans: The profile.
      names_of: Generated function's name -> what is known of it. Others are left out.
    """
    runs = [run for run in graph_runs(spans) if run.function in names_of]
    waits = _Waits(spans)
    steps = [_step_slice(span) for span in spans.named("TerraStep")]
    # Without a line it was only a look: what was awaited was there.
    stalls = [_stall_slice(span) for span in spans.named("TerraStall") if "line" in span.stats]
    timeline = Timeline(steps, stalls, [], [], [], [])
    for run in runs:
        names = names_of[run.function]
        reader = _RunReader(run, names, spans, waits)
        timeline.graphs.append(
            Slice(f"graph of {names.function}", *run.span[2:4], {"step": run.step})
        )
        timeline.ops.extend(reader.ops)
        timeline.starved.extend(reader.starved())
        timeline.arrows.extend(reader.arrows())
    timeline.arrows.extend(_fetch_arrows(spans, runs, names_of))
    return timeline


def _step_slice(span: Span) -> Slice:
    number = span.stats.get("step_num", "?")
    name = f"{span.stats.get('function', 'step')} {number}"
    return Slice(name, span.start_us, span.end_us, {"call": number})


def _stall_slice(span: Span) -> Slice:
    where = str(span.stats["line"]) or "an unknown line"
    awaited = _AWAITED[int(span.stats["what"])]
    name = f"stall: {where}"
    return Slice(name, span.start_us, span.end_us, {"waits for": awaited})


class _Wait(NamedTuple):
    """An op of the graph that waited for a message."""

    op: str
    start_us: float
    end_us: float


class _Waits:
    """The communication ops' waits, found by the executor's Start and Done; what Python sent."""

    def __init__(self, spans: Spans) -> None:
        self.starts = [
            span
            for span in spans.named("ExecutorState::ProcessAsync::Start")
            if str(span.stats.get("kernel_type", "")).startswith("Terra>")
        ]
        self._times = [span.start_us for span in self.starts]
        self._done: dict[tuple, list[Span]] = collections.defaultdict(list)
        for span in spans.named("ExecutorState::ProcessAsync::Done"):
            self._done[_identity(span)].append(span)
        self.sends: dict[int, dict[int, Span]] = collections.defaultdict(dict)
        for span in spans.named("TerraSend"):
            self.sends[span.stats["step"]][span.stats["channel"]] = span

    def within(self, run: GraphRun) -> Iterator[_Wait]:
        """Yields the waits of one run of a graph."""
        first = bisect.bisect_left(self._times, run.span.start_us)
        end = bisect.bisect_right(self._times, run.span.end_us)
        for start in self.starts[first:end]:
            after = (d for d in self._done[_identity(start)] if d.start_us >= start.start_us)
            done = next(after, None)
            end_us = run.span.end_us if done is None else done.start_us
            yield _Wait(str(start.stats["name"]), start.start_us, end_us)


def _identity(span: Span) -> tuple:
    return span.stats.get("name"), span.stats.get("step_id")


class _RunReader:
    """Reads one run of a graph."""

    def __init__(self, run: GraphRun, names: Names, spans: Spans, waits: _Waits) -> None:
        self._run = run
        self._nodes = {node.name: node for node in names.flat.graph_def.node}
        self._name_of = names.flat.name_of
        self._waits = list(waits.within(run))
        self._sends = waits.sends[run.step]
        self.ops = [
            self._op_slice(span) for span in spans.ops_between(run.span.start_us, run.span.end_us)
        ]

    def _node(self, op: ExecutedOp) -> Any:
        name = self._name_of.get(op)
        return None if name is None else self._nodes[name]

    def _op_slice(self, span: Span) -> Slice:
        node = self._node(executed_op(span.name.rpartition(":")[0]))
        if node is None:
            return Slice(span.name, span.start_us, span.end_us, {"step": self._run.step}, span.line)
        details = {"type": node.op, "at": source_of(node), "step": self._run.step}
        return Slice(node.name, span.start_us, span.end_us, details, span.line)

    def starved(self) -> Iterator[Slice]:
        """Yields when no kernel ran because Python had not sent what was awaited."""
        start_us, end_us = self._run.span.start_us, self._run.span.end_us
        idle = _subtract([(start_us, end_us)], _union(self.ops))
        waiting = _union(Slice("", w.start_us, w.end_us, {}) for w in self._waits)
        for start_us, end_us in _intersect(idle, waiting):
            if end_us - start_us >= _LEAST_STARVED_US:
                ending = min(self._waits, key=lambda wait: abs(wait.end_us - end_us))
                what = self._describe(ending.op)
                yield Slice(f"waits for Python: {what}", start_us, end_us, {"for": what})

    def arrows(self) -> Iterator[Arrow]:
        """Yields what Python sent to this run."""
        for wait in self._waits:
            node = self._node(executed_op(wait.op))
            send = None if node is None else self._sends.get(node.attr["channel"].i)
            if node is not None and send is not None:
                received_us = max(wait.start_us, send.start_us)
                what = self._describe(wait.op)
                yield Arrow(_KINDS[node.op], send.start_us, received_us, what, self._run.step)

    def _describe(self, op: str) -> str:
        node = self._node(executed_op(op))
        if node is None:
            return op
        where = source_of(node)
        return f"{_KINDS[node.op]} {node.name}" + (f" at {where}" if where else "")


def source_of(node: Any) -> str:
    """Returns the user's line that a node of a flat graph is for, or ""."""
    return node.attr["source"].s.decode() if "source" in node.attr else ""


def _fetch_arrows(
    spans: Spans, runs: list[GraphRun], names_of: dict[str, Names]
) -> Iterator[Arrow]:
    """From the fetch that a stall of Python's waited for to the end of that stall."""
    run_of = {run.step: run for run in runs}
    for stall in spans.named("TerraStall"):
        run = run_of.get(stall.stats["step"])
        if run is None or int(stall.stats["what"]) != 0:
            continue
        flat = names_of[run.function].flat
        of_node = set(flat.nodes_of.get(int(stall.stats["node"]), ()))
        for op in spans.ops_between(run.span.start_us, run.span.end_us):
            name = flat.name_of.get(executed_op(op.name.rpartition(":")[0]))
            is_fetch = op.name.endswith(":Terra>Fetch")
            if is_fetch and name in of_node and op.end_us <= stall.end_us:
                what = f"fetch {name} for {stall.stats.get('line', '')}"
                yield Arrow("fetch", op.start_us, stall.end_us, what, run.step)


# ------------------------------------------------------------------ intervals

Intervals = list[tuple[float, float]]


def _union(slices: Iterable[Slice]) -> Intervals:
    merged: Intervals = []
    for start, end in sorted((s.start_us, s.end_us) for s in slices):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _intersect(first: Intervals, second: Intervals) -> Intervals:
    found: Intervals = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            found.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return found


def _subtract(first: Intervals, second: Intervals) -> Intervals:
    left: Intervals = []
    j = 0
    for start, end in first:
        while j < len(second) and second[j][1] <= start:
            j += 1
        at = j
        while at < len(second) and second[at][0] < end:
            if start < second[at][0]:
                left.append((start, second[at][0]))
            start = max(start, second[at][1])
            at += 1
        if start < end:
            left.append((start, end))
    return left


def _length(intervals: Intervals) -> float:
    return sum(end - start for start, end in intervals)
