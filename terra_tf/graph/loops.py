"""What a rolled loop is: trips, one after another and alike, that become one body of a `While`.

`loop_finder` finds them, `loop_emitter` builds them. Seen from a trip, each input of each of its
ops is

    of the trip itself      the same op's result, in each trip
    of the trip before      `Carried`: a loop variable
    a web's latest          a loop variable too, if the loop adds to the web
    from outside            the very same tensor; or a feed of each trip's own (`TripFeed`)
    a constant              `Varying`, if it is another in each trip

The loop's *representative* is the trip whose nodes stand for those of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from terra_tf.trace.case_assignment import BasicBlock
from terra_tf.trace.trace_graph import Feed, Output

InputKey = tuple[int, int]  # node, position among its inputs


class CannotRollError(Exception):
    """A loop has to stay unrolled: found while its body was built."""

    def __init__(self, loop: RolledLoop | None, why: str) -> None:
        super().__init__(why)
        self.loop, self.why = loop, why

    def of(self, loop: RolledLoop) -> CannotRollError:
        """Returns this error as that of a loop, unless it is of one inside already."""
        return self if self.loop is not None else CannotRollError(loop, self.why)


class Carried(NamedTuple):
    """An input that is a result of the trip before.

    Attributes:
      source: The result, of the representative's op.
      first: (node, position) of the same input in the first trip: what the loop starts with.
    """

    source: Output
    first: InputKey


class CarriedWeb(NamedTuple):
    """A web of each trip's own that the next trip takes the latest of.

    Attributes:
      before: The web, of the trip before the representative.
      result: The representative's own.
      last: The last trip's.
      first: (node, position) of an input of the first trip: what the loop starts with.
    """

    before: int
    result: int
    last: int
    first: InputKey


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Varying:
    """An input that is another constant in each trip.

    Attributes:
      loop: The loop's representative.
      tensors: By trip, host tensors of one type and shape.
    """

    loop: int
    tensors: tuple[Any, ...]


class TripFeed(NamedTuple):
    """An input that is fed anew in each trip."""

    feed: Feed


@dataclasses.dataclass(frozen=True, slots=True)
class RolledLoop:
    """Trips that become the body of one `While`.

    Attributes:
      begin: The first trip's first level.
      period: Levels per trip.
      num_trips: The most trips that were traced.
      blocks: Level -> its blocks, in the order of the representative's.
      nodes: The representative's, in order.
      inputs: Their inputs that the body sees otherwise: a `Carried`, `Varying` or `TripFeed`.
      webs: What all trips add to: loop variables.
      carried_webs: Webs of each trip's own that the next trip uses: loop variables.
      variable_nodes: Nodes of the representative that take variables.
      exits: Results of the last trip that are used behind the loop, of the representative's ops.
      skippable: Levels of the representative that a trip may go without.
      is_certain: Whether every path that comes here makes every trip.
      begins_for_certain: Whether every path that comes here makes the first trip.
    """

    begin: int
    period: int
    num_trips: int
    blocks: dict[int, tuple[BasicBlock, ...]]
    nodes: tuple[int, ...]
    inputs: dict[InputKey, Any]
    webs: tuple[int, ...]
    carried_webs: tuple[CarriedWeb, ...]
    variable_nodes: tuple[int, ...]
    exits: tuple[Output, ...]
    skippable: frozenset[int]
    is_certain: bool
    begins_for_certain: bool

    @property
    def end(self) -> int:
        """The first level behind the loop."""
        return self.begin + self.period * self.num_trips

    @property
    def representative(self) -> int:
        """The first level of the trip whose nodes stand for all: the second."""
        return self.begin + self.period

    def shifts(self) -> Iterator[int]:
        """Yields how far each trip's levels are from the representative's."""
        for trip in range(self.num_trips):
            yield (trip - 1) * self.period
