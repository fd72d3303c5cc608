"""One test for each defect that was found before the first release; the class it stood for."""

import _thread
import copy
import gc
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.runtime import replay
from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)

LATE = 7


def outcome_of(function, *args):
    """Return what a call returned, or the name of what it raised."""
    try:
        return function(*args)
    except Exception as error:
        return type(error).__name__


def mask_program(body):
    """A program whose boolean mask selects three elements, and one fewer in a late step."""

    def make(wrap):
        small, counter, calls = tf.Variable(tf.zeros([3])), tf.Variable(0.0), [0]
        function = wrap(lambda x, m: body(small, counter, x, m))

        def step():
            calls[0] += 1
            mask = [True, True, calls[0] != LATE]
            result = outcome_of(function, tf.constant([1.0, 2.0, 3.0]), tf.constant(mask))
            return result, small.numpy(), counter.numpy()

        return Program(step, [small, counter])

    return make


def test_write_that_does_not_fit_is_not_applied_twice():
    def body(small, counter, x, mask):
        counter.assign_add(1.0)
        small.assign_add(tf.boolean_mask(x, mask))
        return counter * 1.0

    (function,) = assert_matches_eager(mask_program(body))
    assert function.stats().co_executed_steps >= 5


def test_write_of_one_element_does_not_broadcast():
    def body(small, counter, x, mask):
        small.assign_add(tf.boolean_mask(x, mask)[:3])
        return small * 2.0 + counter

    (function,) = assert_matches_eager(mask_program(body))
    assert function.stats().imperative_ops.get("AssignAddVariableOp") == 1


def test_unused_op_on_dynamic_shapes_still_raises():
    def body(small, counter, x, mask):
        selected = tf.boolean_mask(x, mask)
        tf.reshape(selected, [1, -1]) @ tf.ones([3, 1])
        return counter + 1.0

    (function,) = assert_matches_eager(mask_program(body))
    assert function.stats().co_executed_steps >= 3


def test_read_after_an_imperative_write_sees_it():
    def make(wrap):
        v = tf.Variable(1.0)

        def bump(t):
            v.assign_add(1.0)
            return t

        @wrap
        def function(x):
            x = tf.py_function(bump, [x], tf.float32)
            return v * x

        return Program(lambda: function(tf.constant(2.0)), [v])

    (function,) = assert_matches_eager(make)
    assert function.stats().co_executed_steps >= 8


def test_py_function_is_no_new_path_every_time():
    def make(wrap):
        function = wrap(lambda x: tf.py_function(lambda t: t + 1.0, [x * 2.0], tf.float32) * 3.0)
        return Program(lambda: function(tf.constant(2.0)), [])

    (function,) = assert_matches_eager(make)
    assert function.stats().phase == "co-execution"
    assert function.stats().imperative_ops == {"EagerPyFunc": 1}


def test_imperative_op_waits_for_steps_in_flight():
    def make(wrap):
        v = tf.Variable(0.0)
        inner = tf.function(lambda: v + 0.0)

        @wrap
        def function(x):
            before = inner()
            v.assign_add(tf.reduce_sum(tf.tanh(x)))
            return before

        return Program(lambda: function(tf.ones([2])), [v])

    with terra.config.override(inject_delays="graph"):
        (function,) = assert_matches_eager(make, read_at_end=True)
    assert function.stats().co_executed_steps >= 8


def test_op_that_closes_an_epoch_may_raise_and_be_tried_again():
    def make(wrap):
        v, calls = tf.Variable(1.0), [0]

        def callback(t):
            calls[0] += 1
            if calls[0] % 3 == 0:
                raise ValueError("now and then")
            return t + v

        @wrap
        def function(x):
            v.assign_add(1.0)
            for _ in range(2):
                try:
                    return tf.py_function(callback, [x], tf.float32) + v
                except tf.errors.InvalidArgumentError:
                    continue
            return v * 1.0

        return Program(lambda: function(tf.constant(2.0)), [v])

    functions = assert_matches_eager(make)
    assert functions[0].stats().steps == 12


def test_threads_that_take_turns_share_a_variable():
    def make(wrap):
        v, lock = tf.Variable(0.0), threading.Lock()
        functions = [wrap(lambda x, k=k: v.assign_add(x * (k + 1.0)) * 2.0) for k in range(2)]
        threads_done = []

        def work(k):
            for i in range(20):
                with lock:
                    result = functions[k](tf.constant(1.0))
                float(result)
                if i % 3 == k:
                    float(v)
            threads_done.append(k)

        def step():
            threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            return len(threads_done), v.numpy()

        return Program(step, [v])

    functions = assert_matches_eager(make, 3)
    assert sum(f.stats().co_executed_steps for f in functions) > 30


