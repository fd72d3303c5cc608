"""What the author of a co-executor would rather not think of; each with a hard time limit.

Most tests are a program whose hazard acts in every step or in late ones only, when the function
co-executes; Terra and eager must agree on all that it returns. `LATE` is the first step of the
late ones.
"""

import collections
import contextlib
import copy
import functools
import gc
import os
import pickle
import signal
import threading
import time
import warnings
import weakref

import numpy as np
import programs
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import Program, assert_co_executing, assert_matches_eager, describe_exception

pytestmark = pytest.mark.timeout(60)

LATE = 7
NUM_STEPS = 12
WIDTH = 16


class Counter:
    """Counts calls; true from the `LATE`-th on."""

    def __init__(self):
        self.value = -1

    def advance(self):
        self.value += 1
        return self.value

    @property
    def is_late(self):
        return self.value >= LATE


def make_weight():
    return tf.Variable(programs.normal(np.random.default_rng(0), WIDTH, WIDTH))


def draw_inputs(seed=1):
    """Return a function that makes a new float32[4, WIDTH] tensor at each call."""
    rng = np.random.default_rng(seed)
    return lambda: tf.constant(programs.normal(rng, 4, WIDTH, scale=1.0))


def train_once(x, weight, rate=0.1):
    """Run one step of gradient descent on float32[4, WIDTH]; return the loss."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.tanh(x @ weight) ** 2)
    weight.assign_sub(rate * tape.gradient(loss, weight))
    return loss


def assert_co_executed_before(function, num_steps=LATE):
    """Assert that the hazard of the late steps met a function that had co-executed."""
    assert function.stats().co_executed_steps >= num_steps - 5, function.explain()


# ---- Variables changed or read from outside the step ------------------------------------


def test_variable_assigned_between_in_flight_steps():
    def make(wrap):
        weight, rate, inputs = make_weight(), tf.Variable(0.1), draw_inputs()
        count = Counter()

        @wrap
        def train(x):
            return train_once(x, weight, rate)

        def step():
            first = train(inputs())
            rate.assign(0.1 / (count.advance() + 1))
            second = train(inputs())
            rate.assign_add(0.01)
            return first, second

        return Program(step, [weight, rate])

    (train,) = assert_matches_eager(make, NUM_STEPS, read_at_end=True)
    assert (train.stats().traced_steps, train.stats().fallbacks) == (2, {})


def test_trained_weight_overwritten_and_read_between_in_flight_steps():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()
        train = wrap(lambda x: train_once(x, weight))

        def step():
            train(inputs())
            if count.advance() % 3 == 2:
                weight.assign(weight * 0.5)
            train(inputs())
            return weight.numpy() if count.value % 4 == 3 else weight[0]

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert train.stats().fallbacks == {}


def run_in_thread(function):
    """Run `function` in a thread of its own, wait for it, and return what it returned."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(20)
    assert results, "the worker thread is stuck"
    return results[0]


@pytest.mark.parametrize("is_always", [True, False], ids=["always", "late"])
def test_worker_thread_reads_variable_that_the_open_step_has_written(is_always):
    def make(wrap):
        weight, inputs, count, seen = make_weight(), draw_inputs(), Counter(), []

        @wrap
        def train(x):
            loss = train_once(x, weight)
            if is_always or count.is_late:
                seen.append(run_in_thread(weight.numpy))
            weight.assign(weight * 0.99)
            return loss

        def step():
            count.advance()
            return train(inputs()), list(seen)

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    if not is_always:
        assert_co_executed_before(train)


def test_worker_thread_writes_variable_in_the_middle_of_a_step():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def train(x):
            loss = train_once(x, weight)
            if count.is_late:
                run_in_thread(lambda: weight.assign_add(tf.ones_like(weight)) is None)
            return loss + tf.reduce_sum(weight)

        def step():
            count.advance()
            return train(inputs())

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert_co_executed_before(train)


def test_worker_thread_reads_unfetched_tensor_of_the_open_step():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()

        @wrap
        def train(x):
            hidden = tf.tanh(x @ weight)
            seen = run_in_thread(hidden.numpy) if count.is_late else None
            weight.assign_sub(0.1 * tf.reduce_mean(hidden) * weight)
            return tf.reduce_sum(hidden), seen

        def step():
            count.advance()
            return train(inputs())

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert_co_executed_before(train)


