"""What a profile says of one generated function: when its steps ran, and what each op cost."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import re
from typing import NamedTuple

from terra_tf.viz.graph_def import ExecutedOp
from terra_tf.viz.xplane import Span, Spans

_IN_BRANCH = re.compile(r"(?P<case>.+?)/branch(?P<branch>\d+)/_\d+/(?P<name>.+)")


class GraphRun(NamedTuple):
    """One run of a generated function.

    Attributes:
      step: The number of its mailbox.
      function: The function's name.
      span: When.
    """

    step: int
    function: str
    span: Span


@dataclasses.dataclass(slots=True)
class OpCost:
    """What one op cost, over all runs of its function.

    Attributes:
      runs: How often it ran.
      total_us: How long, together.
      start_us: When it first started, since its graph did.
      num_bytes: What it allocated, together.
    """

    runs: int = 0
    total_us: float = 0.0
    start_us: float = 0.0
    num_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The measured costs of one generated function.

    Attributes:
      num_runs: How many steps were measured.
      costs: By op.
    """

    num_runs: int
    costs: dict[ExecutedOp, OpCost]


def executed_op(name: str) -> ExecutedOp:
    """Returns the op that an executor calls by that name, once branches have been inlined."""
    match = _IN_BRANCH.fullmatch(name)
    if match is None:
        return ExecutedOp("", -1, name)
    return ExecutedOp(match["case"], int(match["branch"]), match["name"])


def graph_runs(spans: Spans) -> list[GraphRun]:
    """Returns the runs of generated functions, in order of time."""
    runs = []
    calls = [s for s in spans.named("EagerExecute") if s.stats.get("is_func")]
    for span in spans.named("TerraGraph"):
        inside = (c for c in calls if c.line == span.line and _contains(span, c.start_us))
        call = next(inside, None)
        if call is not None:
            runs.append(GraphRun(span.stats["step"], str(call.stats["eager_op"]), span))
    return runs


def measure(spans: Spans) -> dict[str, Measurement]:
    """Returns what each generated function cost, by its name."""
    allocations = _Allocations(spans)
    costs: dict[str, dict[ExecutedOp, OpCost]] = collections.defaultdict(dict)
    num_runs: collections.Counter[str] = collections.Counter()
    for run in graph_runs(spans):
        num_runs[run.function] += 1
        for span in spans.ops_between(run.span.start_us, run.span.end_us):
            op = executed_op(span.name.rpartition(":")[0])
            cost = costs[run.function].setdefault(
                op, OpCost(start_us=span.start_us - run.span.start_us)
            )
            cost.runs += 1
            cost.total_us += span.duration_us
            cost.num_bytes += allocations.inside(span)
    return {name: Measurement(num_runs[name], costs[name]) for name in num_runs}


def _contains(span: Span, time_us: float) -> bool:
    return span.start_us <= time_us <= span.end_us


class _Allocations:
    """Allocations on the CPU, by thread and time."""

    def __init__(self, spans: Spans) -> None:
        self._times: dict[int, list[float]] = collections.defaultdict(list)
        self._sizes: dict[int, list[int]] = collections.defaultdict(list)
        for span in spans.named("MemoryAllocation"):
            self._times[span.line].append(span.start_us)
            self._sizes[span.line].append(int(span.stats.get("requested_bytes", 0)))

    def inside(self, span: Span) -> int:
        """Returns how many bytes a span's thread allocated during it."""
        times = self._times.get(span.line, [])
        first = bisect.bisect_left(times, span.start_us)
        end = bisect.bisect_right(times, span.end_us)
        return sum(self._sizes[span.line][first:end]) if end > first else 0
