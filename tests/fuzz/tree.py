"""A program as a tree of statements, so that a shrinker can take parts away.

    Node("if i % 2:", [Node("h = tf.tanh(h)")], tails=[Node("else:", [...])])

A node without a body is a line. A *section* is one of the lists of statements that a program's text
is made of; only sections are random and can be shrunk, the rest is a fixed frame.
"""

import copy
import dataclasses
import re
from collections.abc import Iterator

INDENT = "    "


@dataclasses.dataclass
class Node:
    """One statement: a line, or a head with a body and tails such as `else:`."""

    head: str
    body: list["Node"] | None = None
    tails: list["Node"] = dataclasses.field(default_factory=list)

    def render(self, depth: int) -> Iterator[str]:
        yield INDENT * depth + self.head
        if self.body is not None:
            yield from render(self.body, depth + 1)
        for tail in self.tails:
            yield from tail.render(depth)


def render(nodes: list[Node], depth: int) -> Iterator[str]:
    """Yield the lines of a block; an empty one is `pass`."""
    if not nodes:
        yield INDENT * depth + "pass"
    for node in nodes:
        yield from node.render(depth)


@dataclasses.dataclass
class Program:
    """A random program: its sections, and how the harness has to run and compare it.

    Attributes:
      seed: what it was generated from.
      frame: the text around the sections, each standing on a line of its own as `<<name>>`.
      sections: the random statements by name.
      has_synchronous_errors: run with `config.synchronous_errors`; everything is compared exactly.
        Otherwise an op error may surface late, and the log of that call is not compared.
      reads_each_call: results, log and variables are read after each call, or all at the end.
      num_calls: how often the step is called.
      roll_loops_from: both knobs about loops, or None for their defaults.
      interruptions: by place, after how many of Terra's lines from there on which exception is
        raised (`interrupts.UnderTerra`).
    """

    seed: int
    frame: str
    sections: dict[str, list[Node]]
    has_synchronous_errors: bool
    reads_each_call: bool
    num_calls: int = 12
    roll_loops_from: int | None = None
    interruptions: dict[int, tuple[int, str]] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """Return the module's source."""
        lines = []
        for line in self.frame.splitlines():
            match = re.fullmatch(r"( *)<<(\w+)>>", line)
            if match is None:
                lines.append(line)
            else:
                depth = len(match[1]) // len(INDENT)
                lines.extend(render(self.sections[match[2]], depth))
        return "\n".join(lines) + "\n"

    def lists(self) -> Iterator[list[Node]]:
        """Yield every list of statements, outer ones first."""
        waiting = list(self.sections.values())
        while waiting:
            nodes = waiting.pop(0)
            yield nodes
            for node in nodes:
                waiting.extend([node.body] if node.body is not None else [])
                waiting.extend(tail.body for tail in node.tails if tail.body is not None)

    def num_statements(self) -> int:
        return sum(len(nodes) for nodes in self.lists())

    def copy(self) -> "Program":
        return copy.deepcopy(self)
