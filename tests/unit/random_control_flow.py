"""Random Python programs made of control flow and ops, for properties of locations.

A program's decisions come from a seed, so that it can be run again the same way.
"""

import contextlib
import random


class UserError(Exception):
    """Raised by random programs, mostly for themselves to catch."""


class _Writer:
    """Write the source of one program: functions h0 (the entry), h1, ..., generators g0, ..."""

    def __init__(self, seed):
        self._random = random.Random(seed)
        self._num_functions = self._random.randint(2, 4)
        self._num_names = 0
        self._lines = []

    def write(self):
        for function in range(self._num_functions):
            self._function = function
            self._line(0, f"def h{function}(_):")
            self._block(3, 1, in_loop=False)
            self._line(0, f"def g{function}():")
            self._line(1, "if decide(.5): yield 0")
            self._block(2, 1, in_loop=False)
            self._line(1, "yield 1")
            self._block(1, 1, in_loop=False)
        return "\n".join(self._lines)

    def _line(self, indent, text):
        self._lines.append("    " * indent + text)

    def _block(self, budget, indent, in_loop):
        for _ in range(self._random.randint(1, 3)):
            choices = [self._op] * 3
            if budget:
                choices += [self._for, self._while, self._while_true, self._if, self._if, self._try]
                choices += [self._call, self._map, self._for_generator, self._comprehension]
            if in_loop:
                choices += [self._jump]
            if self._function:
                choices += [self._return]
            self._random.choice(choices)(budget - 1, indent, in_loop)

    def _op(self, budget, indent, in_loop):
        self._line(indent, "op()")

    def _for(self, budget, indent, in_loop):
        self._line(indent, "for _ in range(draw(3)):")
        self._block(budget, indent + 1, True)

    def _while(self, budget, indent, in_loop):
        name = self._counter(indent)
        self._line(indent, f"while decide(.6) and {name} < 3:")
        self._line(indent + 1, f"{name} += 1")
        self._block(budget, indent + 1, True)

    def _while_true(self, budget, indent, in_loop):
        name = self._counter(indent)
        self._line(indent, "while True:")
        self._line(indent + 1, f"{name} += 1")
        self._line(indent + 1, f"if {name} > 9: break")
        self._block(budget, indent + 1, True)
        self._line(indent + 1, f"if decide(.5) or {name} > 3: break")

    def _counter(self, indent):
        self._num_names += 1
        self._line(indent, f"i{self._num_names} = -1")
        return f"i{self._num_names}"

    def _if(self, budget, indent, in_loop):
        self._line(indent, "if decide(.5):")
        self._block(budget, indent + 1, in_loop)
        if self._random.random() < .5:
            self._line(indent, "else:")
            self._block(budget, indent + 1, in_loop)

    def _try(self, budget, indent, in_loop):
        self._line(indent, "try:")
        self._block(budget, indent + 1, in_loop)
        self._line(indent + 1, "fail(.2)")
        self._line(indent, "except UserError:")
        self._block(budget, indent + 1, in_loop)
        if self._random.random() < .4:
            self._line(indent, "finally:")
            self._op(0, indent + 1, False)

    def _jump(self, budget, indent, in_loop):
        self._line(indent, "if decide(.3): " + self._random.choice(["continue", "break"]))

    def _return(self, budget, indent, in_loop):
        self._line(indent, "if decide(.2): return")

    def _call(self, budget, indent, in_loop):
        self._use_later_function(indent, "h{}(0)")

    def _map(self, budget, indent, in_loop):
        self._use_later_function(indent, "list(map(h{}, range(draw(2))))")

    def _for_generator(self, budget, indent, in_loop):
        self._use_later_function(indent, "for _ in g{}():")
        if self._lines[-1].endswith("():"):
            self._block(budget, indent + 1, True)

    def _use_later_function(self, indent, text):
        if self._function + 1 == self._num_functions:
            self._op(0, indent, False)
        else:
            later = self._random.randint(self._function + 1, self._num_functions - 1)
            self._line(indent, text.format(later))

    def _comprehension(self, budget, indent, in_loop):
        self._line(indent, "[op() for _ in range(draw(2))]")


class RandomProgram:
    """A program that can be run with different decisions. `op()` is called by its frames."""

    def __init__(self, seed, op):
        self.source = _Writer(seed).write()
        self._namespace = {
            "op": op, "UserError": UserError, "decide": self._decide, "fail": self._fail,
            "draw": lambda most: self._decisions.randint(0, most)}
        exec(compile(self.source, "random_program.py", "exec"), self._namespace)

    def run(self, decisions):
        """Run the program with the decisions that a seed gives."""
        self._decisions = random.Random(decisions)
        with contextlib.suppress(UserError):
            self._namespace["h0"](0)

    def _decide(self, probability):
        return self._decisions.random() < probability

    def _fail(self, probability):
        if self._decide(probability):
            raise UserError
