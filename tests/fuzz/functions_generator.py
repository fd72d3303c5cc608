"""Write a random program around functions of TensorFlow's and tapes: the profile `functions`.

A program has a few `tf.function`s `f(h, v, n)` of a float32[rows, 4] to another, which call each
other, take variables and captured tensors, and have loops, branches, gradients and tangents of
their own; custom and recomputed gradients; and a `run` that puts them under tapes and forward
accumulators, nested in each other. Some of those are opened around the calls of `run`.

Most programs have no sums of three in functions: TensorFlow's kernel begins with whichever input's
buffer is free, so that eager's own bits differ from run to run. The others (`is_ordered`) have
them, and run functions with TensorFlow's executor of one thread, where the order is one.
"""

from tests.fuzz import generator, tree
from tests.fuzz.functions_tables import (
    CONDITIONS_OF_BACKWARD,
    EXECUTORS,
    FORMS,
    FRAME,
    LIBRARY,
    LOOPS,
    LOSSES,
    OF_CONSTANTS,
    OF_VARIABLES,
    SUMS,
    WITHOUT_TANGENTS,
)
from tests.fuzz.tree import Node

SIZES = (1, 2, 4)
NUM_CALLS = 10
ZEROS = "unconnected_gradients='zero'"

STYLES = (
    (8, "tf.function"),
    (2, "tf.function(autograph=False)"),
    (2, "tf.function(reduce_retracing=True)"),
    (2, "tf.function(input_signature=[tf.TensorSpec([None, 4]), tf.TensorSpec([4])])"),
)
IN_FUNCTIONS = (
    (8, "form"),
    (4, "call_in_function"),
    (2, "branch_in_function"),
    (2, "loop_in_function"),
    (2, "python_in_function"),
    (2, "gradient_in_function"),
    (1, "tangent_in_function"),
    (1, "effect_in_function"),
)
STATEMENTS = (
    (5, "apply"),
    (2, "apply_to_rows"),
    (4, "train"),
    (2, "several_gradients"),
    (2, "stop_and_reset"),
    (2, "penalty"),
)
ACCUMULATORS = (
    (3, "push_forward"),
    (1, "hessian_product"),
    (1, "train_on_tangents"),
    (1, "nested_accumulators"),
)
COMPOUND = (
    (5, "branch"),
    (3, "for_loop"),
    (1, "while_loop"),
    (1, "layer_loop"),
    (1, "python_error"),
    (1, "op_error"),
    (1, "comprehension"),
    (1, "call_helper"),
    (1, "context"),
)


