"""The statements with bodies: control flow, tapes, exceptions, threads, helper functions."""

from tests.fuzz.tree import Node

# Weight and method of each; the methods take how deep blocks may still nest.
STATEMENTS = (
    (7, "branch"),
    (5, "for_loop"),
    (3, "while_loop"),
    (2, "layer_loop"),
    (4, "tape"),
    (2, "python_error"),
    (3, "op_error"),
    (1, "leave_by_exception"),
    (1, "early_return"),
    (2, "comprehension"),
    (2, "call_helper"),
    (1, "thread"),
    (1, "context"),
    (1, "closure"),
    (2, "library"),
    (1, "row_loop"),
)
ENDS = ((3, "leave_loop"),)


class CompoundWriter:
    """The half of `generator.Writer` that writes statements with bodies."""

    # ---- branches and loops ----------------------------------------------------------
    def branch(self, depth):
        node = Node(f"if {self.condition()}:", self.block(depth))
        if self.rnd.random() < 0.3:
            node.tails.append(Node(f"elif {self.condition()}:", self.block(depth)))
        if self.rnd.random() < 0.6:
            node.tails.append(Node("else:", self.block(depth)))
        return [node]

    def loop_body(self, depth, **names):
        before, self.in_loop = self.in_loop, True
        body = self.block(depth, **names)
        self.in_loop = before
        return body

    def for_loop(self, depth):
        j = self.fresh("j_")
        trips = self.rnd.choice(
            [
                "2",
                "3",
                "i % 4",
                "1 + i % 2",
                "min(i, 5)",
                "rnd.randint(0, 3)",
                "1 + int(tf.reduce_sum(x) > 0.0)",
                "int(tf.argmax(b))",
                "len(history)",
            ]
        )
        node = Node(f"for {j} in range({trips}):", self.loop_body(depth, k=[j]))
        if self.rnd.random() < 0.2:
            node.tails.append(Node("else:", self.block(0, sizes=(1,))))
        return [node]

    def while_loop(self, depth):
        n = self.fresh("n_")
        body = [Node(f"{n} += 1"), *self.loop_body(depth)]
        limit = self.rnd.choice(["2", "3", "4", "1 + i % 3"])
        node = Node(f"while {n} < {limit} and {self.condition()}:", body)
        if self.rnd.random() < 0.2:
            node.tails.append(Node("else:", self.block(0, sizes=(1,))))
        return [Node(f"{n} = 0"), node]

    def leave_loop(self, depth):
        word = self.rnd.choice(["break", "continue"])
        return [Node(f"if {self.condition()}:", [Node(word)])]

    def layer_loop(self, depth):
        start = self.rnd.choice(["x", self.operand("M", 0)])
        h, layer = self.define("M", "h"), self.fresh("layer_")
        chosen = self.rnd.choice(
            [
                "layers",
                "reversed(layers)",
                "layers[: 1 + i % 3]",
                "rnd.sample(layers, 2)",
                "itertools.chain(layers, layers[:1])",
            ]
        )
        body = [Node(f"{h} = {layer}({h})"), *self.loop_body(depth)]
        return [Node(f"{h} = {start}"), Node(f"for {layer} in {chosen}:", body)]

    def row_loop(self, depth):
        start, rows = self.operand("S", 0), self.operand("M", 0)
        row, total = self.fresh("row_"), self.define("S", "total")
        node = Node(f"for {row} in tf.identity({rows}):", self.loop_body(depth, V=[row]))
        node.body.append(Node(f"{total} = {total} * 0.5 + tf.reduce_sum({row})"))
        return [Node(f"{total} = {start}"), node]

    # ---- tapes -----------------------------------------------------------------------
    def tape(self, depth):
        tape, loss = self.fresh("tape_"), self.fresh("loss")
        is_persistent = self.rnd.random() < 0.25
        was_in_tape, self.in_tape = self.in_tape, True
        start = self.operand("M", 0)
        m = self.define("M", "h")
        body = [Node(f"{m} = tf.tanh(tf.matmul({start}, w) + b)")]
        watched = self.rnd.random() < 0.3
        body = [Node(f"{tape}.watch(x)")] * watched + body + self.block(depth, sizes=(0, 1, 2))
        body.append(Node(f"{loss} = tf.reduce_mean(tf.square({m} - {self.expression('M')}))"))
        self.in_tape = was_in_tape
        self.scopes[-1].setdefault("S", []).append(loss)
        option = "persistent=True" if is_persistent else ""
        nodes = [Node(f"with tf.GradientTape({option}) as {tape}:", body)]
        return nodes + self.use_gradients(tape, loss, m, watched, is_persistent)

    def use_gradients(self, tape, loss, m, watched, is_persistent):
        sources = self.rnd.choice(
            ["[w, b]", "[w, b, c, table]", "[w] + [layer.kernel for layer in layers]"]
        )
        pair, g = self.fresh("v_"), self.fresh("g_")
        update = f"{pair}.assign_sub(0.1 * tf.clip_by_value(tf.convert_to_tensor({g}), -1.0, 1.0))"
        nodes = [
            Node(
                f"for {pair}, {g} in zip({sources}, {tape}.gradient({loss}, {sources})):",
                [Node(f"if {g} is not None:", [Node(update)])],
            )
        ]
        if is_persistent:
            name = self.define("W", "gw")
            call = f"{tape}.gradient({m}, w, unconnected_gradients='zero')"
            if self.rnd.random() < 0.3:
                rows = f"{tape}.jacobian({m}, w, unconnected_gradients='zero')"
                call = f"tf.reduce_mean({rows}, [0, 1])"
            nodes.append(Node(f"{name} = tf.convert_to_tensor({call})"))
            nodes.append(Node(f"del {tape}"))
        elif watched:
            nodes[0] = Node(f"log.append({tape}.gradient({loss}, x, unconnected_gradients='zero'))")
        return nodes

    # ---- exceptions ------------------------------------------------------------------
    def python_error(self, depth):
        raising = self.rnd.choice(
            [
                "raise Fault('at %d' % i)",
                "{}['missing']",
                "[][i]",
                "int('x')",
                "tf.matmul(x, tf.ones([5, 2]))",
                "1 // (i % 2)",
                "float(x)",
            ]
        )
        body = [Node(f"if {self.condition()}:", [Node(raising)]), *self.block(depth, (1, 2))]
        handler = [Node("log.append((type(error).__name__, str(error)[:20]))"), *self.block(0)]
        node = Node("try:", self.block(0, sizes=(0, 1)) + body)
        # An op error of TensorFlow's must not be caught here: it might surface late.
        kinds = "(Fault, KeyError, IndexError, TypeError, ValueError, ZeroDivisionError"
        shape = ", tf.errors.InvalidArgumentError" if raising.startswith("tf.") else ""
        node.tails.append(Node(f"except {kinds}{shape}) as error:", handler))
        if self.rnd.random() < 0.4:
            node.tails.append(Node("finally:", self.block(0, sizes=(1,))))
        return [node]

    def op_error(self, depth):
        if not self.has_synchronous_errors:
            return self.branch(depth)
        self.scopes.append({})
        body = [*self.failing_op(), *self.block(depth)]
        self.scopes.pop()
        if self.rnd.random() < 0.2 and not self.in_function:
            return body[:2]
        handler = [Node("log.append(type(error).__name__)"), *self.block(0)]
        return [Node("try:", body, [Node("except tf.errors.OpError as error:", handler)])]

    def leave_by_exception(self, depth):
        kind = self.rnd.choice(["Fault", "ValueError", "StopIteration", "AssertionError"])
        when = self.rnd.choice(["i == 7", "i % 6 == 4", "i in (3, 9)"])
        return [Node(f"if {when}:", [Node(f"raise {kind}('call %d' % i)")])]

    def early_return(self, depth):
        if self.in_function:
            return self.assign_op()
        return [Node(f"if {self.condition()}:", [Node(f"return {self.outcome()}")])]

    # ---- functions -------------------------------------------------------------------
    def comprehension(self, depth):
        j, items = self.fresh("j_"), self.fresh("items_")
        self.scopes.append({"k": [j]})
        value, start = self.expression("V"), self.operand("V", 0)
        self.scopes.pop()
        trips = self.rnd.choice(["3", "1 + i % 3", "2"])
        combine = self.rnd.choice(
            [
                "tf.reduce_mean(tf.stack({}), axis=0)",
                "tf.add_n({}) * 0.3",
                "tf.concat({}, axis=0)[:4]",
                "functools.reduce(lambda s, t: tf.tanh(s + t), {})",
            ]
        ).format(f"[*{items}, {start}]")
        return [
            Node(f"{items} = [{value} for {j} in range({trips})]"),
            Node(f"{self.define('V')} = {combine}"),
        ]

    def helpers(self):
        """Return definitions of random helper functions; remember how each is called."""
        makers = [self.recursive_helper, self.generator_helper, self.nested_helper]
        nodes = []
        for maker in self.rnd.sample(makers, self.rnd.choice([0, 1, 1, 2])):
            self.in_function = True
            nodes += maker(self.fresh("helper_"))
            self.in_function = False
        return nodes

    def recursive_helper(self, name):
        self.functions.append((f"{name}({{M}}, {{k}} % 3)", "M"))
        body = [Node("if n <= 0:", [Node("return h")]), *self.helper_block()]
        body.append(Node(f"return {name}(tf.tanh(h + 0.1), n - 1)"))
        return [Node(f"def {name}(h, n, i=0):", body)]

    def generator_helper(self, name):
        self.functions.append((f"tf.add_n(list({name}({{M}}, 1 + {{k}} % 2)))", "M"))
        body = [Node("for n in range(trips):", [*self.helper_block(), Node("yield h")])]
        return [Node(f"def {name}(h, trips, i=0):", body)]

    def nested_helper(self, name):
        self.functions.append((f"{name}({{M}}, i)", "M"))
        body = [*self.helper_block(), Node("return tf.tanh(h)")]
        decorator = self.rnd.choice(["@wrap", "@wrap", "@tf.custom_gradient", "@tf.function"])
        if decorator == "@tf.custom_gradient":
            self.functions[-1] = (f"{name}({{M}})", "M")
            body = [Node("return tf.tanh(h), lambda grad: grad * 0.5")]
            return [Node(decorator), Node(f"def {name}(h):", body)]
        if decorator == "@tf.function":
            self.functions[-1] = (f"{name}({{M}})", "M")
            body = [Node("return tf.tanh(h) + tf.reduce_sum(b)")]
            return [Node(decorator), Node(f"def {name}(h):", body)]
        return [Node(decorator), Node(f"def {name}(h, i):", body)]

    def helper_block(self):
        scopes, self.scopes = self.scopes, [{"V": ["b"], "S": ["c"], "M": ["table"]}]
        budget, self.budget = self.budget, 3
        names = {"M": ["h1"], "S": ["s1"], "V": ["v1"], "I": ["idx"]}
        # Early ends, op errors and writes of `w` stay out: the names are the step's own.
        nodes = [
            Node("h1, s1, v1 = h * 0.5, tf.reduce_mean(h), h[0]"),
            Node("x, idx, w = h, tf.constant([2, 0, 1]), layers[0].kernel"),
        ]
        self.scopes.append({**names, "W": ["w"]})
        for _ in range(self.rnd.randint(1, 3)):
            nodes += getattr(self, self.rnd.choice(["assign_op", "alias", "read", "effect"]))()
        if self.rnd.random() < 0.4:
            nodes += self.branch(0)
        self.scopes, self.budget = scopes, budget
        return [*nodes, Node("h = tf.tanh(h1)")]

    def call_helper(self, depth):
        if not self.functions:
            return self.comprehension(depth)
        template, kind = self.rnd.choice(self.functions)
        value = self.fill(template, 0)
        return [Node(f"{self.define(kind)} = {value}")]

    def thread(self, depth):
        work, thread = self.fresh("work_"), self.fresh("thread_")
        rows = [
            f"b.assign_add(tf.tanh({self.operand('V', 0)}) * 0.1)",
            f"log.append(float({self.operand('S', 0)}))",
            f"state['kept'] = tf.tanh({self.operand('M', 0)})",
            "log.append(c.numpy())",
            "memory.assign(table * 0.5)",
            "state['best'] = tf.reduce_sum(w) * 0.1",
        ]
        body = [Node(row) for row in self.rnd.sample(rows, self.rnd.choice([1, 2]))]
        return [
            Node(f"def {work}():", body),
            Node(f"{thread} = threading.Thread(target={work})"),
            Node(f"{thread}.start()"),
            Node(f"{thread}.join()"),
        ]

    def context(self, depth):
        head = self.rnd.choice(
            [
                "with Noted(log):",
                "with tf.name_scope('inner'):",
                "with tf.device('/cpu:0'):",
                "with tf.control_dependencies([x]):",
                "with tf.init_scope():",
            ]
        )
        return [Node(head, self.block(depth))]

    def closure(self, depth):
        add = self.fresh("add_")
        body = [Node(f"return t + {self.operand('S', 0)} * box.rate")]
        call = f"{add}({add}({self.operand('S', 0)}))"
        return [Node(f"def {add}(t):", body), Node(f"{self.define('S')} = {call}")]

    def library(self, depth):
        kind, template = self.rnd.choice(
            [
                ("M", "tf.cond(tf.reduce_sum({M}) > 0.0, lambda: {M} * 2.0, lambda: {M})"),
                ("S", "tf.while_loop(lambda s: s < 1.0, lambda s: s + 0.4, [tf.tanh({S})])[0]"),
                ("M", "tf.numpy_function(lambda a: a * np.float32(0.5), [{M}], tf.float32)"),
                ("M", "tf.py_function(lambda a: a * c, [{M}], tf.float32)"),
                ("V", "tf.Variable({V} * 0.5)"),
                ("M", "tf.nest.map_structure(tf.tanh, {{'a': {M}}})['a']"),
                ("S", "tf.foldl(lambda s, t: s * 0.5 + t, {V})"),
                ("M", "tf.clip_by_global_norm([{M}, {V}], 1.0)[0][0]"),
                ("V", "tf.linalg.normalize({V})[0]"),
                ("M", "tf.constant({M}.numpy() * 0.5)"),
                ("M", "tf.ensure_shape({M}, [3, 4])"),
            ]
        )
        value = self.fill(template.replace("{{", "{").replace("}}", "}"), 0)
        return [Node(f"{self.define(kind)} = {value}")]
