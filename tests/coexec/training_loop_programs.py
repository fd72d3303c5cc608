"""Programs that train inside of a step, in loops that a graph can roll.

Each maker returns `step(x, i)`: x is float32[4, 4], i the number of the call.
"""

import keras
import tensorflow as tf
from rolled_loop_programs import length_of, weight


def make_steps_by_hand():
    w = weight()

    def step(x, i):
        for _ in range(length_of(i)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.tanh(x @ w) ** 2)
            w.assign_sub(0.1 * tape.gradient(loss, w))
        return w

    return step


def make_constant_length():
    w, b = weight(), tf.Variable(tf.zeros([4]))

    def step(x, i):
        total = tf.constant(0.0)
        for _ in range(8):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((tf.nn.relu(x @ w + b) - 1.0) ** 2)
            for variable, gradient in zip((w, b), tape.gradient(loss, (w, b))):
                variable.assign_sub(0.1 * gradient)
            total += loss
        return total

    return step


def train_model(name, optimizer):
    def make():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
        model.build((None, 4))
        its_optimizer = optimizer()
        its_optimizer.build(model.trainable_variables)

        def step(x, i):
            for _ in range(length_of(i)):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(model(x) ** 2)
                weights = model.trainable_variables
                its_optimizer.apply(tape.gradient(loss, weights), weights)
            return [variable.value for variable in model.weights]

        return step

    make.__name__ = name
    return make


make_adam = train_model("make_adam", lambda: keras.optimizers.Adam(0.01))
make_momentum = train_model(
    "make_momentum", lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
)
make_clipped = train_model(
    "make_clipped", lambda: keras.optimizers.RMSprop(0.01, global_clipnorm=0.5)
)


def make_batches():
    w = weight()

    def step(x, i):
        losses = []
        for k in range(length_of(i)):
            batch = tf.constant(x.numpy() * (1.0 + k))
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.sigmoid(batch @ w))
            w.assign_sub(0.01 * tape.gradient(loss, w))
            losses.append(float(loss))
        return losses

    return step


def make_until_converged():
    w = weight()

    def step(x, i):
        w.assign(w + 0.3)
        for n in range(12):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((x @ w) ** 2)
            if float(loss) < 0.2:
                return w, n
            w.assign_sub(0.2 * tape.gradient(loss, w))
        return w, 12

    return step


def make_branches():
    w, v = weight(), weight()

    def step(x, i):
        for k in range(length_of(i)):
            with tf.GradientTape() as tape:
                if (i * 7 + k * k) % 3 == 0:
                    loss = tf.reduce_sum(tf.sin(x @ w @ v))
                else:
                    loss = tf.reduce_sum(tf.tanh(x @ w) * tf.cos(x @ v))
            for variable, gradient in zip((w, v), tape.gradient(loss, (w, v))):
                variable.assign_sub(0.05 * gradient)
        return w, v

    return step


def make_inner_and_outer():
    """Adaptation by gradients, and a gradient through it."""
    w = weight()

    def step(x, i):
        with tf.GradientTape() as outer:
            fast = tf.identity(w)
            for _ in range(length_of(i)):
                with tf.GradientTape() as tape:
                    tape.watch(fast)
                    loss = tf.reduce_mean((x @ fast) ** 2)
                fast = fast - 0.1 * tape.gradient(loss, fast)
            loss = tf.reduce_mean((x @ fast - 1.0) ** 2)
        w.assign_sub(0.1 * outer.gradient(loss, w))
        return loss

    return step


def make_nested():
    w = weight()

    def step(x, i):
        for k in range(length_of(i)):
            y = x
            with tf.GradientTape() as tape:
                for _ in range(2):
                    y = tf.tanh(y @ w)
                loss = tf.reduce_sum(y) * (1.0 + 0.1 * k)
            w.assign_sub(0.01 * tape.gradient(loss, w))
        return w

    return step


def make_input_gradients():
    """Steps on the input: the tensor that is trained is handed on."""
    w = weight()

    def step(x, i):
        for _ in range(length_of(i)):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum((x @ w) ** 2) + tf.reduce_sum(tf.abs(x))
            x = x - 0.05 * tape.gradient(loss, x)
        return x

    return step


def make_penalty():
    """A gradient of a gradient in each trip."""
    w = weight()

    def step(x, i):
        for _ in range(length_of(i)):
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    y = tf.reduce_sum(tf.tanh(x @ w) ** 2)
                penalty = tf.reduce_mean(inner.gradient(y, x) ** 2)
            w.assign_sub(0.05 * outer.gradient(penalty, w))
        return w

    return step


def make_two_uses():
    """The tape adds two gradients up, outside of any gradient function."""
    w = weight()

    def step(x, i):
        for _ in range(length_of(i)):
            with tf.GradientTape() as tape:
                a, b = tf.split(x @ w, 2)
                loss = tf.reduce_sum(a**2) + tf.reduce_sum(tf.sin(a) * w[:2])
                del b
            w.assign_sub(0.05 * tape.gradient(loss, w))
        return w

    return step


def make_accumulated_gradients():
    """Gradients of all trips are kept and applied behind the loop."""
    w = weight()

    def step(x, i):
        total = tf.zeros_like(w)
        for k in range(1, length_of(i) + 1):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.tanh(x * (0.1 * k) @ w))
            total += tape.gradient(loss, w)
        w.assign_sub(0.1 * total)
        return w

    return step


def make_dropout():
    keras.utils.set_random_seed(0)
    w = weight()

    def step(x, i):
        for _ in range(length_of(i)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.nn.dropout(tf.nn.silu(x @ w), 0.5))
            w.assign_sub(0.01 * tape.gradient(loss, w))
        return w

    return step