def test_two_threads_with_a_barrier_inside_their_steps():
    def make(wrap):
        weights = [make_weight(), make_weight()]
        inputs = [draw_inputs(1), draw_inputs(2)]
        barrier = threading.Barrier(2)

        @wrap
        def train(x, weight):
            barrier.wait(20)
            loss = train_once(x, weight)
            barrier.wait(20)
            weight.assign(weight * 0.99)
            return loss

        def step():
            losses = [None, None]

            def work(k):
                losses[k] = [train(inputs[k](), weights[k]).numpy() for _ in range(3)]

            threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            return losses

        return Program(step, weights)

    assert_matches_eager(make, 4)


def test_two_threads_train_two_functions_at_once():
    def make(wrap):
        weights = [make_weight(), make_weight()]
        inputs = [draw_inputs(1), draw_inputs(2)]
        trains = [wrap(functools.partial(train_once, weight=weight)) for weight in weights]

        def step():
            losses = [None, None]

            def work(k):
                losses[k] = [trains[k](inputs[k]()) for _ in range(8)]

            threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            return losses

        return Program(step, weights)

    assert_matches_eager(make, 6)


# ---- Errors of ops ----------------------------------------------------------------------


def make_failing(wrap, body, *, bad_steps=(LATE, LATE + 2)):
    """Build a program whose `body(x, index, weight, table)` fails if fed a large index."""
    weight, inputs, count = make_weight(), draw_inputs(), Counter()
    table = tf.Variable(programs.normal(np.random.default_rng(2), 10, WIDTH))
    run = wrap(lambda x, index: body(x, index, weight, table))

    def step():
        index = 99 if count.advance() in bad_steps else count.value % 5
        return run(inputs(), tf.constant([1, index, 2]))

    return Program(step, [weight, table])


def test_op_error_that_nobody_consumes_reaches_the_caller():
    def body(x, index, weight, table):
        loss = train_once(x, weight)
        tf.gather(table, index)
        weight.assign(weight * 0.99)
        return loss

    (run,) = assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)
    assert_co_executed_before(run)


def test_op_fails_while_independent_branches_go_on():
    def body(x, index, weight, table):
        table.assign_add(0.01 * table)
        rows = tf.gather(table, index)
        for _ in range(4):
            weight.assign(weight * 0.9 + 0.01 * tf.eye(WIDTH))
        table.assign_sub(0.02 * table)
        return tf.reduce_sum(rows), tf.reduce_sum(x @ weight)

    (run,) = assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)
    assert_co_executed_before(run)


@pytest.mark.parametrize("method", ["scatter_add", "scatter_sub", "scatter_update"])
def test_failing_scatter_is_applied_as_often_and_as_far_as_eager_does(method):
    def body(x, index, weight, table):
        weight.assign(weight * 1.5)
        updates = tf.IndexedSlices(x[:3], index)
        getattr(table, method)(updates)
        weight.assign(weight * 0.5)
        return tf.reduce_sum(table)

    (run,) = assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)
    assert_co_executed_before(run, 5)


def test_repeated_scatter_reads_its_own_writes():
    def body(x, index, weight, table):
        table.scatter_add(tf.IndexedSlices(x[:3], index))
        total = tf.reduce_sum(table)
        table.scatter_sub(tf.IndexedSlices(x[1:] * 0.5, index))
        return total, tf.reduce_sum(table)

    assert_matches_eager(lambda wrap: make_failing(wrap, body, bad_steps=()), NUM_STEPS)


def test_op_error_caught_inside_the_step_with_synchronous_errors():
    def body(x, index, weight, table):
        try:
            rows = tf.gather(table, index)
        except tf.errors.InvalidArgumentError:
            rows = -table[:3]
        weight.assign_add(0.1 * x[:1] * rows[:1, :1])
        return tf.reduce_sum(rows)

    with terra.config.override(synchronous_errors=True):
        assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)


def test_op_error_caught_inside_the_step_where_the_value_is_read():
    def body(x, index, weight, table):
        weight.assign(weight * 1.25)
        try:
            total = float(tf.reduce_sum(tf.gather(table, index)))
        except tf.errors.InvalidArgumentError as error:
            total = type(error).__name__
        weight.assign_add(0.1 * tf.eye(WIDTH))
        return total, tf.reduce_sum(x @ weight)

    (run,) = assert_matches_eager(lambda wrap: make_failing(wrap, body), NUM_STEPS)
    assert_co_executed_before(run)


