"""What programs of the profile `functions` are made of: the text around them, and forms."""

from tests.fuzz import frame

_RUN = "    @wrap\n    def run(x, i):\n"
_FUNCTIONS = '''    fixed, vector = tf.constant(data[30] * 0.5), tf.constant(data[31][0] * 0.5)
    trained = [layers[0].kernel, layers[1].kernel, b]
    optimizers = [keras.optimizers.SGD(0.1, momentum=0.5), keras.optimizers.Adam(0.01)]
    for optimizer in optimizers:
        optimizer.build(trained)
        variables += optimizer.variables

    def floats(outcome):
        """Return the tensors of a structure that have gradients."""
        flat = tf.nest.flatten(outcome)
        return [t for t in flat if isinstance(t, tf.Tensor) and t.dtype == tf.float32]

    <<functions>>

'''
_CALL = "        outcome = run(tf.constant(data[i]), i)\n"
_CALLS = """        t0, t1 = tf.constant(data[i]), tf.constant(data[i + 1])
        with EXECUTOR:
            <<calls>>
"""
_IMPORTS = "import numpy as np\nimport tensorflow as tf\n"
_MORE_IMPORTS = (
    "import keras\n" + _IMPORTS + "from tensorflow.python.eager import context\n\n"
    "Accumulator = tf.autodiff.ForwardAccumulator\n"
)
FRAME = (
    frame.FRAME.replace("import functools\n", "import contextlib\nimport functools\n")
    .replace(_IMPORTS, _MORE_IMPORTS)
    .replace(_RUN, _FUNCTIONS + _RUN)
    .replace(_CALL, _CALLS)
)
EXECUTORS = (
    "contextlib.nullcontext()",
    "context.function_executor_type('SINGLE_THREADED_EXECUTOR')",
)

