"""Custom gradients of the library's own (`tf.nn.silu`) are replayed with their tapes.

`test_gradient_closures.py` has what their gradient functions may hold, `test_users_gradients.py`
those of the user's.
"""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from hazards import Counter, assert_like_eager, draw_inputs, make_weight, num_gradients

pytestmark = pytest.mark.timeout(120)


def differentiated(function, num_weights=2):
    """A program: descent along a chain of the function and products."""

    def make(wrap):
        weights, draw, count = [make_weight() for _ in range(num_weights)], draw_inputs(), Counter()

        @wrap
        def step(x, n):
            with tf.GradientTape() as tape:
                for weight in weights:
                    x = function(tf.matmul(x, weight), n)
                loss = tf.reduce_mean(x * x)
            gradients = tape.gradient(loss, weights)
            for weight, gradient in zip(weights, gradients):
                weight.assign_sub(0.1 * gradient)
            return loss, gradients

        return lambda: (step(draw(), count.advance()), weights)

    return make


# ------------------------------------------------------------------- tf.nn.silu


def test_gradient_through_silu_is_replayed_and_so_is_silu():
    stats = assert_like_eager(differentiated(lambda x, n: tf.nn.silu(x)))
    assert num_gradients(stats) == stats.co_executed_steps - 1, stats.calls_not_replayed
    assert stats.calls_replayed["tf.nn.silu"] >= 2 * (stats.co_executed_steps - 2)
    assert stats.tape_ops_unrecorded > 2 * stats.tape_ops_recorded


BETAS = {
    "number": lambda n: 0.5 + n % 3,
    "new number": lambda n: 0.1 * n,
    "tensor": lambda n: tf.constant(0.5 + n % 3),
    "array": lambda n: np.float32(0.5 + n % 3),
    "late": lambda n: 2.0 if n == 9 else 1.0,
}


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
def test_beta_of_silu_that_changes(beta):
    stats = assert_like_eager(differentiated(lambda x, n: tf.nn.silu(x, beta(n))), 24)
    assert num_gradients(stats) > 0, stats.calls_not_replayed


@pytest.mark.parametrize("kind", ["variable", "tensor", "both", "other"])
def test_gradient_of_beta(kind):
    def make(wrap):
        draw, count = draw_inputs(), Counter()
        betas = [tf.Variable(1.0), tf.Variable(0.5)]

        @wrap
        def step(x, beta, n):
            with tf.GradientTape(persistent=n % 2 == 0) as tape:
                tape.watch(x)
                if n % 3:
                    tape.watch(beta)
                used = betas[0] if kind == "variable" else beta
                if kind == "both":
                    used = used * betas[0]
                elif kind == "other":
                    used = betas[n % 2]
                y = tf.nn.silu(x * 2.0, used)
            found = tape.gradient(y, [x, beta, *betas])
            betas[0].assign_add(0.1)
            return found

        return lambda: (step(draw(), tf.constant(1.5), count.advance()), betas)

    stats = assert_like_eager(make, 30)
    assert num_gradients(stats) > 0, stats.calls_not_replayed


def test_one_tensor_as_both_arguments():
    def make(wrap):
        count = Counter()

        @wrap
        def step(x, beta):
            with tf.GradientTape() as tape:
                tape.watch([x, beta])
                y = tf.nn.silu(x, beta)
            return tape.gradient(y, [x, beta])

        def call():
            x = tf.constant(0.1 * count.advance())
            return step(x, x if count.value % 3 == 0 else tf.constant(0.7))

        return call

    assert_like_eager(make, 24)


def test_what_is_watched_decides():
    def make(wrap):
        draw, count = draw_inputs(), Counter()

        @wrap
        def step(x, y, n):
            with tf.GradientTape() as tape:
                if n % 2:
                    tape.watch(x)
                if n % 3:
                    tape.watch(y)
                z = tf.nn.silu(x) * tf.nn.silu(y)
            return tape.gradient(z, [x, y])

        return lambda: step(draw(), draw(), count.advance())

    assert num_gradients(assert_like_eager(make, 30)) > 0


