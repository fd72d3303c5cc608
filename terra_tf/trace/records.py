"""The vocabulary of a trace: frozen records of what one step did, in order.

A *trace* is the list of ops that one call of the decorated function ran, each an `OpRecord`.
An op's inputs are references:

    OutputRef(3, 0)   the first output of the trace's op 3
    VariableRef(1)    the variable that the trace's slot 1 was bound to at its first use
    ExternalRef(2)    the trace's external tensor 2: an argument, a constant, a batch

A *materialization* is the reading of a tensor's value (or only its shape) by Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

from terra_tf.errors import ImperativeReason
from terra_tf.trace.location_tree import LibraryCall, Location


class OutputRef(NamedTuple):
    """An output of an op of the same step."""

    node: int
    output: int


class VariableRef(NamedTuple):
    """A resource, by the slot that its first use in the step bound."""

    slot: int


class ExternalRef(NamedTuple):
    """A tensor from outside of the step."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of it


InputRef = OutputRef | VariableRef | ExternalRef


class TensorSpec(NamedTuple):
    """A tensor's type: DataType enum, and dimensions as seen."""

    dtype: int
    shape: tuple[int, ...] | None

    @property
    def is_static(self) -> bool:
        """Whether every dimension is known."""
        return self.shape is not None and -1 not in self.shape

    def includes(self, other: TensorSpec) -> bool:
        """Says whether every tensor of the other type is of this one."""
        if self.dtype != other.dtype:
            return False
        if self.shape is None or other.shape is None:
            return self.shape is None
        return len(self.shape) == len(other.shape) and all(
            dim in (-1, of_other) for dim, of_other in zip(self.shape, other.shape)
        )

    def joined(self, other: TensorSpec) -> TensorSpec:
        """Returns the narrowest type that includes this one and the other, of the same dtype."""
        if self.shape == other.shape or self.shape is None:
            return self
        if other.shape is None or len(other.shape) != len(self.shape):
            return TensorSpec(self.dtype, None)
        dims = (a if a == b else -1 for a, b in zip(self.shape, other.shape))
        return TensorSpec(self.dtype, tuple(dims))


class Materialization(NamedTuple):
    """Python read an output: its value, or only its shape."""

    node: int
    output: int
    shape_only: bool
    location: Location | None


class OpRecord(NamedTuple):
    """One op of a trace.

    Attributes:
      op_type: The op's type (`MatMul`), or the name of a function.
      is_fast: Which of TensorFlow's entry points it came by; it decides the form of `attrs`.
      attrs: The caller's own attribute tuple `(name, value, ...)`.
      canonical: The attributes' canonical form, for equality.
      counts: Inputs per argument: -1 for a single tensor, n for a list of n.
      inputs: References, flat.
      outputs: The results' types.
      folded: Copies of the results where they are small enough to be constants; else empty.
      location: Where in the step it ran.
      library_call: The public library call it belongs to, if any.
      device: The device scope it ran under, or "".
      under_tape: Whether a gradient tape recorded it.
      forward: For an op of a gradient function, the marker that names the forward op.
      imperative: Why it cannot be delegated, or None.
      marker: What names the op on a tape; no other op of the step, and no other node of a
        graph, has the same.
      input_specs: The inputs' types, flat, where they are known.
      name: The name of the op that its errors end with; None if they end with none.
      has_raised: Whether it raised in this step; then it has no outputs.
      placements: Of each output, the names of the devices that ran the op and that holds it;
        empty where all are the first CPU.
    """

    op_type: str
    is_fast: bool
    attrs: tuple
    canonical: Hashable
    counts: tuple[int, ...]
    inputs: tuple[InputRef, ...]
    outputs: tuple[TensorSpec, ...]
    folded: tuple[Any, ...]
    location: Location | None
    library_call: LibraryCall | None
    device: str
    under_tape: bool
    forward: Hashable | None
    imperative: ImperativeReason | None
    marker: Hashable | None = None
    input_specs: tuple[TensorSpec, ...] = ()
    name: str | None = None
    has_raised: bool = False
    placements: tuple[tuple[str, str], ...] = ()

    def attribute(self, name: str) -> Any:
        """Returns the caller's value of an attribute, or None."""
        for key, value in zip(self.attrs[::2], self.attrs[1::2]):
            if key == name:
                return value
        return None


class External(NamedTuple):
    """A tensor from outside of the step, as one trace saw it.

    Attributes:
      tensor: The eager tensor.
      spec: Its type.
      value: Its bytes where it is small enough to be a constant, else None.
      is_argument: Whether it came as an argument of the decorated function.
      owns_memory: Whether nobody else (NumPy) can change its buffer.
    """

    tensor: Any
    spec: TensorSpec
    value: bytes | None
    is_argument: bool
    owns_memory: bool


@dataclasses.dataclass(slots=True)
class Trace:
    """One step, recorded.

    Attributes:
      ops: In execution order.
      externals: What `ExternalRef.index` means.
      variables: Handle tensors; what `VariableRef.slot` means.
      made_variables: Slots of the variables that the step itself has made.
      materializations: In order.
      alive: Outputs that somebody still referenced when the step ended.
      kept_until: Outputs that were still referenced when a later op began -> the last such op.
      followed: The nodes that the first ops were, where the step has left its graph.
      generation: The `TraceGraph.generation` in which `followed` has its meaning.
    """

    ops: list[OpRecord] = dataclasses.field(default_factory=list)
    externals: list[External] = dataclasses.field(default_factory=list)
    variables: list[Any] = dataclasses.field(default_factory=list)
    made_variables: set[int] = dataclasses.field(default_factory=set)
    materializations: list[Materialization] = dataclasses.field(default_factory=list)
    alive: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    kept_until: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    followed: tuple[int, ...] = ()
    generation: int = 0

    def fetches(self) -> set[tuple[int, int]]:
        """Returns the outputs whose values Python needed."""
        return self.alive | {
            (m.node, m.output) for m in self.materializations if not m.shape_only
        }

    def shape_reads(self) -> set[tuple[int, int]]:
        """Returns the outputs whose shapes Python asked for."""
        return {(m.node, m.output) for m in self.materializations if m.shape_only}
