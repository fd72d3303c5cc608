"""Measure contestants against one another in one process; no TensorFlow in here.

A *sampler* takes the number of a turn and returns what a step cost in it, in seconds. `interleave`
gives the contestants one turn each per round, so that a machine that slows down slows all of them:

    samplers = {"a": per_step(run_a, steps_per_turn=10), "b": per_step(run_b, steps_per_turn=10)}
    timings = interleave(samplers, num_turns=20, num_warmup_turns=2)
    speedups(timings, baseline="a")["b"]  # how many times faster b is than a

Outputs are compared before anything is timed: `compare` says whether, how far and where they
differ.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Sampler = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per step over the turns of one contestant, in the order of the rounds."""

    samples_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return self.percentile_s(50)

    def percentile_s(self, percent: float) -> float:
        """Return the seconds that `percent` percent of the turns stayed below."""
        return float(np.percentile(self.samples_s, percent))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How a contestant's outputs compare with the reference's.

    agrees: every output is finite, or not, like the reference's, and within the tolerance.
    identical: every output is the very same number.
    max_relative_difference: the largest one; infinite where only one of the two is finite.
    first_difference: index of the first output outside the tolerance, or None.
    """

    agrees: bool
    identical: bool
    max_relative_difference: float
    first_difference: int | None


def per_step(
    run_turn: Callable[[int], object],
    steps_per_turn: int,
    *,
    prepare: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Sampler:
    """Return a sampler that runs `run_turn(turn)` and divides its time by `steps_per_turn`.

    Args:
      run_turn: runs a whole turn and waits for what it started, inside the clock.
      steps_per_turn: the number of steps in a turn.
      prepare: called before each turn, outside the clock.
      clock: returns seconds.
    """

    def sample(turn: int) -> float:
        if prepare is not None:
            prepare()
        start_s = clock()
        run_turn(turn)
        return (clock() - start_s) / steps_per_turn

    return sample


def interleave(
    samplers: Mapping[str, Sampler], *, num_turns: int, num_warmup_turns: int
) -> dict[str, Timing]:
    """Run the samplers in turn and summarize each, in `balanced_orders` from round to round.

    The first `num_warmup_turns` rounds are run but not counted. Turn numbers go up by one a round,
    through the warm-up.
    """
    if num_turns < 1:
        raise ValueError(f"num_turns must be at least 1, not {num_turns}")
    names = list(samplers)
    samples_s: dict[str, list[float]] = {name: [] for name in names}
    orders = balanced_orders(len(names))
    for turn in range(num_warmup_turns + num_turns):
        for position in orders[turn % len(orders)]:
            name = names[position]
            elapsed_s = samplers[name](turn)
            if turn >= num_warmup_turns:
                samples_s[name].append(elapsed_s)
    return {name: Timing(tuple(samples)) for name, samples in samples_s.items()}


def balanced_orders(num_contestants: int) -> list[list[int]]:
    """Return orders in which everybody runs behind every other one equally often.

    A program runs slower behind one that has pushed its data out of the caches: were the order only
    rotated, one contestant would always pay for that, and the one behind it never. (E. J. Williams,
    "Experimental designs balanced for the estimation of residual effects of treatments", 1949.)
    """
    half = (num_contestants + 1) // 2
    first = [0]
    for step in range(1, half + 1):
        first += [step, num_contestants - step]
    first = list(dict.fromkeys(first))[:num_contestants]
    orders = [
        [(who + shift) % num_contestants for who in first] for shift in range(num_contestants)
    ]
    if num_contestants % 2 and num_contestants > 1:
        orders += [order[::-1] for order in orders]
    return orders


def speedups(timings: Mapping[str, Timing], baseline: str) -> dict[str, float]:
    """Return, for each contestant, how many times faster than the baseline it was.

    It is the median over the rounds of the baseline's time over the contestant's: both ran within
    moments of each other, so a machine that changes its speed meanwhile hardly moves the ratio.
    """
    baseline_s = np.array(timings[baseline].samples_s)
    return {
        name: float(np.median(baseline_s / np.array(timing.samples_s)))
        for name, timing in timings.items()
    }


def compare(
    reference: Sequence[float], outputs: Sequence[float], *, relative_tolerance: float = 1e-4
) -> Comparison:
    """Compare a contestant's outputs with the reference's, number by number.

    Raises:
      ValueError: if there are not equally many of them.
    """
    if len(reference) != len(outputs):
        raise ValueError(f"{len(reference)} reference outputs, but {len(outputs)} to compare")
    differences = [_relative_difference(r, o) for r, o in zip(reference, outputs, strict=True)]
    outside = [i for i, difference in enumerate(differences) if difference > relative_tolerance]
    return Comparison(
        agrees=not outside,
        identical=not any(differences),
        max_relative_difference=max(differences, default=0.0),
        first_difference=outside[0] if outside else None,
    )


def _relative_difference(reference: float, output: float) -> float:
    if reference == output or (math.isnan(reference) and math.isnan(output)):
        return 0.0
    if not (math.isfinite(reference) and math.isfinite(output)):
        return math.inf
    return abs(reference - output) / max(abs(reference), abs(output))