def test_op_error_caught_inside_the_step_is_exact_from_the_second_time_on():
    caught = []
    table = tf.Variable(tf.ones([10, 4]))

    @terra.function
    def lookup(index):
        try:
            return tf.gather(table, index)
        except tf.errors.InvalidArgumentError:
            caught.append(index)
            return -table[:1]

    good, bad = [3], [99]
    programs.warm_up(lookup, lambda: lookup(tf.constant(good)))
    with contextlib.suppress(tf.errors.InvalidArgumentError):
        lookup(tf.constant(bad))  # May surface when the call returns, outside the `try`.
    for index in (good, bad, good, bad, bad):
        rows = lookup(tf.constant(index))
        assert (rows[0, 0].numpy() < 0) == (index == bad)
    assert len(caught) in (3, 4)


def test_op_error_never_surfaces_in_a_later_call():
    table = tf.Variable(tf.ones([10, 4]))
    counter = tf.Variable(0)
    bodies = []

    @terra.function
    def lookup(index):
        bodies.append(1)
        counter.assign_add(1)
        return tf.gather(table, index)

    programs.warm_up(lookup, lambda: lookup(tf.constant([3])))
    num_bodies = len(bodies)
    with pytest.raises(tf.errors.InvalidArgumentError, match="indices"):
        lookup(tf.constant([99]))
    assert lookup(tf.constant([1])).numpy().sum() == 4.0
    assert len(bodies) == num_bodies + 2
    assert counter.numpy() == len(bodies)


class DivergedError(Exception):
    """The user's own, with a constructor of its own."""

    def __init__(self, step, *, value):
        super().__init__(f"diverged in step {step}")
        self.step, self.value = step, value


def test_exception_of_the_users_own_class_arrives_whole():
    def make(wrap):
        weight, inputs, count, kept = make_weight(), draw_inputs(), Counter(), []

        @wrap
        def train(x):
            loss = train_once(x, weight)
            if count.is_late:
                kept.append(loss)
                raise DivergedError(count.value, value=loss)
            weight.assign(weight * 0.99)
            return loss

        def step():
            count.advance()
            try:
                return train(inputs())
            except DivergedError as error:
                return describe_exception(error), error.step, error.value, list(kept)

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert_co_executed_before(train)


def test_traceback_of_an_op_error_names_the_users_line():
    table = tf.Variable(tf.ones([10, 4]))

    @terra.function
    def lookup(index):
        return tf.gather(table, index)

    programs.warm_up(lookup, lambda: lookup(tf.constant([3])))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        lookup(tf.constant([99])).numpy()
    assert any(os.path.basename(__file__) in str(entry.path) for entry in caught.traceback)


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


# ---- Variables and models that change ---------------------------------------------------


def test_fresh_variable_in_every_call():
    def make(wrap):
        inputs = draw_inputs()

        @wrap
        def fit(x, start):
            local = tf.Variable(start * 2.0)
            for _ in range(2):
                local.assign_sub(0.1 * tf.reduce_mean(x, axis=0))
            start.assign_add(local)
            return tf.reduce_sum(local)

        def step():
            start = tf.Variable(tf.ones([WIDTH]))
            return fit(inputs(), start), start

        return step

    assert_matches_eager(make, NUM_STEPS)


def test_two_models_through_one_function():
    def make(wrap):
        weights, inputs, count = [make_weight(), make_weight()], draw_inputs(), Counter()
        train = wrap(train_once)
        return Program(lambda: train(inputs(), weights[count.advance() % 2]), weights)

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert (train.stats().traced_steps, train.stats().fallbacks) == (2, {})


def test_same_variable_in_two_roles_after_two_different_ones():
    def make(wrap):
        weights, inputs, count = [make_weight(), make_weight()], draw_inputs(), Counter()

        @wrap
        def train(x, first, second):
            first.assign(first * 0.9)
            second.assign_add(0.01 * tf.eye(WIDTH))
            return tf.reduce_sum(x @ first @ second)

        def step():
            second = weights[0] if count.advance() in (LATE, LATE + 3) else weights[1]
            return train(inputs(), weights[0], second)

        return Program(step, weights)

    (train,) = assert_matches_eager(make, NUM_STEPS)
    assert_co_executed_before(train)


