"""The fixed text around a program of the profile `keras`: the plain frame, with objects of Keras.

`pool` holds every layer, optimizer and metric; their variables are compared after each call. Steps
find layers under names of their own and in `net`, `blocks` and `named`, which programs rearrange.
"""

from tests.fuzz.frame import FRAME

_IMPORTS = "import numpy as np\nimport tensorflow as tf\n"
_ALL_IMPORTS = f"import warnings\n\nimport keras\n{_IMPORTS}\nimport terra_tf as terra\n"
_MAKE = "def make(wrap):\n"
_OBJECTS = "    <<helpers>>\n"
_RUN = "        outcome = run(tf.constant(data[i]), i)\n"

_CLASSES = '''LONG = ("Conv1D", "SeparableConv1D", "GRU")
SETTINGS = {"scale": 0.5, "rows": [0.1, 0.2], "seen": []}


def user_act(h):
    """An activation of the user's, which reads globals and has an effect."""
    SETTINGS["seen"].append(len(SETTINGS["rows"]))
    return tf.tanh(h * SETTINGS["scale"] + SETTINGS["rows"][-1])


@functools.wraps(tf.nn.relu)
def noted_relu(h, name=None):
    """A function of the user's that says it is TensorFlow's."""
    SETTINGS["seen"].append("relu")
    return tf.nn.relu(h)


def in_thread(layer, h):
    """A call of a layer on another thread, in a scope of that thread."""
    results = []

    def work():
        zeros = [(v, tf.zeros_like(v.value)) for v in layer.trainable_variables]
        with keras.StatelessScope(zeros):
            results.append(layer(h))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results[0]


def apply_all(optimizer, pairs, log):
    """Training with gradients that may be missing, of which Keras warns."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer.apply_gradients(pairs)
    log.append(len(found))


def capped(value):
    """A constraint of the user's."""
    SETTINGS["seen"].append("capped")
    return tf.clip_by_value(value, -0.5, SETTINGS["scale"])


def functional(*layers):
    """A model in Keras' functional style."""
    inputs = keras.Input([4])
    outputs = functools.reduce(lambda h, layer: layer(h), layers, inputs)
    return keras.Model(inputs, outputs)


def stateless(layer, h):
    """A call of a layer inside of a scope of Keras'."""
    return layer.stateless_call(layer.trainable_variables, layer.non_trainable_variables, h)[0]


def patched(original):
    """What a method of one object is replaced with."""
    return lambda *args, **kwargs: original(*args, **kwargs) * SETTINGS["scale"]


class Scaled(keras.layers.Layer):
    """A layer of the user's, with state in Python and a layer inside."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.calls, self.seen = factor, 0, []
        self.inner = keras.layers.Dense(4, activation="tanh")

    def build(self, shape):
        self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")
        self.inner.build(shape)
        self.built = True

    def call(self, h, training=None):
        self.calls += 1
        self.seen.append(bool(training))
        if self.calls % 4 == 3:
            self.add_loss(tf.reduce_sum(self.gain) * 0.01)
        h = self.inner(h) * self.gain * self.factor
        return h * 0.5 if training else h


class Mixer(keras.layers.Dense):
    """A subclass of one of Keras' layers."""

    turns = 0

    def call(self, h, training=None):
        Mixer.turns += 1
        return super().call(h) * (0.5 if self.trainable else 1.0)


class UserModel(keras.Model):
    """A model of the user's; what its call does is random."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(4, activation="relu")
        self.rows = [keras.layers.Dense(4, activation="tanh") for _ in range(2)]
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.25, seed=4)
        self.calls, self.factor, self.last = 0, 0.5, None

    def build(self, shape):
        for layer in (self.first, *self.rows, self.norm, self.drop):
            layer.build(shape)
        self.built = True

    def call(self, h, training=None):
        self.calls += 1
        <<model_call>>
        return h


class Penalty(keras.regularizers.Regularizer):
    """A regularizer of the user's."""

    def __call__(self, value):
        SETTINGS["seen"].append("penalty")
        return tf.reduce_sum(tf.abs(value)) * 0.01 * SETTINGS["scale"]


class Decay(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of the user's."""

    def __call__(self, step):
        return 0.1 / (1.0 + tf.cast(step, tf.float32)) * SETTINGS["scale"]


class Counting(keras.optimizers.SGD):
    """An optimizer of the user's."""

    updates = 0

    def update_step(self, gradient, variable, learning_rate):
        Counting.updates += 1
        super().update_step(gradient * (1 + Counting.updates % 2), variable, learning_rate)


class Largest(keras.metrics.Metric):
    """A metric of the user's."""

    def __init__(self):
        super().__init__()
        self.best = self.add_variable(shape=(), initializer="zeros", name="best")
        self.updates = 0

    def update_state(self, values, sample_weight=None):
        self.updates += 1
        self.best.assign(tf.maximum(self.best, tf.reduce_max(values)))

    def result(self):
        return self.best + 0.0


@terra.pure
def blend(h, v, factor):
    return tf.tanh(tf.matmul(h, h, transpose_b=True) @ h * factor + v)


@terra.pure
def through(layer, h):
    return layer(h) * 0.5 + h


'''

_POOL = '''    keras.backend.clear_session(free_memory=False)  # Names count from one in each run.
    pool, net, named, blocks = [], Box(), {}, []

    def pooled(item, build=True):
        pool.append(item)
        if build and isinstance(item, keras.Layer):
            item.build([3, 4, 1] if type(item).__name__ in LONG else [3, 4])
        return item

    def trainables():
        layers = [item for item in pool if isinstance(item, keras.Layer)]
        return [weight for layer in layers for weight in layer.trainable_variables]

    def held():
        found = {id(v): v for item in pool for v in getattr(item, "variables", ())}
        return list(found.values())

    @tf.custom_gradient
    def halved(h):
        def gradient(upstream):
            log.append("halved")
            return upstream * 0.5 * SETTINGS["scale"]

        return tf.tanh(h), gradient

    @tf.custom_gradient
    def weighted(h):
        def gradient(upstream, variables=()):
            log.append(len(variables))
            return upstream * 2.0, [tf.ones_like(v) * 0.1 for v in variables]

        return h * tf.reduce_sum(table), gradient

    @tf.custom_gradient
    def doubly(h):
        inner = halved(h * 0.5)

        def gradient(upstream):
            with tf.GradientTape() as inside:
                inside.watch(upstream)
                value = tf.tanh(upstream) * 0.5
            return inside.gradient(value, upstream)

        return halved(inner), gradient

    @tf.function
    def graphed(h):
        return pool[0](h) * SETTINGS["scale"]

    own = tf.Variable(rng.standard_normal((4, 4)).astype(np.float32) * 0.3)

    @terra.pure
    def owned(h):
        return tf.nn.relu(tf.matmul(h, own)) + tf.reduce_mean(h)

    variables.append(own)
    num_plain = len(variables)
    <<objects>>

    <<helpers>>
'''
_STEP = """        try:
            outcome = run(tf.constant(data[i]), i)
        finally:
            variables[num_plain:] = held()
            log.append((len(SETTINGS["seen"]), Mixer.turns, Counting.updates))
"""

KERAS_FRAME = (
    FRAME.replace(_IMPORTS, _ALL_IMPORTS)
    .replace(_MAKE, _CLASSES + _MAKE)
    .replace(_OBJECTS, _POOL)
    .replace(_RUN, _STEP)
)
