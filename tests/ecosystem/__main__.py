"""Times programs of third-party libraries: python -m tests.ecosystem [NAME ...]

Eager and Terra in turns, in one process; prints a table in Markdown. Terra weighs costs here, as it
does for users. Times are medians of a step in ms; the ratio is eager's over Terra's.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import statistics
import time

import terra_tf as terra
from tests.ecosystem.programs import PROGRAMS

_NUM_STEPS, _WARM_UP = 60, 20


def _times(name: str) -> tuple[float, float, terra.Stats]:
    functions = []

    def decorate(function):
        functions.append(terra.function(function))
        return functions[-1]

    programs = [PROGRAMS[name](wrap).step for wrap in (lambda f: f, decorate)]
    times: list[list[float]] = [[], []]
    for _ in range(_NUM_STEPS):
        for step, taken in zip(programs, times, strict=True):
            begun_s = time.perf_counter()
            step()
            terra.synchronize()
            taken.append(time.perf_counter() - begun_s)
    eager_s, terra_s = (statistics.median(taken[_WARM_UP:]) for taken in times)
    return 1e3 * eager_s, 1e3 * terra_s, functions[0].stats()


def main(names: list[str]) -> None:
    print("| program | eager | terra | ratio | co-executed |\n|---|---|---|---|---|", flush=True)
    for name in names or PROGRAMS:
        eager_ms, terra_ms, stats = _times(name)
        share = f"{stats.co_executed_steps} of {stats.steps}"
        row = f"| {name} | {eager_ms:.1f} | {terra_ms:.1f} | {eager_ms / terra_ms:.1f} | {share} |"
        print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
