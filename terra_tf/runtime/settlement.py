"""What makes an open step that leaves its graph as eager would have it.

An exception from outside (Ctrl-C, a time limit, another thread's) may be raised at any line here.
So a settlement is an object that lives as long as it takes, and `run` goes on where it was
interrupted: each thing it does may be done again, or notes that it is done before Python can be
interrupted (docs/design/0011).

    closing    an epoch's commit may have been sent: its writes are awaited, and count as done
    cancelled  the graph ends, and has written nothing of the open epoch
    earlier    the steps before this one are settled
    replayed   what Python has delegated has happened, every pending tensor has a value
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terra_tf import _native
from terra_tf.runtime import in_flight, source_lines
from terra_tf.runtime.replay import Replay

if TYPE_CHECKING:
    from terra_tf import _terra_native
    from terra_tf.runtime.built_graph import BuiltGraph
    from terra_tf.runtime.entry import Entry


class Settlement:
    """Settles one step. Runs inside the session's monitor, with its mode SEIZING.

    Args:
      entry: Where an op that raises in replay is noted.
      built: The graph that the step has left.
      native: The step's native session.

    Attributes:
      error: What eager would have raised by now, or None.
    """

    def __init__(self, entry: Entry, built: BuiltGraph, native: _terra_native.Session) -> None:
        self._entry = entry
        self._built = built
        self._native = native
        self._replay: Replay | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Settles the open epoch; goes on if it was interrupted before."""
        self._finish_closing_epoch()
        self._native.cancel()
        self._native.await_end()
        earlier_error = in_flight.drain()
        _native.load().module.runner_resume()
        self.replay()  # before anything is raised: tensors are waited for
        self.error = earlier_error or self.error

    def _finish_closing_epoch(self) -> None:
        number = self._native.num_epochs_done
        if self._native.num_epochs_committed > number:
            done = self._built.generated.epochs[number].done
            if self._native.await_channel(done):
                self._native.finish_epoch(number)

    def replay(self) -> None:
        """Runs the open epoch's ops again, eagerly, but for those that it has run before."""
        if self._replay is None:
            self._replay = Replay(self._built, self._native, self._native.epoch_start)
        failure = self._replay.run()
        if failure is not None and self.error is None:
            record = self._built.trace_graph.nodes[failure.node].record
            self._entry.note_raised_location(record.location)
            self._entry.drop_graph(self._built)
            source_lines.add_note(failure.error, record)
            self.error = failure.error
