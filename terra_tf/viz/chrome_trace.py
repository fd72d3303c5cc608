"""A timeline in the form that https://ui.perfetto.dev and chrome://tracing open.

Two tracks, PythonRunner and GraphRunner, and below the second one track for each thread that ran
kernels. Arrows are flow events. Stalls have a name of their own colour: `stall: train.py:14 in
step` on Python's track, `waits for Python: ...` on the graph's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from terra_tf.viz.timeline import Arrow, Slice, Timeline

_PYTHON, _GRAPH, _FIRST_OPS = 1, 2, 3
_PROCESS = 1
_COLORS = {"stall": "terrible", "starved": "bad", "step": "good", "graph": "rail_response"}


def to_json(timeline: Timeline, about: dict[str, Any]) -> str:
    """Returns the trace's text; `about` is kept with it."""
    trace = {"traceEvents": list(_events(timeline)), "displayTimeUnit": "ms", "otherData": about}
    return json.dumps(trace, indent=0)


def _events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    lanes = {lane: _FIRST_OPS + i for i, lane in enumerate(_lanes(timeline))}
    yield _name("process_name", 0, "Terra: co-execution")
    yield _name("thread_name", _PYTHON, "PythonRunner")
    yield _name("thread_name", _GRAPH, "GraphRunner")
    for number, track in enumerate(lanes.values()):
        yield _name("thread_name", track, f"ops of the graph, thread {number}")
    for track in (_PYTHON, _GRAPH, *lanes.values()):
        yield _metadata("thread_sort_index", track, {"sort_index": track})
    for kind, track, slices in (
        ("step", _PYTHON, timeline.steps),
        ("stall", _PYTHON, timeline.stalls),
        ("graph", _GRAPH, timeline.graphs),
        ("starved", _GRAPH, timeline.starved),
    ):
        for piece in slices:
            yield _slice(piece, track, kind) | {"cname": _COLORS[kind]}
    for piece in timeline.ops:
        yield _slice(piece, lanes[piece.lane], "op")
    for number, arrow in enumerate(timeline.arrows, start=1):
        yield from _flow(arrow, number)


def _lanes(timeline: Timeline) -> list[int]:
    return sorted({piece.lane for piece in timeline.ops})


def _name(what: str, track: int, name: str) -> dict[str, Any]:
    return _metadata(what, track, {"name": name})


def _metadata(what: str, track: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": track, "args": args}


def _slice(piece: Slice, track: int, kind: str) -> dict[str, Any]:
    return {
        "ph": "X", "pid": _PROCESS, "tid": track, "cat": kind, "name": piece.name,
        "ts": round(piece.start_us, 3), "dur": round(piece.end_us - piece.start_us, 3),
        "args": piece.details,
    }  # fmt: skip


def _flow(arrow: Arrow, number: int) -> Iterator[dict[str, Any]]:
    source, target = (_GRAPH, _PYTHON) if arrow.kind == "fetch" else (_PYTHON, _GRAPH)
    common = {"cat": arrow.kind, "name": arrow.kind, "id": number, "pid": _PROCESS}
    args = {"what": arrow.what, "step": arrow.step}
    sent = {"ph": "s", "tid": source, "ts": round(arrow.sent_us, 3), "args": args}
    # The end of a stall is the end of its slice: a hair before, so that the arrow binds to it.
    received_us = arrow.received_us - (0.001 if arrow.kind == "fetch" else 0.0)
    received = {"ph": "f", "bp": "e", "tid": target, "ts": round(received_us, 3)}
    yield common | sent
    yield common | received
