"""Write a random program of gradients of gradients: the profile `gradients`.

Tapes in tapes, around functions whose gradients compute with shapes, with tensors that are equal
but not the same, zeros that TensorFlow has marked, sources that are unconnected. Late in the run,
when calls have long been replayed, something comes that tapes hear of: what follows has a new
history.
"""

import re

from tests.fuzz import expressions, generator
from tests.fuzz.tree import Node

SIZES = (1, 1, 2, 3)
NUM_CALLS = 20

_RUN = "    @wrap\n    def run(x, i):\n"
_GIVEN = """    zero, two, half = tf.UnconnectedGradients.ZERO, tf.constant(2.0), tf.constant(0.5)
    zeros, ones, fixed = tf.zeros([3, 4]), tf.ones([3, 4]), tf.constant(data[40])
    labels, order = tf.nn.softmax(tf.constant(data[41])), tf.constant([2, 0, 1])

"""
# Kinds: A is float32[3, 4], F float32[12], V float32[4], S a scalar.
VALUES = expressions.parse(
    {
        "A": """
        4 tf.sin({A})
        3 {A} * {A}
        2 {A} ** 2.0
        2 {A} * two
        2 {A} * tf.constant(2.0)
        1 {A} / 2.0
        2 {A} + {A}
        2 {A} + {V}
        2 {A} * {S}
        2 tf.matmul({A}, w)
        1 tf.matmul({A}, {A}, transpose_b=True) @ {A} * 0.1
        2 tf.reshape({F}, [3, 4])
        2 tf.reshape({F}, tf.shape({A}))
        2 tf.broadcast_to(tf.reduce_mean({A}, 1, keepdims=True), tf.shape({A})) * {A}
        1 tf.broadcast_to({V}, tf.shape({A}))
        1 tf.tile({A}[:1], tf.shape({A})[:1] * 0 + [3, 1])
        1 tf.concat([{A}, {A}], 1)[:, 2:6]
        1 tf.concat([{A}[:1], {A}[1:]], 0)
        1 tf.stack([{V}, {V}, {V}])
        1 tf.stack(tf.unstack({A}))
        1 tf.concat(tf.split({A}, 2, axis=1), 1)
        1 tf.maximum({A}, {A})
        1 tf.clip_by_value({A}, -1.0, 1.0)
        1 tf.where({A} > 0.0, {A}, {S})
        1 tf.where({A} > 0.0, {A}, zeros)
        1 tf.nn.softmax({A})
        1 tf.nn.silu({A})
        1 tf.nn.elu({A})
        1 tf.math.l2_normalize({A}, 1)
        1 tf.cumsum({A}, 1)
        1 tf.transpose(tf.transpose({A}))
        1 tf.pad({A}[:, :3], [[0, 0], [0, 1]])
        1 tf.gather({A}, [2, 0, 1])
        1 tf.gather({A}, order)
        1 tf.stop_gradient({A})
        1 tf.zeros_like({A})
        1 tf.ones_like({A}) * {S}
        1 tf.identity({A})
        1 tf.add_n([{A}, {A}, {A}])
        1 {A} - tf.reduce_mean({A}, 0)
        1 layers[0]({A})
    """,
        "F": """
        3 tf.reshape({A}, [-1])
        2 {F} * {F}
        1 {F} * two
        1 tf.sin({F})
        1 tf.concat([{F}[:5], {F}[5:]], 0)
        1 tf.repeat({V}, 3)
    """,
        "V": """
        3 tf.reduce_mean({A}, 0)
        1 tf.reduce_sum({A}, axis=0)
        1 {A}[0]
        1 {V} * {V}
    """,
        "S": """
        4 tf.reduce_sum({A} * {A})
        3 tf.reduce_sum({A})
        2 tf.reduce_mean({A})
        2 tf.reduce_sum({F} ** 2.0) / 2.0
        1 tf.reduce_sum({F} * {F})
        1 tf.nn.l2_loss({F})
        1 tf.reduce_max({A})
        1 tf.norm({A} + 2.0)
        1 tf.reduce_logsumexp({A})
        1 tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels, {A}))
        1 tf.reduce_sum(tf.raw_ops.SoftmaxCrossEntropyWithLogits(features={A}, labels=labels)[1])
        1 {S} * {S}
        1 {S} * two
        1 {S} * 2.0
    """,
    }
)
# So that what a tape is asked for is connected.
USES = {
    "A": (
        "tf.sin(source)",
        "source * {A}",
        "source + {A}",
        "source * source",
        "tf.matmul(source, w)",
    ),
    "w": ("tf.matmul({A}, w)", "tf.sin({A} @ w)"),
    "b": ("{A} + b", "{A} * b", "tf.broadcast_to(b, tf.shape({A})) * {A}"),
} | {name: (f"{{A}} * {name}", f"{name} * tf.sin({{A}})") for name in ("two", "c", "half")}
LATE = ("i > 8 and i % 2", "i > 8 and i % 3", "i % 5 == 4", "i > 10", "i > 7 and i % 4 == 1")


