"""A whole comparison: its records as a table to read and as JSON to keep. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import report
from benchmarks.records import Measurement, Record, make_record

_HEADER = (
    f"{'program':<18}{'mode':<16}{'status':<9}{'median':>10}{'p10':>10}{'p90':>10}"
    f"{'speedup':>9}{'warm-up':>9}{'in graph':>10}"
)
_ERROR_WIDTH = 110


@dataclasses.dataclass
class Comparison:
    """Measurements of modes of programs, as they come in.

    settings: what the measurements have in common: size, numbers of steps, tolerances.
    """

    settings: Mapping[str, Any]
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    is_interrupted: bool = False

    def records(self) -> list[Record]:
        """Return a record for each measurement, in order."""
        eager = {m.program: m for m in self.measurements if m.mode == "eager"}
        num_steps = self.settings["steps"]
        return [make_record(m, eager.get(m.program), num_steps) for m in self.measurements]

    def to_json(self, now: datetime.datetime) -> str:
        """Return everything as JSON: versions, machine, records, and every sample."""
        samples = [
            {
                "program": measurement.program,
                "size": measurement.size,
                "mode": measurement.mode,
                "step_ms": [1e3 * step.seconds for step in measurement.timed],
                "untimed_ms": [1e3 * step.seconds for step in measurement.untimed],
            }
            for measurement in self.measurements
        ]
        content = {
            "date": now.isoformat(timespec="seconds"),
            "versions": report.versions(),
            "machine": report.machine(),
            "settings": dict(self.settings),
            "interrupted": self.is_interrupted,
            "records": [_finite(dataclasses.asdict(record)) for record in self.records()],
            "samples": samples,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def to_table(records: Sequence[Record]) -> str:
    """Return the records as lines of text; what went wrong stands below its row."""
    lines = [_HEADER]
    for record in records:
        lines.append(_row(record))
        if record.error is not None:
            lines.append(f"    {record.error[:_ERROR_WIDTH]}")
    return "\n".join(lines)


def summarize(records: Sequence[Record]) -> str:
    """Return a line for each mode: how many programs are right, how many faster than eager."""
    lines = []
    for mode in dict.fromkeys(record.mode for record in records):
        of_mode = [record for record in records if record.mode == mode]
        counts = [f"{sum(r.status == 'ok' for r in of_mode)} of {len(of_mode)} ok"]
        speedups = [r.speedup_vs_eager for r in of_mode if r.speedup_vs_eager is not None]
        if speedups and mode != "eager":
            geometric_mean = math.exp(sum(map(math.log, speedups)) / len(speedups))
            counts.append(f"{sum(s > 1.0 for s in speedups)} faster than eager")
            counts.append(f"geometric mean of speedups {geometric_mean:.2f}")
        lines.append(f"{mode}: {', '.join(counts)}")
    return "\n".join(lines)


def _row(record: Record) -> str:
    status = record.status if record.status == "ok" else record.status.upper()
    times = (record.step_ms_median, record.step_ms_p10, record.step_ms_p90)
    cells = "".join(f"{_number(time_ms, '.1f', ' ms'):>10}" for time_ms in times)
    return (
        f"{record.program:<18}{record.mode:<16}{status:<9}{cells}"
        f"{_number(record.speedup_vs_eager, '.2f', 'x'):>9}"
        f"{_number(record.warmup_s, '.1f', ' s'):>9}"
        f"{_number(record.co_executed_share, '.0%', ''):>10}"
    ).rstrip()


def _number(value: float | None, form: str, unit: str) -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with None for what is not finite, which JSON cannot hold."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
