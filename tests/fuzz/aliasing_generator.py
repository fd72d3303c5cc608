"""Write a random program whose arguments change which object they are: the profile `aliasing`.

`run(x, y, z, s, items, i)` gets, from call to call, one tensor for several arguments, equal tensors
that are two objects, tensors and variables that it captures as well, variables under two names,
arrays, Python numbers, and what another decorated function has just returned.
"""

import re

from tests.fuzz import frame, generator, tree
from tests.fuzz.tree import Node

SIZES = (2, 4, 6, 10)
NUM_CALLS = 14
ROLL_FROM = 4

_RUN = "    @wrap\n    def run(x, i):\n"
_RUNS = """    fixed, half = tf.constant(data[30] * 0.5), tf.constant(0.5)
    twin, array = table, np.array(data[31])

    @wrap
    def second(x, y, i):
        <<second>>

    @wrap
    def run(x, y, z, s, items, i):
"""
_CALL = "        outcome = run(tf.constant(data[i]), i)\n"
_CALLS = """        t0, t1, t2, equal = map(tf.constant, [*data[i : i + 3], data[i]])
        s0, s1, a0 = tf.constant(0.5), tf.constant(0.25), np.array(data[i])
        x, y, z, s, items = t0, t1, t2, s0, [t0, t1]
        <<arguments>>
        outcome = run(x, y, z, s, items, i)
"""
FRAME = frame.FRAME.replace(_RUN, _RUNS).replace(_CALL, _CALLS)

TENSORS = ("t0", "t0", "t1", "t1", "t2", "equal", "fixed", "fixed", "tf.identity(t0)")
VARIABLES = ("table", "memory", "twin", "table", "layers[0].kernel[:3]")
ARRAYS = ("array", "a0", "data[i]", "data[2]")
SCALARS = ("s0", "s0", "s1", "half", "c", "0.5", "tf.constant(0.5)", "np.float32(0.5)", "-0.5")
LISTS = (
    "[x, y]", "[x, x]", "[y, x, y]", "[x, y, z][: 1 + i % 3]", "[z] * (1 + i % 3)", "(x, z)",
    "[fixed, x]", "[table, x]", "[t0, t0, t0]", "[t0, equal]", "items[::-1]", "[*items, items[0]]",
)  # fmt: skip
SEVERAL = (
    "tf.matmul(tf.matmul({A}, {A}, transpose_b=True), {A}) * 0.1",
    "({A} * {A}) - ({A} * {A})",
    "tf.concat([{A}, {A}, {A}], 0)[1:4]",
    "tf.add_n([{A}, {A}]) * tf.stack([{A}, {A}])[0]",
    "tf.raw_ops.Mul(x=tf.convert_to_tensor({A}), y=tf.convert_to_tensor({A}))",
    "tf.raw_ops.AddN(inputs=[tf.convert_to_tensor({A}), tf.convert_to_tensor({A})])",
    "tf.where(tf.greater({A}, {A}), {A}, {A})",
    "tf.clip_by_value({A}, tf.minimum({A}, {A}), tf.maximum({A}, {A}))",
    "({A} - {A}) / (1.0 + tf.abs({A}))",
    "tf.einsum('ij,kj,kl->il', {A}, {A}, {A}) * 0.1",
    "tf.stack([{A}[0], {A}[1], {A}[0]]) * tf.gather({A}, [1])",
    "tf.add_n(list(items)) + {A} * s",
    "tf.stack(items)[-1] - {A}",
    "tf.nest.map_structure(tf.multiply, [{A}, {A}], [{A}, {A}])[i % 2]",
    "tf.clip_by_global_norm([{A}, {A}], 1.0)[0][1]",
    "tf.nn.silu({A}) + tf.nn.leaky_relu({A}) * s",
    "tf.math.squared_difference({A}, {A}) * s",
    "tf.map_fn(tf.tanh, {A}) * {A} + {A}",
    "second({A}, {A}, i)",
)
STATEMENTS = (
    (12, "several"),
    (3, "write_argument"),
    (2, "write_several"),
    (2, "loop_over_items"),
    (3, "hand_through_loop"),
    (4, "gradients_of_arguments"),
    (1, "look_at_identity"),
    (2, "join_arguments"),
    (1, "write_array"),
)


