"""TensorFlow's own profile of a stretch of time, as plain spans.

Each thread of the process is a *line* of spans. What Terra's native code adds to TensorFlow's own
spans (all with the number of the step's mailbox):

    TerraGraph(step)                    on the GraphRunner's thread: the step's function runs
    TerraSend(step, channel)            Python puts a message into a channel; no length
    TerraStall(step, what, node, line)  Python waits for the graph
    TerraStep(function, step_num)       a call of a decorated function
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from terra_tf._tf_internals import xplane_pb2


class Span(NamedTuple):
    """Something a thread did.

    Attributes:
      line: The thread.
      name: What.
      start_us: Since the profile began.
      end_us: Since the profile began.
      stats: More about it.
    """

    line: int
    name: str
    start_us: float
    end_us: float
    stats: dict[str, Any]

    @property
    def duration_us(self) -> float:
        """How long it took."""
        return self.end_us - self.start_us


@dataclasses.dataclass(frozen=True)
class Spans:
    """All spans of a profile, by name; those of one name in order of time."""

    by_name: dict[str, list[Span]]
    num_spans: int

    def named(self, name: str) -> list[Span]:
        """Returns the spans of one name."""
        return self.by_name.get(name, [])

    def ops_between(self, start_us: float, end_us: float) -> Iterator[Span]:
        """Yields the spans of kernels that an executor ran, named `node:type`."""
        for span in self._ops[bisect.bisect_left(self._op_starts, start_us) :]:
            if span.start_us > end_us:
                break
            yield span

    def __post_init__(self) -> None:
        ops = [s for name, spans in self.by_name.items() if _is_op(name) for s in spans]
        ops.sort(key=lambda span: span.start_us)
        object.__setattr__(self, "_ops", ops)
        object.__setattr__(self, "_op_starts", [span.start_us for span in ops])

    _ops: list[Span] = dataclasses.field(init=False, repr=False)
    _op_starts: list[float] = dataclasses.field(init=False, repr=False)


def _is_op(name: str) -> bool:
    """`MatMul_1:MatMul` is an op; `ExecutorState::Process` and `EagerLocalExecute: Mul` are not."""
    node, colon, op_type = name.rpartition(":")
    return bool(colon and node) and " " not in name and not node.endswith(":") and bool(op_type)


def read_spans(serialized: bytes) -> Spans:
    """Returns the spans of the host's threads in a serialized XSpace."""
    space = xplane_pb2.XSpace.FromString(serialized)
    by_name: dict[str, list[Span]] = collections.defaultdict(list)
    num_spans = 0
    for plane in space.planes:
        if not plane.name.startswith("/host:"):
            continue
        names = {number: metadata.name for number, metadata in plane.event_metadata.items()}
        stats = {number: metadata.name for number, metadata in plane.stat_metadata.items()}
        for number, line in enumerate(plane.lines):
            base_us = line.timestamp_ns / 1e3
            num_spans += len(line.events)
            for event in line.events:
                start_us = base_us + event.offset_ps / 1e6
                name = names[event.metadata_id]
                values = {stats[s.metadata_id]: _value(s, stats) for s in event.stats}
                end_us = start_us + event.duration_ps / 1e6
                by_name[name].append(Span(number, name, start_us, end_us, values))
    for spans in by_name.values():
        spans.sort(key=lambda span: span.start_us)
    return Spans(dict(by_name), num_spans)


def _value(stat: Any, names: dict[int, str]) -> Any:
    kind = stat.WhichOneof("value")
    value = getattr(stat, kind)
    return names[value] if kind == "ref_value" else value
