"""Which argument is which object: equal in traces and different later, and the other way round."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from aliasing_programs import CAPTURED, KINDS, PROGRAMS, STATE, a_tensor, jacobian

import terra_tf as terra

PATTERNS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 2)]


class Pair:
    """A program twice, eager and decorated; each call is compared bit by bit."""

    def __init__(self, program, seed):
        self.program, self.terra = program, terra.function(program)
        self.rng = np.random.default_rng(seed)

    def objects(self, kinds):
        """Three arguments of the given kinds."""
        values = self.rng.standard_normal((3, 2, 2)).astype(np.float32)
        return [make(value) for make, value in zip(kinds, values, strict=True)]

    def check(self, arguments, what):
        outcomes = []
        for call in (self.program, self.terra):
            STATE.assign(tf.zeros([2, 2]))
            outcomes.append(_frozen([call(*arguments), STATE]))
        assert outcomes[0] == outcomes[1], what


def _frozen(value):
    return [np.asarray(item).tobytes() for item in tf.nest.flatten(value)]


def _kinds_of(number):
    """All of one kind, or mixed; another choice for each program."""
    return [[k] * 3 for k in KINDS][number % 3] if number % 4 else [KINDS[0], KINDS[2], KINDS[0]]


@pytest.mark.parametrize("first", PATTERNS, ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_arguments_alias_otherwise_than_in_the_traces(program, first):
    pair = Pair(program, PATTERNS.index(first))
    number = PROGRAMS.index(program) + PATTERNS.index(first)
    kinds = [a_tensor] * 3 if number % 2 else _kinds_of(number)
    objects = pair.objects(kinds)
    for _ in range(8):
        pair.check([objects[i] for i in first], f"always {first}")
    assert pair.terra.stats().co_executed_steps >= 2
    for turn, other in itertools.product(range(2), PATTERNS):
        fresh = objects if turn == 0 else pair.objects(kinds)
        pair.check([fresh[i] for i in other], f"{first}, then {other} in turn {turn}")


@pytest.mark.parametrize("first", PATTERNS, ids=str)
def test_jacobians(first):
    rng, f = np.random.default_rng(0), terra.function(jacobian)
    for pattern in [first] * 8 + PATTERNS * 2:
        objects = [tf.constant(x) for x in rng.standard_normal((3, 2, 2)).astype(np.float32)]
        arguments = [objects[i] for i in pattern]
        np.testing.assert_allclose(f(*arguments), jacobian(*arguments), rtol=1e-6)


@pytest.mark.parametrize("replay_calls", [True, False])
def test_one_tensor_twice_then_two(replay_calls):
    """The reports' program: nothing was counted, and the first argument was used twice."""
    t, u = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([[10.0, 0.0], [0.0, 10.0]])
    with terra.config.override(replay_calls=replay_calls):
        f = terra.function(tf.matmul)
        for _ in range(8):
            f(t, t)
        assert f.stats().phase == "co-execution"
        assert f(t, u).numpy().tolist() == tf.matmul(t, u).numpy().tolist()
        assert f.stats().fallbacks == {"dataflow_changed": 1}
        assert f(u, t).numpy().tolist() == tf.matmul(u, t).numpy().tolist()


def test_scalars_of_one_value_share_a_handle():
    """TensorFlow makes one tensor of all equal Python numbers: equal here, and others later."""

    def step(a, b):
        return tf.stack([a, b]) * tf.concat([[a - b], [b]], 0)

    f = terra.function(step)
    for x, y in [(2.0, 2.0)] * 8 + [(2.0, 3.0), (3.0, 2.0), (4.0, 4.0), (5.0, 6.0)] * 2:
        a, b = tf.constant(x), tf.constant(y)
        assert f(a, b).numpy().tolist() == step(a, b).numpy().tolist()


def test_gradients_of_equal_scalars():
    """Tapes tell the objects apart, ops the handles."""

    def step(a, b):
        with tf.GradientTape() as tape:
            tape.watch(a)
            loss = a * a * b + tf.exp(b) * a
        return tape.gradient(loss, a)

    f = terra.function(step)
    for x, y in [(2.0, 2.0)] * 8 + [(2.0, 3.0), (3.0, 2.0), (4.0, 4.0), (5.0, 6.0)] * 3:
        a, b = tf.constant(x), tf.constant(y)
        assert f(a, b).numpy() == step(a, b).numpy()


def test_the_captured_tensor_is_an_argument_too():
    def step(a):
        return tf.concat([CAPTURED * a, tf.matmul(a, CAPTURED)], 0)

    f, other = terra.function(step), tf.constant([[3.0, 1.0], [0.0, 2.0]])
    for argument in [CAPTURED] * 8 + [other, CAPTURED, other]:
        assert np.array_equal(f(argument), step(argument))


@pytest.mark.parametrize("as_dict", [True, False])
def test_items_of_lists_and_dicts(as_dict):
    def step(batch):
        a, b = (batch["a"], batch["b"]) if as_dict else batch
        return tf.maximum(a, b) - tf.concat([a[:1], b[1:]], 0)

    f, rng = terra.function(step), np.random.default_rng(0)
    for is_same in [True] * 8 + [False, True, False, False]:
        a = tf.constant(rng.standard_normal((2, 2)))
        b = a if is_same else tf.constant(rng.standard_normal((2, 2)))
        batch = {"a": a, "b": b} if as_dict else [a, b]
        assert np.array_equal(f(batch), step(batch))


def test_one_op_of_several_variables():
    """An op that takes variables: each in its place, also where two are one."""

    def step(rows, moments, rate):
        tf.raw_ops.ResourceApplyMomentum(
            var=rows.handle, accum=moments.handle, lr=rate, grad=tf.ones([2]), momentum=0.5
        )
        return rows * 1.0, moments * 1.0

    f = terra.function(step)
    for k in range(14):
        values = []
        for call in (step, f):
            one, two = tf.Variable([1.0, 2.0 + k]), tf.Variable([0.5, float(k)])
            pair = {9: (two, one), 11: (one, one)}.get(k, (one, two))
            values.append(_frozen([call(*pair, tf.constant(0.1)), one, two]))
        assert values[0] == values[1], k


def test_a_keras_layer_of_two_inputs():
    tf.keras.utils.set_random_seed(1)
    layer, dense = tf.keras.layers.Dot(axes=1), tf.keras.layers.Dense(3)

    def step(a, b):
        return layer([dense(a), dense(b)]) + tf.keras.layers.Add()([a, b])[:, :1]

    f, rng = terra.function(step), np.random.default_rng(0)
    for is_same in [True] * 8 + [False, True, False, False, True, False]:
        a = tf.constant(rng.standard_normal((4, 5)).astype(np.float32))
        b = a if is_same else tf.constant(rng.standard_normal((4, 5)).astype(np.float32))
        assert np.array_equal(f(a, b), step(a, b))


def test_one_gradient_for_two_variables():
    """An optimizer is given one tensor twice, then two."""
    tf.keras.utils.set_random_seed(1)

    def make():
        variables = [tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])]
        optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)

        def step(g, h):
            optimizer.apply_gradients(zip([g * 1.0, h * 1.0], variables, strict=True))

        return variables, step

    (eager_variables, eager), (variables, step) = make(), make()
    f, rng = terra.function(step), np.random.default_rng(0)
    for is_same in [True] * 8 + [False, True, False, False]:
        g = tf.constant(rng.standard_normal(2).astype(np.float32))
        h = g if is_same else tf.constant(rng.standard_normal(2).astype(np.float32))
        eager(g, h)
        f(g, h)
        assert _frozen(eager_variables) == _frozen(variables)
