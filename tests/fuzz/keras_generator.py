"""Write a random program with objects of Keras from a seed: the profile `keras`.

A `KerasWriter` writes what `generator.Writer` does and, more often, calls of layers, training with
optimizers, tapes of every sort, and changes of objects. Few of its conditions hang on values: a
call is replayed only where a program does the same again.
"""

import re

from tests.fuzz import generator, keras_tables, tree
from tests.fuzz.keras_frame import KERAS_FRAME
from tests.fuzz.tree import Node

SIZES = (2, 4, 6, 9)
OBJECT_KINDS = "KXYZUNJEORQC"
LAYER_KINDS = "KXYZUN"
STATEMENTS = (
    (10, "call_layer"),
    (4, "change"),
    (3, "move"),
    (3, "look"),
    (3, "update_metric"),
)
BLOCKS = (
    (14, "train"),
    (4, "tape_variant"),
    (1, "jacobian"),
    (3, "change_at_times"),
)
GRADIENTS = (
    (4, "{tape}.gradient({loss}, {sources})"),
    (1, "{tape}.gradient({loss}, {sources}, output_gradients={S})"),
    (1, "{tape}.gradient({loss}, [v.value for v in {sources}], unconnected_gradients='zero')"),
    (1, "{tape}.gradient([{loss}, {S}], {sources})"),
    (1, "{tape}.gradient({{'a': {loss}}}, {sources})"),
)


