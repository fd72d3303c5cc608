"""Write a random program whose shapes follow from its data: the profile `shapes`.

A value of kind R is float32[n, 4], and only the data tells how many rows it has: masks, gathered
indices, variables of unknown shape, an argument whose length changes from call to call. Tapes,
library functions, the program's own functions and layers work on them, and Python reads shapes.
"""

import re

from tests.fuzz import expressions, frame, generator
from tests.fuzz.tree import Node

SIZES = (3, 5, 8, 12)
NUM_CALLS = 16

_RUN = "    @wrap\n    def run(x, i):\n"
_RUNS = """    zero, two = tf.UnconnectedGradients.ZERO, tf.constant(2.0)
    rows = data[24:].reshape(-1, 4)
    bag = tf.Variable(rows[:4], shape=[None, 4])
    variables.append(bag)
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(SEED)
    modules = [keras.layers.Dense(4, activation="tanh"), keras.layers.LayerNormalization()]
    for module in modules:
        module.build([None, 4])
        variables += module.trainable_variables
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(modules[0].trainable_variables)
    variables += optimizer.variables

    def centred(r):
        return r - tf.reduce_sum(r, axis=0) / tf.cast(tf.shape(r)[0] + 1, tf.float32)

    def mean_by_hand(r):
        return tf.reduce_sum(r) / max(1, r.shape[0] * r.shape[1])

    def padded(r, length=50):
        return tf.pad(r[:length], [[0, length - min(length, len(r))], [0, 0]])

    @wrap
    def run(x, given, i):
"""
_CALL = "        outcome = run(tf.constant(data[i]), i)\n"
_CALLS = """        <<argument>>
        outcome = run(tf.constant(data[i]), given, i)
"""
FRAME = (
    frame.FRAME.replace("import numpy as np\n", "import keras\nimport numpy as np\n")
    .replace(_RUN, _RUNS)
    .replace(_CALL, _CALLS)
)

LENGTHS = (
    "5", "40", "3 + i % 3", "30 + 5 * (i % 2)", "(40, 41, 42, 43, 40)[i % 5]", "8 + i",
    "rnd.randint(1, 60)", "6 if i < 8 else 36", "1 + i % 2", "(0, 24, 36)[i % 3]",
)  # fmt: skip
# Of how many rows the templates' values have, no two need to agree unless they are one name.
ROWS = expressions.parse(
    {
        "R": """
        5 tf.boolean_mask({R}, {R0}[:, {c}] > {p})
        2 tf.gather({R}, tf.where({R0}[:, {c}] < {p})[:, 0])
        2 {R}[: 2 + {k} % 3]
        1 {R}[int({k}) % 2 :: 2]
        1 {R}[: tf.shape({R0})[0] // 2 + 1]
        3 tf.tanh({R})
        2 {R} * {V}
        1 {R} + {S}
        2 tf.matmul({R}, {W})
        2 tf.concat([{R}, {R}], 0)
        1 tf.concat([{R}, {M}[:1]], axis=0)
        1 tf.nn.softmax({R})
        1 tf.nn.softmax({R}, axis=0)
        1 tf.math.l2_normalize({R}, 0)
        1 tf.sort({R}, axis=0)
        1 tf.cumsum({R}, axis=0)
        1 tf.reverse({R}, [0])
        1 tf.repeat({R}, 2, axis=0)[:50]
        1 tf.reshape(tf.reshape({R}, [-1]), [-1, 4])
        1 tf.reshape(tf.transpose({R0}), tf.shape({R0}))
        1 {R0} * tf.cast(tf.range(len({R0})), tf.float32)[:, None] * 0.1
        1 {R0} / float(len({R0}) + 1)
        1 {R0} * tf.ones({R0}.shape)
        1 {R0} + tf.zeros_like({R0}) * {R0}
        1 {R0} - tf.reduce_mean({R0}, 0)
        1 {R0} * tf.reduce_max({R0}, axis=1, keepdims=True)
        1 tf.broadcast_to({V}, tf.shape({R}))
        1 tf.random.normal(tf.shape({R}))
        1 tf.random.stateless_uniform(tf.shape({R}), [i, 3])
        1 tf.nn.dropout({R}, 0.4)
        1 tf.math.segment_sum({R0}, tf.range(tf.shape({R0})[0]) // 2)
        1 tf.math.unsorted_segment_mean({R0}, tf.range(len({R0})) % 3, 3)
        1 tf.gather({R0}, tf.unique_with_counts(tf.range(len({R0})) // 2).y)
        1 tf.image.random_crop({R0}, [tf.shape({R0})[0] // 2, 4], seed=3)
        1 tf.where({R0} > {p}, {R0}, {S})
        1 tf.vectorized_map(tf.tanh, {R})
        1 tf.map_fn(tf.sin, {R})
        1 tf.concat(tf.split({R}, 2, axis=1), 1)
        1 tf.stack(tf.unstack({R}, axis=1), axis=1)
        1 tf.dynamic_partition({R0}, tf.cast({R0}[:, {c}] > 0.0, tf.int32), 2)[1]
        1 {R} * two
        1 {R} ** 2.0 / 2.0
        2 centred({R})
        1 padded({R})
        2 modules[0]({R})
        2 modules[1]({R})
        1 bag
        1 bag.read_value()
        1 given
    """,
        "S": """
        3 tf.reduce_mean({R})
        1 tf.reduce_sum({R}) * 0.1
        1 tf.cast(tf.shape({R})[0], tf.float32) * 0.1
        1 tf.cast(tf.size({R}), tf.float32) * 0.01
        1 tf.constant(float(len({R})))
        2 mean_by_hand({R})
        1 tf.nn.l2_loss({R})
        1 tf.norm({R})
        1 tf.math.reduce_std({R})
        1 tf.reduce_logsumexp({R})
        1 tf.reduce_mean(keras.losses.mean_squared_error({R0}, {R0} * 0.5))
        1 keras.losses.MeanSquaredError()(tf.zeros_like({R0}), {R0})
        1 tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like({R0}), {R0}))
        1 {R0}[0, 0] if {R0}.shape[0] else tf.constant(0.0)
    """,
        "V": """
        3 tf.reduce_mean({R}, 0)
        1 tf.reduce_sum({R}, axis=0)
        1 tf.nn.moments({R}, [0])[1]
        1 tf.reduce_max(tf.concat([{R}, given[:1], tf.zeros([1, 4])], 0), 0)
        1 tf.reduce_sum({R0}, 0) / max(1, len({R0}))
        1 tf.linalg.matvec({R0}, tf.linalg.matvec({R0}, {V}), transpose_a=True) * 0.1
    """,
        "M": """
        3 tf.matmul({R0}[:, :3], {R0}, transpose_a=True) * 0.1
        1 tf.stack([tf.reduce_mean({R}, 0), {V}, {V}])
        1 tf.concat([{R}, tf.zeros([3, 4])], 0)[:3]
        1 padded({R}, 3)
    """,
        "k": """
        3 len({R})
        1 {R}.shape[0]
        1 int(tf.shape({R})[0])
    """,
    }
)
READS = (
    "{R}.shape.as_list()", "len({R})", "{R}.numpy().shape", "int(tf.size({R}))", "{R}",
    "tuple({R}.shape)", "{R}.shape[0] * 2", "tf.reduce_mean({R})", "str({R}.shape)",
    "{R}.shape == {R}.shape", "{R}.get_shape().rank", "[len(t) for t in ({R}, {R})]",
)  # fmt: skip


