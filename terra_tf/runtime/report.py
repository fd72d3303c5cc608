"""The sections of an `Explanation`, and how they look in a terminal and in a notebook."""

from __future__ import annotations

import collections
import html
from collections.abc import Iterator
from typing import Any, NamedTuple

from terra_tf.errors import ImperativeReason, Reason
from terra_tf.runtime import python_shares
from terra_tf.runtime.waits import Awaited, Wait
from terra_tf.runtime.ways import Fork
from terra_tf.trace.dump import count

_MAX_LINES = 12
_UNKNOWN = "an unknown line"


class Section(NamedTuple):
    """A heading and its lines. The first of a report has the function's name and phase."""

    title: str
    lines: list[str]


def sections_of(explanation: Any) -> list[Section]:
    """Returns what there is to say, in order; empty sections are left out."""
    e = explanation
    candidates = [
        Section("What happened:", _story(e)),
        Section("What it cost and brought:", list(e.costs)),
        Section("Why steps left the graph:", _fallbacks(e)),
        Section("What Python runs itself in every step:", _imperative(e, True)),
        Section("What Python runs itself in some steps:", _imperative(e, False)),
        Section("What Python reads from the graph, or keeps:", _fetched(e)),
        Section("Where Python waited for the graph:", _shorten(list(map(_wait, e.waits)))),
        Section("Library calls that Python runs again:", _not_replayed(e)),
        Section("Whose Python the steps ran, when profiled last:", _python_shares(e)),
        Section("Branches the graph has:", _shorten(list(map(_fork, e.forks)))),
        Section("Loops:", _shorten(list(_loops(e)))),
        Section("What would make it faster:", list(e.advice)),
    ]
    stalls = Section(_stalls(e), [])
    return [_summary(e), *(section for section in candidates if section.lines), stalls]


def _not_replayed(explanation: Any) -> list[str]:
    calls = sorted(explanation.stats.calls_not_replayed.items(), key=lambda item: -item[1])
    return _shorten([f"{call} ({count(number, 'time')})" for call, number in calls])


def _python_shares(explanation: Any) -> list[str]:
    shares = explanation.stats.python_shares
    return [python_shares.describe(shares)] if shares else []


def as_text(sections: list[Section]) -> str:
    """Returns the report for a terminal."""
    lines: list[str] = []
    for section in sections:
        lines.append(section.title)
        lines += [f"  {line}" for line in section.lines]
    return "\n".join(lines)


def as_html(sections: list[Section]) -> str:
    """Returns the report for a notebook; whatever the program is called, it is only text."""
    first, *others = sections
    parts = [f"<div class='terra-explanation'><h4>{html.escape(first.title)}</h4>", _list(first)]
    for section in others:
        title = html.escape(section.title.rstrip(":"))
        if section.lines:
            summary = f"<summary><b>{title}</b></summary>"
            parts.append(f"<details open>{summary}{_list(section)}</details>")
        else:
            parts.append(f"<p>{title}</p>")
    return "".join([*parts, "</div>"])


def _list(section: Section) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in section.lines) + "</ul>"


def _shorten(lines: list[str]) -> list[str]:
    if len(lines) <= _MAX_LINES:
        return lines
    return [*lines[:_MAX_LINES], f"... and {len(lines) - _MAX_LINES} more"]


def _summary(e: Any) -> Section:
    s = e.stats
    return Section(
        f"{e.name}: {s.phase}",
        [
            f"{count(s.steps, 'step')}: {s.co_executed_steps} co-executed, {s.traced_steps}"
            f" traced; {count(s.graph_builds, 'graph')} built",
            f"the graph: {count(s.num_nodes, 'op')}, {count(s.num_switch_cases, 'switch-case')},"
            f" {count(s.num_feeds, 'feed')}, {count(s.num_fetches, 'fetch')}",
        ],
    )


def _story(e: Any) -> list[str]:
    lines = []
    for event in e.events[-_MAX_LINES:]:
        parts = [event.what, event.detail, event.where and f"at {event.where}"]
        lines.append(f"step {event.step}: " + "; ".join(p for p in parts if p))
    return lines


def _fallbacks(e: Any) -> list[str]:
    most_first = sorted(e.stats.fallbacks.items(), key=lambda item: -item[1])
    return [f"{number} x {reason}: {Reason(reason).explanation}" for reason, number in most_first]


def _imperative(e: Any, in_every_step: bool) -> list[str]:
    return _of_ops(
        [
            f"{op.op_type} at {op.where or _UNKNOWN}: {ImperativeReason(op.reason).explanation}"
            for op in e.imperative_ops
            if op.in_every_step == in_every_step
        ]
    )


def _fetched(e: Any) -> list[str]:
    return _of_ops([f"{fetch.op_type} of {fetch.where or _UNKNOWN}" for fetch in e.fetches])


def _of_ops(lines: list[str]) -> list[str]:
    """Says once what is to be said of several ops: a layer makes all its variables in one line."""
    numbers = collections.Counter(lines)
    return _shorten([f"{line} ({n} ops)" if n > 1 else line for line, n in numbers.items()])


def _wait(wait: Wait) -> str:
    what = {
        Awaited.VALUE: f"for {wait.op_type} of {wait.made_at or _UNKNOWN}",
        Awaited.GO_AHEAD: f"for all that comes before {wait.op_type}",
        Awaited.END: "for graphs to end",
    }[wait.awaited]
    times = count(wait.count, "time")
    return f"{1e3 * wait.total_s:.2f} ms, {times}, at {wait.where or _UNKNOWN}: {what}"


def _fork(fork: Fork) -> str:
    ways = [f"{b.where or _UNKNOWN} ({count(b.traces, 'trace')})" for b in fork.branches]
    if fork.can_skip:
        ways.append("none of them" if len(ways) > 1 else "not")
    return " | ".join(ways)


def _loops(e: Any) -> Iterator[str]:
    for loop in e.loops:
        yield f"{loop.where}: up to {count(loop.max_trips, 'trip')}, {loop.form}"


def _stalls(e: Any) -> str:
    s = e.stats
    steps = max(s.co_executed_steps, 1)
    return (
        "Who waited, per co-executed step:"
        f" Python {1e3 * s.python_stall_s / steps:.2f} ms,"
        f" the graph {1e3 * s.graph_stall_s / steps:.2f} ms"
    )
