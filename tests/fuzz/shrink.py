"""Make a failing program small: take statements away as long as it still fails."""

from collections.abc import Callable, Iterator

from tests.fuzz.tree import Node, Program


def shrink(
    program: Program, fails: Callable[[Program], bool], max_checks: int = 400
) -> tuple[Program, int]:
    """Return the smallest program found that still fails, and how many checks that took.

    Greedy: edits are tried from large to small, each success starts from the smaller program, until
    a round has none. Deterministic, if `fails` is.

    Args:
      program: one for which `fails` is true; it is not changed.
      fails: must be false for a program that is nonsense (a name that is no longer defined).
      max_checks: programs to try at the most.
    """
    num_checks, has_shrunk = 0, True
    while has_shrunk:
        has_shrunk, done = False, 0
        while (edited := _edit(program, done)) is not None:
            if num_checks >= max_checks:
                return program, num_checks
            num_checks += 1
            if fails(edited):
                # The same index is the next edit now, or one that was tried in vain before.
                program, has_shrunk = edited, True
            else:
                done += 1
    return program, num_checks


def _edit(program: Program, index: int) -> Program | None:
    """Return a copy of `program` with its edit number `index` made, or None if it has fewer."""
    copied = program.copy()
    for number, edit in enumerate(_edits(copied)):
        if number == index:
            edit()
            return copied
    return None


def _edits(program: Program) -> Iterator[Callable[[], None]]:
    """Yield what can be done to a program, large parts first; each edit changes it in place."""
    for nodes in program.lists():
        if len(nodes) >= 4:
            half = len(nodes) // 2
            yield lambda nodes=nodes, half=half: nodes.__delitem__(slice(half))
            yield lambda nodes=nodes, half=half: nodes.__delitem__(slice(half, None))
    for nodes in program.lists():
        for at in reversed(range(len(nodes))):
            yield lambda nodes=nodes, at=at: nodes.pop(at)
    for nodes in program.lists():
        for at, node in enumerate(nodes):
            if node.tails and node.head != "try:":
                yield node.tails.clear
            if node.body:
                yield lambda nodes=nodes, at=at: _unwrap(nodes, at)


def _unwrap(nodes: list[Node], at: int) -> None:
    nodes[at : at + 1] = nodes[at].body or []
