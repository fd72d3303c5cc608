"""Run many programs in child processes, a batch each, so that a crash or a hang costs one program.

A child writes a line of JSON before and after each program. If it dies, the program it had begun is
the finding, with what it printed last (for a hang, the stacks of all threads), and the next child
goes on behind it.
"""

import concurrent.futures
import dataclasses
import faulthandler
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

BATCH_SIZE = 100
PROGRAM_TIMEOUT_S = 60.0
STARTUP_TIMEOUT_S = 120.0


@dataclasses.dataclass
class Summary:
    """What a whole run found; `failures` has the seed, and what differs, of each.

    `unrepeatable_seeds` are those of programs that differ from themselves eagerly.
    """

    programs: int = 0
    steps: int = 0
    co_executed_steps: int = 0
    calls_replayed: int = 0
    num_loops: int = 0
    tolerant_programs: int = 0
    calls_raised: int = 0
    seconds: float = 0.0
    unrepeatable_seeds: list[int] = dataclasses.field(default_factory=list)
    failures: list[dict] = dataclasses.field(default_factory=list)

    def add(self, row: dict) -> None:
        self.programs += 1
        self.steps += row.get("steps", 0)
        self.co_executed_steps += row.get("co_executed_steps", 0)
        self.calls_replayed += row.get("calls_replayed", 0)
        self.num_loops += row.get("num_loops", 0)
        self.tolerant_programs += row.get("is_tolerant", False)
        self.calls_raised += row.get("raised", 0)
        self.seconds += row.get("seconds", 0.0)
        if not row.get("is_repeatable", True):
            self.unrepeatable_seeds.append(row["seed"])
        if row["difference"]:
            self.failures.append({"seed": row["seed"], "difference": row["difference"]})

    def as_json(self) -> dict:
        share = self.co_executed_steps / self.steps if self.steps else 0.0
        return {**dataclasses.asdict(self), "co_executed_share": round(share, 3)}


def run_here(seeds: Sequence[int], check: Callable[[int], dict]) -> None:
    """Run programs in this process, a child, and write a line of JSON before and after each.

    A program that takes longer than PROGRAM_TIMEOUT_S ends the process, with all stacks printed,
    even if it hangs in native code and holds the GIL.
    """
    for seed in seeds:
        print(json.dumps({"begin": seed}), flush=True)
        faulthandler.dump_traceback_later(PROGRAM_TIMEOUT_S, exit=True)
        start = time.monotonic()
        row = check(seed)
        faulthandler.cancel_dump_traceback_later()
        row |= {"seed": seed, "seconds": round(time.monotonic() - start, 3)}
        print(json.dumps(row), flush=True)


def run_batches(
    first: int, count: int, num_jobs: int, child_arguments: Sequence[str]
) -> Iterator[dict]:
    """Yield a row for each seed, as batches end; batches run in `num_jobs` processes at a time."""
    batches = [
        range(begin, min(begin + BATCH_SIZE, first + count))
        for begin in range(first, first + count, BATCH_SIZE)
    ]
    with concurrent.futures.ThreadPoolExecutor(num_jobs) as pool:
        for rows in pool.map(lambda seeds: list(_run_batch(seeds, child_arguments)), batches):
            yield from rows


def _run_batch(seeds, child_arguments):
    while seeds:
        rows, begun, ending = _run_child(seeds, child_arguments)
        yield from rows
        done = seeds.start + len(rows)
        if done == seeds.stop:
            return
        if begun != done:
            raise RuntimeError(f"the child of seeds {seeds} ended before seed {done}: {ending}")
        yield {"seed": done, "difference": ending}
        seeds = range(done + 1, seeds.stop)


def _run_child(seeds, child_arguments):
    """Return the rows of the programs that ended, the last seed begun, and how the child ended."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", *child_arguments]
    command += [f"--first={seeds.start}", f"--count={len(seeds)}"]
    limit_s = STARTUP_TIMEOUT_S + PROGRAM_TIMEOUT_S * len(seeds)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            status = subprocess.run(command, stdout=out, stderr=errors, timeout=limit_s).returncode
            ending = f"the process ended with status {status}"
        except subprocess.TimeoutExpired:
            ending = f"the batch took longer than {limit_s:.0f} s"
        out.seek(0)
        errors.seek(0)
        lines = [json.loads(line) for line in out if line.startswith("{") and line.endswith("}\n")]
        tail = errors.read()[-6000:]
    rows = [line for line in lines if "begin" not in line]
    begun = [line["begin"] for line in lines if "begin" in line]
    return rows, begun[-1] if begun else None, f"{ending}\n{tail}"
