"""What call replay changes: where the time of a step goes with it and without it.

A step's time is split by the waits that the runners count themselves (`Stats.python_stall_s`,
`graph_stall_s`): Python's own time is what is left without its waits for the graph, the graph's
what is left without its waits for Python. The two overlap, so that they may add up to more than
the step.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import terra_tf as terra
from benchmarks.programs import PROGRAMS, Program
from benchmarks.report import Section
from benchmarks.step_times import STEPS_PER_TURN
from benchmarks.timing import Sampler, compare, interleave, per_step

_NUM_CHECKED_STEPS = 20
_NUM_WARMUP_TURNS = 2
_STALLS = ("python_stall_s", "graph_stall_s")


def replay_split(
    name: str, program: str, sizes: Mapping[str, Any], *, num_steps: int
) -> Section:
    """Measure the steps of a program with call replay on and off, in turns, each loss read."""
    programs: dict[str, Program] = {}
    losses: dict[str, list[float]] = {}
    for contestant in ("replay_off", "replay_on"):
        with terra.config.override(replay_calls=contestant == "replay_on"):
            made = programs[contestant] = PROGRAMS[program](terra.function, **sizes)
            losses[contestant] = [float(made.step(i)) for i in range(_NUM_CHECKED_STEPS)]
    stalls: dict[str, collections.Counter[str]] = {each: collections.Counter() for each in programs}
    num_turns = max(1, num_steps // STEPS_PER_TURN)
    timings = interleave(
        {each: _turns(each, made, stalls[each]) for each, made in programs.items()},
        num_turns=num_turns,
        num_warmup_turns=_NUM_WARMUP_TURNS,
    )
    comparison = compare(losses["replay_off"], losses["replay_on"])
    findings: dict[str, float] = {}
    for contestant, timing in timings.items():
        num_timed = (num_turns + _NUM_WARMUP_TURNS) * STEPS_PER_TURN
        waits = {each: stalls[contestant][each] / num_timed for each in _STALLS}
        findings |= {
            f"{contestant}_python_ms": 1e3 * (timing.median_s - waits["python_stall_s"]),
            f"{contestant}_graph_ms": 1e3 * (timing.median_s - waits["graph_stall_s"]),
            f"{contestant}_python_stall_ms": 1e3 * waits["python_stall_s"],
            f"{contestant}_graph_stall_ms": 1e3 * waits["graph_stall_s"],
        }
    return Section(
        name=name,
        what=f"a step of {program}{dict(sizes) or ''}, by who was at work",
        timings=timings,
        baseline="replay_off",
        comparisons={"replay_on": comparison},
        findings=findings,
        details={
            each: dataclasses.asdict(made.function.stats()) for each, made in programs.items()
        },
        failure=None if comparison.agrees else "replay changes the losses",
    )


def _turns(contestant: str, program: Program, stalls: collections.Counter[str]) -> Sampler:
    def run_turn(turn: int) -> None:
        before = program.function.stats()
        with terra.config.override(replay_calls=contestant == "replay_on"):
            for i in range(turn * STEPS_PER_TURN, (turn + 1) * STEPS_PER_TURN):
                program.step(i).numpy()
        after = program.function.stats()
        for name in _STALLS:
            stalls[name] += getattr(after, name) - getattr(before, name)

    return per_step(run_turn, STEPS_PER_TURN)
