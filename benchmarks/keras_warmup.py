"""What the first batches of a model cost, graphs and all: a process for each first `fit`.

    python -m benchmarks.keras_warmup MODEL CONTESTANT NUM_BATCHES

prints how many seconds that took, within the budget that a program has. In one process the first
contestant would pay for what TensorFlow and Keras load when they are first used.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import terra_tf as terra
from benchmarks import report
from benchmarks.keras_models import BATCH_SIZE, CONTESTANTS, make_data, make_model
from benchmarks.timing import Timing, balanced_orders

NUM_BATCHES = 100


def measure(name: str, num_rounds: int) -> report.Section:
    """Return seconds of a first epoch, by contestant."""
    seconds: dict[str, list[float]] = {contestant: [] for contestant in CONTESTANTS}
    orders = balanced_orders(len(CONTESTANTS))
    for turn in range(num_rounds):
        for position in orders[turn % len(orders)]:
            seconds[CONTESTANTS[position]].append(_in_a_process(name, CONTESTANTS[position]))
    extra_s = [ours - stock for ours, stock in zip(seconds["terra"], seconds["stock"], strict=True)]
    return report.Section(
        name=f"{name}_first_epoch",
        what=f"a model's first fit, {NUM_BATCHES} batches of {BATCH_SIZE}",
        baseline="stock",
        timings={contestant: Timing(tuple(found)) for contestant, found in seconds.items()},
        findings={"beyond_stock_s": statistics.median(extra_s)},
    )


def _in_a_process(name: str, contestant: str) -> float:
    command = [sys.executable, "-m", __name__, name, contestant, str(NUM_BATCHES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def _first_fit(name: str, contestant: str, num_batches: int) -> float:
    terra.config.weigh_costs = True
    data, model = make_data(name, num_batches), make_model(name, contestant)
    start_s = time.perf_counter()
    model.fit(*data, batch_size=BATCH_SIZE, verbose=0)
    return time.perf_counter() - start_s


if __name__ == "__main__":
    print(_first_fit(sys.argv[1], sys.argv[2], int(sys.argv[3])))
