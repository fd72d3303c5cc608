"""Names for the nodes of a flat GraphDef: unique, and no node is called like a scope beside it."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from terra_tf.viz.scopes import ScopePath

_LEAVES = {
    "Terra>Feed": "feed",
    "Terra>Fetch": "fetch",
    "Terra>CaseSelect": "select",
    "Terra>Select": "choose",
    "Terra>AwaitCommit": "commit",
    "Terra>LoopCond": "goes_on",
    "Terra>Trip": "trip",
    "Terra>Handle": "variable",
    "Terra>ReadVariable": "read",
    "Placeholder": "input",
}


def leaf_of(op_type: str) -> str:
    """Returns what a node of that type is called, before it is made unique."""
    return _LEAVES.get(op_type, op_type)


class FlatNames:
    """Hands out names.

    Args:
      scope_paths: Every scope that will be used, as names joined by "/".
    """

    def __init__(self, scope_paths: Iterable[str]) -> None:
        self._taken = set()
        for path in scope_paths:
            parts = path.split("/")
            self._taken |= {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
        self._counts: collections.Counter[str] = collections.Counter()

    def new(self, scope: str, leaf: str) -> str:
        """Returns a name that no other node and no scope has."""
        base = f"{scope}/{leaf}" if scope else leaf
        while True:
            count = self._counts[base]
            self._counts[base] += 1
            name = f"{base}_{count}" if count else base
            if name not in self._taken:
                self._taken.add(name)
                return name


def join_scopes(scopes: ScopePath) -> str:
    """Returns the scopes' names as TensorBoard wants them."""
    return "/".join(scope.name for scope in scopes)