def test_variable_dies_between_steps():
    def make(wrap):
        inputs, state = draw_inputs(), {"w": make_weight()}
        train = wrap(lambda x: train_once(x, state["w"]))

        def step():
            loss = train(inputs())
            state["w"] = tf.Variable(state["w"] * 0.5)
            return loss

        return step

    assert_matches_eager(make, NUM_STEPS, read_at_end=True)


# ---- Python called back by TensorFlow ---------------------------------------------------


def test_py_function_and_numpy_function_on_the_stepping_thread():
    def make(wrap):
        weight, inputs, log = make_weight(), draw_inputs(), []

        def note(value):
            log.append(float(tf.reduce_sum(value)))
            return value * 2.0

        @wrap
        def train(x):
            hidden = tf.py_function(note, [x @ weight], tf.float32)
            shifted = tf.numpy_function(lambda a: a + np.float32(len(log)), [hidden], tf.float32)
            weight.assign_sub(0.01 * tf.reduce_mean(shifted) * weight)
            return tf.reduce_sum(shifted)

        return Program(lambda: (train(inputs()), list(log)), [weight])

    assert_matches_eager(make, NUM_STEPS)


def test_py_function_reads_and_writes_a_variable_of_the_step():
    def make(wrap):
        weight, inputs, total = make_weight(), draw_inputs(), tf.Variable(0.0)

        def accumulate(value):
            total.assign_add(tf.reduce_sum(value) + weight[0, 0])
            return total.read_value()

        @wrap
        def train(x):
            weight.assign(weight * 0.9)
            total.assign(total * 0.5)
            seen = tf.py_function(accumulate, [x], tf.float32)
            total.assign_add(1.0)
            return seen * total

        return Program(lambda: train(inputs()), [weight, total])

    assert_matches_eager(make, NUM_STEPS)


def test_py_function_raises_late():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()

        def check(value):
            if count.is_late:
                raise ValueError("late")
            return value

        @wrap
        def train(x):
            weight.assign(weight * 0.9)
            seen = tf.py_function(check, [x], tf.float32)
            weight.assign_add(0.1 * tf.eye(WIDTH))
            return tf.reduce_sum(seen @ weight)

        def step():
            count.advance()
            try:
                return train(inputs())
            except tf.errors.OpError as error:
                return type(error).__name__, "late" in str(error)

        return Program(step, [weight])

    assert_matches_eager(make, NUM_STEPS)


@pytest.mark.parametrize("size", [3, 4096])
def test_numpy_buffer_is_mutated_after_it_was_fed(size):
    def make(wrap):
        rng, weight = np.random.default_rng(3), tf.Variable(tf.ones([size]))
        given, captured = np.zeros(size, np.float32), np.zeros(size, np.float32)

        @wrap
        def train(x):
            first = x * weight
            captured[:] = rng.standard_normal(size)
            second = weight * captured
            captured[:] = -1.0
            third = tf.convert_to_tensor(captured) + first
            captured[:] = 5.0
            weight.assign_sub(0.01 * (second + third))
            return tf.reduce_sum(first), tf.reduce_sum(second), third[0]

        def step():
            given[:] = rng.standard_normal(size)
            outcome = train(given)
            given[:] = 1e6
            return outcome

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, NUM_STEPS, read_at_end=True)
    assert_co_executed_before(train)


# ---- Ctrl-C -----------------------------------------------------------------------------

SLOW_WIDTH = 1024


def slow_chain(x, num_products=12):
    """Multiply float32[SLOW_WIDTH, SLOW_WIDTH] with itself for about half a second."""
    for _ in range(num_products):
        x = tf.linalg.l2_normalize(x @ x, axis=1)
    return tf.reduce_sum(x)


def interrupt_after(delay_s):
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    return timer


@pytest.mark.timeout(90)
def test_ctrl_c_during_a_wait_inside_a_step():
    before, after = tf.Variable(0), tf.Variable(0)
    x = tf.random.normal([SLOW_WIDTH, SLOW_WIDTH])

    @terra.function
    def step(x):
        before.assign_add(1)
        total = float(slow_chain(x))
        after.assign_add(1)
        return total

    programs.warm_up(step, lambda: step(x + 0.0), 4)
    assert (before.numpy(), after.numpy()) == (4, 4)
    timer = interrupt_after(0.05)
    with pytest.raises(KeyboardInterrupt):
        step(x + 0.0)
        time.sleep(5)  # A fast machine: the step was over before the signal.
    timer.join()
    assert before.numpy() == 5
    assert after.numpy() in (4, 5)
    num_after = int(after.numpy())
    assert np.isfinite(step(x + 0.0))
    assert (before.numpy(), after.numpy()) == (6, num_after + 1)


