"""`explain()`: what a terra function did, and why, as a report for a person."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from terra_tf.errors import ImperativeReason, Reason
from terra_tf.graph.epochs import why_imperative
from terra_tf.runtime.entry import Entry
from terra_tf.runtime.source_lines import line_of
from terra_tf.runtime.stats import Counters, Event, Stats

_MAX_LINES = 12


@dataclasses.dataclass(frozen=True)
class ImperativeOp:
    """An op that Python runs itself in every step."""

    op_type: str
    reason: str
    where: str


@dataclasses.dataclass(frozen=True)
class Fetch:
    """A value that Python gets from the graph."""

    op_type: str
    where: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What happened; `str()` is the report.

    Attributes:
      name: The function and its file.
      stats: The counters.
      events: Phase changes and fallbacks, oldest first (the last 200).
      imperative_ops: Ops of the current graph that Python runs itself.
      fetches: Values of the current graph that Python gets.
    """

    name: str
    stats: Stats
    events: tuple[Event, ...]
    imperative_ops: tuple[ImperativeOp, ...]
    fetches: tuple[Fetch, ...]

    def __str__(self) -> str:
        sections = (
            self._summary(),
            self._story(),
            self._fallbacks(),
            self._imperative(),
            self._fetched(),
            self._stalls(),
        )
        return "\n".join(line for section in sections for line in section)

    def _summary(self) -> list[str]:
        s = self.stats
        return [
            f"{self.name}: {s.phase}",
            f"  {s.steps} steps: {s.co_executed_steps} co-executed, {s.traced_steps} traced;"
            f" {s.graph_builds} graphs built",
            f"  the graph: {s.num_nodes} ops, {s.num_switch_cases} switch-cases,"
            f" {s.num_feeds} feeds, {s.num_fetches} fetches",
        ]

    def _story(self) -> list[str]:
        if not self.events:
            return []
        lines = ["What happened:"]
        for event in self.events[-_MAX_LINES:]:
            parts = [event.what, event.detail, event.where and f"at {event.where}"]
            lines.append(f"  step {event.step}: " + "; ".join(p for p in parts if p))
        return lines

    def _fallbacks(self) -> list[str]:
        if not self.stats.fallbacks:
            return []
        lines = ["Why steps left the graph:"]
        for reason, count in sorted(self.stats.fallbacks.items(), key=lambda item: -item[1]):
            lines.append(f"  {count} x {reason}: {Reason(reason).explanation}")
        return lines

    def _imperative(self) -> list[str]:
        if not self.imperative_ops:
            return []
        lines = ["What Python runs itself in every step:"]
        for op in self.imperative_ops[:_MAX_LINES]:
            explanation = ImperativeReason(op.reason).explanation
            lines.append(f"  {op.op_type} at {op.where or 'an unknown line'}: {explanation}")
        return lines + _more(len(self.imperative_ops))

    def _fetched(self) -> list[str]:
        if not self.fetches:
            return []
        lines = ["What Python reads from the graph, or keeps:"]
        for fetch in self.fetches[:_MAX_LINES]:
            lines.append(f"  {fetch.op_type} of {fetch.where or 'an unknown line'}")
        return lines + _more(len(self.fetches))

    def _stalls(self) -> list[str]:
        s = self.stats
        steps = max(s.co_executed_steps, 1)
        return [
            "Who waited, per co-executed step:"
            f" Python {1e3 * s.python_stall_s / steps:.2f} ms,"
            f" the graph {1e3 * s.graph_stall_s / steps:.2f} ms"
        ]


def explain(
    python_function: Callable, stats: Stats, counters: Counters, entry: Entry | None
) -> Explanation:
    """Makes the report of one function; its last used entry signature is shown."""
    built = None if entry is None else entry.current_built
    nodes = [] if built is None else built.trace_graph.nodes
    imperative = tuple(
        ImperativeOp(
            node.record.op_type,
            str(why_imperative(node)),
            line_of(node.record),
        )
        for node in nodes
        if node.is_imperative
    )
    fetched = () if built is None else sorted({n for n, _ in built.generated.fetch_channels})
    fetches = tuple(Fetch(nodes[n].record.op_type, line_of(nodes[n].record)) for n in fetched)
    return Explanation(
        _name(python_function), stats, tuple(counters.events), imperative, fetches
    )


def _name(python_function: Any) -> str:
    code = getattr(python_function, "__code__", None)
    name = getattr(python_function, "__qualname__", None) or repr(python_function)
    if code is None:
        return name
    return f"{name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"


def _more(count: int) -> list[str]:
    return [f"  ... and {count - _MAX_LINES} more"] if count > _MAX_LINES else []