# Of `h`, float32[rows, 4], to the same. One that is used thrice has a sum of three as its gradient.
FORMS = (
    "tf.tanh({h} @ {w})", "tf.tanh(tf.matmul({h}, {w})) - {h}", "{h} * {v} - tf.sin({h})",
    "tf.nn.softmax({h}) * {h}", "tf.nn.silu({h}) - {v}", "{h} / (tf.abs({v}) - -1.5)",
    "tf.math.softplus({h} - {v})", "tf.nn.relu({h} * 1.1 * 2.3)", "tf.pow({h}, 2.0) * 0.3",
    "{h}**3 * 0.1", "{h} * 3.0 - {h} * 2.5", "tf.transpose(tf.transpose({h}))", "-{h} / 3.0",
    "tf.reduce_mean({h}) - {h}", "tf.maximum({h}, {v}) * {c}", "tf.nn.bias_add({h}, {v})",
    "tf.where({h} > 0.0, {h} / 3.0, {v} * 0.2)", "tf.concat([{h}[:, 2:], tf.cos({h})[:, :2]], 1)",
    "tf.math.l2_normalize({h}, axis=1)", "tf.einsum('bi,ij->bj', {h}, {w})",
    "tf.reverse(tf.cumsum({h}, axis=1), [1]) * 0.2", "tf.stop_gradient({h}) * tf.tanh({h})",
    "tf.gather({w}, [2])[:1] * {h}", "tf.math.rsqrt(tf.maximum(tf.abs({h}), 0.1))",
    "tf.reshape(tf.reshape({h}, [-1]), [-1, 4]) / 3.0", "tf.clip_by_value({h}, -1.0, 1.0)",
    "tf.squeeze({h}[None], 0) * {c}", "tf.nn.log_softmax({h}) * 0.3",
    "tf.stack(tf.unstack({h}, axis=1)[::-1], axis=1)", "tf.nn.leaky_relu({h}, 0.3) * {c}",
    "tf.cast(tf.cast({h}, tf.float64) * 0.7, tf.float32)", "tf.math.top_k({h}, k=4).values",
    "{h} * tf.cast(tf.shape({h})[1], tf.float32) * 0.1", "tf.linalg.matvec({w}, {h}) * 0.5",
    "1.0 / (1.0 - -tf.exp(-{h}))",
    "(tf.reduce_max({h}, axis=1, keepdims=True) - {h}) * {v}", "tf.nn.elu({h}) * {v} / {c}",
    "tf.identity({h}) - {v} * {c}",
)  # fmt: skip
SUMS = (
    "tf.add_n([{h}, tf.sin({h}), tf.exp(-tf.abs({h}))])", "tf.tanh({h}) + {h} + tf.cos({h}) * 0.3",
    "{h} + {v} + {h} @ {w}", "sum([tf.tanh({h} * k) for k in (0.5, 1.0, 2.0)])",
    "tf.matmul({h}, tf.matmul({h}, {h}, transpose_a=True)) * 0.1",
    "tf.add_n([{h} * {v}, {h} / 3.0, tf.stop_gradient({h}), {h}, {h} @ {w}]) * 0.3",
)  # fmt: skip
OF_VARIABLES = {
    "w": ("w", "w", "u", "layers[0].kernel", "layers[2].kernel", "tf.transpose(w)"),
    "v": ("v", "v", "v", "b", "vector", "table[0]", "fixed[1]"),
    "c": ("c", "0.5", "(1.0 + n)", "(box.rate + 0.5)"),
}
OF_CONSTANTS = {"w": ("tf.eye(4) * 0.5",), "v": ("vector", "fixed[1]"), "c": ("0.5", "0.25")}
# In functions: TensorFlow has no tangents of these.
LOOPS = (
    "tf.map_fn(tf.sin, {h})", "tf.foldl(lambda s, r: tf.tanh(s * 0.5 - r), {h}) * {h}",
    "tf.while_loop(lambda k, h: k < 3, lambda k, h: (k + 1, tf.tanh(h * {v})), [0, {h}])[1]",
    "tf.vectorized_map(lambda r: tf.tanh(r * {v}), {h})",
)  # fmt: skip
# What a step does to a value beside these, with tensors of its own.
LIBRARY = (
    "tf.map_fn(lambda r: r * {V}, {h})",
    "tf.while_loop(lambda j, h: j < {k} % 4, lambda j, h: (j + 1, tf.sin(h * {V})), [0, {h}])[1]",
    "tf.cond(tf.reduce_sum({h}) > {p}, lambda: tf.sin({h}), lambda: {h} * {V})",
    "tf.case([({S} > 1.0, lambda: -{h})], default=lambda: tf.cos({h}))",
    "{h} - tf.reshape(tf.numpy_function(np.sin, [{h}], tf.float32), [-1, 4])",
    "tf.grad_pass_through(tf.round)({h})",
    "layers[{k} % 3]({h})",
)
# No tangents, or a function that is made in each call, and of which others are made for those.
WITHOUT_TANGENTS = (
    "tf.vectorized_map(lambda r: tf.tanh(r * {V}) - r, {h})",
    "tf.vectorized_map(lambda r: tf.linalg.matvec(w, r) * {S}, {h})",
    "tf.function(lambda h: tf.tanh(h * {V}) / 3.0, autograph=False)({h})",
    "tf.scan(lambda s, r: tf.tanh(s * 0.5 - r), {h})",
    "tf.recompute_grad(lambda r: tf.tanh(r @ w) * r)({h})",
    "tf.recompute_grad(lambda r: layers[0](r) * {V})({h})",
)
CONDITIONS_OF_BACKWARD = (
    "if box.count % 2:",
    "if tf.executing_eagerly() and float(upstream[0, 0]) > 0.0:",
    "if box.rate > 0.15:",
)
LOSSES = (
    "tf.reduce_mean(tf.square({h} - {M}))", "tf.reduce_sum(tf.sin({h})) * 0.1",
    "tf.reduce_mean({h} * {M})", "tf.norm({h} - {V})", "tf.reduce_mean({h}) * {S}",
    "tf.reduce_sum({h}[0] * {V}) - tf.reduce_mean({h}[-1])",
)  # fmt: skip
