"""A random program of another profile, some of whose calls are interrupted: `interrupts`."""

import random
from collections.abc import Sequence

from tests.fuzz import (
    aliasing_generator,
    generator,
    interrupts,
    keras_generator,
    loop_generator,
    structure_generator,
    tree,
)

SIZES = (2, 4, 8)
BASES = (
    (5, generator.Writer),
    (3, aliasing_generator.AliasingWriter),
    (3, structure_generator.StructureWriter),
    (2, loop_generator.LoopWriter),
    (1, keras_generator.KerasWriter),
)
_MAX_LOG_LINES = 4.3  # of 10: tracing and building a graph runs tens of thousands of lines


class InterruptedWriter:
    """Writes programs of the profile `interrupts`; see `generator.Writer`."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        self.rnd = random.Random(f"interrupts {seed}")
        weights = [row[0] for row in BASES]
        base = self.rnd.choices([row[1] for row in BASES], weights)[0]
        self.writer = base(seed, sizes)

    def program(self) -> tree.Program:
        program = self.writer.program()
        # A late op error and an interruption could not be told apart.
        program.has_synchronous_errors |= "bad = " in program.text()
        program.reads_each_call = self.rnd.random() < 0.85
        for _ in range(self.rnd.choice([1, 2, 3, 4, 6])):
            number = int(10 ** self.rnd.uniform(0.7, _MAX_LOG_LINES))
            error = self.rnd.choice(list(interrupts.ERRORS))
            program.interruptions[self.rnd.randrange(2 * program.num_calls - 4)] = (number, error)
        return program