class KerasWriter(generator.Writer):
    """Writes programs of the profile `keras`; see `generator.Writer`."""

    def __init__(self, seed, sizes):
        super().__init__(seed, sizes)
        self.is_calm = self.rnd.random() < 0.85
        # Ops that can fail would all run imperatively.
        self.has_synchronous_errors = seed % 5 == 1
        self.objects = {}

    # ---- expressions -----------------------------------------------------------------
    def expression(self, kind, depth=1):
        if kind in "MS" and self.objects and not self.in_function and self.rnd.random() < 0.4:
            return self.fill(self.pick(kind), depth)
        return super().expression(kind, depth)

    def pick(self, table):
        """Return a template of `table` whose objects the program has."""
        while True:
            template = keras_tables.pick(self.rnd, table)
            needed = set(re.findall(r"\{([A-Z])\}", template)) & set(OBJECT_KINDS)
            if all(self.has_object(kind) for kind in needed):
                return template

    def has_object(self, kind):
        return kind == "K" or bool(self.objects.get(kind))

    def fill(self, template, depth=1):
        def fill_in(match):
            if match[1] in "at":
                return keras_tables.pick(self.rnd, match[1])
            return self.object(match[1])

        return super().fill(re.sub(rf"\{{([at{OBJECT_KINDS}])\}}", fill_in, template), depth)

    def object(self, kind):
        if kind == "K":
            names = [name for kind in LAYER_KINDS for name in self.objects.get(kind, ())]
            places = ["net.first", "net.second", "blocks[0]", "blocks[-1]", "named['a']"]
            return self.rnd.choice(names if self.rnd.random() < 0.7 else places)
        return self.rnd.choice(self.objects[kind])

    # ---- simple statements -----------------------------------------------------------
    def simple_statements(self):
        plain = super().simple_statements()
        return plain if self.in_function or not self.objects else plain + STATEMENTS

    def call_layer(self):
        value = self.fill(self.pick("M"))
        return [Node(f"{self.define('M')} = {value}")]

    def change(self):
        return [Node(self.fill(self.pick("changes"), 0))]

    def move(self):
        return [Node(self.fill(self.pick("moves"), 0))]

    def look(self):
        return [Node(f"log.append({self.fill(self.pick('reads'), 0)})")]

    def update_metric(self):
        metric = self.object("Q")
        type_name = self.made[metric]
        given = "{S}" if "Mean()" in type_name else "{M}" if "Largest" in type_name else "{M}, {M}"
        return [Node(self.fill(f"{metric}.update_state({given})", 0))]

    # ---- statements with bodies ------------------------------------------------------
    def statement(self, depth):
        allowed = depth > 0 and self.budget > 1 and not self.is_quiet and not self.in_function
        if allowed and self.rnd.random() < 0.45:
            self.budget -= 1
            rows = BLOCKS
            name = self.rnd.choices([row[1] for row in rows], [row[0] for row in rows])[0]
            return getattr(self, name)(depth - 1)
        return super().statement(depth)

    def when(self):
        return self.rnd.choice(["i == 6", "i in (5, 8)", "i % 4 == 3", "i > 6", "i == 9"])

    def change_at_times(self, depth):
        del depth
        return [Node(f"if {self.when()}:", self.rnd.choice([self.change, self.move])())]

    def forward(self, depth):
        """Return the statements of a forward pass, and the names of an activation and a loss."""
        was_in_tape, self.in_tape = self.in_tape, True
        value = self.fill(self.rnd.choice(["{K}({M}, training={t})", "{K}(x)"]))
        h, loss = self.define("M", "h"), self.fresh("loss")
        nodes = [Node(f"{h} = {value}")]
        for _ in range(self.rnd.choice([0, 1, 1, 2])):
            value = self.fill(self.pick("M"), 0)
            nodes.append(Node(f"{h} = {value}"))
            if self.rnd.random() < 0.6:
                nodes[-1].head = f"{h} = {self.object('K')}({h})"
        nodes += self.block(depth, sizes=(0, 0, 1))
        value = self.rnd.choice([f"{{C}}({{M}}, {h})", f"tf.reduce_mean({h} * {h})"])
        if self.rnd.random() < 0.3:
            value += " + sum({K}.losses, 0.0)"
        nodes.append(Node(f"{loss} = {self.fill(value, 0)}"))
        self.in_tape = was_in_tape
        self.scopes[-1].setdefault("S", []).append(loss)
        return nodes, h, loss

    def sources(self):
        rows = [
            "{K}.trainable_variables", "{N}.trainable_variables", "trainables()", "trainables()",
            "[*{K}.trainable_variables, *{K}.trainable_variables]", "{U}.trainable_variables",
        ]  # fmt: skip
        usable = [row for row in rows if all(self.has_object(k) for k in re.findall(r"{(.)}", row))]
        return self.fill(self.rnd.choice(usable))

    def train(self, depth):
        tape, vs, gs, pairs = (self.fresh(stem) for stem in ("tape_", "vs_", "gs_", "pairs_"))
        body, _, loss = self.forward(depth)
        call = self.rnd.choices([row[1] for row in GRADIENTS], [row[0] for row in GRADIENTS])[0]
        call = self.fill(call.format(tape=tape, loss=loss, sources=vs, S="{S}"), 0)
        optimizer = self.object("O")
        update = self.rnd.choice(
            [
                f"{optimizer}.apply_gradients({pairs})",
                f"{optimizer}.apply_gradients({pairs})",
                f"apply_all({optimizer}, list(zip({gs}, {vs})), log)",
                f"{optimizer}.apply([g for g, v in {pairs}], [v for g, v in {pairs}])",
                f"[v.assign_sub(0.05 * tf.tanh(g)) for g, v in {pairs}]",
            ]
        )
        kept = f"[(g, v) for g, v in zip({gs}, {vs}) if g is not None]"
        nodes = [
            Node(f"with tf.GradientTape() as {tape}:", body),
            Node(f"{vs} = {self.sources()}"),
            Node(f"{gs} = {call}"),
            Node(f"{pairs} = {kept}"),
            Node(f"if {pairs}:", [Node(update)]),
        ]
        if self.rnd.random() < 0.25:
            nodes.insert(1, Node(f"log.append([v.shape.rank for v in {tape}.watched_variables()])"))
        if self.rnd.random() < 0.2:
            nodes.append(Node(f"log.append([float(tf.norm(g)) for g, v in {pairs}])"))
        if self.rnd.random() < 0.25 and self.has_object("R"):
            nodes.append(Node(f"{self.object('R')}.learning_rate = 0.1 / (1 + i // 4)"))
        return nodes

    def tape_variant(self, depth):
        body, h, loss = self.forward(depth)
        variant = self.rnd.choice(
            [self.persistent, self.nested, self.stopped, self.watching, self.accumulated]
        )
        return variant(body, h, loss)

    def keep(self, expression, kind="S"):
        name = self.define(kind, "kept")
        return Node(f"{name} = {expression}")

    def total(self, gradients):
        """Return the expression of a scalar made of all gradients."""
        return f"sum((tf.reduce_sum(g) for g in {gradients} if g is not None), tf.constant(0.0))"

    def persistent(self, body, h, loss):
        tape, sources = self.fresh("tape_"), self.sources()
        return [
            Node(f"with tf.GradientTape(persistent=True) as {tape}:", body),
            self.keep(self.total(f"{tape}.gradient({loss}, {sources})")),
            self.keep(self.total(f"{tape}.gradient({h}, {sources})")),
            Node(f"del {tape}"),
        ]

    def nested(self, body, h, loss):
        outer, inner, g = self.fresh("tape_"), self.fresh("tape_"), self.fresh("g_")
        return [
            Node(
                f"with tf.GradientTape() as {outer}:",
                [
                    Node(f"with tf.GradientTape() as {inner}:", [Node(f"{inner}.watch(x)"), *body]),
                    Node(f"{g} = {inner}.gradient({loss}, x, unconnected_gradients='zero')"),
                    Node(f"{g} = tf.reduce_mean({g} * {g}) + {loss}"),
                ],
            ),
            self.keep(self.total(f"{outer}.gradient({g}, {self.sources()})")),
        ]

    def stopped(self, body, h, loss):
        tape = self.fresh("tape_")
        body = [*body, Node(f"with {tape}.stop_recording():", self.call_layer())]
        if self.rnd.random() < 0.3:
            body.insert(1, Node(f"{tape}.reset()"))
        if self.rnd.random() < 0.5:
            body.append(Node(f"{loss} = {loss} + {self.fill('{C}({M}, {M})', 0)}"))
        return [
            Node(f"with tf.GradientTape() as {tape}:", body),
            Node(f"log.append(len({tape}.watched_variables()))"),
            self.keep(self.total(f"{tape}.gradient({loss}, {self.sources()})")),
        ]

    def watching(self, body, h, loss):
        tape, layer = self.fresh("tape_"), self.object("X")
        return [
            Node(
                f"with tf.GradientTape(watch_accessed_variables=False) as {tape}:",
                [Node(f"{tape}.watch({layer}.kernel.value)"), Node(f"{tape}.watch(x)"), *body],
            ),
            Node(f"log.append([v.shape.rank for v in {tape}.watched_variables()])"),
            self.keep(self.total(f"{tape}.gradient({loss}, [{layer}.kernel.value, x])")),
        ]

    def accumulated(self, body, h, loss):
        if self.rnd.random() < 0.7:  # A step with one is imperative as a whole.
            return self.nested(body, h, loss)
        name = self.fresh("accumulator_")
        head = f"with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as {name}:"
        return [Node(head, body), self.keep(f"tf.reduce_sum({name}.jvp({h}, 'zero'))")]

    def jacobian(self, depth):
        body, h, _ = self.forward(0)
        tape = self.fresh("tape_")
        call = self.rnd.choice(
            [
                f"jacobian({h}[0], x, 'zero')",
                f"jacobian({h}[0], x, 'zero', experimental_use_pfor=False)",
                f"batch_jacobian({h}, x, 'zero')",
            ]
        )
        flag = self.rnd.choice(["", "persistent=True"]) if "use_pfor" not in call else "True"
        head = f"with tf.GradientTape({flag}) as {tape}:"
        taped = Node(head, [Node(f"{tape}.watch(x)"), *body])
        if self.rnd.random() < 0.5:
            return [taped, self.keep(f"tf.reduce_sum({tape}.{call} * 0.5)")]
        outer, total = self.fresh("tape_"), self.fresh("g_")  # trained through it
        through = Node(f"{total} = tf.reduce_mean(tf.square({tape}.{call}))")
        return [
            Node(f"with tf.GradientTape() as {outer}:", [taped, through]),
            self.keep(self.total(f"{outer}.gradient({total}, {self.sources()})")),
        ]

    # ---- the whole program -----------------------------------------------------------
    def make_object(self, kind, constructor):
        name = self.fresh("obj_")
        self.objects.setdefault(kind, []).append(name)
        self.made[name] = constructor
        lazily = ", build=False" if kind == "N" and self.rnd.random() < 0.05 else ""
        return Node(f"{name} = pooled({constructor}{lazily})")

    def layer_row(self, kinds=""):
        while True:
            kind, text = keras_tables.pick(self.rnd, "layers").split(" ", 1)
            if not kinds or kind in kinds:
                return kind, "keras.layers." + self.fill(text)

    def make_objects(self):
        self.made = {}
        nodes = [self.make_object("X", "keras.layers.Dense(4, activation='tanh')")]
        for _ in range(self.rnd.choice([2, 3, 4])):
            nodes.append(self.make_object(*self.layer_row()))
        for _ in range(self.rnd.choice([1, 2])):
            kind, text = keras_tables.pick(self.rnd, "models").split(" ", 1)
            while "{layer}" in text:
                text = text.replace("{layer}", self.layer_row("XYZ")[1], 1)
            nodes.append(self.make_object(kind, self.fill(text)))
        twin = self.objects["X"][0]
        nodes.append(self.make_object("X", f"keras.layers.Dense.from_config({twin}.get_config())"))
        for table, kind in (("optimizers", "O"), ("metrics", "Q"), ("losses", "C")):
            for _ in range(self.rnd.choice([1, 1, 2])):
                node = self.make_object(kind, keras_tables.pick(self.rnd, table))
                nodes.append(node)
                if kind == "O" and "Decay" not in node.head:
                    self.objects.setdefault("R", []).append(self.objects["O"][-1])
                if kind == "O" and self.rnd.random() < 0.97:
                    nodes.append(Node(f"{self.objects['O'][-1]}.build(trainables())"))
        if self.rnd.random() < 0.2:
            nodes.append(Node(f"{self.object('X')}.trainable = False"))
        layers = [name for kind in "KXYZ" for name in self.objects.get(kind, ())]
        a, b, c = (self.rnd.choice(layers) for _ in "abc")
        dense = self.objects["X"]
        nodes.append(Node(f"net.first, net.second = {dense[0]}, {dense[-1]}"))
        nodes.append(Node(f"named.update(a={a}, b={b})"))
        nodes.append(Node(f"blocks += [{b}, {c}]"))
        return nodes

    def program(self):
        objects = self.make_objects()
        made, self.objects = self.objects, {}
        self.scopes = [{"W": ["w", "u"], "V": ["b"], "S": ["c"], "M": ["table"]}]
        setup = self.helpers()
        self.objects = made
        self.scopes.append({"M": ["x"], "I": ["idx"]})
        body = self.opening() + self.train(1)
        while self.budget > 0:
            body += self.statement(2)
        body += self.ending()
        rows = range(self.rnd.choice([1, 2, 3]))
        model_call = [Node(keras_tables.pick(self.rnd, "model_call")) for _ in rows]
        self.scopes = self.scopes[:1]
        self.in_function = True
        sections = {"model_call": model_call, "objects": objects, "helpers": setup, "body": body}
        return tree.Program(
            seed=self.seed,
            frame=KERAS_FRAME.replace("SEED", str(self.seed)),
            sections={**sections, "between": self.between()},
            has_synchronous_errors=self.has_synchronous_errors,
            reads_each_call=self.rnd.random() < 0.7,
        )

    def between(self):
        nodes = super().between() if self.rnd.random() < 0.3 else []
        for _ in range(self.rnd.choice([0, 1, 1, 2, 2])):
            maker = self.rnd.choice([self.change, self.change, self.move])
            nodes.append(Node(f"if {self.when()}:", maker()))
        return nodes
