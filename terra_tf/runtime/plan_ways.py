"""Follows paths through a plan as the cursor does, on the tables that it has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from terra_tf.runtime.plan_tables import InputKind, NodeKind, PlanInput, PlanJoin, PlanTables
from terra_tf.trace.joins import Rule
from terra_tf.trace.trace_graph import END, START, Output, Path


class NoWayError(Exception):
    """A plan does not have a way that is asked for; says where it ends."""


class Ways:
    """Which ways there are; `kernels/cursor/cursor.cc` has the same rules."""

    def __init__(self, tables: PlanTables) -> None:
        self._tables = tables
        mandatory = [level.skip_index < 0 and level.loop_end < 0 for level in tables.levels]
        kept = [level.skip_index < 0 <= level.loop_end for level in tables.levels]
        # How many there are below each level; so that most ways are looked at once.
        self._num_mandatory = [0, *itertools.accumulate(map(int, mandatory))]
        self._num_kept = [0, *itertools.accumulate(map(int, kept))]

    def is_legal(self, node: int, successor: int) -> bool:
        """Says whether one node (or START) may be followed by another (or END)."""
        nodes = self._tables.nodes
        if node != START and nodes[node].next >= 0:
            return successor == nodes[node].next
        if successor != END and not nodes[successor].is_head:
            return False
        before, after = self._level(node), self._level(successor)
        return before < after and self._can_skip(before, after)

    def _level(self, node: int) -> int:
        if node == START:
            return -1
        return len(self._tables.levels) if node == END else self._tables.nodes[node].level

    def _can_skip(self, before: int, after: int) -> bool:
        if self._num_mandatory[before + 1] != self._num_mandatory[after]:
            return False
        if self._num_kept[before + 1] == self._num_kept[after]:
            return True
        return all(
            level.skip_index >= 0 or before < level.trip_begin <= level.loop_end <= after
            for level in self._tables.levels[before + 1 : after]
        )

    def _decisions(self, node: int, successor: int) -> Iterator[tuple[int, int]]:
        """Yields what is said between two nodes: channel, and branch."""
        before, after = self._level(node), self._level(successor)
        levels = self._tables.levels
        at = before + 1
        while at <= after and at < len(levels):
            level, left = levels[at], -1
            for channel, end in level.turns:
                left = end if after >= end else -1
                if channel >= 0:
                    yield channel, int(left < 0)
                if left >= 0:
                    break
            if left < 0 and at < after and level.channel >= 0:
                yield level.channel, level.skip_index
            at = max(left, at + 1)
        if before < after < len(levels) and levels[after].channel >= 0:
            yield levels[after].channel, self._tables.nodes[successor].branch

    def follow(self, path: Path) -> dict[int, int]:
        """Returns what Python says on a path of the way: the branch, by channel.

        Raises:
          NoWayError: The path cannot be followed.
        """
        told = self._follow_way(path)
        step = _Step(self._tables)
        for node, sources in zip(path.nodes, path.sources):
            problem = step.take(node, sources)
            if problem is not None:
                raise NoWayError(f"op {node} {self._tables.nodes[node].name}, {problem}")
        return told

    def _follow_way(self, path: Path) -> dict[int, int]:
        told: dict[int, int] = {}
        for node, successor in zip((START, *path.nodes), (*path.nodes, END)):
            step = f"from op {node} to {successor}"
            if not self.is_legal(node, successor):
                raise NoWayError(f"no way leads {step}")
            if node != START and self._tables.nodes[node].next >= 0:
                continue
            for channel, branch in self._decisions(node, successor):
                if branch < 0:
                    raise NoWayError(f"{step} a level is passed by that cannot be skipped")
                if channel in told:
                    raise NoWayError(f"channel {channel} is used twice, last {step}")
                told[channel] = branch
        return told


class _Step:
    """What the cursor knows of a step: what has been made, and how joins were decided."""

    def __init__(self, tables: PlanTables) -> None:
        self._tables = tables
        self._epoch = 0
        self._made: set[int] = set()
        self._latest: dict[int, Output] = {}
        self._decided: dict[int, Output | None] = {}

    def take(self, number: int, sources: tuple[Output | None, ...]) -> str | None:
        """An op comes, with these inputs. Returns why it does not fit its node, or None."""
        node = self._tables.nodes[number]
        epoch = self._tables.levels[node.level].epoch
        if epoch < self._epoch:
            return f"which is of epoch {epoch}, comes behind epoch {self._epoch}"
        self._epoch = epoch
        if node.kind is not NodeKind.IMPERATIVE:
            for position, (source, made) in enumerate(zip(node.inputs, sources)):
                if not self._fits(source, made):
                    return f"input {position}, {source.kind.name} {source.a}, is {made}"
        self._made.add(number)
        for position, output in enumerate(node.outputs):
            for web in output.webs:
                self._latest[web] = Output(number, position)
        return None

    def _fits(self, source: PlanInput, made: Output | None) -> bool:
        if source.kind is InputKind.OUTPUT:
            return made == (source.a, source.b) and source.a in self._made
        if source.kind is InputKind.JOIN:
            self._decided[source.a] = made
            return self._is_decided(self._tables.joins[source.a], made)
        if made is None:
            return True
        # The result of a folded op is compared as a constant.
        is_folded = self._tables.nodes[made.node].kind is NodeKind.FOLDED
        return source.kind is InputKind.CONSTANT and is_folded and made.node in self._made

    def _is_decided(self, join: PlanJoin, made: Output | None) -> bool:
        if join.rule is Rule.SAME:
            return join.same in self._decided and self._decided[join.same] == made
        if made is None:
            return join.allows_external
        if join.rule is Rule.LATEST:
            return self._latest.get(join.web) == made
        return tuple(made) in map(tuple, join.alternatives)