@pytest.mark.timeout(90)
def test_ctrl_c_while_a_returned_tensor_is_awaited():
    calls = tf.Variable(0)
    x = tf.random.normal([SLOW_WIDTH, SLOW_WIDTH])

    @terra.function
    def step(x):
        calls.assign_add(1)
        return slow_chain(x)

    programs.warm_up(step, lambda: step(x + 0.0), 4)
    terra.synchronize()
    expected = step(x + 0.0).numpy()
    total = step(x + 0.0)
    timer = interrupt_after(0.05)
    with pytest.raises(KeyboardInterrupt):
        total.numpy()
        time.sleep(5)
    timer.join()
    assert total.numpy() == expected
    assert calls.numpy() == 6


# ---- What may be decorated, and where it may be called ----------------------------------


def test_nested_terra_functions_join_the_outer_step():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()
        hidden = wrap(lambda x: tf.tanh(x @ weight))

        @wrap
        def train(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(hidden(hidden(x)) ** 2)
            weight.assign_sub(0.01 * tape.gradient(loss, weight))
            return loss

        return Program(lambda: train(inputs()), [weight])

    _, train = assert_matches_eager(make, NUM_STEPS)
    assert (train.stats().traced_steps, train.stats().fallbacks) == (2, {})


def test_nested_function_is_also_called_by_itself():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()
        hidden = wrap(lambda x: tf.tanh(x @ weight))
        total = wrap(lambda x: tf.reduce_sum(hidden(x)))
        return lambda: (total(inputs()), hidden(inputs()), total(inputs()))

    assert_matches_eager(make, NUM_STEPS)


def test_call_inside_a_tf_function_and_inside_tf_data():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()

        @wrap
        def score(x):
            if tf.reduce_sum(x) > 0.0:  # Needs AutoGraph when traced.
                return tf.reduce_sum(x @ weight)
            return -tf.reduce_sum(x @ weight)

        outer = tf.function(lambda x: score(x) + 1.0)

        def step():
            x = inputs()
            dataset = tf.data.Dataset.from_tensors(x).map(score)
            return score(x), outer(x), [y.numpy() for y in dataset]

        return step

    assert_matches_eager(make, 8, exact=False)


def test_inner_tf_function_with_a_variable():
    def make(wrap):
        weight, inputs = make_weight(), draw_inputs()

        @tf.function
        def decay(rate):
            weight.assign(weight * rate)
            return tf.reduce_sum(weight)

        @wrap
        def train(x):
            loss = train_once(x, weight)
            total = decay(tf.constant(0.9))
            return loss, total, tf.reduce_sum(weight)

        return Program(lambda: train(inputs()), [weight])

    assert_matches_eager(make, NUM_STEPS, exact=False)


def test_decorated_generator_function():
    def make(wrap):
        inputs, closed = draw_inputs(), []

        @wrap
        def series(x):
            try:
                for k in range(4):
                    sent = yield tf.reduce_sum(x) * float(k + 1)
                    x = x if sent is None else x + sent
            finally:
                closed.append(k)

        def step():
            generator = series(inputs())
            values = [next(generator), generator.send(1.0), next(generator)]
            generator.close()
            return values, list(closed)

        return step

    assert_matches_eager(make, NUM_STEPS)


def test_step_advances_a_generator_that_runs_ops():
    def make(wrap):
        inputs = draw_inputs()

        def scale():
            factor = tf.constant(1.0)
            while True:
                factor = factor * 0.9
                yield factor

        factors = scale()
        train = wrap(lambda x: tf.reduce_sum(x) * next(factors))
        return lambda: train(inputs())

    assert_matches_eager(make, NUM_STEPS)


class Model(tf.Module):
    """Decorated methods of all kinds."""

    def __init__(self, wrap, scale):
        super().__init__()
        self.weight = tf.Variable(make_weight() * scale)
        self.train = wrap(self._train)
        self.calls = []

    def _train(self, x):
        self.calls.append(1)
        return train_once(x, self.weight)

    def __call__(self, x):
        return tf.reduce_sum(x @ self.weight)


def test_methods_closures_lambdas_partials_and_callable_objects():
    def make(wrap):
        inputs = draw_inputs()

        class Decorated(Model):
            @wrap
            def evaluate(self, x):
                return tf.reduce_sum(x @ self.weight) + float(len(self.calls) > 100)

            @classmethod
            @wrap
            def of_class(cls, x):
                return tf.reduce_sum(x) * float(len(cls.__name__))

            @staticmethod
            @wrap
            def of_nothing(x):
                return tf.reduce_max(x)

        models = [Decorated(wrap, 1.0), Decorated(wrap, 2.0)]
        functions = [
            wrap(lambda x: x * 2.0),
            wrap(functools.partial(tf.multiply, y=3.0)),
            wrap(models[0]),
            wrap(models[1].__call__),
        ]

        def step():
            x = inputs()
            trained = [model.train(x) for model in models]
            evaluated = [model.evaluate(x) for model in models]
            rest = [function(x) for function in functions]
            return trained, evaluated, rest, Decorated.of_class(x), models[0].of_nothing(x)

        return Program(step, [model.weight for model in models])

    assert_matches_eager(make, NUM_STEPS)


def test_recursion_through_the_decorated_name():
    def make(wrap):
        inputs = draw_inputs()

        @wrap
        def power(x, n):
            return x if n == 0 else x * power(x, n - 1)

        return lambda: power(inputs(), 3)

    assert_matches_eager(make, NUM_STEPS)


def test_decorated_function_keeps_its_name_and_python_function():
    def plain(x):
        """Doubles."""
        return x * 2.0

    doubled = terra.function(plain)
    assert doubled.python_function is plain
    assert (doubled.__name__, doubled.__doc__) == ("plain", "Doubles.")


# ---- Small things that would freeze or leak ---------------------------------------------


def test_step_without_ops_and_step_without_result():
    def make(wrap):
        weight, count = make_weight(), Counter()
        nothing = wrap(lambda: count.value)
        decay = wrap(lambda: weight.assign(weight * 0.9) is None)

        def step():
            count.advance()
            return nothing(), decay()

        return Program(step, [weight])

    nothing, decay = assert_matches_eager(make, NUM_STEPS)
    assert (nothing.stats().steps, decay.stats().steps) == (NUM_STEPS, NUM_STEPS)
    assert decay.stats().co_executed_steps == NUM_STEPS - 2


def test_values_that_eager_returns_unchanged_keep_their_identity():
    def make(wrap):
        weight, inputs, token = make_weight(), draw_inputs(), object()

        @wrap
        def identities(x):
            same = tf.convert_to_tensor(x)
            return same is x, weight, token, [x, x]

        def step():
            x = inputs()
            same, variable, returned, pair = identities(x)
            return same, variable is weight, returned is token, pair[0] is x, pair[0] is pair[1]

        return step

    assert_matches_eager(make, NUM_STEPS)


def test_python_scalar_that_changes_costs_one_divergence():
    def make(wrap):
        weight, inputs, count = make_weight(), draw_inputs(), Counter()
        train = wrap(lambda x, rate: train_once(x, weight, rate))

        def step():
            count.advance()
            return train(inputs(), 0.1 if count.value < 4 else 0.1 / count.value)

        return Program(step, [weight])

    (train,) = assert_matches_eager(make, 14)
    stats = train.stats()
    assert stats.phase == "co-execution"
    assert stats.fallbacks == {"constant_changed": 1}


def test_steady_state_survives_garbage_collection_of_everything_else():
    weight, inputs = make_weight(), draw_inputs()
    train = terra.function(lambda x: train_once(x, weight))
    before = programs.warm_up(train, lambda: train(inputs()))
    for _ in range(5):
        train(inputs())
        gc.collect()
    assert_co_executing(train, after=before)


def test_stepping_thread_dies_in_the_middle_of_a_step():
    weight, inputs = make_weight(), draw_inputs()
    is_deadly = threading.Event()

    @terra.function
    def train(x):
        loss = train_once(x, weight)
        if is_deadly.is_set():
            raise SystemExit
        return loss

    programs.warm_up(train, lambda: train(inputs()))
    terra.synchronize()
    eager = tf.Variable(weight)
    x = inputs()
    is_deadly.set()

    def die():
        with contextlib.suppress(SystemExit):
            train(x)

    thread = threading.Thread(target=die, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    is_deadly.clear()
    train_once(x, eager)
    np.testing.assert_array_equal(weight.numpy(), eager.numpy())
    assert np.isfinite(train(inputs()).numpy())
