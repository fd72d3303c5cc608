"""What is known of a mode from its events, and the record made of it. No TensorFlow in here.

    measurement = Measurement("gpt2", "tiny", "terra")
    measurement.add(event)          # one by one, as they come
    record = make_record(measurement, eager=eager_measurement, num_steps=30)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.timing import Timing, speedups

STATUSES = ("ok", "wrong", "error", "timeout")


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a mode: its phase, how long it took, and the mode's counters after it."""

    phase: str
    seconds: float
    counters: Mapping[str, Any]


@dataclasses.dataclass
class Measurement:
    """Everything that was told about one mode of one program."""

    program: str
    size: str
    mode: str
    status: str = "ok"
    error: str | None = None
    is_checked: bool = False
    loss_max_abs_diff: float | None = None
    peak_rss_mb: float | None = None
    steps: list[Step] = dataclasses.field(default_factory=list)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in an event about this mode."""
        kind = event["event"]
        if kind == "step":
            self.steps.append(Step(event["phase"], event["seconds"], event["counters"]))
        elif kind == "compared":
            self.loss_max_abs_diff = event["loss_max_abs_diff"]
        elif kind == "checked":
            self.is_checked = True
            self.loss_max_abs_diff = event["loss_max_abs_diff"]
            self.peak_rss_mb = event["peak_rss_mb"]
        elif kind == "failed":
            self.status, self.error = event["status"], event["error"]

    @property
    def timed(self) -> list[Step]:
        return [step for step in self.steps if step.phase == "timed"]

    @property
    def untimed(self) -> list[Step]:
        return [step for step in self.steps if step.phase != "timed"]


@dataclasses.dataclass(frozen=True)
class Record:
    """The result of one mode of one program; what could not be measured is None.

    warmup_s: the time until the last untimed step that traced or built something was over.
    first_step_s: the first step.
    speedup_vs_eager: the median over the rounds of eager's time over this mode's.
    loss_max_abs_diff: the largest difference from eager's loss in the checked steps.
    co_executed_share: of the timed steps, those that ran in the graph from start to end.
    delegated_share: mean over those steps of the share of ops that the graph ran.
    fallbacks, graph_builds: reason -> count, and a count, of all steps.
    python_stall_ms, graph_stall_ms: per timed step, the time Python waited for the graph, and the
      time some feed or commit of the graph waited for Python.
    peak_rss_mb: the most memory while the mode was checked, as if it had a process to itself.
    error: the exception, how the mode is wrong, or that it was interrupted.
    """

    program: str
    size: str
    mode: str
    status: str
    step_ms_median: float | None = None
    step_ms_p10: float | None = None
    step_ms_p90: float | None = None
    warmup_s: float | None = None
    first_step_s: float | None = None
    speedup_vs_eager: float | None = None
    loss_max_abs_diff: float | None = None
    co_executed_share: float | None = None
    delegated_share: float | None = None
    fallbacks: Mapping[str, int] | None = None
    graph_builds: int | None = None
    python_stall_ms: float | None = None
    graph_stall_ms: float | None = None
    peak_rss_mb: float | None = None
    error: str | None = None


def make_record(
    measurement: Measurement, eager: Measurement | None, num_steps: int
) -> Record:
    """Return a mode's record.

    Args:
      measurement: of the mode.
      eager: the measurement of eager in the same process, if there is one.
      num_steps: the timed steps that were wanted; fewer of them mean an interruption.
    """
    status, error = measurement.status, measurement.error
    num_timed = len(measurement.timed)
    if status == "ok" and not measurement.is_checked:
        status, error = "error", "interrupted before it was compared with eager"
    elif status == "ok" and num_timed < num_steps:
        error = f"interrupted after {num_timed} of {num_steps} timed steps"
    return Record(
        program=measurement.program,
        size=measurement.size,
        mode=measurement.mode,
        status=status,
        first_step_s=measurement.steps[0].seconds if measurement.steps else None,
        warmup_s=warmup_seconds(measurement.untimed),
        loss_max_abs_diff=measurement.loss_max_abs_diff,
        peak_rss_mb=measurement.peak_rss_mb,
        error=error,
        **_step_times(measurement, eager),
        **_terra_counts(measurement),
    )


def warmup_seconds(steps: Sequence[Step]) -> float | None:
    """Return how long the steps took up to the last that traced or built; at least the first."""
    if not steps:
        return None
    last = 0
    for i in range(1, len(steps)):
        if steps[i].counters["changes"] != steps[i - 1].counters["changes"]:
            last = i
    return sum(step.seconds for step in steps[: last + 1])


def _step_times(measurement: Measurement, eager: Measurement | None) -> dict[str, Any]:
    """Return the times of the timed steps; none of a mode that is wrong, for they mean nothing."""
    samples_s = [step.seconds for step in measurement.timed]
    if not samples_s or measurement.status != "ok":
        return {}
    timing = Timing(tuple(samples_s))
    times = {
        "step_ms_median": 1e3 * timing.median_s,
        "step_ms_p10": 1e3 * timing.percentile_s(10),
        "step_ms_p90": 1e3 * timing.percentile_s(90),
    }
    eager_s = [step.seconds for step in eager.timed] if eager is not None else []
    num_rounds = min(len(samples_s), len(eager_s))
    if num_rounds:
        pair = {"eager": eager_s, "mode": samples_s}
        timings = {name: Timing(tuple(s[:num_rounds])) for name, s in pair.items()}
        times["speedup_vs_eager"] = speedups(timings, baseline="eager")["mode"]
    return times


def _terra_counts(measurement: Measurement) -> dict[str, Any]:
    """Return what terra's counters say: totals of all steps, shares and stalls of the timed."""
    if not measurement.steps or "co_executed_steps" not in measurement.steps[-1].counters:
        return {}
    last = measurement.steps[-1].counters
    counts = {"fallbacks": dict(last["fallbacks"]), "graph_builds": last["graph_builds"]}
    timed = [step.counters for step in measurement.timed]
    if not timed or not measurement.untimed:
        return counts
    before = [measurement.untimed[-1].counters, *timed[:-1]]
    is_co_executed = [
        now["co_executed_steps"] > then["co_executed_steps"]
        for then, now in zip(before, timed, strict=True)
    ]
    delegated = [
        1.0 - now["num_imperative_ops"] / now["num_nodes"]
        for now, is_in_graph in zip(timed, is_co_executed, strict=True)
        if is_in_graph and now["num_nodes"]
    ]
    counts["co_executed_share"] = sum(is_co_executed) / len(timed)
    counts["delegated_share"] = sum(delegated) / len(delegated) if delegated else None
    for side in ("python", "graph"):
        waited_s = last[f"{side}_stall_s"] - before[0][f"{side}_stall_s"]
        counts[f"{side}_stall_ms"] = 1e3 * waited_s / len(timed)
    return counts
