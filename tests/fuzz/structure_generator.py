"""Write a random program whose calls change in structure: the profile `structure`.

A program has a few functions `f(x, extra, i)`, decorated in odd ways, that share variables and
call each other. From call to call their order changes, and so does `extra`: its length, keys and
nesting, numbers for tensors, a layer of one function's for another.
"""

from tests.fuzz import frame, generator, tree
from tests.fuzz.tree import Node

SIZES = (2, 4, 6)
NUM_CALLS = 14

_RUN = "    @wrap\n    def run(x, i):\n        nonlocal w, u\n        <<body>>\n"
_DIGEST = '''    Pair = collections.namedtuple("Pair", ["left", "right"])

    def digest(extra, h):
        """Use all of a structure."""
        if extra is None or isinstance(extra, str):
            log.append(extra)
            return h
        if isinstance(extra, dict):
            for key in sorted(extra):
                h = digest(extra[key], tf.tanh(h + len(key)))
            return h
        if isinstance(extra, (list, tuple)):
            for item in extra:
                h = digest(item, h * 0.5)
            return h
        if callable(extra):
            return extra(h)
        return tf.tanh(h * (0.5 if extra else 0.25)) if isinstance(extra, bool) else h + extra

    <<functions>>
'''
_CALL = "        outcome = run(tf.constant(data[i]), i)\n"
_CALLS = """        results, t0, t1 = [], tf.constant(data[i]), tf.constant(data[i + 1])
        extra = None
        <<calls>>
        outcome = results
"""
_IMPORTS = "import numpy as np\nimport tensorflow as tf\n"
_VARIABLES = "    variables += [layer.kernel for layer in layers]\n"
_MODELS = """    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(SEED)
    models = [
        keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(4)])
        for _ in range(2)
    ]
    for model in models:
        model.build([3, 4])
        variables += model.trainable_variables
    optimizers = [keras.optimizers.SGD(0.1, momentum=0.5), keras.optimizers.Adam(0.01)]
    for optimizer in optimizers:
        optimizer.build([v for model in models for v in model.trainable_variables])
        variables += optimizer.variables
"""
FRAME = (
    frame.FRAME.replace("import functools\n", "import collections\nimport functools\n")
    .replace(_IMPORTS, "import keras\n" + _IMPORTS)
    .replace(_VARIABLES, _VARIABLES + _MODELS)
    .replace(_RUN, _DIGEST)
    .replace(_CALL, _CALLS)
)

LEAVES = (
    "t0", "t0", "t1", "t0[0]", "tf.constant(0.5)", "0.5", "0.25", "2", "i", "True", "i % 2 == 0",
    "None", "'tag'", "b", "c", "table", "np.float32(0.25)", "data[i]", "data[3]", "layers[0]",
    "layers[i % 3]", "layers[0].kernel[:3]", "box.rate", "box.value", "state['kept']", "tf.tanh",
    "tf.constant(0.1 * i)", "tf.nn.relu", "models[0]", "models[0]", "models[i % 2]", "models[1]",
    "models[1].layers[0]", "models[0].layers[i % 2]", "models[0].layers[1].bias",
)  # fmt: skip
CONTAINERS = (
    "[{}, {}]", "({}, {})", "[{}] * (i % 3)", "[{}, {}, {}][: i % 4]", "{{'m': {}, 'n': {}}}",
    "{{'m': {}}} if i % 3 else {{'k': {}, 'm': {}}}", "({}, [{}, {}])", "{{'m': [{}], 'n': ({},)}}",
    "Pair({}, {})", "(None if i % 4 == 1 else {})", "({} if i % 3 else {})",
    "({} if i > 6 else {})",
    "[({}, {})]", "[*layers[: i % 4], {}]", "dict.fromkeys('ab'[: 1 + i % 2], {})", "[[], {}]",
    "[{}, {}][:: 1 - 2 * (i % 2)]",
)  # fmt: skip
USES = (
    "digest(extra, {M})",
    "digest([extra, {M}], {M})",
    "digest(extra, x) * {M}",
    "digest(extra[0] if isinstance(extra, (list, tuple)) and extra else {S}, {M})",
    "digest(extra.get('m') if isinstance(extra, dict) else extra, {M})",
    "tf.add_n([digest(extra, {M}), {M}, x])",
    "(digest(extra, {M}) if extra is not None else {M})",
    "functools.reduce(lambda h, e: digest(e, h), tf.nest.flatten(extra), {M})",
)
LOOKS = (
    "type(extra).__name__",
    "len(tf.nest.flatten(extra))",
    "[tf.is_tensor(e) for e in tf.nest.flatten(extra)]",
    "sorted(extra) if isinstance(extra, dict) else 0",
)
STYLES = (
    (3, "plain"),
    (2, "partial_inside"),
    (2, "partial_outside"),
    (2, "of_lambda"),
    (2, "method"),
    (2, "bound_method"),
    (1, "static_method"),
    (2, "anew"),
    (2, "twice"),
    (1, "twice_decorated"),
    (1, "callable_object"),
    (1, "undecorated"),
)


