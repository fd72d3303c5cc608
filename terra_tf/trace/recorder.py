"""Turns the ops that pass the hooks into a `Trace`.

One recorder serves one step on one thread. It asks its *session* which output a tensor is, and
nothing else of the runtime, so it can be tested with a dictionary in the session's place.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from terra_tf._tf_internals import backprop, dtypes
from terra_tf.config import config
from terra_tf.errors import ImperativeReason
from terra_tf.trace.attributes import canonical_attributes, is_seeded
from terra_tf.trace.function_facts import facts_of, is_function
from terra_tf.trace.location import LocationTracker
from terra_tf.trace.markers import GradientMarkers, marker_for, unique_marker
from terra_tf.trace.op_classes import (
    STATELESS_RANDOM,
    TAKES_VARIANTS,
    imperative_reason,
    is_fallible,
)
from terra_tf.trace.records import (
    External,
    ExternalRef,
    InputRef,
    Materialization,
    OpRecord,
    OutputRef,
    TensorSpec,
    Trace,
    VariableRef,
)

_RESOURCE = dtypes.resource
_HOST_INTEGERS = frozenset(
    t.as_datatype_enum for t in (dtypes.int32, dtypes.int64, dtypes.bool)
)

_FIRST_CPU = "/device:CPU:0"


class Recorder:
    """Records one step.

    Args:
      session: Answers `made_index(tensor) -> (node, output) | None`.
      native: The native module: `handle_id`, `owns_memory`, `copy_tensor`.
      arguments: The tensors among the arguments of the call.
      tracker: Locations; None records none.
      markers: The thread's gradient functions.
      is_internal_pair: Says of a random op's seeds whether TensorFlow made them up.
      pattern: The arguments' types, where some of their dimensions vary; None: as they are.
    """

    def __init__(
        self,
        session: Any,
        native: Any,
        arguments: Iterable[Any],
        tracker: LocationTracker | None,
        markers: GradientMarkers,
        is_internal_pair: Callable[[int, int], bool],
        pattern: Sequence[TensorSpec] | None = None,
    ) -> None:
        self.trace = Trace()
        self._session = session
        self._native = native
        self._tracker = tracker
        self._markers = markers
        self._is_internal_pair = is_internal_pair
        self._argument_specs = _specs_by_handle(native, list(arguments), pattern)
        self._external_by_handle: dict[int, int] = {}
        self._variable_by_handle: dict[int, int] = {}
        self._variable_by_resource: dict[int, int] = {}
        self._open: dict[int, dict] = {}
        self._markers_given: set[Any] = set()
        self._kept: list[Any] = []

    def begin_op(
        self,
        op_type: str,
        is_fast: bool,
        attrs: tuple,
        inputs: tuple,
        counts: tuple,
        name: str | None,
        device: str,
    ) -> int:
        """Notes an op at its entry; returns its index in the trace."""
        if isinstance(op_type, bytes):
            op_type = op_type.decode()
        index = len(self.trace.ops) + len(self._open)
        bound_before = (len(self.trace.externals), len(self.trace.variables))
        canonical = canonical_attributes(op_type, attrs, is_fast)
        references = tuple(self.reference(tensor) for tensor in inputs)
        location = self._locate(op_type)
        self._open[index] = {
            "op_type": op_type,
            "is_fast": bool(is_fast),
            "attrs": attrs,
            "canonical": canonical,
            "counts": counts,
            "inputs": references,
            "location": location,
            "marker": unique_marker(marker_for(location, index), self._markers_given),
            "device": device,
            "name": name,
            "under_tape": not backprop.pywrap_tfe.TFE_Py_TapeSetIsEmpty(),
            "forward": self._markers.stack[-1] if self._markers.stack else None,
            "_bound_before": bound_before,
            "input_specs": tuple(map(_spec, inputs)),
        }
        return index

    def marker(self, index: int) -> Any:
        """Returns what names an op that has begun."""
        return self._open[index]["marker"]

    def end_op(self, index: int, outputs: list) -> None:
        """Completes the record of an op that has succeeded."""
        specs = tuple(_spec(tensor) for tensor in outputs)
        op_type = self._open[index]["op_type"]
        self._open[index]["placements"] = _placements(outputs)
        self._add(index, specs, self._copy_if_foldable(op_type, specs, outputs), False)

    def fail_op(self, index: int) -> OpRecord:
        """Completes the record of an op that has raised, and returns it.

        The step goes on behind it, if the program catches the error, or ends there.
        """
        self._add(index, (), (), True)
        return self.trace.ops[-1]

    def _add(self, index: int, specs: tuple, folded: tuple, has_raised: bool) -> None:
        fields = self._open.pop(index)
        fields.pop("_bound_before")
        location = fields["location"]
        input_dtypes = tuple(spec.dtype for spec in fields["input_specs"])
        reason = self._imperative(
            fields["op_type"], fields["attrs"], fields["inputs"], input_dtypes, specs
        )
        self.trace.ops.append(
            OpRecord(
                outputs=specs,
                folded=folded,
                imperative=reason,
                library_call=None if location is None else location.library_call(),
                has_raised=has_raised,
                **fields,
            )
        )

    def abandon_op(self, index: int) -> None:
        """Forgets an op that has not run, and what it was the first to use."""
        fields = self._open.pop(index)
        self._markers_given.discard(fields["marker"])
        num_externals, num_variables = fields["_bound_before"]
        del self.trace.externals[num_externals:]
        del self.trace.variables[num_variables:]
        self.trace.made_variables &= set(range(num_variables))
        for bound, count in (
            (self._external_by_handle, num_externals),
            (self._variable_by_handle, num_variables),
            (self._variable_by_resource, num_variables),
        ):
            for key in [key for key, position in bound.items() if position >= count]:
                del bound[key]

    def materialize(self, node: int, output: int, shape_only: bool) -> None:
        """Notes that Python reads an output of this step."""
        self.trace.materializations.append(
            Materialization(node, output, shape_only, None if shape_only else self._locate_read())
        )

    def reference(self, tensor: Any) -> InputRef:
        """Returns what `tensor` is to this step."""
        made = self._session.made_index(tensor)
        if tensor.dtype == _RESOURCE:
            return VariableRef(self._bind_variable(tensor, made is not None))
        if made is not None:
            return OutputRef(*made)
        return ExternalRef(self._bind_external(tensor))

    def _bind_variable(self, handle: Any, is_made: bool) -> int:
        """A function may return a handle that it has taken: another tensor, and no new variable."""
        key, resource = self._native.handle_id(handle), self._native.resource_key(handle)
        slot = self._variable_by_handle.get(key, self._variable_by_resource.get(resource))
        if slot is None:
            slot = self._variable_by_handle[key] = len(self.trace.variables)
            self._variable_by_resource[resource] = slot
            self.trace.variables.append(handle)
            if is_made:
                self.trace.made_variables.add(slot)
        return slot

    def _bind_external(self, tensor: Any) -> int:
        key = self._native.handle_id(tensor)
        index = self._external_by_handle.get(key)
        if index is None:
            index = self._external_by_handle[key] = len(self.trace.externals)
            self.trace.externals.append(self._describe(tensor, self._argument_specs.get(key)))
        return index

    def _describe(self, tensor: Any, argument_spec: TensorSpec | None) -> External:
        is_argument = argument_spec is not None
        spec = argument_spec or _spec(tensor)
        value = None
        if not is_argument and _num_bytes(tensor) <= config.max_constant_bytes:
            value = _host_bytes(tensor)
        owns_memory = self._native.owns_memory(tensor)
        if value is not None and not owns_memory:
            # NumPy may change the bytes: a constant is kept as a copy, and compared by value.
            self._kept.append(tensor)  # handles are known by address
            tensor = self._native.copy_tensor(tensor)
        return External(tensor, spec, value, is_argument, owns_memory)

    def adopt(self, trace: Trace) -> None:
        """Starts with the ops of a step's prefix, as a diverged session's recorder does."""
        self.trace = trace
        self._markers_given = {op.marker for op in trace.ops}
        handle_id = self._native.handle_id
        self._external_by_handle = {handle_id(e.tensor): i for i, e in enumerate(trace.externals)}
        self._variable_by_handle = {handle_id(v): i for i, v in enumerate(trace.variables)}
        resource_key = self._native.resource_key
        self._variable_by_resource = {resource_key(v): i for i, v in enumerate(trace.variables)}

    def _copy_if_foldable(self, op_type: str, specs: tuple, outputs: list) -> tuple:
        small = all(
            spec.dtype in _HOST_INTEGERS and _num_elements(spec) <= config.max_fold_elements
            for spec in specs
        )
        if not specs or not small:
            return ()
        return tuple(self._native.copy_tensor(tensor) for tensor in outputs)

    def _imperative(
        self, op_type: str, attrs: tuple, inputs: tuple, input_dtypes: tuple, specs: tuple
    ) -> ImperativeReason | None:
        if is_function(op_type):
            reason = facts_of(op_type).reason
        elif op_type in TAKES_VARIANTS and all(map(self._is_delegated, inputs)):
            reason = None
        else:
            reason = imperative_reason(op_type, input_dtypes, tuple(spec.dtype for spec in specs))
        if reason is None and is_seeded(op_type):
            if op_type not in STATELESS_RANDOM:
                return ImperativeReason.RANDOM_OP
            seeds = dict(zip(attrs[::2], attrs[1::2]))
            if not self._is_internal_pair(seeds["seed"], seeds["seed2"]):
                return ImperativeReason.OP_SEED
        if reason is not None or not config.synchronous_errors:
            return reason
        if is_fallible(op_type, input_dtypes, self._constant_positions(inputs)):
            return ImperativeReason.SYNCHRONOUS_ERRORS
        return None

    def _is_delegated(self, ref: InputRef) -> bool:
        """Says whether the graph makes an input itself, so that it may be of any type."""
        return isinstance(ref, OutputRef) and self.trace.ops[ref.node].imperative is None

    def _constant_positions(self, inputs: tuple[InputRef, ...]) -> frozenset[int]:
        return frozenset(
            position
            for position, ref in enumerate(inputs)
            if isinstance(ref, ExternalRef) and self.trace.externals[ref.index].value is not None
        )

    def _locate(self, op_type: str) -> Any:
        if self._tracker is None:
            return None
        *outer, marker = self._markers.stack or [None]
        location = self._tracker.locate(sys._getframe(2), marker, outer)
        self._tracker.note_op(op_type)
        return location

    def _locate_read(self) -> Any:
        if self._tracker is None:
            return None
        return self._tracker.look(sys._getframe(2), None)  # a read is no op


def _specs_by_handle(
    native: Any, arguments: list[Any], pattern: Sequence[TensorSpec] | None
) -> dict[int, TensorSpec]:
    specs: dict[int, TensorSpec] = {}
    for tensor, spec in zip(arguments, pattern or map(_spec, arguments), strict=True):
        key = native.handle_id(tensor)  # one tensor may be several arguments
        specs[key] = spec.joined(specs.get(key, spec))
    return specs


def _spec(tensor: Any) -> TensorSpec:
    # Not `tensor.shape`, which keeps what it finds: Python's own reading would pass unseen.
    return _interned_spec(tensor.dtype.as_datatype_enum, tensor._shape_tuple())


@functools.lru_cache(maxsize=4096)
def _interned_spec(dtype: int, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(dtype, shape)


def _placements(tensors: list) -> tuple[tuple[str, str], ...]:
    """Returns where results are; nothing if all are where they are by default."""
    places = tuple((tensor.device, tensor.backing_device) for tensor in tensors)
    is_default = all(name.endswith(_FIRST_CPU) for place in places for name in place)
    return () if is_default else places


def _num_elements(spec: TensorSpec) -> int:
    total = 1
    for dim in spec.shape or ():
        total *= dim
    return total


def _num_bytes(tensor: Any) -> int:
    return _num_elements(_spec(tensor)) * max(tensor.dtype.size or 0, 1)


def _host_bytes(tensor: Any) -> bytes | None:
    if tensor.dtype in (dtypes.variant, dtypes.resource):
        return None
    value = tensor.numpy()
    if tensor.dtype == dtypes.string:
        return repr(value.tolist() if hasattr(value, "tolist") else value).encode()
    return value.tobytes()
