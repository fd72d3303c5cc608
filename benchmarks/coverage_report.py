"""The lines of `coverage.csv`: how they are measured, written, compared and summarized.

`benchmarks.coverage` says what each column means.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

GOOD_SHARE = 0.9
_ROUNDING = 0.0011  # of two shares with three digits, and a little more
_OF_THREADS = ("concurrent", "seized_by_other_thread")


@dataclasses.dataclass(frozen=True)
class Row:
    """A case's line in the CSV; `benchmarks.coverage` has the meaning of each column."""

    case: int
    name: str
    verdict: str
    calls: int
    steps: int = 0
    co_executed: int = 0
    co_executed_share: float | None = None
    delegated_share: float | None = None
    traced: int = 0
    graph_builds: int = 0
    num_switch_cases: int = 0
    late_fallbacks: str = ""
    fallbacks: str = ""
    imperative_ops: str = ""

    def cells(self) -> dict[str, str]:
        """Return the line's text, column by column."""
        return {column: _to_cell(value) for column, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> Row:
        """Return the row that a line of a CSV stands for."""
        parsers: dict[Any, Callable[[str], Any]] = {
            "int": int,
            "float | None": lambda text: float(text) if text else None,
        }
        return cls(
            **{f.name: parsers.get(f.type, str)(cells[f.name]) for f in dataclasses.fields(cls)}
        )


def _to_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def read_rows(path: pathlib.Path) -> dict[int, Row]:
    """Return a CSV's rows by the number of their case."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [Row.from_cells(cells) for cells in csv.DictReader(file)]
    return {row.case: row for row in rows}


def write_rows(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Write a CSV, its lines in the order of the cases' numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [field.name for field in dataclasses.fields(Row)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.cells() for row in sorted(rows, key=lambda row: row.case))


def regressions(recorded: Row, fresh: Row) -> list[str]:
    """Return in what a case has become worse than its recorded line; an empty list if in nothing.

    A step more or less outside the graph, and one more graph, are within what timing does; so are
    all steps that were outside because of other threads.
    """
    found = []
    num_free_steps = 1 + sum(_counts_in(fresh.late_fallbacks)[reason] for reason in _OF_THREADS)
    tolerance = num_free_steps / max(recorded.steps, 1)
    if fresh.verdict != "OK":
        found.append(f"verdict {fresh.verdict}, recorded {recorded.verdict}")
    if fresh.calls != recorded.calls:
        found.append(f"{fresh.calls} calls, recorded {recorded.calls}: not comparable")
    if _fell(recorded.co_executed_share, fresh.co_executed_share, tolerance):
        found.append(
            f"co-executed share {fresh.co_executed_share}, recorded {recorded.co_executed_share}"
        )
    if fresh.co_executed and _fell(recorded.delegated_share, fresh.delegated_share, 0.0):
        found.append(
            f"delegated share {fresh.delegated_share}, recorded {recorded.delegated_share}"
        )
    if fresh.graph_builds > recorded.graph_builds + 1:
        found.append(f"{fresh.graph_builds} graph builds, recorded {recorded.graph_builds}")
    return found


def _fell(recorded: float | None, fresh: float | None, tolerance: float) -> bool:
    return recorded is not None and (fresh or 0.0) < recorded - tolerance - _ROUNDING


# ------------------------------------------------------------------ measuring


def measure(snapshots: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the measured columns of a case.

    Args:
      snapshots: For each call the counters, as `Stats` has them, of every function made so far.
    """
    warmup, end = snapshots[: len(snapshots) // 2][-1], snapshots[-1]
    steps, co_executed, traced = (
        _sum(end, key) - _sum(warmup, key) for key in ("steps", "co_executed_steps", "traced_steps")
    )
    graphs = _graphs_in_use(snapshots)
    return dict(
        steps=steps,
        co_executed=co_executed,
        co_executed_share=co_executed / steps if steps else None,
        delegated_share=_delegated_share(snapshots, graphs),
        traced=traced,
        graph_builds=_sum(end, "graph_builds"),
        num_switch_cases=_sum(graphs[-1].values(), "num_switch_cases"),
        late_fallbacks=_listing(_count(end, "fallbacks") - _count(warmup, "fallbacks")),
        fallbacks=_listing(_count(end, "fallbacks")),
        imperative_ops=_listing(_count(graphs[-1].values(), "imperative_ops")),
    )


def _graphs_in_use(
    snapshots: Sequence[Sequence[Mapping[str, Any]]],
) -> list[dict[int, Mapping[str, Any]]]:
    """Return, for each call, function -> the last counters of it that had a graph."""
    known, in_use = {}, []
    for functions in snapshots:
        known.update({i: counters for i, counters in enumerate(functions) if counters["num_nodes"]})
        in_use.append(dict(known))
    return in_use


def _delegated_share(
    snapshots: Sequence[Sequence[Mapping[str, Any]]],
    graphs: Sequence[Mapping[int, Mapping[str, Any]]],
) -> float | None:
    total, num_steps = 0.0, 0
    for call in range(len(snapshots) // 2, len(snapshots)):
        before, after = snapshots[call - 1], snapshots[call]
        for i, graph in graphs[call].items():
            co_executed = _sum(after[i : i + 1], "co_executed_steps")
            co_executed -= _sum(before[i : i + 1], "co_executed_steps")
            num_imperative = sum(graph["imperative_ops"].values())
            total += co_executed * (1 - num_imperative / graph["num_nodes"])
            num_steps += co_executed
    return total / num_steps if num_steps else None


def _sum(functions: Iterable[Mapping[str, Any]], key: str) -> int:
    return sum(counters[key] for counters in functions)


def _count(functions: Iterable[Mapping[str, Any]], key: str) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    for counters in functions:
        counts.update(counters[key])
    return counts


def _listing(counts: Mapping[str, int]) -> str:
    return ";".join(f"{name}:{count}" for name, count in sorted(counts.items()))


def _counts_in(listing: str) -> collections.Counter[str]:
    pairs = (part.rpartition(":") for part in listing.split(";") if part)
    return collections.Counter({name: int(count) for name, _, count in pairs})


# ------------------------------------------------------------------ reporting


def summarize(rows: Sequence[Row]) -> str:
    """Return how many cases are co-executed, and of the others why not."""
    shares = [(row, row.co_executed_share) for row in rows]
    good = [row for row, share in shares if share is not None and share >= GOOD_SHARE]
    lines = [f"{len(good)} of {len(rows)} cases at least {GOOD_SHARE:.0%} co-executed; the others:"]
    for row in rows:
        if row not in good:
            cells = row.cells()
            lines.append(
                f"  {row.case:>3} {row.name:<34} {row.verdict:<8}"
                f" {cells['co_executed_share'] or '-':>5} ({row.co_executed}/{row.steps}"
                f" steps, {row.traced} traced); {row.late_fallbacks or 'no late fallback'}"
                f"; in all calls {row.fallbacks or 'none'}"
            )
    return "\n".join(lines)
