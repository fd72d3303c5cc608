"""Write a random program around long loops from a seed: the profile `loops`.

Loops of 4 trips on are rolled (`roll_loops_from`). Their bodies hand values on, read, draw, branch,
write variables, train them, fail, hold a loop, and are left by `break`; what a trip makes is at
times kept for after the loop, which then must not be rolled.
"""

from tests.fuzz import expressions, generator, tree
from tests.fuzz.tree import Node

SIZES = (2, 4, 6)
ROLL_FROM = 4
TRIPS = (
    (4, "6"),
    (3, "4 + i % 4"),
    (3, "rnd.randint(0, 6)"),
    (2, "(6, 5, 0, 4)[i % 4]"),
    (1, "7 if i > 4 else 5"),
    (1, "6 - i % 3"),
)
BODY = (
    (12, "hand_on"),
    (3, "assign_op"),
    (2, "branch_in_trip"),
    (2, "read"),
    (2, "draw"),
    (2, "write_in_trip"),
    (2, "use_trip"),
    (2, "train_in_trip"),
    (1, "effect"),
    (1, "inner_loop"),
    (1, "leave"),
    (1, "keep_for_later"),
    (1, "alias"),
    (1, "fail_in_trip"),
)


class LoopWriter(generator.Writer):
    """Writes programs of the profile `loops`; see `generator.Writer`."""

    def __init__(self, seed, sizes):
        super().__init__(seed, sizes)
        self.is_calm = self.rnd.random() < 0.8
        self.has_synchronous_errors = seed % 7 == 1
        self.depth = 0
        self.trip, self.kept = "", ""

    def program(self):
        program = super().program()
        program.roll_loops_from = ROLL_FROM
        program.num_calls = 14
        return program

    def opening(self):
        nodes = super().opening()
        for _ in range(self.rnd.choice((1, 1, 2))):
            nodes += self.long_loop()
        return nodes

    def simple_statements(self):
        return (*super().simple_statements(), (4, "long_loop"))

    def long_loop(self):
        if self.depth or self.in_function or self.is_quiet:
            return self.assign_op()
        self.trip, self.kept = self.fresh("t_"), self.fresh("kept_")
        trips = self.rnd.choices([row[1] for row in TRIPS], [row[0] for row in TRIPS])[0]
        node = Node(f"for {self.trip} in range({trips}):", self.trip_body((2, 3, 4)))
        after = []
        if f"{self.kept}.append" in "\n".join(node.render(0)) and self.rnd.random() < 0.7:
            after = [Node(f"log.append([float(tf.reduce_sum(t)) for t in {self.kept}])")]
        return [Node(f"{self.kept} = []"), node, *after]

    def trip_body(self, sizes):
        self.scopes.append({"k": [self.trip]})
        self.depth += 1
        body = []
        for _ in range(self.rnd.choice(sizes)):
            names, weights = [row[1] for row in BODY], [row[0] for row in BODY]
            body += getattr(self, self.rnd.choices(names, weights)[0])()
        self.depth -= 1
        self.scopes.pop()
        return body

    def hand_on(self):
        """Give a name from before the loop a value made of what it was."""
        kind = self.rnd.choice("MMMVS")
        names = [name for scope in self.scopes[:2] for name in scope.get(kind, ())]
        known = [name for name in self.locals(kind) if name in names]
        if not known:
            return self.assign_op()
        name = self.rnd.choice(known)
        other = self.expression(kind)
        form = self.rnd.choice(
            ["tf.tanh({0} + {1})", "tf.tanh({0} * 0.5 - {1})", "tf.sin({1} + {0} * 0.3)"]
        )
        return [Node(f"{name} = {form.format(name, other)}")]

    def use_trip(self):
        trip = self.trip
        kind, value = self.rnd.choice(
            [
                ("M", f"tf.tanh({self.operand('M', 0)} * ({trip} + 1.0))"),
                ("M", f"{self.operand('M', 0)} + float({trip} == 2)"),
                ("V", f"tf.identity({self.operand('M', 0)})[{trip} % 3]"),
                ("V", f"tf.gather({self.operand('M', 0)}, {trip} % 3)"),
                ("M", f"tf.constant(data[{trip}]) * 0.3"),
                ("S", f"tf.constant(float({trip}))"),
                ("M", f"tf.roll({self.operand('M', 0)}, {trip}, axis=1)"),
            ]
        )
        known = self.locals(kind)
        if known and self.rnd.random() < 0.5:
            return [Node(f"{self.rnd.choice(known)} = {value}")]
        return [Node(f"{self.define(kind)} = {value}")]

    def condition_in_trip(self):
        trip = self.trip
        mine = [f"{trip} % 2", f"{trip} > 2", f"{trip} == i % 5", "rnd.random() < 0.5"]
        return self.rnd.choice(mine) if self.rnd.random() < 0.6 else self.condition()

    def branch_in_trip(self):
        node = Node(f"if {self.condition_in_trip()}:", self.hand_on())
        if self.rnd.random() < 0.5:
            node.tails.append(Node("else:", self.hand_on()))
        return [node]

    def write_in_trip(self):
        value = generator.SQUASHED["V"].format(self.expression("V"))
        rows = [
            f"b.assign({value})",
            f"b.assign_sub(0.1 * {value})",
            f"c.assign_add(0.1 * tf.tanh({self.operand('S', 0)}))",
            f"w.assign(tf.tanh({self.expression('W')}))",
            "count.assign_add(1)",
            f"table.scatter_nd_update([[1]], [{value}])",
        ]
        return [Node(self.rnd.choice(rows))]

    def train_in_trip(self):
        """A step of gradient descent: no variable is used thrice (sums of three are not exact)."""
        tape, kind, name = self.fresh("tape_"), *self.rnd.choice(["Ww", "Vb"])
        other = f"tf.stop_gradient({self.expression(kind)})"
        form = self.rnd.choice(
            ["tf.tanh({0} * {1})", "tf.nn.silu({0} + {1})", "tf.sin({0}) * {1} + tf.cos({0})"]
        )
        losses = [Node(f"loss = tf.reduce_mean({form.format(name, other)})")]
        if self.rnd.random() < 0.3:
            losses = [Node(f"if {self.condition_in_trip()}:", losses, [
                Node("else:", [Node(f"loss = tf.reduce_sum(tf.tanh({name}) ** 2)")])
            ])]  # fmt: skip
        return [
            Node(f"with tf.GradientTape() as {tape}:", losses),
            Node(f"{name}.assign_sub(0.1 * {tape}.gradient(loss, {name}))"),
        ]

    def inner_loop(self):
        if self.depth > 1:
            return self.hand_on()
        outer, self.trip = self.trip, self.fresh("t_")
        count = self.rnd.choice(["4", "4", f"3 + {outer} % 2", "rnd.randint(1, 4)"])
        node = Node(f"for {self.trip} in range({count}):", self.trip_body((1, 2)))
        self.trip = outer
        return [node]

    def leave(self):
        word = self.rnd.choice(["break", "continue"])
        when = self.rnd.choice([f"{self.trip} == i % 6", self.condition_in_trip(), "i == 7"])
        return [Node(f"if {when}:", [Node(word)])]

    def keep_for_later(self):
        value = self.operand(self.rnd.choice("MVS"), 0)
        return [Node(f"{self.kept}.append({value})")]

    def fail_in_trip(self):
        if not self.has_synchronous_errors:
            return self.read()
        template = expressions.pick(self.rnd, "failing").split(" ", 1)[1]
        value = self.fill(template, 0)
        return [
            Node(f"bad = i % 5 == 3 and {self.trip} == 3"),
            Node("try:", [Node(f"log.append(float(tf.reduce_sum({value})))")], [
                Node("except tf.errors.OpError as error:", [Node("log.append('op error')")])
            ]),
        ]  # fmt: skip


def generate(seed: int) -> tree.Program:
    """Return the program of a seed."""
    return LoopWriter(seed, SIZES).program()
