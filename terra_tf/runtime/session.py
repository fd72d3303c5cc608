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

`_monitor` serializes divergence, which the owner starts or another thread that seizes the step.
Everything else is guarded by the GIL.

An exception from outside (Ctrl-C, a time limit) may be raised at any line of this file. Whoever
divides what must happen together into two lines says what happens if the second is not reached
(docs/design/0011): `close` is called until the step is over, and an interrupted settlement goes on
at the step's next op, read or end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

from terra_tf import _native
from terra_tf._tf_internals import (
    FallbackException,
    NotOkStatusException,
    status_to_exception,
)
from terra_tf.config import config
from terra_tf.errors import ImperativeReason, Reason
from terra_tf.runtime import (
    budget,
    failures,
    gradient_markers,
    in_flight,
    interception,
    source_lines,
    stance,
)
from terra_tf.runtime.entry import Entry
from terra_tf.runtime.gc_pause import end_pause, relax_gc
from terra_tf.runtime.prefix import prefix_trace
from terra_tf.runtime.settlement import Settlement
from terra_tf.runtime.step_costs import StepCosts
from terra_tf.runtime.step_locations import tracker_after
from terra_tf.runtime.step_questions import StepQuestions
from terra_tf.trace.location import LocationTracker
from terra_tf.trace.recorder import Recorder


