"""The loops of a code object, as a reader of its source would count them.

A *loop* is a natural loop of the control flow graph: an edge back to a block
that dominates its source (the *header*), with all blocks that lead to that
edge without passing the header. Two things differ from the textbook:

- `await` and `yield from` poll with a backward jump; that is no loop.
- CPython tests `while` once before the body and once at its end. With a
  `continue` inside, that gives two headers for one loop of the source; they
  are fused (`_fuse_rotated_headers`).
"""

from typing import NamedTuple

from terra_tf.trace.control_flow_graph import ControlFlowGraph, Edge


class Loop(NamedTuple):
    """The blocks of one loop and the edges that start its next iteration."""

    blocks: frozenset[int]
    back_edges: frozenset[Edge]


class _Natural(NamedTuple):
    """A loop while it is being built."""

    header: int
    blocks: set[int]
    back_edges: set[Edge]


def find_loops(graph: ControlFlowGraph) -> list[Loop]:
    """Return the loops of a control flow graph, in the order of their headers."""
    loops = _fuse_rotated_headers(graph, _find_natural_loops(graph))
    return [Loop(frozenset(loop.blocks), frozenset(loop.back_edges))
            for _, loop in sorted(loops.items())]


def _find_natural_loops(graph: ControlFlowGraph) -> dict[int, _Natural]:
    loops: dict[int, _Natural] = {}
    for source in graph.reachable:
        for header in graph.successors[source]:
            if graph.dominates(header, source) and not _is_polling(graph, source, header):
                loop = loops.setdefault(header, _Natural(header, {header}, set()))
                loop.back_edges.add((source, header))
                _add_body(graph, loop, source)
    return loops


def _is_polling(graph: ControlFlowGraph, source: int, header: int) -> bool:
    return (graph.first_opname(header) == "SEND"
            or graph.last_opname(source) == "JUMP_BACKWARD_NO_INTERRUPT")


def _add_body(graph: ControlFlowGraph, loop: _Natural, source: int) -> None:
    pending = [source]
    while pending:
        block = pending.pop()
        if block not in loop.blocks:
            loop.blocks.add(block)
            pending.extend(graph.predecessors[block])


def _fuse_rotated_headers(
        graph: ControlFlowGraph, loops: dict[int, _Natural]) -> dict[int, _Natural]:
    """Merge the header of a rotated `while` into the one that `continue` jumps to."""
    fused = dict(loops)
    for header in sorted(loops, key=lambda header: (len(loops[header].blocks), header)):
        inner = fused[header]
        around = [loop for loop in fused.values()
                  if header in loop.blocks and inner.blocks < loop.blocks]
        if not around:
            continue
        outer = min(around, key=lambda loop: (len(loop.blocks), loop.header))
        if _is_same_while(graph, inner, outer):
            outer.back_edges.update(inner.back_edges)
            del fused[header]
    return fused


def _is_same_while(graph: ControlFlowGraph, inner: _Natural, outer: _Natural) -> bool:
    """Say whether the tests at the top and at the bottom of `inner` both leave `outer`."""
    if outer.header != min(outer.blocks):
        return False
    top = [block for block in graph.predecessors[inner.header]
           if block not in inner.blocks and len(graph.successors[block]) > 1]
    bottom = _bottom_tests(graph, inner)
    return (bool(top)
            and all(_else_leaves(graph, block, inner.header, outer) for block in top)
            and any(_else_leaves(graph, block, target, outer) for block, target in bottom))


def _bottom_tests(graph: ControlFlowGraph, loop: _Natural) -> list[Edge]:
    """Return the conditional edges that start the next iteration."""
    tests: list[Edge] = []
    for source, header in loop.back_edges:
        if graph.ends_in_branch(source):
            tests.append((source, header))
        elif graph.is_single_instruction(source):      # a branch around a lone JUMP_BACKWARD
            tests.extend((block, source) for block in graph.predecessors[source]
                         if graph.ends_in_branch(block))
    return tests


def _else_leaves(graph: ControlFlowGraph, block: int, taken: int, loop: _Natural) -> bool:
    """Say whether a branch, when it does not go to `taken`, leaves the loop."""
    others = graph.successors[block] - {taken, graph.handlers[block]}
    return bool(others) and not others & loop.blocks