def test_nested_and_persistent_tapes():
    def make(wrap):
        draw, weight, count = draw_inputs(), make_weight(), Counter()

        @wrap
        def step(x, n):
            with tf.GradientTape(persistent=True) as outer:
                with tf.GradientTape(persistent=True) as inner:
                    hidden = tf.nn.silu(tf.matmul(x, weight))
                    loss = tf.reduce_sum(tf.nn.silu(hidden, 0.5))
                (first,) = inner.gradient(loss, [weight])
                again = inner.gradient(hidden, weight) if n % 3 == 2 else first
                norm = tf.reduce_sum(first * again)
            second = outer.gradient(norm, weight)
            return loss, first, second, outer.gradient(loss, weight), inner.gradient(loss, weight)

        return lambda: step(draw(), count.advance())

    assert num_gradients(assert_like_eager(make, 24)) > 0


def test_two_tapes_of_which_one_does_not_see_it():
    def make(wrap):
        draw, weight, count = draw_inputs(), make_weight(), Counter()

        @wrap
        def step(x, n):
            with tf.GradientTape() as first, tf.GradientTape() as second:
                y = tf.matmul(x, weight)
                with second.stop_recording():
                    z = tf.nn.silu(y)
                if n % 2:
                    z = z + tf.stop_gradient(tf.nn.silu(z))
                loss = tf.reduce_sum(z + y)
            return first.gradient(loss, weight), second.gradient(loss, weight)

        return lambda: step(draw(), count.advance())

    assert num_gradients(assert_like_eager(make, 24)) > 0


# -------------------------------------------------------- somebody looks at a tape

LOOKS = {
    "other target": lambda tape, loss, parts, sources: tape.gradient(parts[0], sources),
    "sum": lambda tape, loss, parts, sources: tape.gradient(parts, sources),
    "jacobian": lambda tape, loss, parts, sources: tape.jacobian(parts[1], sources),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_tape_knows_what_it_was_not_told_at_once(look):
    def make(wrap):
        draw, weights, count = draw_inputs(), [make_weight(), tf.Variable(0.7)], Counter()

        @wrap
        def step(x, is_late):
            with tf.GradientTape() as tape:
                first = tf.nn.silu(tf.matmul(x, weights[0]), weights[1])
                second = tf.nn.silu(first[:, :2])
                loss = tf.reduce_sum(second * 2.0)
            if is_late:
                return look(tape, loss, [first, second], weights)
            return tape.gradient(loss, weights)

        return lambda: step(draw(), count.advance() in (9, 13, 14))

    # TensorFlow vectorizes in a function of its own, with other last bits.
    is_exact = look is not LOOKS["jacobian"]
    assert num_gradients(assert_like_eager(make, 18, exact=is_exact, rtol=1e-6)) > 0


def test_step_that_leaves_the_graph_behind_a_replayed_gradient():
    def make(wrap):
        weight, draw, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def step(x, n):
            with tf.GradientTape(persistent=True) as tape:
                hidden = tf.nn.silu(x @ weight)
                if n == 11:
                    hidden = tf.nn.silu(tf.sin(hidden))
                loss = tf.reduce_sum(hidden**2)
            gradient = tape.gradient(loss, weight)
            if n % 7 == 6:
                gradient = tf.clip_by_norm(gradient, 0.5) + tf.reduce_mean(hidden) * n
                gradient += tape.gradient(hidden, weight)
            weight.assign_sub(0.1 * gradient)
            return loss, gradient

        return lambda: (step(draw(), count.advance()), weight)

    assert num_gradients(assert_like_eager(make, 30)) > 0


def test_gradients_of_many_paths():
    def make(wrap):
        weights = [make_weight() for _ in range(3)]
        draw, rng = draw_inputs(), np.random.default_rng(3)

        @wrap
        def train(x, chosen):
            with tf.GradientTape() as tape:
                for weight, is_chosen in zip(weights, chosen):
                    x = x @ weight
                    x = tf.nn.silu(x) if is_chosen else tf.tanh(x)
                loss = tf.reduce_sum(x * x)
            gradients = tape.gradient(loss, weights)
            for weight, gradient in zip(weights, gradients):
                weight.assign_sub(0.1 * gradient)
            return loss, gradients

        return lambda: train(draw(), [bool(b) for b in rng.integers(0, 2, [3])])

    assert num_gradients(assert_like_eager(make, 60)) > 5


def test_tape_that_outlives_its_step_and_one_in_another_thread():
    def make(wrap):
        draw, weight, count = draw_inputs(), make_weight(), Counter()

        @wrap
        def forward(x, n):
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_sum(tf.nn.silu(tf.matmul(x, weight)))
            if n % 5 != 4:
                return loss, tape
            found = []
            thread = threading.Thread(target=lambda: found.append(tape.gradient(loss, weight)))
            thread.start()
            thread.join(timeout=30)
            return loss + tf.reduce_sum(found[0]), tape

        def call():
            loss, tape = forward(draw(), count.advance())
            return loss, tape.gradient(loss, weight)

        return call

    assert_like_eager(make, 20)


def test_forward_mode():
    def make(wrap):
        draw, count = draw_inputs(), Counter()

        @wrap
        def step(x, is_late):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.nn.silu(x)
                if is_late:
                    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
                        z = tf.nn.silu(x)
                    y = y + accumulator.jvp(z)
            return tape.gradient(y, x)

        return lambda: step(draw(), count.advance() in (8, 12))

    assert_like_eager(make, 16)


def test_shapes_that_vary():
    def make(wrap):
        weight, rng = make_weight(), np.random.default_rng(0)

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.silu(x @ weight) ** 2)
            weight.assign_sub(tape.gradient(loss, weight))
            return loss

        def call():
            length = int(rng.integers(1, 9))
            return step(tf.constant(rng.normal(size=[length, 16]).astype("f"))), weight

        return call

    assert_like_eager(make, 40)


