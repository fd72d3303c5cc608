"""What a location needs to know of a code object: its loops, and how control moves in it.

    info = code_info(step.__code__)
    offset = info.normalize(frame.f_lasti)       # the start of an instruction
    info.loops_at(offset)                        # (0, 2): inside loop 0, and loop 2 in it
    info.move(before, offset)                    # Move(kept=1, advances=True, num_loops=2)

Pure Python, no TensorFlow: see `control_flow_graph` and `code_loops` for the
analysis, which runs only for code that has a loop or in which an op is
followed by another.
"""

import dis
import functools
from types import CodeType
from typing import NamedTuple

from terra_tf.trace.code_loops import Loop, find_loops
from terra_tf.trace.control_flow_graph import ControlFlowGraph

_CACHE = dis.opmap.get("CACHE", 0)               # does not occur in 3.10, where 0 is no opcode
_PRECALL = dis.opmap.get("PRECALL", -1)          # 3.11 only
_RELATIVE_BACKWARD = frozenset(
    opcode for name, opcode in dis.opmap.items() if "BACKWARD" in name)
_ABSOLUTE = frozenset(dis.hasjabs)


class Move(NamedTuple):
    """How a frame came from one instruction to another.

    Attributes:
      kept: how many of the target's loops, outermost first, it stayed in
        without starting another iteration.
      advances: whether it started another iteration of the next one.
      num_loops: how many loops contain the target.
    """

    kept: int
    advances: bool
    num_loops: int

    def counters_after(self, counters: tuple[int, ...]) -> tuple[int, ...]:
        """Return the loop counters after the move, from those before it."""
        counted = counters[:self.kept]
        if self.advances:
            counted += (counters[self.kept] + 1,)
        return counted + (0,) * (self.num_loops - len(counted))


class CodeInfo:
    """Answer questions on the control flow of one code object.

    Get one from `code_info`: equal code objects share it. Safe to use from any
    thread: what it computes late depends on the code alone.

    Attributes:
      code: the code object, kept alive.
      qualname: `Class.method` (only `method` in Python 3.10).
    """

    def __init__(self, code: CodeType):
        self.code = code
        self.filename = code.co_filename
        self.qualname = _qualname(code)
        self._bytes = code.co_code
        self._loops_at: dict[int, tuple[int, ...]] = {}
        self._moves: dict[tuple[int, int], Move | None] = {}

    def __repr__(self) -> str:
        return f"CodeInfo({self.qualname}, {self.filename}:{self.code.co_firstlineno})"

    def normalize(self, offset: int) -> int:
        """Return the start of the instruction that a frame's `f_lasti` stands for.

        While CPython specializes a call, `f_lasti` moves between the call, the
        inline cache behind it and (in 3.11) the PRECALL before it.
        """
        opcodes = self._bytes
        while opcodes[offset] == _CACHE:
            offset -= 2
        if opcodes[offset] == _PRECALL:
            offset += 2
            while opcodes[offset] == _CACHE:
                offset += 2
        return offset

    @functools.cached_property
    def graph(self) -> ControlFlowGraph:
        """The control flow graph."""
        return ControlFlowGraph(self.code)

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """All loops of the code object."""
        return find_loops(self.graph) if _jumps_backward(self._bytes) else []

    def loops_at(self, offset: int) -> tuple[int, ...]:
        """Return the loops around an instruction, outermost first."""
        known = self._loops_at.get(offset)
        if known is None:
            known = self._loops_at[offset] = self._find_loops_at(offset)
        return known

    def line_of_loop(self, loop: int) -> int:
        """Return the source line of a loop's head."""
        header = min(self.loops[loop].blocks)
        return self.line_at(self.graph.first_offset(header))

    def move(self, source: int, target: int) -> Move | None:
        """Explain a step from one instruction to another, or to itself, by control flow.

        Of all explanations the one that keeps the most loops is given.

        Args:
          source: normalized offset of the instruction before.
          target: normalized offset of the instruction now.

        Returns:
          None if one activation of the code cannot do this: it was called again.
        """
        key = (source, target)
        if key not in self._moves:
            self._moves[key] = self._find_move(source, target)
        return self._moves[key]

    def line_at(self, offset: int) -> int:
        """Return the source line of an instruction; the first line of the code if it has none."""
        for start, end, line in self.code.co_lines():
            if start <= offset < end and line is not None:
                return line
        return self.code.co_firstlineno

    def _find_loops_at(self, offset: int) -> tuple[int, ...]:
        if not self.loops:
            return ()
        block = self.graph.block_at(offset)
        inside = [index for index, loop in enumerate(self.loops) if block in loop.blocks]
        return tuple(sorted(inside, key=lambda index: -len(self.loops[index].blocks)))

    def _find_move(self, source: int, target: int) -> Move | None:
        if source == target and not self.loops:
            return None
        around = self.loops_at(target)
        num_common = _common_prefix_length(self.loops_at(source), around)
        for kept in range(num_common, -1, -1):
            cut = frozenset().union(*(self.loops[loop].back_edges for loop in around[:kept]))
            if self.graph.reaches(source, target, cut):
                return Move(kept, kept < num_common, len(around))
        return None


_infos: dict[tuple[str, str, CodeType], CodeInfo] = {}


def code_info(code: CodeType) -> CodeInfo:
    """Return the one CodeInfo of all code objects equal to this one.

    Code that `exec` compiles anew at each step is equal from step to step, so
    its locations are too. The file and the qualified name must be the same.
    Hashing a code object is slow: keep the result. Takes no lock: a thread that is interrupted
    could keep it.
    """
    key = (code.co_filename, _qualname(code), code)
    info = _infos.get(key)
    return _infos.setdefault(key, CodeInfo(code)) if info is None else info


def _qualname(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)


def _common_prefix_length(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def _jumps_backward(opcodes: bytes) -> bool:
    """Say whether any jump may go back: without one there is no loop, and no need to look for it.

    EXTENDED_ARG is ignored, which makes an absolute target look smaller, never larger.
    """
    for offset in range(0, len(opcodes), 2):
        opcode = opcodes[offset]
        if opcode in _RELATIVE_BACKWARD:
            return True
        if opcode in _ABSOLUTE and 2 * opcodes[offset + 1] <= offset:
            return True
    return False
