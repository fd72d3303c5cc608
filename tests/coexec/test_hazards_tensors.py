"""Tensors that are random, of unknown shape, read in unusual ways, or outlive their step.

Most tests are a program whose hazard acts in every step or in late ones only (see `hazards`).
"""

import collections
import copy
import gc
import pickle
import warnings
import weakref

import numpy as np
import pytest
import tensorflow as tf
from hazards import (
    NUM_STEPS,
    WIDTH,
    Counter,
    assert_co_executed_before,
    draw_inputs,
    make_weight,
    train_once,
)

from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)


# ---- Random numbers ---------------------------------------------------------------------


def test_op_seeds_next_to_set_seed_draw_what_eager_draws():
    def make(wrap):
        count = Counter()

        @wrap
        def draw():
            plain = tf.random.normal([3])
            seeded = [tf.random.uniform([4], seed=7), tf.random.uniform([2], seed=7)]
            dropped = tf.nn.dropout(tf.ones([8]), 0.5)
            return plain, seeded, dropped

        def step():
            if count.advance() % 5 == 4:
                tf.random.set_seed(count.value)
            return draw(), tf.random.uniform([2]), tf.random.uniform([2], seed=7)

        return step

    assert_matches_eager(make, 15)


def test_generator_objects_and_set_seed_inside_the_step():
    def make(wrap):
        generator, count = tf.random.Generator.from_seed(3), Counter()

        @wrap
        def draw():
            tf.random.set_seed(count.value)
            return generator.normal([3]), tf.random.normal([2]), tf.random.shuffle(tf.range(5))

        def step():
            count.advance()
            return draw()

        return step

    assert_matches_eager(make, NUM_STEPS)


# ---- Unknown shapes ---------------------------------------------------------------------


def test_boolean_mask_under_a_tape():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()

        @wrap
        def train(x):
            with tf.GradientTape() as tape:
                hidden = x @ weight
                positive = tf.boolean_mask(hidden, hidden > 0.1)
                loss = tf.reduce_sum(positive**2)
            weight.assign_sub(0.01 * tape.gradient(loss, weight))
            return loss, tf.size(positive)

        return Program(lambda: train(inputs()), [weight])

    assert_matches_eager(make, NUM_STEPS)


def test_shapes_that_depend_on_data_are_read_by_python():
    def make(wrap):
        inputs = draw_inputs()

        @wrap
        def count_positive(x):
            rows = tf.where(x > 0.5)
            values, _ = tf.unique(tf.reshape(tf.cast(x * 2.0, tf.int32), [-1]))
            return rows.shape[0], len(values), tf.zeros([rows.shape[0]]), values * 2

        return lambda: count_positive(inputs())

    assert_matches_eager(make, NUM_STEPS)


# ---- Readers of pending tensors ---------------------------------------------------------


def read_dlpack(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tf.experimental.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(tensor)).numpy()


READERS = {
    "numpy": lambda t: t.numpy(),
    "asarray": np.asarray,
    "memoryview": lambda t: bytes(memoryview(t)),
    "dlpack": read_dlpack,
    "from_dlpack": lambda t: np.from_dlpack(t).copy(),
    "cpu": lambda t: t.cpu().numpy(),
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "deepcopy": lambda t: copy.deepcopy(t),
    "repr": repr,
    "format": lambda t: f"{t[0]:.6f}",
    "iterate": list,
    "len": len,
    "bool": lambda t: bool(t[0] > 0),
    "tolist": lambda t: t.numpy().tolist(),
    "constant": lambda t: tf.constant(t),
    "constant_list": lambda t: tf.constant([t[0], 2.0]),
    "shape": lambda t: (t.shape, t.shape.as_list(), t.ndim),
    "shape_of_slice": lambda t: tf.shape(t)[0],
    "inner_function": lambda t: INNER(t),
    "dataset": lambda t: [x.numpy() for x in tf.data.Dataset.from_tensor_slices(t)],
    "print": lambda t: tf.print(t, output_stream="file:///dev/null"),
    "variable": lambda t: tf.Variable(t),
    "range": lambda t: list(range(int(tf.abs(t[0]) * 4))),
    "string": lambda t: tf.strings.as_string(t),
    "identity": lambda t: tf.identity(t) is t,
    "weakref": lambda t: weakref.ref(t)() is t,
    "ref": lambda t: t.ref() == t.ref(),
    "attribute": lambda t: setattr(t, "_user_mark", 3) or t._user_mark,
}
INNER = tf.function(lambda t: t * 2.0)