def test_shape_that_depends_on_data():
    def make(wrap):
        draw = draw_inputs()

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                positive = tf.nn.silu(tf.boolean_mask(x, x > 0.0))
            return tape.gradient(positive, x)

        return lambda: step(draw())

    assert_like_eager(make, 16)


# ------------------------------------------------------------------- other ones


def test_ctc_loss():
    def make(wrap):
        rng = np.random.default_rng(0)

        @wrap
        def step(logits):
            with tf.GradientTape() as tape:
                tape.watch(logits)
                loss = tf.nn.ctc_loss(
                    tf.constant([[1, 2], [2, 1]]),
                    logits,
                    tf.constant([2, 2]),
                    tf.constant([4, 4]),
                    logits_time_major=False,
                    blank_index=0,
                )
            return loss, tape.gradient(loss, logits)

        return lambda: step(tf.constant(rng.normal(size=[2, 4, 3]).astype("f")))

    assert_like_eager(make, 8, rtol=1e-6)


ACTIVATIONS = (
    "silu", "swish", "gelu", "mish", "hard_silu", "elu", "celu", "selu", "softsign", "relu6",
    "log_sigmoid", "leaky_relu", "sparse_plus", "tanh_shrink", "hard_tanh", "squareplus",
)  # fmt: skip


@pytest.mark.parametrize(
    "activation, dtype",
    [(name, "float32") for name in ACTIVATIONS]
    + [(name, "mixed_float16") for name in ("silu", "gelu", "mish")],
)
def test_activation_of_a_keras_model(activation, dtype):
    def make(wrap):
        keras.utils.set_random_seed(1)
        draw = draw_inputs()
        layers = [keras.layers.Dense(8, activation=activation, dtype=dtype) for _ in range(2)]
        model = keras.Sequential([*layers, keras.layers.Dense(2)])
        model.build([None, 16])

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x, training=True) ** 2)
            variables = model.trainable_variables
            gradients = tape.gradient(loss, variables)
            for variable, gradient in zip(variables, gradients):
                variable.assign(variable - 0.1 * gradient)
            return loss, gradients

        return lambda: step(draw())

    stats = assert_like_eager(make)
    assert num_gradients(stats) > 0, stats.calls_not_replayed
    if dtype == "float32":
        num_models = stats.calls_replayed.get("Layer.__call__", 0)
        assert num_models >= stats.co_executed_steps - 3, stats.calls_not_replayed


def test_keras_layer_whose_activation_changes():
    def make(wrap):
        keras.utils.set_random_seed(1)
        draw, count = draw_inputs(), Counter()
        layer = keras.layers.Dense(16, activation="silu")
        layer.build([None, 16])

        @wrap
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(layer(layer(x)))
            return tape.gradient(loss, layer.trainable_variables)

        def call():
            if count.advance() % 6 == 5:
                names = ("tanh", "silu", "gelu")
                layer.activation = keras.activations.get(names[count.value % 3])
            return step(draw())

        return call

    assert num_gradients(assert_like_eager(make, 36)) > 0
