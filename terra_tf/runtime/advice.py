"""What would make a function faster, in the terms of its program."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

from terra_tf.errors import Reason
from terra_tf.runtime.stats import Event, Stats
from terra_tf.runtime.waits import Awaited, Wait

_LEAST_WAIT_S = 1e-4  # per step: below this a wait is not worth a word
_REPEATED = 3  # a fallback that came that often is a habit

_OF_REASONS = {
    Reason.NEW_PATH: (
        "Python takes new ways again and again. If a choice depends on a tensor's value, tf.where"
        " or a mask makes it one way."
    ),
    Reason.STEP_ENDED_EARLY: "Steps end at ever new places: an early return makes each a new way.",
    Reason.CONSTANT_CHANGED: (
        "A Python number or shape changes from step to step. Give it as a tensor, or change it"
        " less often."
    ),
    Reason.FEED_CHANGED: (
        "A tensor comes with ever new shapes. Pad or bucket what is fed, or drop the remainder"
        " of the last batch."
    ),
    Reason.ATTRIBUTES_CHANGED: (
        "An op's attribute changes from step to step (an axis, a shape given as a Python list)."
        " Keep it, or use an op that takes it as a tensor."
    ),
    Reason.CONCURRENT: "Call the function from one thread: one thread co-executes at a time.",
    Reason.TOO_MANY_SIGNATURES: (
        "The function is called with many shapes. Pad or bucket its arguments, or raise"
        " config.max_entry_signatures."
    ),
    Reason.TOO_MANY_DIVERGENCES: (
        "Steps hardly ever repeat themselves. Decorate a smaller function that does."
    ),
    Reason.GENERATOR: "Decorate what the generator calls, not the generator.",
    Reason.TRACE_TOO_LONG: "Decorate a smaller function: one step, not the whole training loop.",
    Reason.OP_CALLBACKS: "End the debugger's op callback: while it is on, every op runs eagerly.",
}


def advise(
    stats: Stats, waits: tuple[Wait, ...], events: tuple[Event, ...], imperative_ops: Any
) -> tuple[str, ...]:
    """Returns sentences, the one that promises most first."""
    if stats.steps == 0:
        return ("Call the function: nothing has run yet.",)
    return (
        *_of_fallbacks(stats, events),
        *_of_waits(stats, waits),
        *_of_imperative_ops(imperative_ops, waits),
        *_of_the_bottleneck(stats),
    )


def _of_fallbacks(stats: Stats, events: tuple[Event, ...]) -> Iterator[str]:
    for reason, count in sorted(stats.fallbacks.items(), key=lambda item: -item[1]):
        sentence = _OF_REASONS.get(Reason(reason))
        if sentence is not None and count >= _REPEATED:
            lines = collections.Counter(e.where for e in events if e.what == reason and e.where)
            where = "".join(f" (most often at {line})" for line, _ in lines.most_common(1))
            yield f"{sentence}{where}"


def _of_waits(stats: Stats, waits: tuple[Wait, ...]) -> Iterator[str]:
    steps = max(stats.co_executed_steps, 1)
    for wait in waits:
        per_step_s = wait.total_s / steps
        if per_step_s < _LEAST_WAIT_S:
            continue
        if wait.awaited is Awaited.VALUE:
            yield (
                f"{wait.where} reads the result of {wait.op_type} ({wait.made_at}) and waits for"
                f" it, {1e3 * per_step_s:.2f} ms a step. Read it every few steps, or later: after"
                " the next step has begun."
            )
        elif wait.awaited is Awaited.END:
            yield (
                f"{wait.where} waits {1e3 * per_step_s:.2f} ms a step for graphs to end: Python is"
                " faster than they are, or an op of theirs could fail on data"
                " (config.run_ahead_on_fallible = True does not wait for that)."
            )


def _of_imperative_ops(imperative_ops: Any, waits: tuple[Wait, ...]) -> Iterator[str]:
    lost_s: collections.Counter[tuple[str, str]] = collections.Counter()
    for wait in waits:
        if wait.awaited is Awaited.GO_AHEAD:
            lost_s[wait.op_type, wait.made_at] += wait.total_s  # type: ignore[assignment]
    known = dict.fromkeys((op.op_type, op.where) for op in imperative_ops if op.in_every_step)
    for op_type, where in sorted(known, key=lambda op: -lost_s[op]):
        total_ms = 1e3 * lost_s[op_type, where]
        cost = f", which has cost {total_ms:.1f} ms of waiting" if total_ms >= 0.1 else ""
        yield (
            f"{op_type} at {where or 'an unknown line'} makes Python and graph wait for each"
            f" other{cost}. Run it every few steps, or after the call."
        )


def _of_the_bottleneck(stats: Stats) -> Iterator[str]:
    if stats.co_executed_steps == 0:
        return
    if stats.graph_stall_s > 4 * stats.python_stall_s:
        yield (
            "The graph waits for Python: its kernels take less time than your Python does. A larger"
            " batch costs little, and time saved in Python is saved whole."
        )