class ShapesWriter(generator.Writer):
    """Writes programs of the profile `shapes`; see `generator.Writer`."""

    STATEMENTS = (
        *generator.Writer.STATEMENTS,
        (40, "rows"),
        (12, "train"),
        (12, "gradients_of_rows"),
        (3, "disturb_tapes"),
        (6, "read_shape"),
        (2, "write_bag"),
        (1, "branch_on_length"),
    )

    def __init__(self, seed, sizes):
        super().__init__(seed, sizes)
        self.is_calm = self.rnd.random() < 0.85
        self.has_synchronous_errors = seed % 5 == 1

    # ---- expressions -----------------------------------------------------------------
    def expression(self, kind, depth=1):
        if kind in ROWS and self.rnd.random() < {"R": 1.0, "k": 0.3}.get(kind, 0.6):
            return self.fill(expressions.pick_from(ROWS, self.rnd, kind), depth)
        return super().expression(kind, depth)

    def operand(self, kind, depth):
        value = super().operand(kind, depth)
        return value.replace("tf.unique(b).y", "tf.boolean_mask(b, b > -1.0)")  # has no gradient

    def fill(self, template, depth=1):
        names = self.names("R")
        one = self.rnd.choice(names[-4:]) if names else "bag"
        template = template.replace("{R0}", one).replace("{c}", self.rnd.choice("0123"))
        return super().fill(self._with_rows(template, depth), depth)

    def _with_rows(self, template, depth):
        return re.sub(r"\{R\}", lambda match: self._rows_operand(depth), template)

    def _rows_operand(self, depth):
        if depth > 0 and self.rnd.random() < 0.3:
            return f"({self.expression('R', depth - 1)})"
        names = self.names("R") or ["bag"]  # a helper of the program's has no others
        return self.rnd.choice(names[-4:] if self.rnd.random() < 0.7 else names)

    # ---- statements ------------------------------------------------------------------
    def rows(self):
        value = self.expression("R")
        known = self.locals("R")
        if known and self.rnd.random() < 0.2:
            return [Node(f"{self.rnd.choice(known)} = {value}")]
        return [Node(f"{self.define('R')} = {value}")]

    def loss(self):
        """Return statements of a block that ends in a loss, and its name."""
        was_in_tape, self.in_tape = self.in_tape, True
        self.scopes.append({})
        nodes = [node for _ in range(self.rnd.choice([0, 1, 1, 2])) for node in self.rows()]
        value = " + ".join(self.expression("S") for _ in range(self.rnd.choice([1, 1, 2])))
        self.scopes.pop()
        self.in_tape = was_in_tape
        name = self.fresh("loss_")
        return [*nodes, Node(f"{name} = {value}")], name

    def train(self):
        """A step of gradient descent for the variables, by hand or with an optimizer."""
        tape = self.fresh("tape_")
        source = self._rows_operand(0)
        start, body = self.define("R"), self.rnd.choice(["w", "u"])
        nodes, loss = self.loss()
        trained = "modules[0].trainable_variables"
        weights = trained if self.rnd.random() < 0.4 else "[w, u, b, modules[1].gamma.value]"
        forward = Node(f"{start} = tf.tanh(tf.matmul({source}, {body}) + b)")
        gradients = self.fresh("g_")
        sources = f"[v.value for v in {weights}]" if weights == trained else weights
        wanted = f"{tape}.gradient({loss}, {sources}, unconnected_gradients=zero)"
        nodes = [
            Node(f"with tf.GradientTape() as {tape}:", [forward, *nodes]),
            Node(f"{gradients} = [tf.clip_by_value(g, -1.0, 1.0) for g in {wanted}]"),
        ]
        if weights == trained:
            update = f"optimizer.apply_gradients(zip({gradients}, {weights}))"
            return [*nodes, Node(update)]
        loop = Node(f"for v, g in zip({weights}, {gradients}):", [Node("v.assign_sub(0.1 * g)")])
        return [*nodes, loop]

    def gradients_of_rows(self):
        """Gradients with respect to rows that were made outside of the tape, or read from it."""
        tape, source = self.fresh("tape_"), self._rows_operand(0)
        nodes, loss = self.loss()
        of_source = f"({loss}, {source}, unconnected_gradients=zero)"
        watching = [Node(f"{tape}.watch({source})"), *nodes]
        nodes = [Node(f"with tf.GradientTape() as {tape}:", watching)]
        wanted = f"{tape}.gradient{of_source}"
        kind = self.rnd.choices(["plain", "jacobian", "nested"], [5, 2, 3])[0]
        if kind == "jacobian":
            wanted = f"tf.reshape({tape}.jacobian{of_source}, [-1, 4])"
        elif kind == "nested":
            nodes, wanted = self._under_another(nodes, wanted, source)
        return [*nodes, Node(f"{self.define('R')} = {wanted}")]

    def _under_another(self, nodes, wanted, source):
        """A gradient of a gradient, at times with respect to a number that others equal."""
        outer, norm = self.fresh("tape_"), self.fresh("norm_")
        nodes = [*nodes, Node(f"{norm} = tf.reduce_sum({wanted} ** 2)")]
        watched = self.rnd.choice([source, source, "two"])
        watching = [Node(f"{outer}.watch({watched})"), *nodes]
        wanted = f"{outer}.gradient({norm}, {watched}, unconnected_gradients=zero)"
        wanted += " * tf.ones([2, 4])" if watched == "two" else ""
        return [Node(f"with tf.GradientTape() as {outer}:", watching)], wanted

    def disturb_tapes(self):
        """Something that tapes hear of, late in the run: what follows has a new history."""
        what = self.rnd.choice(
            ["with tf.GradientTape():", "with tf.GradientTape(persistent=True) as spare:"]
        )
        name = self._rows_operand(0)
        body = [Node(self.rnd.choice(["pass", f"tf.tanh({name})", "b.read_value()"]))]
        return [Node(f"if i > 8 and i % {self.rnd.choice('234')}:", [Node(what, body)])]

    def read_shape(self):
        return [Node(f"log.append({self.fill(self.rnd.choice(READS), 0)})")]

    def write_bag(self):
        value = self.fill("tf.tanh({R})", 1)
        return [Node(f"bag.assign({value}[:50])")]

    def branch_on_length(self):
        limit = self.rnd.choice(["0", "5", "20"])
        name = self._rows_operand(0)
        target = self.define("R")
        return [Node(f"{target} = {name} * 0.5 if len({name}) > {limit} else tf.zeros([2, 4])")]

    # ---- the program -----------------------------------------------------------------
    def opening(self):
        rows = [("R", "tf.tanh(given)"), ("V", "tf.reduce_sum(given, 0)"), ("M", "tf.tanh(x)")]
        nodes = [Node(f"{self.define(kind)} = {value}") for kind, value in rows]
        return [*nodes, Node("idx = tf.constant([0, 2, 1])")]

    def outcome(self):
        names = self.names("R")
        some = ", ".join(self.rnd.sample(names, min(len(names), 4)))
        return f"[{super().outcome()}, {some}]"

    def program(self):
        program = super().program()
        program.frame = FRAME.replace("SEED", str(self.seed))
        program.num_calls = NUM_CALLS
        length = self.rnd.choice(LENGTHS)
        kinds = ["tf.constant(rows[:{}])", "tf.constant(rows[i : i + {}])"]
        argument = self.rnd.choice(kinds).format(f"({length})")
        program.sections["argument"] = [Node(f"given = {argument}")]
        return program