class AliasingWriter(generator.Writer):
    """Writes programs of the profile `aliasing`; see `generator.Writer`."""

    def __init__(self, seed, sizes):
        super().__init__(seed, sizes)
        self.is_calm = self.rnd.random() < 0.85
        self.has_synchronous_errors = seed % 5 == 1
        self.has_arrays = self.rnd.random() < 0.4
        self.objects = ("x", "y", "z", "fixed", "items[0]", "items[-1]")

    # ---- expressions -----------------------------------------------------------------
    def fill(self, template, depth=1):
        template = re.sub(r"\{A\}", lambda match: self.rnd.choice(self.objects), template)
        # An argument may be an array, and then whatever is computed from it.
        template = re.sub(r"(\{[MVD]\}|\(\{S\} > 0\.0\))\.numpy\(\)", r"np.asarray(\1)", template)
        template = template.replace("{M}.shape.as_list()", "list({M}.shape)")
        return super().fill(template, depth)

    def locals(self, kind):
        names = super().locals(kind)
        mine = [name for name in self.names(kind) if name in ("y", "z")]
        return [name for name in names if name != "x" or not self.has_arrays] + mine

    def outcome(self):
        names = self.names("M")
        some = ", ".join(self.rnd.sample(names, min(len(names), 4)))
        return f"[{super().outcome()}, {some}]"

    def several_objects(self):
        return self.fill(self.rnd.choice(SEVERAL))

    # ---- statements ------------------------------------------------------------------
    def simple_statements(self):
        plain = super().simple_statements()
        return plain if self.in_function or self.is_quiet else plain + STATEMENTS

    def several(self):
        value = self.several_objects()
        return [Node(f"{self.define('M')} = {value}")]

    def write_argument(self):
        name, value = self.rnd.choice("xyz"), self.several_objects()
        call = self.rnd.choice(["assign(tf.tanh({}))", "assign_add(0.1 * tf.tanh({}))"])
        head = f"if isinstance({name}, tf.Variable):"
        return [Node(head, [Node(f"{name}.{call.format(value)}")])]

    def write_array(self):
        """An array is written after its use: each op takes what it holds at that time."""
        if not self.has_arrays:
            return self.write_argument()
        name, row = self.rnd.choice("yz"), self.rnd.choice(["[0] = 0.25", "[...] *= 0.5"])
        return [
            Node(f"{self.define('M')} = tf.tanh({name}) + {self.fill('{A}')}"),
            Node(f"if isinstance({name}, np.ndarray):", [Node(f"{name}{row}")]),
        ]

    def write_several(self):
        name = self.rnd.choice(["table", "memory", "twin"])
        return [Node(f"{name}.assign(tf.tanh({self.several_objects()}))")]

    def loop_over_items(self):
        item, value, other = self.fresh("item_"), self.operand("M", 0), self.fill("{A}")
        h = self.define("M", "h")
        things = self.rnd.choice(["items", "(x, y, z)", "[*items, x]", "reversed(items)"])
        body = [Node(f"{h} = tf.tanh({h} * 0.5 + {item} * {other})")]
        return [Node(f"{h} = {value}"), Node(f"for {item} in {things}:", body)]

    def hand_through_loop(self):
        """A loop that may be rolled: its trips take the arguments in."""
        value = self.operand("M", 0)
        h = self.define("M", "h")
        rows = ["tf.tanh({h} * {A} + {A}) - {A}", "{A} * 0.5 + tf.sin({h}) * s", "{A} * {A} + {h}"]
        form = self.rnd.choice(rows).replace("{h}", h)
        head = f"for {self.fresh('j_')} in range({self.rnd.choice(['8', '5', '4 + i % 3', '3'])}):"
        body = [Node(f"{h} = tf.tanh({self.fill(form)})")]
        if self.rnd.random() < 0.3:
            body.append(Node(f"b.assign_add(tf.tanh({h}[0]) * 0.1)"))
        return [Node(f"{h} = {value}"), Node(head, body)]

    def gradients_of_arguments(self):
        tape, a, c = self.fresh("tape_"), self.fresh("arg_"), self.fresh("arg_")
        convert = "tf.convert_to_tensor({})"
        first, second = self.rnd.choice("xyz"), self.rnd.choice("xyz")
        was_in_tape, self.in_tape = self.in_tape, True
        objects, self.objects = self.objects, (*self.objects, a, c, a, c)
        loss = f"tf.reduce_mean(tf.tanh({self.several_objects()}) * {a}) + tf.reduce_sum({c} * {a})"
        self.objects, self.in_tape = objects, was_in_tape
        sources = self.rnd.choice([f"[{a}, {c}]", f"[{a}]", f"[{c}, {a}, {a}]", f"[{a}, w]"])
        call = f"{tape}.gradient(loss, {sources}, unconnected_gradients='zero')"
        watched = self.rnd.choice([f"[{a}, {c}]", a, f"[{a}, {c}]"])
        h = self.define("M", "g")
        return [
            Node(f"{a}, {c} = {convert.format(first)}, {convert.format(second)}"),
            Node(
                f"with tf.GradientTape() as {tape}:",
                [Node(f"{tape}.watch({watched})"), Node(f"loss = {loss}")],
            ),
            Node(f"{h} = tf.convert_to_tensor({call}[0])"),
        ]

    def look_at_identity(self):
        a, c = self.rnd.choice(self.objects), self.rnd.choice([*self.objects, "table"])
        return [Node(f"log.append(({a} is {c}, type({a}).__name__ == type({c}).__name__))")]

    def join_arguments(self):
        a, c, d = (self.rnd.choice(self.objects) for _ in "acd")
        h, condition = self.define("M", "h"), self.condition()
        branch = Node(f"if {condition}:", [Node(f"{h} = {c}")], [
            Node("else:", [Node(f"{h} = {a} * {d}")])
        ])  # fmt: skip
        rows = [branch, Node(f"{h} = tf.maximum({h}, {d}) - {h} * {a}")]
        return [Node(f"{h} = {a}"), *rows]

    # ---- the call --------------------------------------------------------------------
    def pattern(self, candidates):
        """Return an expression that is mostly one of a few things, and at times another."""
        things = [self.rnd.choice(candidates) for _ in range(self.rnd.choice([2, 2, 3]))]
        weights = [4, 1, 1][: len(things)]
        if self.rnd.random() < 0.4:
            return f"({', '.join(things)})[i % {len(things)}]"
        order = self.rnd.choices(range(len(things)), weights, k=NUM_CALLS)
        return f"({', '.join(things)})[{order}[i]]"

    def argument(self):
        name = self.rnd.choice(["x", "y", "y", "z", "z", "s", "items"])
        if name == "s":
            return [Node(f"s = {self.pattern(SCALARS)}")]
        if name == "items":
            return [Node(f"items = {self.pattern(LISTS)}")]
        candidates = TENSORS + VARIABLES + {"x": (), "y": ("x",) * 8, "z": ("x", "y") * 5}[name]
        if self.has_arrays and name != "x":
            candidates += ARRAYS * 2
        if self.has_arrays and self.rnd.random() < 0.2:
            return [Node("array[i % 3] = 0.1 * i")]
        if self.rnd.random() < 0.15:
            return [Node("z = second(x, y, i)")]
        if self.rnd.random() < 0.15:
            names = "y, z" if self.has_arrays else self.rnd.choice(["x, y", "y, z", "x, z"])
            return [Node(f"if {self.rnd.choice(['i % 2', 'i > 6', 'i == 5', 'i % 4 == 3'])}:", [
                Node(f"{names} = {names[::-1].replace(' ,', ', ')}")
            ])]  # fmt: skip
        return [Node(f"{name} = {self.pattern(candidates)}")]

    def second_function(self):
        self.in_function = True
        objects, self.objects = self.objects, ("x", "y", "fixed", "table")
        nodes = []
        for name in self.rnd.sample("hgf", self.rnd.choice([1, 2])):
            rows = [row for row in SEVERAL if "second" not in row and "items" not in row]
            template = self.rnd.choice([row for row in rows if not re.search(r"\bs\b", row)])
            nodes.append(Node(f"{name} = {self.fill(template)}"))
            self.objects = (*self.objects, name, name)
        self.objects, self.in_function = objects, False
        return [*nodes, Node(f"return tf.tanh({name})")]

    def program(self):
        self.scopes = [{"W": ["w", "u"], "V": ["b"], "S": ["c"], "M": ["table", "fixed"]}]
        setup, second = self.helpers(), self.second_function()
        arguments = [node for _ in range(self.rnd.randint(3, 6)) for node in self.argument()]
        self.scopes.append({"M": ["x", "y", "z"], "S": ["s"], "I": ["idx"]})
        body = self.opening() + self.several() + self.several()
        while self.budget > 0:
            body += self.statement(2)
        body += self.ending()
        self.scopes = self.scopes[:1]
        self.in_function = True
        between = self.between()
        sections = {"helpers": setup, "second": second, "body": body, "arguments": arguments}
        return tree.Program(
            seed=self.seed,
            frame=FRAME.replace("SEED", str(self.seed)),
            sections={**sections, "between": between},
            has_synchronous_errors=self.has_synchronous_errors,
            reads_each_call=self.rnd.random() < 0.7,
            num_calls=NUM_CALLS,
            roll_loops_from=ROLL_FROM if self.rnd.random() < 0.5 else None,
        )
