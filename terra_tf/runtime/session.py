"""The session of a step: one call of a decorated function, from entry to return.

The native session calls back here for everything that is not the hot path. Its modes, and who
changes them:

    TRACING ------------------------------- finish --> merged into the TraceGraph
       ^
       | on_divergence: cancel, replay, go on recording
       |
    CO_EXECUTION -- finish: commit ------------------> in flight, or awaited
       |
       '-- replay raises --> IMPERATIVE -- finish

Locks: `_lock` serializes divergence, which the owner starts or another thread that seizes the
step. Everything else is guarded by the GIL.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any

from terra_tf import _native
from terra_tf._tf_internals import (
    FallbackException,
    NotOkStatusException,
    status_to_exception,
)
from terra_tf.config import config
from terra_tf.errors import ImperativeReason, Reason
from terra_tf.runtime import failures, in_flight, interception, interrupts, source_lines, stance
from terra_tf.runtime.entry import Entry
from terra_tf.runtime.prefix import prefix_trace
from terra_tf.runtime.replay import Replay, ReplayError
from terra_tf.runtime.step_locations import ForkLocator, tracker_after
from terra_tf.runtime.tape_names import TapeNames
from terra_tf.trace.location import LocationTracker
from terra_tf.trace.recorder import Recorder

if TYPE_CHECKING:
    from terra_tf import _terra_native

_logger = logging.getLogger("terra_tf")


class StepSession:
    """Drives one step; see the module's docstring.

    Args:
      entry: The entry signature's state: what is known, and where to count.
      arguments: The tensors among the call's arguments.
      stop_frame: The frame whose callees the step's locations start with.
      built: The graph to co-execute, or None to trace.
      held: What the graph takes from outside, kept alive by the step.
    """

    def __init__(
        self,
        entry: Entry,
        arguments: Iterable[Any],
        stop_frame: FrameType,
        built: Any,
        held: tuple | None,
    ) -> None:
        module = _native.load().module
        self._mode = module.Mode
        self.entry = entry
        self.built = built
        plan = None if built is None else built.plan
        self.native: _terra_native.Session = module.Session(plan, self)
        self._module = module
        self._arguments = tuple(arguments)
        self._held = held
        self._stop_frame: FrameType | None = stop_frame
        self.native.set_stop_frame(stop_frame)
        self._recorder: Recorder | None = None
        self._lock = threading.RLock()
        self._epoch = 0
        self.tape_names = TapeNames(self.native)
        self._epoch_start = 0  # how many ops were matched before it
        self._deferred_error: BaseException | None = None
        self._forks: ForkLocator | None = None
        self._owner = threading.get_ident()
        self._seizer: int | None = None
        self._has_begun = False
        self._has_bad_index = False

    # ------------------------------------------------------------ lifetime

    def begin(self) -> None:
        """Enters the step on the calling thread."""
        interception.apply_knobs()
        try:
            if self.built is None:
                in_flight.settle()
                self._recorder = self._new_recorder()
            else:
                in_flight.settle(config.max_inflight_steps - 1)
                self.native.launch()
        except BaseException:
            self.native.release()
            raise
        self._has_begun = True
        self.native.enter()

    def finish(self) -> None:
        """Ends a step whose function has returned; its result is still referenced.

        Raises:
          Exception: What an op raised, if it only shows now.
        """
        try:
            self.await_seizure()
            if self.native.mode == self._mode.CO_EXECUTION:
                self._finish_co_execution()
            if self.native.mode == self._mode.TRACING and not self.native.committed:
                self._finish_tracing()
        finally:
            self.leave()
        if self._deferred_error is not None:
            raise self._deferred_error

    def leave_by_exception(self, error: BaseException) -> None:
        """Ends a step that an exception leaves: what has run has happened, as in eager.

        Raises:
          Exception: What an op raised, if eager would have raised that first.
        """
        try:
            self.await_seizure()
            if not self._has_begun:
                return  # the error is begin's own
            if isinstance(error, Exception):
                self._end_by_exception(type(error).__name__)
            elif self.native.mode == self._mode.CO_EXECUTION:
                interrupted = isinstance(error, KeyboardInterrupt)
                reason = Reason.KEYBOARD_INTERRUPT if interrupted else Reason.PYTHON_EXCEPTION
                self.on_divergence(reason, type(error).__name__)
        finally:
            self.leave()
        if self._deferred_error is not None:
            raise self._deferred_error from None

    def _end_by_exception(self, error_type: str) -> None:
        """An exception is one more way to the end, if it was seen before."""
        if self.native.mode == self._mode.CO_EXECUTION:
            self._finish_co_execution(Reason.PYTHON_EXCEPTION, error_type)
        elif self.built is None and self.native.mode == self._mode.TRACING:
            self.entry.stats.count_fallback(Reason.PYTHON_EXCEPTION, error_type)
        if self.native.mode == self._mode.TRACING and not self.native.committed:
            self._finish_tracing()

    def leave(self) -> None:
        """Leaves the step's thread; releases what is not in flight."""
        self.native.leave()
        self._stop_frame = self._forks = None
        self._recorder = None
        if not self.native.committed:
            self.release()

    def release(self) -> None:
        """Adds up the counters and drops every reference of the step."""
        self.entry.stats.add_session(self.native)
        self.native.release()
        self._held, self._arguments = None, ()

    def await_end(self) -> None:
        """Waits for the graph, which is committed or cancelled and so will end."""
        with interrupts.deferred():
            self.native.await_end()

    def _finish_co_execution(
        self, early: Reason = Reason.STEP_ENDED_EARLY, detail: str = ""
    ) -> None:
        with self._lock:  # nobody may seize a step while it commits
            if self.native.mode != self._mode.CO_EXECUTION:
                return
            if not self.native.skip_to_end():
                self.on_divergence(early, detail or f"after {self.native.position} ops")
                return
            for _ in range(self.native.epochs_left):
                self.on_epoch_close(self._epoch)
                if self.native.mode != self._mode.CO_EXECUTION:
                    return
                self.on_epoch_resume(self._epoch)
            unfetched = set(self.native.unfetched())
            if unfetched:
                self._diverge_unfetched(unfetched)
                return
            self.native.committed = True
            self.native.commit(self.built.generated.epochs[-1].commit)
            self.entry.count_co_executed(self.built)
            in_flight.add(self)
        if self.built.generated.is_fallible and not config.run_ahead_on_fallible:
            in_flight.settle_through(self)

    def _diverge_unfetched(self, unfetched: set[tuple[int, int]]) -> None:
        node, _ = min(unfetched)
        op_type = self.built.trace_graph.nodes[node].record.op_type
        self.entry.add_fetches(self.built, unfetched)
        self.on_divergence(Reason.LIVE_TENSOR_NOT_FETCHED, f"the result of {op_type}")

    def _finish_tracing(self) -> None:
        assert self._recorder is not None
        trace = self._recorder.trace
        self._recorder = None  # its location tracker holds the step's frames
        trace.alive |= set(self.native.referenced())
        lifetimes = self.native.lifetimes_at_end(len(trace.ops))
        trace.kept_until = {(node, output): until for node, output, until in lifetimes}
        self.native.leave()  # what building a graph runs is no part of the step
        self.entry.add_trace(trace, diverged=self.built is not None)

    # ----------------------------------------------------------- recording

    def _new_recorder(self) -> Recorder:
        return self._recorder_with(tracker_after(self._stop_frame, ()))

    def _recorder_with(self, tracker: LocationTracker) -> Recorder:
        return Recorder(
            self.native,
            self._module,
            self._arguments,
            tracker,
            interception.thread_markers(),
            interception.is_internal_pair,
            self.entry.pattern,
        )

    def on_op(
        self, op_type: str, is_fast: int, attrs: tuple, inputs: tuple, counts: tuple, name: Any
    ) -> tuple[int, Any]:
        """TRACING: an op is about to run. Returns its index, and what names it on a tape."""
        assert self._recorder is not None
        device = interception.device_scope()
        index = self._recorder.begin_op(
            op_type, bool(is_fast), attrs, inputs, counts, name, device
        )
        return index, self._recorder.marker(index)

    def on_result(self, index: int, outputs: list) -> None:
        """TRACING: the op has run."""
        assert self._recorder is not None
        self._recorder.end_op(index, outputs)

    def on_error(self, index: int, error_type: type[BaseException]) -> None:
        """TRACING: the op has raised; from now on it runs imperatively at this place.

        But not if that was to be expected: the next time indices are out of range, the step
        leaves its graph before the op again.
        """
        assert self._recorder is not None
        if issubclass(error_type, FallbackException):  # it is tried again in another way
            self._recorder.abandon_op(index)
            return
        record = self._recorder.fail_op(index)
        if record.imperative is None and not self._has_bad_index:
            self.entry.note_raised_location(record.location)

    def on_unnamed_error(self, error: BaseException) -> None:
        """Raises an op's error as TensorFlow's slow path does: its wrapper adds no name to it."""
        if isinstance(error, NotOkStatusException):
            raise status_to_exception(error) from None

    def on_materialize(self, node: int, output: int, shape_only: int) -> None:
        """TRACING: Python reads an output of this step."""
        assert self._recorder is not None
        self._recorder.materialize(node, output, bool(shape_only))

    # ---------------------------------------------------------- divergence

    def await_seizure(self) -> bool:
        """Waits while another thread settles this step; False if this thread is the one."""
        if self._seizer == threading.get_ident():
            return False
        with self._lock:
            return True

    def on_divergence(self, reason: str, detail: str = "") -> None:
        """CO_EXECUTION: makes everything so far as eager would have it, and goes on recording.

        Raises:
          Exception: What an op raises in replay; eager would have raised it before.
        """
        with self._lock, interrupts.deferred():
            if self.native.mode != self._mode.CO_EXECUTION or self.native.committed:
                return
            where = source_lines.current_user_line()
            self.entry.count_divergence(Reason(reason), detail, where)
            self._diverge()
        leaves_anyway = reason in (Reason.PYTHON_EXCEPTION, Reason.KEYBOARD_INTERRUPT)
        if stance.current() == "fail_on_divergence" and not leaves_anyway:
            raise failures.divergence(Reason(reason), detail, where)

    def _diverge(self) -> None:
        self._seizer = threading.get_ident()
        self.native.mode = self._mode.SEIZING  # from here on the owner waits
        try:
            self._settle_open()
        finally:
            self._seizer = None
            if self.native.mode == self._mode.SEIZING:
                self.native.mode = self._mode.IMPERATIVE

    def _settle_open(self) -> None:
        self.native.cancel()
        self.await_end()
        earlier_error: BaseException | None = None
        try:
            in_flight.settle()
        except Exception as error:
            earlier_error = error
        self._module.runner_resume()
        own_error = self._replay()  # before anything else: tensors are waited for
        error_to_raise = earlier_error or own_error
        if error_to_raise:
            raise error_to_raise
        self._go_on_recording(prefix_trace(self.built, self.native))

    def _replay(self) -> BaseException | None:
        try:
            Replay(self.built, self.native, self._epoch_start).run()
        except ReplayError as failure:
            record = self.built.trace_graph.nodes[failure.node].record
            self.entry.note_raised_location(record.location)
            self.entry.drop_graph(self.built)
            source_lines.add_note(failure.error, record)
            return failure.error
        return None

    def _go_on_recording(self, trace: Any) -> None:
        tracker = tracker_after(self._stop_frame, trace.ops)
        self._recorder = self._recorder_with(tracker)
        self._recorder.adopt(trace)
        self.native.renumber()
        self.native.mode = self._mode.TRACING

    def replay_committed(self) -> BaseException | None:
        """Runs a step again whose graph failed after it had returned.

        Returns:
          What an op raised, or None. The caller releases the session.
        """
        self._seizer = threading.get_ident()
        with self._lock, interrupts.deferred():
            self.entry.count_divergence(Reason.OP_ERROR, "after the step had returned", "")
            self.native.mode = self._mode.IMPERATIVE
            return self._replay()

    # -------------------------------------------------- reading and seizing

    def on_unplanned(self, node: int, output: int, is_owner: int) -> None:
        """Somebody reads an output that the graph does not fetch."""
        if self.native.committed:
            raise failures.lost_tensor(node, output)
        self.entry.add_fetches(self.built, {(node, output)})
        op_type = self.built.trace_graph.nodes[node].record.op_type
        if is_owner:
            self.on_divergence(Reason.UNPLANNED_MATERIALIZATION, f"the result of {op_type}")
        else:
            self.seize(f"the result of {op_type}")

    def on_dead(self, node: int, output: int) -> None:
        """Somebody waits for an output of a graph that has ended without setting it."""
        del node, output
        if self.native.committed:
            in_flight.settle_through(self)
        elif threading.get_ident() == self._owner:
            self.on_divergence(Reason.OP_ERROR, "in the graph")
        else:
            self.seize("an op error")

    def on_conflict(self) -> bool:
        """An op outside the step touches a variable of it.

        Returns:
          False if this thread is the one that is settling the step already.
        """
        if self._seizer == threading.get_ident():
            return False
        if self.native.committed:
            return in_flight.settle_through(self)
        self.seize("a variable")
        return True

    def on_finished(self) -> None:
        """A committed step's graph has ended."""
        in_flight.retire_finished()

    def seize(self, what: str) -> None:
        """Settles the open step from outside; its owner finds out at its next op.

        An op error of the owner's program is the owner's: it is raised when its step ends.
        """
        try:
            self.on_divergence(Reason.SEIZED_BY_OTHER_THREAD, what)
        except Exception as error:
            if threading.get_ident() == self._owner:
                raise
            self._deferred_error = error

    # -------------------------------------------------------------- epochs

    def on_epoch_close(self, number: int) -> None:
        """What comes next needs everything up to epoch `number` to have happened."""
        unfetched = set(self.native.unfetched())
        if unfetched:
            self._diverge_unfetched(unfetched)
            return
        with self._lock:  # nobody may seize a step while it commits
            if self.native.mode != self._mode.CO_EXECUTION:
                return
            epoch = self.built.generated.epochs[number]
            self.native.commit(epoch.commit)
            if not self.native.await_channel(epoch.done):
                self.on_divergence(Reason.OP_ERROR, f"in epoch {number}")
                return
            self._epoch = number + 1
            self._epoch_start = self.native.position
            self.native.toggle_epoch_closed()

    def on_epoch_resume(self, number: int) -> None:
        """Epoch `number` may begin: the op that waited for the one before it is done."""
        self.native.toggle_epoch_closed()
        self.native.commit(self.built.generated.epochs[number - 1].resume)

    def on_uncertain_write(self, node: int) -> None:
        """CO_EXECUTION: it cannot be known in time whether a write fits; Python does it."""
        self.entry.force(self.built, node, ImperativeReason.DYNAMIC_WRITE)

    def on_index_out_of_range(self, slot: int) -> None:
        """CO_EXECUTION: what is fed is not what ops were known to take; they may fail."""
        self._has_bad_index = True
        self.entry.note_index_out_of_range(self.built, slot)

    # --------------------------------------------------------- library calls

    def names(self) -> tuple[dict, Any]:
        """Returns what sums and zeros have been named so far, for calls that are replayed."""
        return self.tape_names.state()

    def guard(self, objects: list) -> Any:
        """Returns a guard of the objects' state, or why there can be none."""
        return self.entry.guard_of(objects)

    def on_impure(self, name: str, difference: str) -> None:
        """A function declared pure has done something else than in a call that looked the same.

        Raises:
          ImpureError: Always.
        """
        raise failures.impure(name, difference, source_lines.current_user_line())

    # ---------------------------------------------------------------- forks

    def current_marker(self) -> tuple:
        """CO_EXECUTION: the forward ops whose gradient functions run on this thread."""
        return tuple(interception.thread_markers().stack)

    def on_fork(self) -> tuple[list[int], list[int]]:
        """CO_EXECUTION: which nodes are known where Python is now, and in other trips of a loop?"""
        if self._forks is None:
            self._forks = ForkLocator(self.built, self.native, self._stop_frame)
        location = self._forks.look(sys._getframe(1))
        return self.built.nodes_at.get(location, []), self.built.nodes_near(location)

    def on_forward_accumulator(self) -> None:
        """A forward-mode accumulator is being entered on this thread."""
        if self.native.mode == self._mode.CO_EXECUTION:
            self.on_divergence(Reason.FORWARD_ACCUMULATOR)
        self.native.mode = self._mode.IMPERATIVE
        self.entry.give_up_on_forward_accumulator()

    def on_waited(self, awaited: int, node: int, waited_s: float) -> str:
        """Python has waited for the graph. Returns the user's line that did."""
        return self.entry.stats.waits.add(awaited, self.built, node, waited_s)

    def on_stall(self, node: int, waited_s: float) -> None:
        """A wait takes longer than `stall_warning_s`."""
        what = "the end of the graph"
        if 0 <= node < len(self.built.trace_graph.nodes):
            what = f"op {node} {self.built.trace_graph.nodes[node].record.op_type}"
        _logger.warning(
            "Python has waited %.1f s for %s at %s; the graph has it not computed yet",
            waited_s,
            what,
            source_lines.current_user_line(),
        )

