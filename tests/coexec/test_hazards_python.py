"""Python called back by TensorFlow, unusual callables, and what could freeze or leak.

Most tests are a program whose hazard acts in every step or in late ones only (see `hazards`).
"""

import contextlib
import functools
import gc
import itertools
import threading

import numpy as np
import programs
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

import terra_tf as terra
from terra_tf.testing import Program, assert_co_executing, assert_matches_eager

pytestmark = pytest.mark.timeout(60)


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

    assert_matches_eager(make, NUM_STEPS)


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


@pytest.mark.parametrize("kind", ["trips", "depths"])
def test_numbers_of_one_line_that_change_one_by_one_cost_one_divergence(kind):
    """Once one trip's number has changed, those of other trips may, too."""

    def in_a_loop(x, rates):
        for rate in rates:
            x = tf.tanh(x) * rate
        return x

    def in_a_recursion(x, rates):
        return in_a_recursion(tf.tanh(x) * rates[0], rates[1:]) if rates else x

    def make(wrap):
        inputs, count = draw_inputs(), Counter()
        scale = wrap(in_a_loop if kind == "trips" else in_a_recursion)

        def step():
            num_changed = max(0, count.advance() - 3)
            return scale(inputs(), [0.1 if i < num_changed else 0.5 for i in range(6)])

        return step

    (scale,) = assert_matches_eager(make, 14)
    assert scale.stats().fallbacks == {"constant_changed": 1}, scale.explain()


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


def test_files_that_change_are_read_when_eager_reads_them(tmp_path):
    """TensorFlow calls these ops stateless; of a constant path they would be constants."""

    def make(wrap):
        path, numbers = tmp_path / f"{wrap.__name__}.txt", itertools.count()
        path.write_text("first")

        @wrap
        def step(name):
            before = tf.io.read_file(str(path))
            path.write_text(f"in step {len(before.numpy())}")
            by_argument = tf.io.read_file(name)
            path.write_text(f"after {next(numbers)}")
            files = tf.io.matching_files(str(tmp_path / "*.nothing"))
            return before, by_argument, tf.size(files)

        return Program(lambda: step(tf.constant(str(path))))

    (step,) = assert_matches_eager(make, num_steps=12)
    assert step.stats().imperative_ops == {"ReadFile": 2, "MatchingFiles": 1}
