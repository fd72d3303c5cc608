"""The paper's case assignment: from a DAG to an ordered list of switch-cases that covers it.

    assign_cases(num_nodes, edges)  ->  CaseAssignment

Input, a DAG of nodes between START and END, whose paths are traces. A *basic block* is a
maximal linear chain: every step inside it is the only way out of one node and the only way into
the next. The *level* of a block is the longest way to it from START, in blocks. Switch-case k is
all blocks of level k, each with its *control edges*, the edges that point to it.

Every edge leads to a higher level. So a trace enters at most one block of each switch-case, in
order, and the ordered list covers every trace. Worked example, with `if a: B1; if b: B2` in one
arm of an if whose other arm is C (docs/design/0006 has the picture):

    START -> A -> B1 -> B2 -> D -> END        level 1  A
                  B1 -> D                     level 2  B1 | C
             A -> C -> D                      level 3  B2 | (skipped by B1 -> D and C -> D)
                                              level 4  D

A level that no edge leads over is *mandatory*: every trace passes one of its blocks, and its
switch-case has no branch for skipping it. Level 2 above is, level 3 is not. A mandatory level of
one block needs no switch-case (`Level.is_inline`).

Source: the supplement of the Terra paper (NeurIPS 2021) gives input, output and the covering
property; levels by longest path are this project's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

START, END = -1, -2


@dataclasses.dataclass(frozen=True, slots=True)
class BasicBlock:
    """A linear chain of nodes.

    Attributes:
      nodes: In order.
      level: Its switch-case.
      index: Its place among the blocks of its level.
      control_edges: The edges that point to it, as (node or START, its first node).
    """

    nodes: tuple[int, ...]
    level: int
    index: int
    control_edges: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """A switch-case, or a block that every path passes.

    Attributes:
      blocks: In order of their first nodes.
      is_mandatory: Whether every path passes one of its blocks.
    """

    blocks: tuple[BasicBlock, ...]
    is_mandatory: bool

    @property
    def is_inline(self) -> bool:
        """Whether every path passes its one block."""
        return self.is_mandatory and len(self.blocks) == 1


@dataclasses.dataclass(frozen=True, slots=True)
class CaseAssignment:
    """The ordered list of switch-cases.

    Attributes:
      levels: In order; level k's number is k.
      block_of: Node -> its block.
      position_of: Node -> its place in its block.
    """

    levels: tuple[Level, ...]
    block_of: dict[int, BasicBlock]
    position_of: dict[int, int]

    @property
    def num_switch_cases(self) -> int:
        """How many levels need a decision."""
        return sum(not level.is_inline for level in self.levels)

    def level_of(self, node: int) -> int:
        """Returns a node's level; START is before the first, END after the last."""
        if node == START:
            return -1
        return len(self.levels) if node == END else self.block_of[node].level

    def is_legal(self, node: int, successor: int) -> bool:
        """Says whether the ordered list covers a trace that goes from one node to another.

        Either inside a block to the next node, or from a block's end (or START) to the start of
        a block of a higher level (or END), over no mandatory level.
        """
        if node != START:
            block, position = self.block_of[node], self.position_of[node]
            if position + 1 < len(block.nodes):
                return successor == block.nodes[position + 1]
        if successor != END and self.position_of[successor] != 0:
            return False
        before, after = self.level_of(node), self.level_of(successor)
        return before < after and not any(
            level.is_mandatory for level in self.levels[before + 1 : after]
        )


def assign_cases(
    num_nodes: int, edges: Iterable[tuple[int, int]], cuts: Collection[int] = ()
) -> CaseAssignment:
    """Cuts a DAG into basic blocks and orders them into switch-cases.

    Args:
      num_nodes: Nodes are the numbers below it.
      edges: Pairs of (node or START, node or END). Every node must be on a way from START.
      cuts: Nodes at which a block has to begin.

    Raises:
      ValueError: The edges have a cycle, or a node cannot be reached.
    """
    after: dict[int, list[int]] = {}
    before: dict[int, list[int]] = {}
    for node, successor in sorted(set(edges)):
        after.setdefault(node, []).append(successor)
        before.setdefault(successor, []).append(node)
    chains = _find_chains(num_nodes, after, before, set(cuts))
    level_of_head = _find_levels(chains, after, before)
    if sum(map(len, chains)) != num_nodes or len(level_of_head) != len(chains):
        raise ValueError("the graph has a cycle, or nodes that no path reaches")
    return _collect(chains, level_of_head, after, before)


def _find_chains(num_nodes: int, after: dict, before: dict, cuts: set[int]) -> list[tuple]:
    def continues(node: int) -> bool:
        """Whether a node belongs to the block of the node before it."""
        sources = before.get(node, ())
        return (
            node not in cuts
            and len(sources) == 1
            and sources[0] != START
            and len(after[sources[0]]) == 1
        )

    chains = []
    for head in range(num_nodes):
        if continues(head) or head not in before:
            continue
        chain = [head]
        while len(after[chain[-1]]) == 1:
            following = after[chain[-1]][0]
            if following == END or not continues(following):
                break
            chain.append(following)
        chains.append(tuple(chain))
    return chains


def _find_levels(chains: list[tuple], after: dict, before: dict) -> dict[int, int]:
    """Longest ways from START over blocks, by block head."""
    chain_of_head = {chain[0]: chain for chain in chains}
    waiting = {head: len(before[head]) for head in chain_of_head}
    levels: dict[int, int] = {}
    ready: list[tuple[int, int]] = [(START, -1)]  # ends of blocks whose level is known
    reached: dict[int, int] = {}
    while ready:
        tail, level = ready.pop()
        for head in after.get(tail, ()):
            if head == END:
                continue
            reached[head] = max(reached.get(head, 0), level + 1)
            waiting[head] -= 1
            if waiting[head] == 0:
                levels[head] = reached[head]
                ready.append((chain_of_head[head][-1], levels[head]))
    return levels


def _collect(chains: list[tuple], level_of_head: dict, after: dict, before: dict) -> CaseAssignment:
    by_level: list[list[tuple]] = [[] for _ in range(max(level_of_head.values(), default=-1) + 1)]
    for chain in chains:
        by_level[level_of_head[chain[0]]].append(chain)
    num_levels = len(by_level)
    is_jumped = [0] * (num_levels + 1)  # differences: how many edges lead over each level
    tail_level = {START: -1} | {chain[-1]: level_of_head[chain[0]] for chain in chains}
    for tail, level in tail_level.items():
        for head in after.get(tail, ()):
            target = num_levels if head == END else level_of_head[head]
            is_jumped[level + 1] += 1
            is_jumped[target] -= 1
    levels, num_jumps = [], 0
    block_of: dict[int, BasicBlock] = {}
    position_of: dict[int, int] = {}
    for number, chains_here in enumerate(by_level):
        num_jumps += is_jumped[number]
        blocks = []
        for index, chain in enumerate(chains_here):
            edges = tuple((source, chain[0]) for source in before[chain[0]])
            block = BasicBlock(chain, number, index, edges)
            blocks.append(block)
            for position, node in enumerate(chain):
                block_of[node], position_of[node] = block, position
        levels.append(Level(tuple(blocks), num_jumps == 0))
    return CaseAssignment(tuple(levels), block_of, position_of)
