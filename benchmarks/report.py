"""What a benchmark run leaves behind: a JSON file with versions and machine, and a table to read.

A report is a list of sections; a section has a unit, its contestants' timings, and what is to be
known about them. A section that could not run says why, and is never left out.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.timing import Comparison, Timing, speedups

_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "terra_tf")
_SECONDS_PER_UNIT = {"us": 1e-6, "ms": 1e-3}


@dataclasses.dataclass(frozen=True)
class Section:
    """The result of one section of a benchmark.

    name, what: a short name, and one line that says what a step is.
    unit: "us" or "ms", the unit of the table (the JSON is in seconds).
    baseline: the contestant that speedups are relative to.
    timings: contestant -> seconds per step.
    comparisons: contestant -> its outputs against eager's; only for contestants that were checked.
    findings: named numbers derived from the timings, in the unit their name ends with.
    notes: sentences for the reader of the table.
    details: anything else worth keeping, for the JSON only.
    failure: why the section has no result, or what is wrong with it; None when all is well.
    """

    name: str
    what: str
    unit: str = "ms"
    baseline: str = "eager"
    timings: Mapping[str, Timing] = dataclasses.field(default_factory=dict)
    comparisons: Mapping[str, Comparison] = dataclasses.field(default_factory=dict)
    findings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failure: str | None = None


def to_json(sections: Sequence[Section], now: datetime.datetime) -> str:
    """Return the report as JSON text, keys in a fixed order."""
    report = {
        "date": now.isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "sections": [_section_json(section) for section in sections],
    }
    return json.dumps(report, indent=2, default=str) + "\n"


def to_table(sections: Sequence[Section]) -> str:
    """Return the report as text: a block of lines for each section."""
    return "\n\n".join(_section_table(section) for section in sections)


def write(path: pathlib.Path, text: str) -> None:
    """Write a report, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the version of Python and of every package that a number may depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the number of CPUs this process may use, their model, and the platform."""
    return {
        "num_cpus": len(os.sched_getaffinity(0)),
        "cpu_model": _cpu_model(pathlib.Path("/proc/cpuinfo")),
        "platform": platform.platform(),
    }


def _cpu_model(cpuinfo: pathlib.Path) -> str:
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _section_json(section: Section) -> dict[str, Any]:
    timings = {
        name: {
            "num_turns": len(timing.samples_s),
            "median_s": timing.median_s,
            "p10_s": timing.percentile_s(10),
            "p90_s": timing.percentile_s(90),
        }
        for name, timing in section.timings.items()
    }
    return {**dataclasses.asdict(section), "timings": timings, "speedups": _speedups(section)}


def _speedups(section: Section) -> dict[str, float]:
    return speedups(section.timings, section.baseline) if section.timings else {}


def _section_table(section: Section) -> str:
    lines = [f"{section.name}: {section.what}"]
    if section.timings:
        header = f"{section.unit} per step"
        lines.append(f"  {header:<20}{'median':>9}{'p10':>9}{'p90':>9}{'speedup':>9}  outputs")
    for name, speedup in _speedups(section).items():
        lines.append("  " + _timing_row(section, name, speedup))
    lines += [f"  {name} = {value:.3f}" for name, value in section.findings.items()]
    lines += [f"  note: {note}" for note in section.notes]
    if section.failure is not None:
        lines.append(f"  FAILED: {section.failure}")
    return "\n".join(lines)


def _timing_row(section: Section, name: str, speedup: float) -> str:
    timing = section.timings[name]
    scale = _SECONDS_PER_UNIT[section.unit]
    cells = "".join(f"{timing.percentile_s(percent) / scale:>9.3f}" for percent in (50, 10, 90))
    return f"{name:<20}{cells}{speedup:>8.2f}x  {_verdict(section.comparisons.get(name))}".rstrip()


def _verdict(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    if comparison.identical:
        return "identical"
    size = f"{comparison.max_relative_difference:.1e}"
    if comparison.agrees:
        return f"agree ({size})"
    return f"DIFFER from step {comparison.first_difference} ({size})"