class StructureWriter(generator.Writer):
    """Writes programs of the profile `structure`; see `generator.Writer`."""

    def __init__(self, seed, sizes):
        super().__init__(seed, sizes)
        self.is_calm = self.rnd.random() < 0.85
        self.has_synchronous_errors = seed % 5 == 1
        self.made = []
        self.has_extra = False  # whether the function that is being written has one

    # ---- expressions -----------------------------------------------------------------
    def structure(self, depth=2):
        """Return an expression whose structure may change with `i`."""
        if depth == 0 or self.rnd.random() < 0.25:
            return self.rnd.choice(LEAVES)
        template = self.rnd.choice(CONTAINERS)
        inner = [self.structure(depth - 1) for _ in range(template.count("{}"))]
        return template.format(*inner)

    # ---- statements of the functions -------------------------------------------------
    def simple_statements(self):
        mine = ((8, "use_extra"), (2, "look_at_extra"), (3, "call_another"), (2, "build_graph"))
        mine += ((3, "train_extra"), (2, "train_model"))
        return super().simple_statements() + (() if self.is_quiet or not self.has_extra else mine)

    def use_extra(self):
        value = self.fill(self.rnd.choice(USES), 0)
        return [Node(f"{self.define('M')} = {value}")]

    def look_at_extra(self):
        return [Node(f"log.append({self.rnd.choice(LOOKS)})")]

    def call_another(self):
        if not self.made:
            return self.use_extra()
        extras = ["extra", "None", self.operand("M", 0), f"[extra, {self.operand('S', 0)}]", "x"]
        extras += ["layers[:2]", "0.5", "{'m': x}"]
        call = f"{self.rnd.choice(self.made)}({self.operand('M', 0)}, {self.rnd.choice(extras)}, i)"
        return [Node(f"{self.define('M')} = {call}")]

    def train_extra(self):
        """A step of gradient descent for whatever variables the structure has."""
        tape, loss = self.fresh("tape_"), self.fresh("loss")
        value = self.fill("digest(extra, {M}) - {M}", 0)
        variables = f"{tape}.watched_variables()"
        update = "v.assign_sub(0.1 * tf.clip_by_value(tf.convert_to_tensor(g), -1.0, 1.0))"
        return [
            Node(
                f"with tf.GradientTape() as {tape}:",
                [Node(f"{loss} = tf.reduce_mean(tf.square({value}))")],
            ),
            Node(
                f"for v, g in zip({variables}, {tape}.gradient({loss}, {variables})):",
                [Node("if g is not None:", [Node(update)])],
            ),
        ]

    def train_model(self):
        tape, model = self.fresh("tape_"), self.fresh("model_")
        other = self.rnd.choice(["models[0]", "models[1]", "models[i % 2]"])
        value = self.fill(f"tf.square({model}({{M}}) - {{M}})", 0)
        optimizer = self.rnd.choice(["optimizers[0]", "optimizers[1]", "optimizers[i % 2]"])
        gradients = f"{tape}.gradient(loss, {model}.trainable_variables)"
        pairs = f"zip({gradients}, {model}.trainable_variables)"
        return [
            Node(f"{model} = extra if isinstance(extra, keras.Model) else {other}"),
            Node(
                f"with tf.GradientTape() as {tape}:", [Node(f"loss = tf.reduce_mean({value})")]
            ),
            Node(f"{optimizer}.apply_gradients({pairs})"),
        ]

    def build_graph(self):
        """A decorated function within a graph: straight ops, and no effects of Python."""
        value = self.operand("M", 0)
        call = self.rnd.choice(
            [
                f"next(iter(tf.data.Dataset.from_tensors({value}).map(mapped)))",
                f"graphed({value})",
                f"tf.function(mapped)({value})",
                f"tf.map_fn(mapped, {value}[None])[0]",
                f"mapped({value})",
            ]
        )
        return [Node(f"{self.define('M')} = {call}")]

    def body(self):
        """Return the statements of one function, which returns a float32[3, 4]."""
        self.scopes.append({"M": ["x"], "I": ["idx"]})
        self.budget = max(1, self.size // self.num_functions)
        nodes = self.opening() + self.use_extra()
        while self.budget > 0:
            nodes += self.statement(2)
        if not self.has_synchronous_errors and self.rnd.random() < 0.1:
            self.is_quiet = True  # a late error
            nodes += self.failing_op() + self.quiet_statements()
            self.is_quiet = False
        nodes.append(Node(f"return tf.tanh({self.operand('M', 0)} + {self.operand('M', 0)})"))
        self.scopes.pop()
        return nodes

    # ---- where functions are decorated -----------------------------------------------
    def function(self):
        names, weights = [row[1] for row in STYLES], [row[0] for row in STYLES]
        style = self.rnd.choices(names, weights)[0]
        name = self.fresh("f")
        nodes = getattr(self, style)(name, self.body())
        self.made.append(name)
        return nodes

    def plain(self, name, body):
        return [Node("@wrap"), Node(f"def {name}(x, extra, i):", body)]

    def undecorated(self, name, body):
        return [Node(f"def {name}(x, extra, i):", body)]

    def partial_inside(self, name, body):
        rate = self.rnd.choice(["0.5", "tf.constant(0.5)", "b", "layers[1]"])
        body.insert(0, Node("x = digest(rate, x)"))
        made = f"{name} = wrap(functools.partial(base_{name}, {rate}))"
        return [Node(f"def base_{name}(rate, x, extra, i):", body), Node(made)]

    def partial_outside(self, name, body):
        body.insert(0, Node("x = digest(rate, x)"))
        made = f"{name} = functools.partial(base_{name}, rate=[0.5, table])"
        return [Node("@wrap"), Node(f"def base_{name}(x, extra, i, rate=None):", body), Node(made)]

    def of_lambda(self, name, body):
        made = f"{name} = wrap(lambda x, extra, i: base_{name}(x, extra, i=i))"
        return [Node(f"def base_{name}(x, extra, i):", body), Node(made)]

    def workers(self, name, is_decorated, body, made):
        """A class whose instances have state of their own: `run` reads and writes it."""
        gain = self.rnd.choice(["tf.Variable(0.5)", "tf.constant(0.5)", "0.5", "b"])
        init = [Node("self.turns, self.gain, self.rate = 0, " + gain + ", rate")]
        own = [Node("self.turns += 1"), Node("x = x * self.gain + self.rate * self.turns")]
        if "Variable" in gain:
            own.append(Node("self.gain.assign_add(0.1)"))
        run = [Node("@wrap")] * is_decorated
        run.append(Node("def run(self, x, extra, i):", [*own, *body]))
        worker = Node(f"class Worker_{name}:", [Node("def __init__(self, rate):", init), *run])
        return [
            worker,
            Node(f"workers_{name} = [Worker_{name}(0.1), Worker_{name}(0.2)]"),
            Node(f"{name} = {made}"),
        ]

    def method(self, name, body):
        calls = [
            f"lambda x, extra, i: workers_{name}[i % 2].run(x, extra, i)",
            f"workers_{name}[1].run",
            f"lambda x, extra, i: Worker_{name}(0.3).run(x, extra, i)",
            f"functools.partial(Worker_{name}.run, workers_{name}[0])",
        ]
        return self.workers(name, True, body, self.rnd.choice(calls))

    def bound_method(self, name, body):
        made = f"wrap(workers_{name}[{self.rnd.choice('01')}].run)"
        return self.workers(name, False, body, made)

    def static_method(self, name, body):
        wrapper = self.rnd.choice(["@wrap", "@functools.partial(wrap)"])
        run = [Node("@staticmethod"), Node(wrapper), Node("def run(x, extra, i):", body)]
        return [Node(f"class Holder_{name}:", run), Node(f"{name} = Holder_{name}.run")]

    def anew(self, name, body):
        """A closure that each call makes and decorates anew, at times in a loop."""
        inner = [Node("@wrap"), Node("def inner(x):", body)]
        if self.rnd.random() < 0.5:
            loop = Node("for turn in range(1 + i % 2):", [*inner, Node("x = inner(x)")])
            return [Node(f"def {name}(x, extra, i):", [loop, Node("return x")])]
        return [Node(f"def {name}(x, extra, i):", [*inner, Node("return inner(x)")])]

    def twice(self, name, body):
        """One function decorated twice, side by side."""
        return [
            Node(f"def base_{name}(x, extra, i):", body),
            Node(f"both_{name} = [wrap(base_{name}) for _ in range(2)]"),
            Node(f"{name} = lambda x, extra, i: both_{name}[i % 2](x, extra, i)"),
        ]

    def twice_decorated(self, name, body):
        return [Node("@wrap"), *self.plain(name, body)]

    def callable_object(self, name, body):
        call = Node("def __call__(self, x, extra, i):", body)
        return [Node(f"class Callable_{name}:", [call]), Node(f"{name} = wrap(Callable_{name}())")]

    # ---- the calls -------------------------------------------------------------------
    def call(self):
        name, value = self.rnd.choice(self.made), self.rnd.choice(["t0", "t0", "t1", "table"])
        some = ", ".join(self.rnd.sample(self.made, self.rnd.randint(1, len(self.made))))
        extra = self.rnd.choice([self.structure(), self.structure(), "extra"])
        result = f"results.append({name}({value}, {extra}, i))"
        orders = [f"[{some}]", f"rnd.sample([{some}], i % {1 + some.count(',') + 1})"]
        orders += [f"[{some}][:: 1 - 2 * (i % 2)]", f"[{some}, {name}][i % 2 :]"]
        loop = Node(
            f"for f in {self.rnd.choice(orders)}:",
            [Node(f"results.append(f({value}, {extra}, i))")],
        )
        chained = f"results.append({name}(results[-1] if results else t1, {extra}, i))"
        when = self.rnd.choice(["i % 2", "i > 5", "i % 4 == 3", "i != 6"])
        return self.rnd.choice(
            [
                [Node(result)],
                [loop],
                [loop],
                [Node(chained)],
                [Node(f"if {when}:", [Node(result)])],
                [Node(f"extra = {self.structure()}"), Node(result)],
                [Node(f"if {when}:", [Node(f"extra = {self.structure()}")])],
            ]
        )

    def mapped_functions(self):
        # No sum of sums: Grappler adds those in another order where `mapped` is no function of
        # its own, as it is none in the program without a decorator (seed 20232).
        value = self.rnd.choice(["tf.tanh(h) * c", "tf.nn.relu(h + b)", "h * half + tf.sin(h)"])
        return [
            Node("half = tf.constant(0.5)"),
            Node("@wrap"),
            Node("def mapped(h):", [Node(f"return {value}")]),
            Node("@tf.function(autograph=False)"),
            Node("def graphed(h):", [Node("return tf.maximum(mapped(h) * 0.5, mapped(h + 1.0))")]),
        ]

    def program(self):
        self.size, self.num_functions = self.budget, self.rnd.choice([1, 2, 2, 3])
        self.scopes = [{"W": ["w", "u"], "V": ["b"], "S": ["c"], "M": ["table"]}]
        setup = self.helpers()
        self.in_function = self.has_extra = True
        functions = self.mapped_functions()
        for _ in range(self.num_functions):
            functions += self.function()
        calls = [node for _ in range(self.rnd.randint(2, 4)) for node in self.call()]
        between = self.between()
        sections = {"helpers": setup, "functions": functions, "calls": calls}
        return tree.Program(
            seed=self.seed,
            frame=FRAME.replace("SEED", str(self.seed)),
            sections={**sections, "between": between},
            has_synchronous_errors=self.has_synchronous_errors,
            reads_each_call=self.rnd.random() < 0.7,
            num_calls=NUM_CALLS,
        )