def test_finalizer_that_runs_ops_in_the_middle_of_a_step():
    def make(wrap):
        v, dead = tf.Variable(0.0), tf.Variable(0.0)

        class Node:
            def __init__(self):
                self.me = self

            def __del__(self):
                dead.assign_add(1.0)

        @wrap
        def function(x):
            for _ in range(3):
                Node()
                x = tf.tanh(x) + v
            v.assign_add(0.5)
            return x

        return Program(lambda: function(tf.ones([3])), [v])

    thresholds = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        (function,) = assert_matches_eager(make)
    finally:
        gc.set_threshold(*thresholds)
    assert function.stats().steps == 12


def test_interrupt_during_replay_loses_nothing(monkeypatch):
    v = tf.Variable(0.0)
    calls, interrupts = [0], []
    original = replay.Replay._run_node

    def interrupted(self, index):
        if index == 1 and not interrupts:
            interrupts.append(index)
            _thread.interrupt_main()
        return original(self, index)

    @terra.function
    def function(x, late):
        v.assign_add(1.0)
        y = tf.tanh(x)
        v.assign_add(1.0)
        calls[0] += 1
        if late:
            y = tf.sin(y)
        return y

    for _ in range(5):
        function(tf.ones([2]), False)
    monkeypatch.setattr(replay.Replay, "_run_node", interrupted)
    with pytest.raises(KeyboardInterrupt):
        function(tf.ones([2]), True)
    monkeypatch.undo()
    assert v.numpy() == 12.0
    np.testing.assert_allclose(function(tf.ones([2]), False).numpy(), np.tanh(np.ones(2)), 1e-6)


def test_synchronous_errors_raise_at_the_op():
    def make(wrap):
        count = [0]

        @wrap
        def function(x):
            count[0] += 1
            try:
                x = tf.debugging.check_numerics(x, "no")
            except tf.errors.InvalidArgumentError:
                return x * 0.0 + 5.0
            return x + 1.0

        return Program(lambda: function(tf.constant(np.nan if count[0] == LATE else 1.0)), [])

    with terra.config.override(synchronous_errors=True):
        (function,) = assert_matches_eager(make)
    assert function.stats().imperative_ops == {"CheckNumerics": 1}


def test_negative_zero_is_another_attribute():
    def make(wrap):
        calls = [0]

        @wrap
        def function(x):
            calls[0] += 1
            alpha = -0.0 if calls[0] % 5 == 0 else 0.0
            return tf.math.reciprocal(tf.raw_ops.LeakyRelu(features=x, alpha=alpha))

        return Program(lambda: function(tf.constant([-1.0, 2.0])), [])

    functions = assert_matches_eager(make)
    assert functions[0].stats().fallbacks["attributes_changed"] >= 1


def test_folded_results_are_new_objects_in_every_step():
    seen = []

    @terra.function
    def function(x):
        mask = tf.range(3) > 1
        seen.append(hasattr(mask, "_mark"))
        mask._mark = 1
        return x * tf.cast(mask, tf.float32)

    for _ in range(6):
        function(tf.ones([3]))
    assert seen == [False] * 6
    assert function.stats().co_executed_steps == 4


@pytest.mark.parametrize("make_argument", [lambda t: {1: t, "a": t}, lambda t: [t]])
def test_arguments_that_cannot_be_sorted_or_end(make_argument):
    function = terra.function(lambda a: tf.nest.flatten([1.0])[0] + 1.0)
    argument = make_argument(tf.ones([2]))
    if isinstance(argument, list):
        argument.append(argument)
    assert function(argument) == 2.0


def test_object_that_holds_a_function_is_copied():
    holder = {"function": terra.function(lambda x: x + 1.0)}
    for _ in range(4):
        holder["function"](tf.ones([2]))
    copied = copy.deepcopy(holder)
    assert copied["function"](tf.ones([2])).numpy().tolist() == [2.0, 2.0]
    assert copied["function"].stats().steps == 1


def test_step_in_an_exit_handler_that_comes_last():
    script = (
        "import atexit; hold = []\n"
        "atexit.register(lambda: print(hold[0](hold[1]).numpy()))\n"
        "import tensorflow as tf, terra_tf as terra\n"
        "f = terra.function(lambda x: x * 2.0)\n"
        "for _ in range(4): f(tf.constant(1.0))\n"
        "hold += [f, tf.constant(3.0)]\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=50
    )
    assert done.stdout.strip() == "6.0", done.stderr


