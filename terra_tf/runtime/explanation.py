"""`explain()`: what a terra function did, and why, as a report for a person.

    print(f.explain())           text for a terminal
    f.explain()                  tables in a notebook
    f.explain().to_dict()        plain data for tools
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from terra_tf.graph.epochs import why_imperative
from terra_tf.runtime.advice import advise
from terra_tf.runtime.built_graph import BuiltGraph
from terra_tf.runtime.entry import Entry
from terra_tf.runtime.report import as_html, as_text, sections_of
from terra_tf.runtime.source_lines import line_of
from terra_tf.runtime.stats import Counters, Event, Stats
from terra_tf.runtime.verdict import describe
from terra_tf.runtime.waits import Awaited, Wait
from terra_tf.runtime.ways import Fork, Loop, forks_of, loops_of


@dataclasses.dataclass(frozen=True)
class ImperativeOp:
    """An op that Python runs itself.

    Attributes:
      op_type: Its type.
      reason: An `ImperativeReason`.
      where: The user's line.
      in_every_step: Whether every way through the graph passes it. A variable that is made in the
        first call is on one way only.
    """

    op_type: str
    reason: str
    where: str
    in_every_step: bool = True


@dataclasses.dataclass(frozen=True)
class Fetch:
    """A value that Python gets from the graph."""

    op_type: str
    where: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What happened; `str()` is the report.

    Attributes:
      name: The function and its file.
      stats: The counters.
      events: Phase changes and fallbacks, oldest first (the last 200).
      imperative_ops: Ops of the current graph that Python runs itself.
      fetches: Values of the current graph that Python gets.
      waits: Where Python waited for the graph, the line that lost most time first.
      forks: Where the current graph has a choice.
      loops: Loops of the user's code that ran ops, and whether the graph has a `While` for them.
      advice: What would make it faster, sentences, the best first.
      costs: What co-execution has cost and brought in seconds, and what that means, sentences.
    """

    name: str
    stats: Stats
    events: tuple[Event, ...]
    imperative_ops: tuple[ImperativeOp, ...]
    fetches: tuple[Fetch, ...]
    waits: tuple[Wait, ...] = ()
    forks: tuple[Fork, ...] = ()
    loops: tuple[Loop, ...] = ()
    advice: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return as_text(sections_of(self))

    def _repr_html_(self) -> str:
        return as_html(sections_of(self))

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain dicts, lists, strings and numbers, as JSON can hold them."""
        return _plain(self)


def explain(
    python_function: Callable, stats: Stats, counters: Counters, entry: Entry | None
) -> Explanation:
    """Makes the report of one function; its last used entry signature is shown."""
    built = None if entry is None else entry.current_built
    waits = counters.waits.longest_first()
    imperative_ops = _imperative_ops(built)
    return Explanation(
        _name(python_function),
        stats,
        tuple(counters.events),
        imperative_ops,
        _fetches(built),
        waits,
        () if built is None else forks_of(built.trace_graph, built.generated),
        () if built is None else loops_of(built.trace_graph, built.generated),
        advise(stats, waits, tuple(counters.events), imperative_ops),
        describe(counters, entry),
    )


def _imperative_ops(built: BuiltGraph | None) -> tuple[ImperativeOp, ...]:
    if built is None:
        return ()
    graph = built.trace_graph
    ways = [frozenset(path.nodes) for path in graph.paths]
    return tuple(
        ImperativeOp(
            node.record.op_type,
            str(why_imperative(node)),
            line_of(node.record),
            all(number in way for way in ways),
        )
        for number, node in enumerate(graph.nodes)
        if node.is_imperative
    )


def _fetches(built: BuiltGraph | None) -> tuple[Fetch, ...]:
    if built is None:
        return ()
    fetched = sorted({node for node, _ in built.generated.fetch_channels})
    records = (built.trace_graph.nodes[node].record for node in fetched)
    return tuple(Fetch(record.op_type, line_of(record)) for record in records)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.name.lower() if isinstance(value, Awaited) else value


def _name(python_function: Any) -> str:
    code = getattr(python_function, "__code__", None)
    name = getattr(python_function, "__qualname__", None) or repr(python_function)
    if code is None:
        return name
    return f"{name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