class FunctionsWriter(generator.Writer):
    """Writes programs of the profile `functions`; see `generator.Writer`."""

    def __init__(self, seed, sizes):
        super().__init__(seed, sizes)
        self.is_calm = self.rnd.random() < 0.9
        self.has_synchronous_errors = seed % 5 == 1
        self.is_ordered = self.rnd.random() < 0.3
        # A function that is given a variable has no tangents in TensorFlow.
        self.has_accumulators = self.rnd.random() < 0.7
        self.is_pushed = False  # whether what is written has to have tangents, or two gradients
        self.made = []  # templates of calls, and whether TensorFlow has tangents of them
        self.fixed = []  # those that take float32[3, 4] only
        self.custom = []  # those with gradients of the user's, and whether they use variables

    def pick(self, rows):
        """Return one of pairs of a weight and a value."""
        return self.rnd.choices([row[1] for row in rows], [row[0] for row in rows])[0]

    def keep(self, kind, name):
        """Say that a name is bound from here on; return it."""
        self.scopes[-1].setdefault(kind, []).append(name)
        return name

    def operand(self, kind, depth):
        """Return what `generator.Writer` does, but what has a gradient."""
        text = super().operand(kind, depth)
        return "tf.boolean_mask(b, b > -1.0)" if text == "tf.unique(b).y" else text

    # ---- functions: blocks that bind `h` anew ----------------------------------------
    def form_of(self, h, names=None, forms=()):
        forms = forms or (FORMS + SUMS * 3 if self.is_ordered else FORMS)
        text = self.rnd.choice(forms).replace("{h}", h)
        for name, choices in (names or OF_VARIABLES).items():
            while f"{{{name}}}" in text:
                text = text.replace(f"{{{name}}}", self.rnd.choice(choices), 1)
        return text

    def form(self):
        return [Node(f"h = {self.form_of('h')}")]

    def block_in_function(self, sizes=(1, 1, 2), is_inner=True):
        nodes = []
        for _ in range(self.rnd.choice(sizes)):
            # A loop in a branch is more than TensorFlow's gradients can do.
            name = self.pick(IN_FUNCTIONS[:2] if is_inner else IN_FUNCTIONS)
            nodes += getattr(self, name)()
        return nodes

    def call_in_function(self):
        if not self.made:
            return self.form()
        return [Node(f"h = {self.call_of('h * 0.5', 'v', 'n', self.is_plain)}")]

    def call_of(self, h, v, n, is_plain):
        """Return a call, or a form where no function serves."""
        made = [template for template, has_tangents in self.made if has_tangents or not is_plain]
        template = self.rnd.choice(made) if made else FORMS[0].replace("{w}", "w")
        return template.replace("{h}", h).replace("{v}", v).replace("{n}", n)

    def branch_in_function(self):
        if self.is_plain and (self.is_ordered or self.rnd.random() < 0.7):
            return self.form()
        condition = self.rnd.choice(["tf.reduce_sum(h) > 0.0", "h[0, 0] < v[1]", "count % 2 == 0"])
        if not self.has_autograph or self.rnd.random() < 0.3:
            one, other = self.form_of("h"), self.form_of("h")
            return [Node(f"h = tf.cond({condition}, lambda: {one}, lambda: {other})")]
        node = Node(f"if {condition}:", self.block_in_function())
        if self.rnd.random() < 0.5:
            node.tails.append(Node("else:", self.block_in_function()))
        return [node]

    def loop_in_function(self):
        if self.is_plain:
            return self.form()
        trips = self.rnd.choice(["2", "3", "n + 1", "tf.shape(h)[0]"])
        if not self.has_autograph or self.rnd.random() < 0.3:
            return [Node(f"h = {self.form_of('h', forms=LOOPS)}")]
        return [Node(f"for k in tf.range({trips}):", self.block_in_function())]

    def python_in_function(self):
        """What Python decides while the function is traced."""
        head = self.rnd.choice(["if n > 1:", "for k in range(n):", "if h.shape[0] == 3:"])
        note = [Node("log.append(('traced', n))")] * (self.rnd.random() < 0.3)
        return [Node(head, note + self.block_in_function())]

    def gradient_in_function(self):
        tape = self.fresh("tape_")
        body = [Node(f"{tape}.watch(h)"), Node(f"y = {self.form_of('h')}")]
        body.append(Node(f"y = tf.reduce_sum({self.form_of('y')})"))
        sources = self.rnd.choice(["h", "h", "[h, b]", "[h, w, c]"])
        result = "h = {}" if sources == "h" else "h = {}[0]"
        call = f"{tape}.gradient(y, {sources}, {ZEROS})"
        return [
            Node(f"with tf.GradientTape() as {tape}:", body),
            Node(result.format(call) + self.rnd.choice([" - h", " * 0.5", ""])),
        ]

    def tangent_in_function(self):
        tangent = self.rnd.choice(["tf.ones_like(h)", "tf.sin(h)", "h * 0.5"])
        accumulator = self.fresh("pushed_")
        return [
            Node(
                f"with Accumulator(h, {tangent}) as {accumulator}:",
                [Node(f"y = {self.form_of('h')}")],
            ),
            Node(f"h = y * {accumulator}.jvp(y, {ZEROS})"),
        ]

    def effect_in_function(self):
        rows = ["b.assign_add(tf.tanh(h[0]) * 0.1)", "count.assign_add(1)", "c.assign(c * 0.9)"]
        rows += ["h = h * tf.random.stateless_uniform([4], [n, 3])", "log.append('traced')"]
        return [Node(self.rnd.choice(rows))]

    def function(self):
        name = self.fresh("f")
        style = self.pick(STYLES)
        self.has_autograph = "autograph=False" not in style
        # TensorFlow's executor of one thread may wait for ever for functions in branches and loops.
        self.is_plain = self.is_ordered or self.rnd.random() < 0.6
        body = self.form() + self.block_in_function((1, 2, 3), is_inner=False)
        result, selector = self.rnd.choice(
            [
                ("h", ""),
                ("tf.tanh(h)", ""),
                ("{'y': h, 'n': n, 'sum': tf.reduce_sum(h)}", "['y']"),
                ("h * 0.5, [None, tf.reduce_mean(h, 0)]", "[0]"),
                ("[h[0], h]", "[1]"),
            ]
        )
        body.append(Node(f"return {result}"))
        n = "" if "signature" in style else self.rnd.choice(["", ", n={n}", ", {n}"])
        self.made.append((f"{name}({{h}}, {{v}}{n}){selector}", self.is_plain))
        nodes = [Node(f"@{style}"), Node(f"def {name}(h, v, n=1):", body)]
        if self.rnd.random() < 0.15 and not self.is_ordered:  # lowered for another executor
            specs = "tf.TensorSpec([3, 4]), tf.TensorSpec([4])"
            nodes.append(Node(f"{name}_fixed = {name}.get_concrete_function({specs})"))
            self.fixed.append(f"{name}_fixed(tf.identity({{h}}), tf.identity({{v}})){selector}")
        return nodes

    # ---- gradients of the user's -----------------------------------------------------
    def custom_gradient(self):
        """A function with a gradient of its own; `custom` has its call."""
        name = self.fresh("custom_")
        if self.rnd.random() < 0.25 and not self.has_accumulators:
            names = {**OF_VARIABLES, "v": ("b", "vector"), "c": ("c", "0.5")}
            body = [Node(f"return {self.form_of('h', names)}")]
            self.custom.append((f"{name}({{h}})", True))
            return [Node("@tf.recompute_grad"), Node(f"def {name}(h):", body)]
        body = [Node(f"y = {self.form_of('h', OF_CONSTANTS)}")]
        has_variables = self.rnd.random() < 0.4
        without_variables = [call for call, has_some in self.custom if not has_some]
        if has_variables:
            body.append(Node(self.rnd.choice(["y = y @ w", "y = tf.tanh(y * b)", "y = y * c - b"])))
        elif without_variables and self.rnd.random() < 0.6:
            body.append(Node(f"y = y * {self.rnd.choice(without_variables)}".format(h="h * 0.5")))
        body += [self.backward(has_variables), Node("return y, backward")]
        self.custom.append((f"{name}({{h}})", has_variables))
        return [Node("@tf.custom_gradient"), Node(f"def {name}(h):", body)]

    def backward(self, has_variables):
        gradient = self.rnd.choice(["upstream * tf.cos(h)", "upstream * 0.5", "upstream * y - h"])
        body = [Node(f"slope = {gradient}")]
        condition = self.rnd.choice(CONDITIONS_OF_BACKWARD)
        if self.rnd.random() < 0.5:
            body.append(Node(condition, [Node("slope = tf.tanh(slope)")]))
        if self.rnd.random() < 0.3:
            body.append(Node("log.append('backward')"))
        if not has_variables:
            return Node("def backward(upstream):", [*body, Node("return slope")])
        slopes = "[tf.ones_like(v) * tf.reduce_sum(upstream) * 0.1 for v in variables]"
        body.append(Node(f"return slope, {slopes}"))
        return Node("def backward(upstream, variables=None):", body)

    # ---- what a step does to a value -------------------------------------------------
    def through(self, h, is_fixed=True):
        """Return an expression that makes float32[rows, 4] of another."""
        roll = self.rnd.random()
        if roll < 0.5:
            v = self.operand("V", 0)
            if is_fixed and self.fixed and not self.is_pushed and self.rnd.random() < 0.3:
                return self.rnd.choice(self.fixed).replace("{h}", h).replace("{v}", v)
            n = self.fill(self.rnd.choice(["1", "2", "1 + i % 2", "1 + {k} % 2"]), 0)
            other = "v1" if self.has_accumulators else "b"
            v = self.rnd.choice([f"tf.identity({v})", "v1", other])
            return self.call_of(h, v, n, self.is_pushed)
        if roll < 0.65 and self.custom:
            return self.rnd.choice(self.custom)[0].replace("{h}", h)
        if roll < 0.85:
            library = LIBRARY if self.is_pushed else LIBRARY + WITHOUT_TANGENTS
            return self.fill(self.rnd.choice(library).replace("{h}", h), 0)
        return self.form_of(h, {**OF_VARIABLES, "v": ("v1", "b"), "c": ("c", "0.5")})

    def chain(self, h, start, sizes=(1, 1, 2)):
        """Return statements that make `h` of `start`, float32[3, 4]."""
        nodes = [Node(f"{h} = {self.through(start)}")]
        for _ in range(self.rnd.choice(sizes) - 1):
            again = Node(f"{h} = {self.through(h)}")
            nodes.append(
                Node(f"if {self.condition()}:", [again]) if self.rnd.random() < 0.4 else again
            )
        if self.rnd.random() < 0.15:
            nodes.append(Node(f"log.append(float(tf.reduce_sum({h})))"))
        return nodes

    def loss_of(self, h):
        return self.fill(self.rnd.choice(LOSSES).replace("{h}", h), 0)

    def update(self, tape, loss):
        """Return statements that apply gradients of a loss."""
        if self.rnd.random() < 0.3:
            pairs = f"zip({tape}.gradient({loss}, trained, {ZEROS}), trained)"
            optimizer = self.rnd.choice(["optimizers[0]", "optimizers[1]", "optimizers[i % 2]"])
            return [Node(f"{optimizer}.apply_gradients({pairs})")]
        sources = self.rnd.choice(["[w, b]", "[w, b, c]", "trained", "[w, u, table, b]"])
        pair, g = self.fresh("v_"), self.fresh("g_")
        change = f"tf.clip_by_value(tf.convert_to_tensor({g}), -1.0, 1.0)"
        return [
            Node(
                f"for {pair}, {g} in zip({sources}, {tape}.gradient({loss}, {sources})):",
                [Node(f"if {g} is not None:", [Node(f"{pair}.assign_sub(0.1 * {change})")])],
            )
        ]

    # ---- statements of the step ------------------------------------------------------
    def simple_statements(self):
        plain = super().simple_statements()
        return plain if self.in_function or self.is_quiet else plain + self.statements_of_step() * 2

    def statements_of_step(self):
        # Of functions of functions of functions TensorFlow makes one in a minute.
        if self.is_pushed:
            return STATEMENTS[:3]
        return STATEMENTS + (ACCUMULATORS if self.has_accumulators and not self.is_around else ())

    def compound_statements(self):
        return COMPOUND

    def apply(self):
        h = self.fresh("h")
        nodes = self.chain(h, self.operand("M", 0))
        self.keep("M", h)
        return nodes

    def apply_to_rows(self):
        """Other shapes, and so other concrete functions."""
        rows = self.rnd.choice(["1 + i % 3", "2", "1 + i % 2", "1"])
        value = self.through(f"{self.operand('M', 0)}[: {rows}]", is_fixed=False)
        if self.rnd.random() < 0.4:
            return [Node(f"{self.define('M')} = tf.pad({value}, [[0, 3], [0, 0]])[:3]")]
        return [Node(f"{self.define('V')} = tf.reduce_mean({value}, 0)")]

    def train(self):
        tape, h = self.fresh("tape_"), self.fresh("h")
        body = self.chain(h, self.operand("M", 0), (1, 2, 3))
        body.append(Node(f"loss = {self.loss_of(h)}"))
        self.keep("M", h)
        return [Node(f"with tf.GradientTape() as {tape}:", body), *self.update(tape, "loss")]

    def penalty(self):
        """A gradient of a gradient."""
        outer, inner = self.fresh("tape_"), self.fresh("tape_")
        start, point, h = self.operand("M", 0), self.fresh("point"), self.fresh("h")
        body = [Node(f"{inner}.watch({point})"), *self.plain_chain(h, point)]
        body.append(Node(f"loss = {self.loss_of(h)}"))
        slope = self.fresh("slope")
        nodes = [
            Node(f"with tf.GradientTape() as {inner}:", body),
            Node(f"{slope} = {inner}.gradient(loss, {point}, {ZEROS})"),
            Node(f"loss = tf.reduce_mean((tf.norm({slope}, axis=1) - 1.0) ** 2) + loss"),
        ]
        self.keep("M", slope)
        head = f"with tf.GradientTape() as {outer}:"
        nodes = [Node(f"{point} = tf.identity({start})"), Node(head, nodes)]
        return nodes + self.update(outer, "loss")

    def several_gradients(self):
        tape, start = self.fresh("tape_"), self.operand("M", 0)
        one, other = self.fresh("h"), self.fresh("h")
        body = [Node(f"{tape}.watch({start})")] if self.rnd.random() < 0.5 else []
        body += self.chain(one, start) + self.chain(other, one)
        rows = [
            ("W", f"{tape}.gradient({one}, w, {ZEROS})"),
            ("V", f"{tape}.gradient([{one}, {other}], b, {ZEROS})"),
            ("M", f"{tape}.gradient({other}, {one}, {ZEROS})"),
            ("M", f"{tape}.gradient({other}, {one}, {one}, {ZEROS})"),
        ]
        rows = [row for row in rows if self.rnd.random() < 0.6]
        nodes = [Node(f"{self.define(kind)} = tf.convert_to_tensor({row})") for kind, row in rows]
        self.keep("M", other)
        nodes.append(Node(f"log.append(len({tape}.watched_variables()))"))
        return [Node(f"with tf.GradientTape(persistent=True) as {tape}:", body), *nodes]

    def stop_and_reset(self):
        tape, h, other = self.fresh("tape_"), self.fresh("h"), self.fresh("h")
        option = self.rnd.choice(["persistent=True", "watch_accessed_variables=False", ""])
        rows = [Node(f"{tape}.watch({self.rnd.choice(['w', 'b', '[w, c]'])})")]
        rows += self.chain(h, self.operand("M", 0))
        stopped = Node(f"with {tape}.stop_recording():", self.chain(other, h))
        reset = [Node(f"{tape}.reset()"), Node(f"{tape}.watch(w)"), *self.chain(h, "x")]
        reset = Node(f"if {self.condition()}:", reset)
        rows.append(Node(f"{other} = {h}"))
        rows += [row for row in (stopped, reset) if self.rnd.random() < 0.7]
        rows.append(Node(f"loss = tf.reduce_mean({other} * {self.through(h)})"))
        head = f"with tf.GradientTape({option}) as {tape}:"
        return [Node(head, rows), *self.update(tape, "loss")]

    # ---- forward accumulators --------------------------------------------------------
    def accumulator(self, name):
        """Return the head of a block under an accumulator."""
        matrix, square, vector, scalar = (f"tf.identity({self.operand(k, 0)})" for k in "MWVS")
        start = self.rnd.choice(
            [
                f"x, {matrix}",
                "x, tf.ones_like(x)",
                f"w, {square}",
                f"b, {vector}",
                f"[w, b], [{square}, {vector}]",
                f"[x, c], [{matrix}, {scalar}]",
            ]
        )
        return f"with Accumulator({start}) as {name}:"

    def plain_chain(self, h, start, sizes=(1, 1, 2)):
        """Return what `chain` does, of things that have tangents, and gradients of gradients."""
        was_pushed, self.is_pushed = self.is_pushed, True
        nodes = self.chain(h, start, sizes)
        self.is_pushed = was_pushed
        return nodes

    def push_forward(self):
        name, h, head = self.fresh("pushed_"), self.fresh("h"), self.accumulator("{}")
        body = self.plain_chain(h, self.rnd.choice(["x", self.operand("M", 0)]), (1, 2))
        body.append(Node(f"loss = {self.loss_of(h)}"))
        return [
            Node(head.format(name), body),
            Node(f"{self.define('M', 'tangent')} = {name}.jvp({self.keep('M', h)}, {ZEROS})"),
            Node(f"{self.define('S')} = {name}.jvp(loss, {ZEROS})"),
        ]

    def hessian_product(self):
        name, tape, h = self.fresh("pushed_"), self.fresh("tape_"), self.fresh("h")
        head, slope = self.accumulator(name), self.fresh("slope")
        body = [*self.plain_chain(h, "x"), Node(f"loss = {self.loss_of(h)}")]
        nodes = [
            Node(f"with tf.GradientTape() as {tape}:", body),
            Node(f"{slope} = tf.convert_to_tensor({tape}.gradient(loss, w, {ZEROS}))"),
        ]
        tangent = f"{name}.jvp({self.keep('W', slope)}, {ZEROS})"
        return [Node(head, nodes), Node(f"{self.define('W')} = {tangent}")]

    def train_on_tangents(self):
        name, tape, h = self.fresh("pushed_"), self.fresh("tape_"), self.fresh("h")
        body = [Node(self.accumulator(name), self.plain_chain(h, "x"))]
        body.append(Node(f"loss = {self.loss_of(f'{name}.jvp({h}, {ZEROS})')}"))
        return [Node(f"with tf.GradientTape() as {tape}:", body), *self.update(tape, "loss")]

    def nested_accumulators(self):
        outer, inner, h = self.fresh("pushed_"), self.fresh("pushed_"), self.fresh("h")
        heads, tangent = (self.accumulator(outer), self.accumulator(inner)), self.fresh("tangent")
        nodes = [
            Node(heads[1], self.plain_chain(h, "x")),
            Node(f"{tangent} = {inner}.jvp({h}, {ZEROS})"),
        ]
        value = f"{outer}.jvp({self.keep('M', tangent)}, {ZEROS})"
        return [Node(heads[0], nodes), Node(f"{self.define('M')} = {value}")]

    # ---- the calls of the step -------------------------------------------------------
    def calls(self):
        """Return the calls of `run`, some of them under a tape or an accumulator."""
        plain = [Node("outcome = [run(t0, i)]")]
        roll = self.rnd.random()
        self.is_around = roll >= 0.6
        if not self.is_around:
            return plain
        body = [*plain, Node("outcome.append(run(tf.tanh(t0), i))")][: self.rnd.choice([1, 2])]
        tangents = "outcome += [around.jvp(t) for t in floats(outcome)]"
        heads = ["with Accumulator(t0, t1) as around:", "with Accumulator(w, w * 0.5) as around:"]
        forward = [Node(self.rnd.choice(heads), body), Node(tangents)]
        total = "tf.add_n([tf.reduce_sum(t) for t in [t0, *floats(outcome)]])"
        gradient = f"around.gradient(total, [t0, w, b], {ZEROS})"
        watching = [Node("around.watch(t0)"), *body, Node(f"total = {total}")]
        backward = [
            Node("with tf.GradientTape() as around:", watching),
            Node(f"outcome += {gradient}"),
        ]
        # All of `run` is under an accumulator that is opened around it.
        self.is_pushed = roll < 0.8 and self.has_accumulators
        around = forward if self.is_pushed else backward
        if self.rnd.random() < 0.5:
            return around
        when = self.rnd.choice(["i % 4 == 3", "i > 5", "i % 2"])
        return [Node(f"if {when}:", around, [Node("else:", plain)])]

    def program(self):
        self.scopes = [{"W": ["w", "u"], "V": ["b", "vector"], "S": ["c"], "M": ["table", "fixed"]}]
        setup, functions = self.helpers(), []
        for _ in range(self.rnd.choice([1, 2, 3, 4])):
            functions += self.function()
        for _ in range(self.rnd.choice([0, 1, 2])):
            functions += self.custom_gradient()
        self.scopes.append({"M": ["x"], "I": ["idx"], "V": ["v1"]})
        calls = self.calls()
        body = [Node("v1 = tf.tanh(x[0])"), *self.opening()]
        for _ in range(self.rnd.choice([1, 2])):
            body += getattr(self, self.pick(self.statements_of_step()))()
        while self.budget > 0:
            body += self.statement(2)
        body += self.ending()
        self.scopes = self.scopes[:1]
        self.in_function = True
        sections = {"helpers": setup, "functions": functions, "body": body}
        sections |= {"calls": calls, "between": self.between()}
        text = FRAME.replace("SEED", str(self.seed))
        return tree.Program(
            seed=self.seed,
            frame=text.replace("EXECUTOR:", f"{EXECUTORS[self.is_ordered]}:"),
            sections=sections,
            has_synchronous_errors=self.has_synchronous_errors,
            reads_each_call=self.rnd.random() < 0.7,
            num_calls=NUM_CALLS,
        )