class GradientsWriter(generator.Writer):
    """Writes programs of the profile `gradients`; see `generator.Writer`."""

    def __init__(self, seed, sizes):
        super().__init__(seed, sizes)
        self.has_synchronous_errors = seed % 5 == 1

    # ---- expressions -----------------------------------------------------------------
    def expression(self, kind, depth=1):
        return self.fill(expressions.pick_from(VALUES, self.rnd, kind), depth)

    def fill(self, template, depth=1):
        return re.sub(r"\{([AFVS])\}", lambda match: self.operand(match[1], depth), template)

    def operand(self, kind, depth):
        names = self.names(kind)
        if depth > 0 and (not names or self.rnd.random() < 0.3):
            return f"({self.expression(kind, depth - 1)})"
        if kind == "F" and not names:
            return f"tf.reshape({self.operand('A', 0)}, [-1])"
        return self.rnd.choice(names[-4:] if self.rnd.random() < 0.7 else names)

    # ---- statements ------------------------------------------------------------------
    def compute(self):
        kind = self.rnd.choices("AFVS", [8, 2, 1, 1])[0]
        known = [name for name in self.locals(kind) if name != "x"]
        if known and self.rnd.random() < 0.2:
            name = self.rnd.choice(known)
            return [Node(f"{name} = {self.expression(kind)}")]
        value = self.expression(kind)
        return [Node(f"{self.define(kind)} = {value}")]

    def late(self):
        """Something that comes late, and not in every call."""
        name, condition = self.rnd.choice(self.names("A")[-4:]), self.rnd.choice(LATE)
        tape = self.rnd.choice(["tf.GradientTape()", "tf.GradientTape(persistent=True)"])
        taped = ["pass", f"tf.tanh({name})", "b.read_value()", "tf.reduce_sum(w)"]
        bodies = [Node(f"with {tape}:", [Node(self.rnd.choice(taped))])]
        known = [known for known in self.locals("A") if known != "x"]
        if known:
            name = self.rnd.choice(known[-3:])
            bodies.append(Node("with tf.GradientTape():", [Node(f"{name} = {name} + 1.0")]))
            bodies.append(Node(f"{name} = {self.fill('{A}', 1)}"))
        body = self.rnd.choices(bodies, [3, 1, 2][: len(bodies)])[0]
        return [Node(f"if {condition}:", [body])]

    def some(self, depth):
        """What stands in a tape: computations, what comes late, another tape."""
        nodes = []
        for _ in range(self.rnd.choice([1, 2, 2, 3])):
            nodes += self.late() if self.rnd.random() < 0.12 else self.compute()
        if depth > 0:
            nodes += self.gradients(depth - 1)
            nodes += self.late() if self.rnd.random() < 0.7 else []
            for _ in range(self.rnd.choice([0, 1, 2])):
                nodes += self.compute()
        return nodes

    def sources(self):
        """What a tape is asked for, by kind."""
        kinds = {"two": "S", "c": "S", "b": "V", "w": "W", "fixed": "A", "half": "S"}
        others = [("A", name) for name in self.names("A")[-3:]]
        others += [(kind, name) for name, kind in kinds.items()]
        weights = [5] * (len(others) - len(kinds)) + [3, 1, 1, 2, 1, 1]
        return list(dict.fromkeys(self.rnd.choices(others, weights, k=self.rnd.choice([1, 1, 2]))))

    def gradients(self, depth):
        """A tape around some statements, and the gradients that it is asked for."""
        tape, wanted = self.fresh("tape_"), self.sources()
        watched = [name for _, name in wanted if name not in ("w", "b", "c")]
        self.scopes.append({})
        body = [Node(f"{tape}.watch({name})") for name in watched]
        for _, name in wanted:
            value = self.rnd.choice(USES[name] if name in USES else USES["A"])
            value = value.replace("source", name)
            value = self.fill(value, 0)
            body.append(Node(f"{self.define('A')} = {value}"))
        body += self.some(depth)
        kind = self.rnd.choice("SSSAF")
        target = self.fresh("target_")
        value = self.expression(kind)
        if kind == "S":  # of what is nearest, so that most is connected
            value += f" + tf.reduce_sum({self.names('A')[-1]} * {self.operand('A', 0)})"
        self.scopes.pop()
        body.append(Node(f"{target} = {value}"))
        is_persistent = self.rnd.random() < 0.3
        argument = "persistent=True" if is_persistent else ""
        asked = f"{target}, [{', '.join(name for _, name in wanted)}]"
        if kind == "A" and self.rnd.random() < 0.6:
            asked += f", output_gradients=[{self.rnd.choice(['zeros', 'ones', 'fixed', 'x'])}]"
        asks = [f"{tape}.gradient({asked}, unconnected_gradients=zero)"]
        nodes = [Node(f"with tf.GradientTape({argument}) as {tape}:", body)]
        for ask in asks * (2 if is_persistent and self.rnd.random() < 0.5 else 1):
            names = [self.define(kind, "slope_") for kind, _ in wanted]
            nodes.append(Node(f"{', '.join(names)}{',' if len(names) == 1 else ''} = {ask}"))
        return nodes

    def statement(self, depth):
        self.budget -= 1
        return self.gradients(self.rnd.choice([0, 1, 1, 1, 2]))

    # ---- the program -----------------------------------------------------------------
    def opening(self):
        self.scopes[-1] = {"A": ["x", "fixed"], "S": ["two", "c"], "V": ["b"]}
        return [node for _ in range(2) for node in self.compute()]

    def helpers(self):
        return []

    def between(self):
        return []

    def ending(self):
        names = [name for kind in "ASVW" for name in self.names(kind) if name.startswith("slope_")]
        update = self.rnd.choice(["w.assign_sub(0.01 * tf.tanh(w))", "b.assign(b * 0.9)"])
        return [Node(update), Node(f"return [{', '.join(names)}]")]

    def program(self):
        program = super().program()
        program.frame = program.frame.replace(_RUN, _GIVEN + _RUN)
        program.num_calls = NUM_CALLS
        return program
