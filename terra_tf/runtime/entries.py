"""The entries of one function: which one serves a call with these argument tensors.

The first few signatures that differ only in dimensions get an exact entry each, whose graph
knows every shape. The next one makes a *relaxed* entry, to which the dimensions that vary are
unknown (docs/design/0008-shapes.md):

    f(ones[9, 8]); f(ones[12, 8]); f(ones[7, 8]); f(ones[30, 8])   four exact entries
    f(ones[11, 8]) and every new length after it                   the relaxed entry [?, 8]

It takes all that no exact entry knows. If more dimensions turn out to vary, it is widened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from terra_tf.config import config
from terra_tf.errors import Reason
from terra_tf.runtime.entry import Entry, Signature, join_signatures
from terra_tf.runtime.stats import Counters
from terra_tf.trace.records import TensorSpec

_Family = tuple[tuple[int, int], ...]  # of each tensor: dtype enum, rank


class Entries:
    """The entries of one function, for one set of objects. Guarded by the co-execution lock.

    Args:
      counters: Where to count.
      settled: What those of other objects have found out: signature -> see `Entry`.
    """

    def __init__(self, counters: Counters, settled: dict[Signature, set[int]]) -> None:
        self._counters = counters
        self._settled = settled
        self._exact: dict[Signature, Entry] = {}
        self._relaxed: dict[_Family, Entry] = {}
        self._seen: dict[_Family, list[Signature]] = {}  # until the family is relaxed

    def find(self, tensors: Iterable[Any]) -> Entry | None:
        """Returns the entry for a call with these argument tensors.

        None, which is counted, if there are too many kinds of arguments already.
        """
        signature = tuple(
            TensorSpec(t.dtype.as_datatype_enum, tuple(t.shape.as_list())) for t in tensors
        )
        entry = self._exact.get(signature)
        return self._find_for_new(signature) if entry is None else entry

    def _find_for_new(self, signature: Signature) -> Entry | None:
        family = tuple((spec.dtype, len(spec.shape or ())) for spec in signature)
        relaxed = self._relaxed.get(family)
        if relaxed is not None:
            relaxed.accept(signature)
            return relaxed
        seen = self._seen.setdefault(family, [])
        is_full = len(self._exact) + len(self._relaxed) >= config.max_entry_signatures
        if seen and (is_full or len(seen) >= config.max_exact_shapes):
            return self._relax(family, signature)
        if is_full:
            self._counters.count_fallback(Reason.TOO_MANY_SIGNATURES)
            return None
        seen.append(signature)
        settled = self._settled.setdefault(signature, set())
        entry = self._exact[signature] = Entry(self._counters, settled=settled)
        return entry

    def _relax(self, family: _Family, signature: Signature) -> Entry:
        """Makes the relaxed entry; exact ones that have no graph yet are dropped for it."""
        seen = self._seen.pop(family)
        for known in seen:
            if self._exact[known].current_built is None:
                del self._exact[known]
        pattern = signature
        for known in seen:
            pattern = join_signatures(pattern, known)
        entry = self._relaxed[family] = Entry(self._counters, pattern)
        entry.accept(signature)
        return entry
