"""Write a random imperative TensorFlow program from a seed.

`generate(seed)` gives a `tree.Program`; its text is a module whose `make(wrap)` returns
`step, variables, log, between`. A call is `step(i)`; after it come the harness's comparisons and
`between(i)`, which stands for what a user does between two steps. A seed always gives
the same text.

`Writer` knows names and simple statements; `compound.CompoundWriter` the ones that have bodies.
"""

import random
import re
from collections.abc import Sequence

from tests.fuzz import compound, expressions, tree
from tests.fuzz.frame import FRAME

SIZES = (4, 8, 12, 16, 24)
SQUASHED = {"M": "tf.tanh({})", "W": "tf.tanh({})", "V": "tf.tanh({})", "S": "tf.tanh({})"}


class Writer(compound.CompoundWriter):
    """Writes statements into blocks; keeps which names are surely defined, and of what kind.

    Args:
      seed: decides everything.
      sizes: how many random statements a program may have, nested ones counted.
    """

    def __init__(self, seed, sizes):
        self.rnd = random.Random(seed)
        self.seed = seed
        self.num_names = 0
        self.has_synchronous_errors = seed % 2 == 1
        self.scopes = []
        self.functions = []
        self.in_tape = self.in_loop = self.in_function = self.is_quiet = False
        self.budget = self.rnd.choice(sizes)
        # Few conditions of a calm program hang on values, so that it finds its graph again.
        self.is_calm = self.rnd.random() < 0.4

    # ---- names -----------------------------------------------------------------------
    def fresh(self, stem):
        self.num_names += 1
        return f"{stem}{self.num_names}"

    def define(self, kind, stem=None):
        name = self.fresh(stem or kind.lower())
        self.scopes[-1].setdefault(kind, []).append(name)
        return name

    def names(self, kind):
        return [name for scope in self.scopes for name in scope.get(kind, ())]

    def locals(self, kind):
        """Return the names of a kind that may be bound anew: no variables, no loop counters."""
        return [name for name in self.names(kind) if re.fullmatch(r"[a-z]+\d+|idx|x", name)]

    # ---- expressions -----------------------------------------------------------------
    def expression(self, kind, depth=1):
        """Return an expression of a kind: a template, with names or expressions in it."""
        return self.fill(expressions.pick(self.rnd, kind), depth)

    def fill(self, template, depth=1):
        return re.sub(r"\{([MWVSIBDpk])\}", lambda match: self.operand(match[1], depth), template)

    def operand(self, kind, depth):
        names = self.names(kind)
        if kind in "pk" or (depth > 0 and self.rnd.random() < 0.25):
            return f"({self.expression(kind, depth - 1)})"
        if not names:
            return f"({expressions.LEAVES[kind]})" if kind != "D" else "tf.unique(b).y"
        recent = names[-3:] if self.rnd.random() < 0.6 else names
        return self.rnd.choice(recent)

    def condition(self):
        table = "calm_condition" if self.is_calm else "condition"
        return self.fill(expressions.pick(self.rnd, table), 0)

    # ---- simple statements -----------------------------------------------------------
    def kind(self):
        return self.rnd.choices("MVSIBD", [10, 4, 4, 1, 1, 1 if not self.in_tape else 0])[0]

    def assign_op(self):
        kind = self.kind()
        value = self.expression(kind)
        known = self.locals(kind)
        if known and self.rnd.random() < 0.4:
            return [tree.Node(f"{self.rnd.choice(known)} = {value}")]
        return [tree.Node(f"{self.define(kind)} = {value}")]

    def alias(self):
        kind = self.rnd.choice("MMVS")
        known, others = self.locals(kind), self.names(kind)
        if not known:
            return self.assign_op()
        a, b, c = self.rnd.choice(known), self.rnd.choice(others), self.rnd.choice(known)
        return [
            tree.Node(
                self.rnd.choice(
                    [
                        f"{a} = {b} if {self.condition()} else {c}",
                        f"{a}, {c} = {c}, {a}",
                        f"{a} = {b}",
                        f"{a} = {{True: {b}, False: {c}}}[bool({self.condition()})]",
                        f"{a} = max([{b}, {c}], key=lambda t: float(tf.reduce_sum(t)))",
                        f"{a} = [{b}, {c}, {a}][i % 3]",
                    ]
                )
            )
        ]

    def draw(self):
        kind, template = expressions.pick(self.rnd, "random").split(" ", 1)
        value = self.fill(template, 0)
        return [tree.Node(f"{self.define(kind)} = {value}")]

    def write_variable(self):
        kind, name = self.rnd.choice([("W", "w"), ("V", "b"), ("S", "c"), ("M", "table")])
        value = SQUASHED[kind].format(self.expression(kind))
        rows = [
            f"{name}.assign({value})",
            f"{name}.assign_add(0.1 * {value})",
            f"{name}.assign_sub(box.rate * {value})",
        ]
        if name == "table":
            row = f"tf.tanh({self.expression('V', 0)})"
            rows += [
                f"table.scatter_nd_update([[i % 3]], [{row}])",
                f"table.scatter_update(tf.IndexedSlices({row}[None], [{{k}} % 3]))",
                f"table[{{k}} % 3].assign({row})",
            ]
        if name == "b":
            rows += ["b[1:3].assign(tf.tanh(b[:2]))", "b.scatter_nd_add([[1], [2]], [0.5, -0.5])"]
        rows.append("count.assign_add(1)")
        return [tree.Node(self.fill(self.rnd.choice(rows), 0))]

    def swap_variables(self):
        if self.rnd.random() < 0.5 and not self.in_function:
            return [tree.Node("w, u = u, w")]
        old = self.define("M", "old")
        return [
            tree.Node(f"{old} = table.read_value()"),
            tree.Node(f"table.assign({self.operand('M', 0)} * 0.5)"),
            tree.Node(f"memory.assign({old})"),
        ]

    def read(self):
        value = self.fill(expressions.pick(self.rnd, "read"), 0)
        if self.rnd.random() < 0.15:
            return [tree.Node(f"print({value}, file=out)")]
        return [tree.Node(f"log.append({value})")]

    def effect(self):
        scalar, matrix = self.operand("S", 0), self.operand("M", 0)
        rows = [
            f"log.append({self.rnd.randint(0, 99)})",
            "box.count += 1",
            "state['turns'] += 1",
            f"state['scale'] = {self.rnd.choice(['0.5 / (1 + i)', '0.5 if i < 6 else 0.25'])}",
            "state.setdefault('seen', []).append(i); log.append(len(state['seen']))",
            f"box.rate = {self.rnd.choice(['0.1 * (1 + i // 4)', 'box.rate * 0.9', '0.2'])}",
            f"box.value = {scalar}",
            f"state['best'] = {scalar}",
            f"state['kept'] = {matrix}",
            f"history.append({scalar}); del history[:-3]",
            "log.append(len(history))",
            f"log.append((i, {scalar}))",
        ]
        return [tree.Node(self.rnd.choice(rows))]

    def recall(self):
        kind, value = self.rnd.choice(
            [
                ("M", "state['kept']"),
                ("S", "state['best']"),
                ("S", "box.value"),
                ("S", "tf.add_n(history[-2:])"),
                ("M", "memory"),
                ("S", "history[-1]"),
            ]
        )
        if value != "memory" and self.rnd.random() < 0.5:
            value = {"M": f"tf.tanh({value})", "S": f"tf.tanh({value})"}[kind]
        return [tree.Node(f"{self.define(kind)} = {value}")]

    # ---- blocks ----------------------------------------------------------------------
    STATEMENTS = (
        (14, "assign_op"),
        (5, "alias"),
        (3, "draw"),
        (4, "write_variable"),
        (1, "swap_variables"),
        (3, "read"),
        (3, "effect"),
        (2, "recall"),
    )

    def simple_statements(self):
        """Return weight and method of each statement without a body that may stand here."""
        return self.STATEMENTS

    def compound_statements(self):
        """Return weight and method of each statement with a body."""
        return compound.STATEMENTS

    def statement(self, depth):
        """Return the nodes of one random statement; `depth` is how deep blocks may still nest."""
        self.budget -= 1
        simple = rows = self.simple_statements()
        if depth > 0 and self.budget > 0 and not self.is_quiet:
            rows += self.compound_statements() + (compound.ENDS if self.in_loop else ())
        name = self.rnd.choices([row[1] for row in rows], [row[0] for row in rows])[0]
        method = getattr(self, name)
        return method() if any(row[1] == name for row in simple) else method(depth - 1)

    def block(self, depth, sizes=(1, 2, 3), **names):
        """Return a block with a scope of its own, in which `names` (kind=[...]) are defined too."""
        self.scopes.append({kind: list(given) for kind, given in names.items()})
        nodes = []
        for _ in range(self.rnd.choice(sizes)):
            nodes += self.statement(depth)
        self.scopes.pop()
        return nodes

    # ---- the whole program -----------------------------------------------------------
    def program(self):
        self.scopes = [{"W": ["w", "u"], "V": ["b"], "S": ["c"], "M": ["table"]}]
        setup = self.helpers()
        self.scopes.append({"M": ["x"], "I": ["idx"]})
        body = self.opening()
        while self.budget > 0:
            body += self.statement(3)
        body += self.ending()
        self.scopes = self.scopes[:1]
        self.in_function = True  # No early return.
        between = self.between()
        return tree.Program(
            seed=self.seed,
            frame=FRAME.replace("SEED", str(self.seed)),
            sections={"helpers": setup, "body": body, "between": between},
            has_synchronous_errors=self.has_synchronous_errors,
            reads_each_call=self.rnd.random() < 0.7,
        )

    def opening(self):
        rows = [("M", "tf.tanh(x)"), ("V", "tf.reduce_mean(x, 0)"), ("S", "tf.reduce_sum(x)")]
        nodes = [tree.Node(f"{self.define(kind)} = {value}") for kind, value in rows]
        return [*nodes, tree.Node("idx = tf.constant([0, 2, 1])")]

    def ending(self):
        nodes = [tree.Node(f"return {self.outcome()}")]
        if self.has_synchronous_errors or self.rnd.random() < 0.7:
            return nodes
        # A late error: what follows the op has no effect on Python's state but the log.
        self.is_quiet = True
        nodes = self.failing_op() + self.quiet_statements() + nodes
        self.is_quiet = False
        return nodes

    def quiet_statements(self):
        nodes = []
        for _ in range(self.rnd.randint(0, 3)):
            nodes += self.rnd.choice([self.assign_op, self.read, self.write_variable])()
        return nodes

    def failing_op(self):
        kind, template = expressions.pick(self.rnd, "failing").split(" ", 1)
        bad = self.rnd.choice(["i % 5 == 3", "i == 8", "i in (4, 5, 9)", "i % 4 == 2"])
        value = self.fill(template, 0)
        name = self.define(kind, "risky")
        return [tree.Node(f"bad = {bad}"), tree.Node(f"{name} = {value}")]

    def outcome(self):
        m, v, s = self.operand("M", 0), self.operand("V", 0), self.operand("S", 0)
        return self.rnd.choice(
            [
                m,
                s,
                "None",
                f"({m}, {s})",
                f"{{'m': {m}, 'rest': [{v}, ({s}, i)]}}",
                f"[{m}, {m}]",
                f"({s}, box.count, {self.operand('D', 0)})",
                f"float({s})",
                f"{m} + {v}",
            ]
        )

    def between(self):
        nodes = []
        for _ in range(self.rnd.choice([0, 0, 1, 2])):
            rows = [
                "b.assign(b * 0.5)",
                "if i == 6: w.assign(tf.eye(4) * 0.3)",
                "box.rate = box.rate * 0.5 if i % 5 == 4 else box.rate",
                "state['kept'] = tf.tanh(state['kept'] + table)",
                "tf.random.set_seed(i)",
                "c.assign_add(0.5)",
                "state['best'] = tf.constant(0.1 * i)",
                "log.append(float(state['best']))",
            ]
            nodes.append(tree.Node(self.rnd.choice(rows)))
        return nodes


def generate(seed: int, sizes: Sequence[int] = SIZES) -> tree.Program:
    """Return the program of a seed; `sizes` are the numbers of statements to choose from."""
    return Writer(seed, sizes).program()