@pytest.mark.parametrize("when", ["always", "late", "outside"])
@pytest.mark.parametrize("name", READERS)
def test_reader_of_a_pending_tensor_sees_its_value(name, when):
    read = READERS[name]

    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def train(x):
            hidden = tf.reduce_sum(tf.tanh(x @ weight), axis=0)
            is_now = when == "always" or (when == "late" and count.is_late)
            seen = read(hidden) if is_now else None
            weight.assign_sub(0.1 * tf.reduce_mean(hidden) * weight)
            # Only what is read outside may be planned for: a late read must come as a surprise.
            return hidden if when == "outside" else tf.reduce_sum(hidden), seen

        def step():
            count.advance()
            result, seen = train(inputs())
            return read(result) if when == "outside" else (result, seen)

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    if when != "always":
        assert_co_executed_before(train)


# ---- Tensors that outlive their step ----------------------------------------------------


def test_state_tensor_is_passed_on_while_still_pending():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()
        state = {"h": tf.zeros([4, WIDTH])}
        cell = wrap(lambda h, x: tf.tanh(h @ weight + x))

        def step():
            state["h"] = cell(state["h"], inputs())
            return state["h"]

        return step

    (cell,) = assert_matches_eager(make, NUM_STEPS, read_at_end=True)
    assert (cell.stats().traced_steps, cell.stats().fallbacks) == (2, {})


def test_state_tensor_kept_on_an_object_is_read_by_the_next_step():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()
        state = {"h": tf.zeros([4, WIDTH])}

        @wrap
        def cell(x):
            state["h"] = tf.tanh(state["h"] @ weight + x)
            return tf.reduce_sum(state["h"])

        return lambda: cell(inputs())

    (cell,) = assert_matches_eager(make, NUM_STEPS, read_at_end=True)
    assert_co_executed_before(cell)


def test_tensors_kept_in_containers_are_read_many_steps_later():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()
        history = {"all": [], "last": collections.deque(maxlen=3)}

        @wrap
        def train(x):
            hidden = x @ weight
            history["all"].append(hidden)
            history["last"].append((tf.reduce_sum(hidden), count.value))
            return train_once(x, weight)

        def step():
            count.advance()
            train(inputs())
            return list(history["all"]) if count.value == NUM_STEPS - 1 else len(history["last"])

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS, read_at_end=True)
    assert_co_executed_before(train)


def test_loss_is_read_three_steps_later():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()
        losses = collections.deque()
        train = wrap(lambda x: train_once(x, weight))

        def step():
            losses.append(train(inputs()))
            return float(losses.popleft()) if len(losses) > 3 else None

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert (train.stats().traced_steps, train.stats().fallbacks) == (2, {})


def test_tensor_reachable_only_through_a_reference_cycle():
    class Cycle:
        pass

    def make(wrap):
        weight, inputs, count, refs = make_weight(), draw_inputs(), Counter(), []

        @wrap
        def train(x):
            cycle = Cycle()
            cycle.self, cycle.hidden = cycle, x @ weight
            refs.append(weakref.ref(cycle))
            return train_once(x, weight) + tf.reduce_sum(cycle.hidden)

        def step():
            count.advance()
            loss = train(inputs())
            if count.value % 4 == 3:
                gc.collect()
            alive = [ref() for ref in refs[-1:]] if count.value % 4 == 2 else []
            return loss, [cycle.hidden for cycle in alive if cycle is not None]

        return Program(step, [weight])

    gc.collect()
    gc.disable()  # Liveness as deterministic as it can be; the program collects by itself.
    try:
        (train,) = assert_matches_eager(make, 20)
    finally:
        gc.enable()
    assert_co_executed_before(train, 10)


def test_tape_is_kept_across_two_decorated_calls():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()
        kept = {}

        @wrap
        def forward(x):
            kept["tape"] = tf.GradientTape()
            with kept["tape"]:
                kept["loss"] = tf.reduce_mean(tf.nn.relu(x @ weight) ** 2)
            return kept["loss"] * 2.0

        @wrap
        def backward(rate):
            gradient = kept.pop("tape").gradient(kept["loss"], weight)
            weight.assign_sub(rate * gradient)
            return tf.norm(gradient)

        return Program(lambda: (forward(inputs()), backward(tf.constant(0.1))), [weight])

    assert_matches_eager(make, NUM_STEPS)


def test_tape_outside_the_decorated_call():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()
        model = wrap(lambda x: tf.reduce_sum(tf.tanh(x @ weight) ** 2))

        def step():
            with tf.GradientTape() as tape:
                loss = model(inputs())
            weight.assign_sub(0.1 * tape.gradient(loss, weight))
            return loss

        return Program(step, [weight])

    assert_matches_eager(make, NUM_STEPS)
