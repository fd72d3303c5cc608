"""Basic blocks of a code object, with the edges an exception can take.

A *block* is a run of instructions that is entered at its first and left after
its last one. Blocks are numbered in the order of the bytecode, so block 0 is
the entry. An edge leads to each block that may run next: jumps, falling
through, and the handler that covers the block:

    def f(x):              block 0 -> 1 (falls through)
        try: g(x)          block 1 -> 2 (returns), -> 3 (g raised)
        except E: h(x)     block 3 -> ...

Only `dis` is used, so that one source serves Python 3.10 to 3.13.
"""

import dis
import sys
from collections.abc import Iterable
from types import CodeType

_HAS_EXCEPTION_TABLE = sys.version_info >= (3, 11)
_JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_SETUPS = frozenset({"SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH", "SETUP_CLEANUP"})
_NEVER_FALL_THROUGH = frozenset({
    "RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE",
    "JUMP_FORWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT",
    "INTERPRETER_EXIT"})

Edge = tuple[int, int]


class ControlFlowGraph:
    """Hold the basic blocks of one code object. Immutable once built.

    Attributes:
      successors: per block, the set of blocks that may run next.
      predecessors: per block, the reachable blocks it is a successor of.
      handlers: per block, the block an exception leads to, or None.
      reachable: the blocks that control flow can enter.
      dominators: per block, a bit mask of the blocks on every path to it.
    """

    def __init__(self, code: CodeType):
        self._instructions = list(dis.get_instructions(code))
        self._index_of = _index_by_offset(self._instructions)
        self._jumps = self._find_jumps()
        handler_of = self._find_handlers(code)
        self._first = self._find_leaders(handler_of)
        self._last = [index - 1 for index in self._first[1:]] + [len(self._instructions) - 1]
        self._block_at = self._number_blocks()
        self.handlers = [self._block_or_none(handler_of[index]) for index in self._first]
        self.successors = [self._find_successors(block) for block in range(len(self._first))]
        order = self._reverse_postorder()
        self.reachable = frozenset(order)
        self.predecessors = self._find_predecessors()
        self.dominators = self._find_dominators(order)
        self._keep_what_is_asked_for()

    def block_at(self, offset: int) -> int:
        """Return the block that holds the instruction at a byte offset."""
        return self._block_at[self._index_of[offset]]

    def first_offset(self, block: int) -> int:
        """Return the byte offset of the instruction that a block starts with."""
        return self._first_offsets[block]

    def first_opname(self, block: int) -> str:
        """Return the name of the instruction that a block starts with."""
        return self._first_opnames[block]

    def last_opname(self, block: int) -> str:
        """Return the name of the instruction that a block ends with."""
        return self._last_opnames[block]

    def is_single_instruction(self, block: int) -> bool:
        """Say whether a block has exactly one instruction."""
        return self._first[block] == self._last[block]

    def ends_in_branch(self, block: int) -> bool:
        """Say whether a block ends in a conditional jump."""
        return block in self._branching

    def dominates(self, dominator: int, block: int) -> bool:
        """Say whether every path from the entry to `block` passes `dominator`."""
        return bool(self.dominators[block] >> dominator & 1)

    def reaches(self, source: int, target: int, cut: Iterable[Edge] = ()) -> bool:
        """Say whether control can go from one offset on to another.

        Args:
          source: byte offset of the instruction that has run.
          target: byte offset of the instruction to run, possibly the same one.
          cut: edges between blocks that may not be taken.
        """
        start, goal = self.block_at(source), self.block_at(target)
        if start == goal and source < target:
            return True
        seen: set[int] = set()
        pending = [start]
        while pending:
            block = pending.pop()
            for successor in self.successors[block] - seen:
                if (block, successor) in cut:
                    continue
                if successor == goal:
                    return True
                seen.add(successor)
                pending.append(successor)
        return False

    def _keep_what_is_asked_for(self) -> None:
        """Drop the instructions: thousands of objects that the garbage collector looks through."""
        self._first_offsets = [self._instructions[index].offset for index in self._first]
        self._first_opnames = [self._instructions[index].opname for index in self._first]
        self._last_opnames = [self._instructions[index].opname for index in self._last]
        blocks = enumerate(self._last)
        self._branching = frozenset(b for b, index in blocks if len(self._jumps[index]) > 1)
        del self._instructions, self._jumps

    def _find_jumps(self) -> list[list[int]]:
        """Per instruction, the indices of those that may run next, exceptions apart."""
        jumps: list[list[int]] = []
        for index, instruction in enumerate(self._instructions):
            targets = []
            if instruction.opcode in _JUMPS and instruction.opname not in _SETUPS:
                targets.append(self._index_of[instruction.argval])
            falls_through = instruction.opname not in _NEVER_FALL_THROUGH
            if falls_through and index + 1 < len(self._instructions):
                targets.append(index + 1)
            jumps.append(targets)
        return jumps

    def _find_handlers(self, code: CodeType) -> list[int | None]:
        """Per instruction, the index of the handler that covers it."""
        if _HAS_EXCEPTION_TABLE:
            return self._handlers_from_table(code)
        return self._handlers_from_block_stack()

    def _handlers_from_table(self, code: CodeType) -> list[int | None]:
        handlers: list[int | None] = [None] * len(self._instructions)
        for entry in dis._parse_exception_table(code):  # type: ignore[attr-defined]
            for index, instruction in enumerate(self._instructions):
                if entry.start <= instruction.offset < entry.end:
                    handlers[index] = self._index_of[entry.target]
        return handlers

    def _handlers_from_block_stack(self) -> list[int | None]:
        """Follow SETUP_* and POP_BLOCK, as Python 3.10 itself does at run time."""
        handlers: list[int | None] = [None] * len(self._instructions)
        stacks: dict[int, tuple[int, ...]] = {0: ()}
        pending = [0]
        while pending:
            index = pending.pop()
            stack = after = stacks[index]
            handlers[index] = stack[-1] if stack else None
            instruction = self._instructions[index]
            if instruction.opname in _SETUPS:
                handler = self._index_of[instruction.argval]
                if handler not in stacks:
                    stacks[handler] = stack
                    pending.append(handler)
                after = (*stack, handler)
            elif instruction.opname == "POP_BLOCK":
                after = stack[:-1]
            for target in self._jumps[index]:
                if target not in stacks:
                    stacks[target] = after
                    pending.append(target)
        return handlers

    def _find_leaders(self, handler_of: list[int | None]) -> list[int]:
        leaders = {0} | {handler for handler in handler_of if handler is not None}
        count = len(self._instructions)
        for index, instruction in enumerate(self._instructions):
            if instruction.opcode in _JUMPS or instruction.opname in _NEVER_FALL_THROUGH:
                leaders.update(self._jumps[index], {index + 1} if index + 1 < count else ())
            if index and handler_of[index] != handler_of[index - 1]:
                leaders.add(index)
        return sorted(leaders)

    def _number_blocks(self) -> list[int]:
        block_at = [0] * len(self._instructions)
        for block, (first, last) in enumerate(zip(self._first, self._last, strict=True)):
            block_at[first:last + 1] = [block] * (last + 1 - first)
        return block_at

    def _block_or_none(self, index: int | None) -> int | None:
        return None if index is None else self._block_at[index]

    def _find_successors(self, block: int) -> frozenset[int]:
        successors = {self._block_at[index] for index in self._jumps[self._last[block]]}
        handler = self.handlers[block]
        return frozenset(successors if handler is None else successors | {handler})

    def _reverse_postorder(self) -> list[int]:
        seen, postorder = {0}, []
        stack = [(0, iter(sorted(self.successors[0])))]
        while stack:
            block, remaining = stack[-1]
            successor = next((s for s in remaining if s not in seen), None)
            if successor is None:
                postorder.append(block)
                stack.pop()
            else:
                seen.add(successor)
                stack.append((successor, iter(sorted(self.successors[successor]))))
        return postorder[::-1]

    def _find_predecessors(self) -> list[set[int]]:
        predecessors: list[set[int]] = [set() for _ in self.successors]
        for block in self.reachable:
            for successor in self.successors[block]:
                predecessors[successor].add(block)
        return predecessors

    def _find_dominators(self, order: list[int]) -> list[int]:
        everything = (1 << len(self.successors)) - 1
        dominators = [everything] * len(self.successors)
        dominators[0] = 1
        changed = True
        while changed:
            changed = False
            for block in order[1:]:
                common = everything
                for predecessor in self.predecessors[block]:
                    common &= dominators[predecessor]
                common |= 1 << block
                changed = changed or common != dominators[block]
                dominators[block] = common
        return dominators


def _index_by_offset(instructions: list[dis.Instruction]) -> dict[int, int]:
    """Map byte offsets to indices; in 3.13 also those of the EXTENDED_ARGs before them."""
    index_of = {instruction.offset: index for index, instruction in enumerate(instructions)}
    for index, instruction in enumerate(instructions):
        index_of.setdefault(getattr(instruction, "start_offset", instruction.offset), index)
    return index_of
