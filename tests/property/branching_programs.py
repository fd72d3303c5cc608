"""Random programs with branches, loops and aliases, and the traces of their steps.

A program works on registers. Its statements, as a tree:

    ("op", line, to, (from, ...))    registers[to] = Op<line>(registers[from], ...)
    ("alias", to, from)              registers[to] = registers[from]: no op
    ("if", then, otherwise)          a decision of the step
    ("loop", body)                   none to three times, a decision too
"""

from hypothesis import strategies

from tests.unit.synthetic_traces import Line, TraceBuilder

NUM_REGISTERS = 3
_registers = strategies.integers(0, NUM_REGISTERS - 1)
_operands = strategies.lists(_registers, min_size=1, max_size=2).map(tuple)
_op = strategies.tuples(strategies.just("op"), _registers, _operands)
_alias = strategies.tuples(strategies.just("alias"), _registers, _registers)


def _compound(children):
    block = strategies.lists(children, max_size=3)
    return strategies.one_of(
        strategies.tuples(strategies.just("if"), block, block),
        strategies.tuples(strategies.just("loop"), block),
    )


_statement = strategies.recursive(strategies.one_of(_op, _op, _alias), _compound, max_leaves=6)
programs = strategies.lists(_statement, min_size=1, max_size=5)


class Step:
    """One run of a program, as a trace."""

    def __init__(self, program, decisions):
        self._builder = TraceBuilder()
        self._decisions = iter(decisions)
        self._registers = [self._builder.feed([1.0, 2.0]) for _ in range(NUM_REGISTERS)]
        self._run(program, (), ())
        self.trace = self._builder.trace

    def _run(self, block, where, counters):
        for index, (kind, *arguments) in enumerate(block):
            place = (*where, index)
            getattr(self, f"_{kind}")(place, counters, *arguments)

    def _op(self, place, counters, to, operands):
        inputs = [self._registers[operand] for operand in operands]
        name = "Op" + "_".join(map(str, place))
        self._registers[to] = self._builder.op(name, *inputs, location=Line(hash(place), counters))

    def _alias(self, place, counters, to, source):
        self._registers[to] = self._registers[source]

    def _if(self, place, counters, then, otherwise):
        is_true = next(self._decisions, 0) % 2
        self._run(then if is_true else otherwise, (*place, is_true), counters)

    def _loop(self, place, counters, body):
        for trip in range(next(self._decisions, 0) % 4):
            self._run(body, place, (*counters, trip))


@strategies.composite
def programs_and_steps(draw, max_steps=6):
    """Draw a program, and traces of some steps of it."""
    program = draw(programs)
    decisions = strategies.lists(strategies.integers(0, 11), max_size=10)
    steps = draw(strategies.lists(decisions, min_size=1, max_size=max_steps))
    return program, [Step(program, decisions).trace for decisions in steps]
