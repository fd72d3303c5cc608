"""What co-execution has cost and brought, in numbers, and what would change what comes next.

    invested 1.93 s: building 1.50, recording 0.31, merging 0.12
    saved 12.40 s: a step takes 2.10 ms with the graph, 9.80 ms eagerly
    the program's budget: 2.0 s, 10 % of 14.0 s eager, half of 12.4 s won; 1.9 s lost: 7.7 s left
    tracing and building may cost 9.10 s: after 14 s more eager execution, or with
    config.budget_s = 3.5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from terra_tf.config import config
from terra_tf.runtime import budget
from terra_tf.runtime.budget import Share

if TYPE_CHECKING:
    from terra_tf.runtime.entry import Entry
    from terra_tf.runtime.stats import Counters

_LEAST_S = 0.005  # below this nothing is worth a word


def describe(counters: Counters, entry: Entry | None) -> tuple[str, ...]:
    """Returns sentences about a function, and about the entry signature used last."""
    return tuple(_sentences(counters, entry))


def _sentences(counters: Counters, entry: Entry | None) -> Iterator[str]:
    invested = [(what, s) for what, s in counters.invested_s.most_common() if s >= _LEAST_S]
    if invested:
        parts = ", ".join(f"{what} {cost_s:.2f}" for what, cost_s in invested)
        yield f"invested {sum(counters.invested_s.values()):.2f} s: {parts}"
    comparison = "" if entry is None else entry.account.comparison
    if comparison:
        kind = "saved" if counters.saved_s >= 0 else "lost"
        yield f"{kind} {abs(counters.saved_s):.2f} s in steps with a graph: {comparison}"
    if not config.weigh_costs or entry is None:
        return
    given_up = entry.imperative_for
    if given_up is not None:
        steps, wait_s = given_up
        yield f"tried again in {steps} steps, and after {wait_s:.1f} s more of eager execution"
    what, cost_s = entry.next_cost()
    if not entry.account.covers(cost_s):
        share = entry.account.share
        is_own = share.allowance_s < budget.program.allowance_s
        yield _share(share) if is_own else _budget()
        helps = _what_helps_share(share, cost_s) if is_own else _what_helps(cost_s)
        yield f"{what} may cost {cost_s:.2f} s: {helps}"


def _budget() -> str:
    program = budget.program
    share = f"{100 * config.budget_share:.0f} % of {program.eager_s:.1f} s eager"
    return (
        f"the program's budget: {config.budget_s:.1f} s, {share}, half of {program.won_s:.1f} s"
        f" won; {program.lost_s:.1f} s lost: {program.allowance_s:.2f} s left"
    )


def _share(share: Share) -> str:
    part = f"{100 * config.rebuild_share:.0f} % of {share.eager_s:.1f} s eager"
    return (
        f"the function's share, since it has a graph: {share.free_s:.1f} s, {part}, half of"
        f" {share.won_s:.1f} s won; {share.lost_s:.1f} s lost: {share.allowance_s:.2f} s left"
    )


def _what_helps_share(share: Share, cost_s: float) -> str:
    lacking_s = cost_s - share.allowance_s
    more = lacking_s / max(share.eager_s, 1e-3)
    knob = f"with config.rebuild_share = {config.rebuild_share + more + 0.05:.1f}"
    if config.rebuild_share == 0.0:
        return knob
    return f"after {lacking_s / config.rebuild_share:.1f} s more of eager execution, or {knob}"


def _what_helps(cost_s: float) -> str:
    lacking_s = cost_s - budget.program.allowance_s
    knob = f"with config.budget_s = {config.budget_s + lacking_s + 0.05:.1f}"
    if config.budget_share == 0.0:
        return knob
    more_s = lacking_s / config.budget_share
    return f"after {more_s:.1f} s more of eager execution, or {knob}"