class StepSession(StepQuestions):
    """Drives one step; see the module's docstring.

    Args:
      entry: The entry signature's state: what is known, and where to count.
      arguments: The tensors among the call's arguments.
      stop_frame: The frame whose callees the step's locations start with.
      built: The graph to co-execute, or None to trace.
      held: What the graph takes from outside, kept alive by the step.
      costs: Where the call's time goes.
    """

    def __init__(
        self,
        entry: Entry,
        arguments: Iterable[Any],
        stop_frame: FrameType,
        built: Any,
        held: tuple | None,
        costs: StepCosts,
    ) -> None:
        interception.apply_knobs()  # some are read when the native session is made
        module = _native.load().module
        self._mode = module.Mode
        plan = None if built is None else built.plan
        super().__init__(entry, built, module.Session(plan, self), stop_frame)
        self._module = module
        self._arguments = tuple(arguments)
        self._held = held
        self.costs = costs
        self.native.set_stop_frame(stop_frame)
        self._recorder: Recorder | None = None
        self._monitor = module.Monitor()
        self._settlement: Settlement | None = None
        self._error: BaseException | None = None  # that eager would have raised by now
        self._owner = threading.get_ident()
        self._is_finishing = False
        self._has_bad_index = False

    # ------------------------------------------------------------ lifetime

    def begin(self) -> None:
        """Enters the step on the calling thread. Whatever it raises, `close` comes after it."""
        interception.begin_step()
        if self.built is None:
            in_flight.settle()
            relax_gc()
            self._recorder = self._new_recorder()
            self.costs.enter()
            self.costs.limit_recording(self.entry.account.allowance_s)
        else:
            in_flight.settle(config.max_inflight_steps - 1)
            self.native.launch()
        self.native.enter()

    def finish(self) -> None:
        """Ends a step whose function has returned; its result is still referenced.

        Raises:
          Exception: What an op raised, if it only shows now.
        """
        self._is_finishing = True
        if self.built is None:
            self.costs.leave()
        self.settle()
        if self.native.mode == self._mode.CO_EXECUTION:
            self._finish_co_execution()
        if self.native.mode == self._mode.TRACING and not self.native.committed:
            self._finish_tracing()
        self.leave()
        if self._error is not None:
            raise self._error

    def close(self, error: BaseException | None) -> BaseException | None:
        """Ends a step that an exception leaves: what has run has happened, as in eager.

        Called again, until the step is over, if it is interrupted itself.

        Args:
          error: The exception; None if it is not known any more.

        Returns:
          What an op raised, if eager would have raised that first; else None.
        """
        self.costs.leave()
        if self.native.has_entered:
            self._settle_quietly()
            self._end_by(error)
        elif self.built is not None:
            self.native.cancel()
            self.native.await_end()
        self.leave()
        return self._error

    def _end_by(self, error: BaseException | None) -> None:
        if self.native.committed:
            in_flight.add(self)
            self._settle_committed()
        elif isinstance(error, Exception) and not self._is_finishing:
            self._end_by_exception(type(error).__name__)
        elif self.native.mode == self._mode.CO_EXECUTION:
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = Reason.KEYBOARD_INTERRUPT if interrupted else Reason.PYTHON_EXCEPTION
            self._diverge(reason, type(error).__name__)

    def _end_by_exception(self, error_type: str) -> None:
        """An exception is one more way to the end, if it was seen before."""
        if self.native.mode == self._mode.CO_EXECUTION:
            self._is_finishing = True
            self._finish_co_execution(Reason.PYTHON_EXCEPTION, error_type)
        elif self.built is None and self.native.mode == self._mode.TRACING:
            self.entry.stats.count_fallback(Reason.PYTHON_EXCEPTION, error_type)
        if self.native.mode == self._mode.TRACING and not self.native.committed:
            self._finish_tracing()

    def leave(self) -> None:
        """Leaves the step's thread; releases what is not in flight."""
        self.native.leave()
        self.log_rest()
        self._stop_frame = self._forks = None
        self._recorder = None
        if not self.native.committed:
            self.release()

    def await_end(self) -> None:
        """Waits for the graph, which is committed or cancelled and so will end."""
        self.native.await_end()

    def release(self) -> None:
        """Adds up the counters and drops every reference of the step. May be called again."""
        if self.native.release():
            self.entry.stats.add_session(self.native)
        self._held, self._arguments = None, ()

    def _finish_co_execution(
        self, early: Reason = Reason.STEP_ENDED_EARLY, detail: str = ""
    ) -> None:
        """Commits the step, or leaves what eager would have raised in `_error`."""
        # Nobody may seize a step while it commits.
        self._monitor.run(self._commit_or_diverge, early, detail)
        if self.native.committed:
            self._settle_committed()

    def _settle_committed(self) -> None:
        if self.built.generated.is_fallible and not config.run_ahead_on_fallible:
            self._error = in_flight.drain_through(self) or self._error

    def _commit_or_diverge(self, early: Reason, detail: str) -> None:
        if self.native.mode != self._mode.CO_EXECUTION:
            return
        if not self.native.skip_to_end():
            self._diverge(early, detail or f"after {self.native.position} ops")
            return
        for _ in range(self.native.epochs_left):
            number = self.native.num_epochs_done
            self._close_epoch(number)
            if self.native.mode != self._mode.CO_EXECUTION:
                return
            self.on_epoch_resume(number + 1)
        unfetched = set(self.native.unfetched())
        if unfetched:
            self._diverge_unfetched(unfetched)
            return
        self.native.commit_step(self.built.generated.epochs[-1].commit)
        in_flight.add(self)
        self.entry.count_co_executed(self.built)
        self.costs.num_ops = self.native.position
        self.costs.is_co_executed = True

    def _diverge_unfetched(self, unfetched: set[tuple[int, int]]) -> None:
        node, _ = min(unfetched)
        op_type = self.built.trace_graph.nodes[node].record.op_type
        self.entry.add_fetches(self.built, unfetched)
        self._diverge(Reason.LIVE_TENSOR_NOT_FETCHED, f"the result of {op_type}")

    def _finish_tracing(self) -> None:
        if self._recorder is None:
            return  # interrupted here before: what the step did is not learned
        trace = self._recorder.trace
        self._recorder = None  # its location tracker holds the step's frames
        trace.alive |= set(self.native.referenced())
        lifetimes = self.native.lifetimes_at_end(len(trace.ops))
        trace.kept_until = {(node, output): until for node, output, until in lifetimes}
        self.native.leave()  # what building a graph runs is no part of the step
        self.costs.num_ops = len(trace.ops)
        if not self.costs.is_sample:
            self.entry.account.add_recording(self.costs)
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
            gradient_markers.thread_markers(),
            interception.is_internal_pair,
            self.entry.pattern,
        )

    def on_op(
        self, op_type: str, is_fast: int, attrs: tuple, inputs: tuple, counts: tuple, name: Any
    ) -> tuple[int, Any]:
        """TRACING: an op is about to run. Returns its index, and what names it on a tape."""
        assert self._recorder is not None
        begun_s = budget.program.now()
        device = interception.device_scope()
        index = self._recorder.begin_op(
            op_type, bool(is_fast), attrs, inputs, counts, name, device
        )
        marker = self._recorder.marker(index)
        self.costs.recorder_s += budget.program.now() - begun_s
        return index, marker

    def on_result(self, index: int, outputs: list) -> None:
        """TRACING: the op has run."""
        assert self._recorder is not None
        begun_s = budget.program.now()
        self._recorder.end_op(index, outputs)
        if self.costs.add_recording(begun_s):
            self._stop_recording()

    def _stop_recording(self) -> None:
        """The budget is used up: the rest of the step runs as in eager, and is not learned."""
        self.native.mode = self._mode.IMPERATIVE
        end_pause()
        assert self._recorder is not None
        self.entry.account.add_stopped_recording(self.costs, len(self._recorder.trace.ops))

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

    def settle(self) -> bool:
        """Waits while another thread settles this step; goes on with what was interrupted.

        Returns:
          False if this thread is in the middle of it.

        Raises:
          Exception: What an op raises in replay; eager would have raised it before.
        """
        if self._is_settling_here():
            return False
        if self._settlement is not None:
            self._settle_quietly()
            self._raise_error()
        return True

    def _is_settling_here(self) -> bool:
        return self._monitor.is_mine and self.native.mode == self._mode.SEIZING

    def _settle_quietly(self) -> None:
        if self._settlement is not None:
            self._monitor.run(self._go_on_settling)

    def on_divergence(self, reason: str, detail: str = "") -> None:
        """CO_EXECUTION: makes everything so far as eager would have it, and goes on recording.

        Raises:
          Exception: What an op raises in replay; eager would have raised it before.
        """
        self._diverge(reason, detail)
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _diverge(self, reason: str, detail: str) -> None:
        """The same, but leaves what eager would have raised in `_error`."""
        self._monitor.run(self._begin_settling, reason, detail)

    def _begin_settling(self, reason: str, detail: str) -> None:
        if self._settlement is None:
            if self.native.mode != self._mode.CO_EXECUTION or self.native.committed:
                return
            where = source_lines.current_user_line()
            self.log_divergence(reason, detail)
            self.entry.count_divergence(Reason(reason), detail, where)
            self._settlement = Settlement(self.entry, self.built, self.native)
            leaves_anyway = reason in (Reason.PYTHON_EXCEPTION, Reason.KEYBOARD_INTERRUPT)
            if stance.current() == "fail_on_divergence" and not leaves_anyway:
                self._error = failures.divergence(Reason(reason), detail, where)
        self._go_on_settling()

    def _go_on_settling(self) -> None:
        settlement = self._settlement
        if settlement is None:
            return  # another thread has
        if self.native.mode in (self._mode.TRACING, self._mode.IMPERATIVE):
            self._settlement = None  # all but this was done
            return
        self.native.mode = self._mode.SEIZING  # from here on the owner waits
        settlement.run()
        if settlement.error is None:
            self._go_on_recording(prefix_trace(self.built, self.native))
        else:
            self._error = settlement.error
            self.native.mode = self._mode.IMPERATIVE
        self._settlement = None

    def _go_on_recording(self, trace: Any) -> None:
        recorder = self._recorder_with(tracker_after(self._stop_frame, trace.ops))
        recorder.adopt(trace)
        self._recorder = recorder
        self.costs.limit_recording(self.entry.account.allowance_s)
        self.native.go_on_tracing()

    def replay_committed(self) -> BaseException | None:
        """Runs a step again whose graph failed after it had returned. May be called again.

        Returns:
          What an op raised, or None. The caller releases the session.
        """
        return self._monitor.run(self._replay_committed)

    def _replay_committed(self) -> BaseException | None:
        if self._settlement is None:
            self.entry.count_divergence(Reason.OP_ERROR, "after the step had returned", "")
            self._settlement = Settlement(self.entry, self.built, self.native)
        self.native.mode = self._mode.IMPERATIVE
        self._settlement.replay()
        return self._settlement.error

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
        if self._is_settling_here():
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
        self._diverge(Reason.SEIZED_BY_OTHER_THREAD, what)
        if threading.get_ident() == self._owner:
            self._raise_error()

    # -------------------------------------------------------------- epochs

    def on_epoch_close(self, number: int) -> None:
        """What comes next needs everything up to epoch `number` to have happened."""
        self._monitor.run(self._close_epoch, number)  # nobody may seize a step while it commits
        self._raise_error()

    def _close_epoch(self, number: int) -> None:
        if self.native.mode != self._mode.CO_EXECUTION:
            return
        epoch = self.built.generated.epochs[number]
        if self.native.num_epochs_committed <= number:
            unfetched = set(self.native.unfetched())
            if unfetched:
                self._diverge_unfetched(unfetched)
                return
            self.native.commit_epoch(number, epoch.commit)
        if self.native.num_epochs_done <= number:
            if not self.native.await_channel(epoch.done):
                self._diverge(Reason.OP_ERROR, f"in epoch {number}")
                return
            self.native.finish_epoch(number)

    def on_epoch_resume(self, number: int) -> None:
        """Epoch `number` may begin: the op that waited for the one before it is done."""
        self.native.resume_epoch(number, self.built.generated.epochs[number - 1].resume)

    def on_uncertain_write(self, node: int) -> None:
        """CO_EXECUTION: it cannot be known in time whether a write fits; Python does it."""
        self.entry.force(self.built, node, ImperativeReason.DYNAMIC_WRITE)

    def on_index_out_of_range(self, slot: int) -> None:
        """CO_EXECUTION: what is fed is not what ops were known to take; they may fail."""
        self._has_bad_index = True
        self.entry.note_index_out_of_range(self.built, slot)
