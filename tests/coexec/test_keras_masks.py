"""Keras' masks: calls that are replayed set them on results and arguments, as those that run."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hazards import Counter

from terra_tf.testing import assert_matches_eager

pytestmark = [
    pytest.mark.timeout(120),
    # Keras' warnings of what the tests are about, but for the one that counts them
    pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning"),
    pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer:UserWarning"),
]
LAYERS = keras.layers


def mask_of(tensor):
    """Return all that can be seen of a mask: whether it is set, and to what."""
    if not hasattr(tensor, "_keras_mask"):
        return "not set"
    return tensor._keras_mask


class Net(keras.Model):
    """Calls its layers one after another, and keeps what their masks are."""

    def __init__(self, *layers):
        super().__init__()
        self.parts, self.masks = list(layers), []

    def call(self, x):
        self.masks.clear()
        for part in self.parts:
            before, x = x, part(x)
            self.masks.append((mask_of(before), mask_of(x), x is before))
        return x


def embedding():
    return LAYERS.Embedding(10, 4, mask_zero=True)


class Attended(keras.Model):
    """Attention takes the masks from its arguments, and sets one on its result."""

    def __init__(self):
        super().__init__()
        self.embedding, self.masks = embedding(), []
        self.attention = LAYERS.MultiHeadAttention(2, 3)
        self.add, self.head = LAYERS.Add(), LAYERS.Dense(2)

    def call(self, x):
        h = self.embedding(x)
        before = mask_of(h)
        attended = self.attention(h, h)
        added = self.add([h, attended])
        self.masks[:] = [before, mask_of(h), mask_of(attended), mask_of(added)]
        return self.head(added)


class Explicit(Net):
    """Masks are given as arguments."""

    def call(self, x):
        mask = self.parts[0].compute_mask(x)
        h = self.parts[1](tf.one_hot(x, 4))
        kept = self.parts[2](h, mask=mask)
        self.masks[:] = [mask, mask_of(h), mask_of(kept), kept is h]
        return self.parts[3](kept, mask=mask) if len(self.parts) > 3 else kept


def functional(*layers):
    x = h = keras.Input((5,), dtype="int32")
    for layer in layers:
        h = layer(h)
    return keras.Model(x, h)


NETS = {
    "lstm": lambda: Net(embedding(), LAYERS.LSTM(3, return_sequences=True), LAYERS.Dense(2)),
    "gru": lambda: Net(embedding(), LAYERS.GRU(3), LAYERS.Dense(2)),
    "bidirectional": lambda: Net(
        embedding(), LAYERS.Bidirectional(LAYERS.GRU(3, return_sequences=True)), LAYERS.Dense(2)
    ),
    "masking": lambda: Net(
        LAYERS.Embedding(10, 4, embeddings_initializer="zeros"),
        LAYERS.Masking(0.0),
        LAYERS.LSTM(3),
    ),
    "softmax": lambda: Net(embedding(), LAYERS.Dense(3, "softmax"), LAYERS.Dense(2)),
    "pooling": lambda: Net(embedding(), LAYERS.GlobalAveragePooling1D(), LAYERS.Dense(2)),
    "attention": Attended,
    "explicit": lambda: Explicit(
        embedding(), LAYERS.Dense(3), LAYERS.GRU(3, return_sequences=True), LAYERS.LSTM(2)
    ),
    "functional": lambda: functional(
        embedding(), LAYERS.LSTM(3, return_sequences=True), LAYERS.Dense(2)
    ),
    "mask given to a functional model": lambda: Explicit(
        embedding(),
        LAYERS.Dense(3),
        keras.Sequential([keras.Input((5, 3)), LAYERS.LSTM(2, return_sequences=True)]),
    ),
    "states": lambda: Net(embedding(), LAYERS.LSTM(3, return_state=True), LAYERS.Concatenate()),
}


def train(make_net, num_steps=14, tokens=lambda rng, n: rng.integers(0, 4, [3, 5])):
    """Compare training with eager: outputs, masks and weights; return the counters."""
    functions = []

    def make(wrap):
        keras.utils.set_random_seed(1)
        rng, count, net = np.random.default_rng(0), Counter(), make_net()

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                y = net(x)
                last = y[-1] if isinstance(y, list) else y
                loss = tf.reduce_mean(last**2)
            variables = net.trainable_variables
            gradients = tape.gradient(loss, variables)
            for variable, gradient in zip(variables, gradients):
                variable.assign_sub(0.1 * tf.convert_to_tensor(gradient))
            return y, mask_of(y), list(getattr(net, "masks", ()))

        functions.append(step)

        def run():
            x = tf.constant(tokens(rng, count.advance()), tf.int32)
            return step(x), mask_of(x), [variable.value for variable in net.variables]

        return run

    assert_matches_eager(make, num_steps)
    return functions[-1].stats()


@pytest.mark.parametrize("name", NETS)
def test_masks_are_eagers_and_calls_are_replayed(name):
    stats = train(NETS[name])
    assert stats.co_executed_steps >= 11, stats
    assert stats.calls_replayed.get("Layer.__call__", 0) >= 8, stats
    ours = {call: n for call, n in stats.calls_not_replayed.items() if "attribute" in call}
    assert not ours, ours


def test_batches_with_and_without_a_mask_take_turns():
    """The same layer gets a tensor with a mask, without one, and with None for one."""

    def make(wrap):
        keras.utils.set_random_seed(1)
        layer, count = LAYERS.LSTM(3, return_sequences=True), Counter()
        layer.build((3, 5, 4))

        @wrap
        def step(x, mask):
            h = x * 2.0
            if mask is not None:
                h._keras_mask = mask if len(mask.shape) else None
            y = layer(h)
            return y, mask_of(h), mask_of(y)

        def run():
            n = count.advance()
            x = tf.reshape(tf.range(60, dtype=tf.float32), [3, 5, 4]) * 0.01 * n
            mask = [None, tf.constant(True), tf.sequence_mask([5, n % 5 + 1, 2], 5)][n % 3]
            return step(x, mask)

        return run

    (step,) = assert_matches_eager(make, 24)
    assert step.stats().co_executed_steps >= 15, step.explain()
    assert step.stats().calls_replayed["Layer.__call__"] >= 8, step.explain()


def test_attributes_of_the_programs_own_stay():
    def make(wrap):
        layer, count = LAYERS.Dense(2, kernel_initializer="ones"), Counter()
        layer.build((2, 3))

        @wrap
        def step(x):
            h = x + 1.0
            h.note = ["mine"]
            y = layer(h)
            y.note = h.note
            return y, tf.abs(h), y.note is h.note, mask_of(y)

        def run():
            return step(tf.fill([2, 3], float(count.advance())))

        return run

    (step,) = assert_matches_eager(make, 10)
    assert step.stats().co_executed_steps == 8, step.explain()


def test_layer_that_drops_a_mask_warns_each_time():
    """`Reshape` knows no masks, and says so; a model around it is not replayed without that."""
    told = {}

    def make(wrap):
        keras.utils.set_random_seed(1)
        model = functional(embedding(), LAYERS.Reshape((20,), name="flat"), LAYERS.Dense(2))
        step = wrap(lambda x: model(x))
        told[wrap] = messages = []

        def run():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = step(tf.constant([[1, 2, 0, 0, 0]]))
            messages.append([str(warning.message) for warning in caught])
            return result, mask_of(result)

        return run

    assert_matches_eager(make, 10)
    eager, ours = told.values()
    assert eager == ours
    assert len(eager[-1]) == 1


class Scale(LAYERS.Layer):
    """A layer as users write them: TensorFlow's functions on Keras' variables."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x):
        self.count.assign_add(1.0)
        return tf.matmul(x, self.kernel) + tf.reduce_sum(tf.square(self.kernel))


