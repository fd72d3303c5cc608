"""Draw the speedups of a comparison as bars, into a PNG; needs matplotlib."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
from collections.abc import Sequence

from benchmarks.records import Record

_MARKS = {"wrong": "WRONG", "error": "error", "timeout": "timeout"}
_GROUP_WIDTH = 0.8


def explain_absence() -> str | None:
    """Return why no chart can be drawn, or None if one can."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    return "--plot needs matplotlib, which is not installed; try: pip install matplotlib"


def draw(records: Sequence[Record], path: pathlib.Path) -> None:
    """Write a bar for each program and mode but eager; what failed is named instead."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    programs = list(dict.fromkeys(record.program for record in records))
    modes = [mode for mode in dict.fromkeys(r.mode for r in records) if mode != "eager"]
    figure, axes = pyplot.subplots(figsize=(2.0 + 1.2 * len(programs), 5.0))
    width = _GROUP_WIDTH / max(1, len(modes))
    for i, mode in enumerate(modes):
        found = {record.program: record for record in records if record.mode == mode}
        positions = [j + (i + 0.5) * width - _GROUP_WIDTH / 2 for j in range(len(programs))]
        shown = [found.get(program) for program in programs]
        heights = [0.0 if r is None else r.speedup_vs_eager or 0.0 for r in shown]
        bars = axes.bar(positions, heights, width, label=mode)
        labels = [_label(record) for record in shown]
        axes.bar_label(bars, labels, rotation=90, padding=3, fontsize=8)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(programs)), programs, rotation=30, ha="right")
    axes.set_ylabel("times as fast as eager")
    axes.set_title(f"Training steps, size {records[0].size}" if records else "Training steps")
    axes.margins(y=0.2)
    if modes:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _label(record: Record | None) -> str:
    if record is None:
        return ""
    if record.status != "ok":
        return _MARKS[record.status]
    return "" if record.speedup_vs_eager is None else f"{record.speedup_vs_eager:.2f}"