def test_forward_accumulator_sums_what_is_no_eager_tensor():
    def make(wrap):
        @wrap
        def function(x):
            with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
                y = tf.reduce_sum(x * x + tf.tanh(x) * x)
            return accumulator.jvp(y)

        return Program(lambda: function(tf.constant([1.0, 2.0])), [])

    assert_matches_eager(make)


def test_function_in_a_graph_that_came_from_two_places_of_its_own_first():
    """A first call of a `tf.function` comes by another way through TensorFlow than later ones."""

    def make(wrap):
        weight, calls = tf.Variable([[0.5], [0.2]]), [0]
        inner = tf.function(lambda x: tf.tanh(x @ weight))

        @wrap
        def function(x, length):
            result = inner(x[:length])
            weight.assign_sub([[0.1], [0.1]])
            return result + 1.0

        def step():
            calls[0] += 1
            return function(tf.ones([6, 2]), (3, 4, 6)[calls[0] % 3])

        return Program(step, [weight])

    (function,) = assert_matches_eager(make, 15)
    assert function.stats().fallbacks == {}
    assert function.stats().co_executed_steps >= 10


@pytest.mark.parametrize(
    "say",
    [
        lambda step, x: tf.print("step", step, x, output_stream="file:///dev/null"),
        lambda step, x: tf.debugging.check_numerics(x, f"step {step}"),
    ],
    ids=["print", "check_numerics"],
)
def test_text_with_the_steps_number_in_it_is_no_new_path_every_time(say):
    def make(wrap):
        weight, calls = tf.Variable(1.0), [0]

        @wrap
        def function(x):
            calls[0] += 1
            weight.assign_add(x)
            say(calls[0], weight * 2.0)
            return weight + x

        return Program(lambda: function(tf.constant(1.0)), [weight])

    (function,) = assert_matches_eager(make, 12)
    assert function.stats().fallbacks == {}
    assert function.stats().co_executed_steps >= 7


@pytest.mark.parametrize("wide_first", [True, False])
def test_call_with_fewer_inputs_than_one_of_the_same_line(wide_first):
    """What was read past the end of the inputs was garbage, and mostly a crash."""

    def make(wrap):
        variables, calls = [tf.Variable(float(i)) for i in range(6)], [0]
        narrow = tf.function(lambda x: x * 2.0)
        wide = tf.function(lambda x: x * sum(v * 1.0 for v in variables))

        @wrap
        def function(x, is_wide):
            result = (wide if is_wide else narrow)(x)
            variables[0].assign_add(1.0)
            return result + 1.0

        def step():
            calls[0] += 1
            is_wide = wide_first if calls[0] <= 2 else calls[0] % 3 == 0
            return function(tf.ones([2]), is_wide)

        return Program(step, variables)

    (function,) = assert_matches_eager(make, 20)
    assert function.stats().co_executed_steps >= 10


def test_print_of_any_number_of_tensors():
    def make(wrap):
        weight, calls = tf.Variable(1.0), [0]

        @wrap
        def function(x):
            calls[0] += 1
            weight.assign_add(x)
            tensors = [weight * float(i) for i in range(3)][: 1 + (calls[0] * 5) % 3]
            tf.print("step", calls[0], *tensors, output_stream="file:///dev/null")
            if calls[0] == 20:
                weight.assign_sub(x * x)
            return weight + x

        return Program(lambda: function(tf.constant(1.0)), [weight])

    (function,) = assert_matches_eager(make, 24)
    assert function.stats().co_executed_steps >= 7


def test_layer_inserted_in_front_of_one_that_is_called_elsewhere():
    """An op whose input Keras converted was taken for an op of the loop's next trip."""

    def make(wrap):
        keras.utils.set_random_seed(0)
        last = keras.layers.Dense(3)
        last.build((None, 3))
        layers, calls = [last], [0]

        @wrap
        def function(x):
            for layer in layers:
                if layer is last:
                    x = layer(x)
                    continue
                x = layer(x)
            return x

        def step():
            calls[0] += 1
            if calls[0] == LATE:
                layers.insert(0, keras.layers.Dense(3))
                layers[0].build((None, 3))
            return function(tf.ones([2, 3]))

        return Program(step)

    (function,) = assert_matches_eager(make, 24)
    assert function.stats().co_executed_steps >= 18, function.explain()