def test_functions_of_keras_variables_are_replayed():
    functions = []

    def make(wrap):
        keras.utils.set_random_seed(1)
        layer, count = Scale(), Counter()
        layer.build((2, 4))

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x)) + tf.nn.l2_loss(layer.kernel)
            gradient = tape.gradient(loss, layer.kernel)
            layer.kernel.assign_sub(0.01 * gradient)
            return loss, gradient

        functions.append(step)

        def run():
            n = count.advance()
            if n == 9:
                layer.kernel.trainable = False  # the tape no longer watches it
            if n == 12:
                layer.kernel.trainable = True
            if n == 15:
                layer.kernel._value = tf.Variable(layer.kernel._value * 0.5)
            return step(tf.ones([2, 4]) * float(n)) if layer.kernel.trainable else n

        return run

    assert_matches_eager(make, 22)
    replayed = functions[-1].stats().calls_replayed
    assert replayed["tf.matmul"] >= 8, replayed
    assert replayed["tf.square"] >= 8, replayed
    assert replayed["tf.nn.l2_loss"] >= 8, replayed


def test_dictionaries_of_tensors_are_replayed():
    functions = []

    def make(wrap):
        keras.utils.set_random_seed(1)
        a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
        h = LAYERS.concatenate([LAYERS.Dense(2)(a), b])
        model, count = keras.Model({"a": a, "b": b}, {"p": LAYERS.Dense(1)(h), "q": h}), Counter()

        @wrap
        def step(x):
            given = {"b": x[:, :3], "a": x} if len(seen) % 2 else {"a": x, "b": x[:, :3]}
            result = model(given)
            seen.append(list(result))
            result["mine"] = x  # it is the program's own
            return result, list(given)

        seen = []
        functions.append(step)

        def run():
            return step(tf.fill([2, 4], float(count.advance()))), list(seen)

        return run

    assert_matches_eager(make, 14)
    replayed = functions[-1].stats().calls_replayed
    assert replayed["Layer.__call__"] >= 8, replayed


@pytest.mark.parametrize("kind", [list, dict])
def test_containers_that_are_handed_on_are_the_same_ones(kind):
    """A layer without an op, which returns the very list or dictionary that it was given."""

    def make(wrap):
        layer, count = LAYERS.Identity(), Counter()
        layer._convert_input_args, layer._allow_non_tensor_positional_args = False, True

        @wrap
        def step(x):
            given = [x, x * 2.0] if kind is list else {"a": x, "b": x * 2.0}
            result = layer(given)
            if kind is list:
                result.append(3)
            else:
                result["c"] = 3
            return result is given, len(given), layer(x) is x

        return lambda: step(tf.fill([2, 3], float(count.advance())))

    (step,) = assert_matches_eager(make, 10)
    assert step.stats().co_executed_steps == 8, step.explain()
