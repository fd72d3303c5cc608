"""Names of the ops that a gradient tape makes between gradient functions.

The tape sums gradients, and makes zeros for outputs without one; no line of Python is theirs. They
are named by the op before them, and a count.
"""

from __future__ import annotations

import collections
from typing import Any

from terra_tf._tf_internals import EagerTensor
from terra_tf.runtime import gradient_markers
from terra_tf.trace.markers import SUM, ZEROS


class TapeNames:
    """Names the sums and zeros of one step, on the thread that runs it.

    Args:
      native: The native session, which replays calls: their sums and zeros count, too.
    """

    def __init__(self, native: Any) -> None:
        self._native = native
        self._num_named: collections.Counter[tuple] = collections.Counter()

    def name_sum(self, gradients: list) -> Any:
        """Names the sum of several gradients by the term that was computed last."""
        tensors = [getattr(gradient, "values", gradient) for gradient in gradients]
        origins = [self._native.origin(t) for t in tensors if isinstance(t, EagerTensor)]
        known = [origin for origin in origins if origin is not None]
        if not known:
            return None
        _, *producer = max(known, key=lambda origin: origin[0])
        return self._numbered(SUM, *producer)

    def name_zeros(self) -> Any:
        """Names zeros that the tape needs after a gradient function."""
        self._count_replayed()
        return self._numbered(ZEROS, gradient_markers.thread_markers().last)

    def state(self) -> tuple[dict, Any]:
        """Returns what has been named so far, for a call that is going to be replayed."""
        self._count_replayed()
        return dict(self._num_named), gradient_markers.thread_markers().last

    def _count_replayed(self) -> None:
        """Counts as if the replayed calls had run."""
        state = self._native.take_names()
        if state is not None:
            self._num_named = collections.Counter(state[0])
            gradient_markers.thread_markers().last = state[1]

    def _numbered(self, *what: Any) -> tuple:
        self._count_replayed()
        self._num_named[what] += 1
        return (*what, self._num_named[what])
