"""Nothing is kept alive: what a program makes and drops is gone, and its memory free.

Things of every kind are made and dropped between steps that are given them, and in steps. Weak
references say which of them live, and how large the process is says the rest.
"""

import gc
import os
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import terra_tf as terra

pytestmark = pytest.mark.timeout(300)

FEW_OR_MANY = pytest.mark.parametrize(
    "num_things", [60, pytest.param(500, marks=pytest.mark.slow)], ids=["few", "many"]
)
NUM_CALLS = 4  # with each of them: guards are made in the first, and used in the last
NUM_WARM = 20  # of graphs, codes, caches
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


@pytest.fixture(params=[True, False], ids=["replay", "no_replay"])
def replay_calls(request):
    with terra.config.override(replay_calls=request.param):
        yield request.param


class Watched:
    """Weak references to what was made, and the process' growth since the first few."""

    def __init__(self):
        self.references = []
        self.baseline = None

    def add(self, *things):
        self.references.append([weakref.ref(thing) for thing in things])
        if len(self.references) == NUM_WARM:
            terra.synchronize()
            self.baseline = resident_bytes()

    def num_alive(self):
        terra.synchronize()
        gc.collect()
        return sum(any(ref() is not None for ref in refs) for refs in self.references)

    def growth(self):
        terra.synchronize()
        return resident_bytes() - self.baseline


def assert_let_go(watched, max_growth=6 * 2**20):
    assert len(watched.references) > NUM_WARM
    assert watched.num_alive() == 0
    growth = watched.growth()
    assert growth < max_growth, f"{growth / 2**20:.1f} MiB"


# ------------------------------------------------------------------ kinds


def make_variable():
    variable = tf.Variable(tf.zeros([64, 1024]))  # a quarter of a megabyte
    return variable, (variable, variable.handle)


def use_variable(variable, x):
    variable.assign_add(tf.ones([64, 1024]) * x)
    part = variable[0:2]
    return tf.reduce_sum(variable) + tf.reduce_sum(part)


def make_model():
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(64, "silu"),
                              keras.layers.Dense(1)])  # fmt: skip
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    weights = [v.value for v in (*model.variables, *optimizer.variables)]
    return (model, optimizer), (model, optimizer, *model.layers, *weights)


def use_model(pair, x):
    model, optimizer = pair
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(tf.ones([8, 16]) * x) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)
    return loss


def make_metric():
    metric = keras.metrics.MeanSquaredError()
    return metric, (metric, *(v.value for v in metric.variables))


def use_metric(metric, x):
    metric.update_state(tf.ones([8, 1]) * x, tf.zeros([8, 1]))
    return metric.result()


def make_layer():
    # TensorFlow keeps a kernel for each seed of an initializer, and for each name of a variable.
    layer = keras.layers.Dense(16, kernel_initializer="ones", name="dense")
    layer.build((None, 16))
    return layer, (layer, *(v.value for v in layer.variables))


def use_layer(layer, x):
    return layer(tf.ones([8, 16]) * x)


def make_tensor():
    tensor = tf.random.normal([64, 1024])
    return tensor, (tensor,)


def use_tensor(tensor, x):
    return tf.reduce_sum(tensor * x)


class Holder:
    """An object of the user's: what a step reaches through it is no argument."""

    def __init__(self):
        self.tensor = tf.random.normal([64, 1024])
        self.weight = tf.Variable(tf.zeros([64, 1024]))


def make_holder():
    holder = Holder()
    return holder, (holder, holder.tensor, holder.weight, holder.weight.handle)


def use_holder(holder, x):
    holder.weight.assign_add(holder.tensor * x)
    return tf.reduce_sum(holder.weight)


def make_closure():
    held = tf.Variable(tf.ones([64, 1024]))

    @terra.pure
    def scale(x):
        return tf.reduce_sum(held * x)

    return scale, (scale, scale.__wrapped__, held)


def use_closure(scale, x):
    return scale(x)


def make_custom_gradient():
    factor = tf.random.normal([64, 1024])

    @tf.custom_gradient
    def scale(x):
        return tf.reduce_sum(factor) * x, lambda upstream: upstream * tf.reduce_sum(factor)

    return scale, (scale, factor)


def use_custom_gradient(scale, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = scale(x)
    return tape.gradient(y, x)


def make_dataset():
    dataset = tf.data.Dataset.from_tensor_slices(np.zeros([64, 1024], np.float32)).batch(8)
    iterator = iter(dataset)
    return iterator, (dataset, iterator)


def use_dataset(iterator, x):
    return tf.reduce_sum(next(iterator)) * x


def make_jacobian():
    weight = tf.Variable(tf.ones([4, 4]))
    return weight, (weight, weight.handle)


def use_jacobian(weight, x):
    with tf.GradientTape() as tape:
        y = tf.linalg.matvec(tf.nn.softmax(weight), tf.ones([4]) * x)
    return tape.jacobian(y, weight)


def make_tf_function():
    weight = tf.Variable(tf.ones([64, 1024]))

    @tf.function(autograph=False)
    def inner(x):
        return tf.reduce_sum(weight) * x

    inner(tf.constant(1.0))
    return inner, (inner, weight)


def use_tf_function(inner, x):
    return inner(x)


KINDS = {
    "variable": (make_variable, use_variable),
    "metric": (make_metric, use_metric),
    "layer": (make_layer, use_layer),
    "tensor": (make_tensor, use_tensor),
    "object": (make_holder, use_holder),
    "closure": (make_closure, use_closure),
    "custom gradient": (make_custom_gradient, use_custom_gradient),
}
LARGE_KINDS = {  # of which fewer are made
    "model": (make_model, use_model),
    "dataset": (make_dataset, use_dataset),
    "jacobian": (make_jacobian, use_jacobian),
    "tf.function": (make_tf_function, use_tf_function),
}


def run_outside(make, use, num_things, watched):
    """Make things between the steps that are given them."""
    step = terra.function(use)
    for _ in range(num_things):
        thing, parts = make()
        for _ in range(NUM_CALLS):
            step(thing, tf.constant(2.0))
        watched.add(*parts)
        del thing, parts
    return step


@FEW_OR_MANY
@pytest.mark.parametrize("kind", KINDS)
def test_things_given_to_steps_are_let_go(kind, replay_calls, num_things):
    watched = Watched()
    step = run_outside(*KINDS[kind], num_things, watched)
    assert_let_go(watched)
    assert step.stats().phase == "co-execution"


@pytest.mark.parametrize("kind", LARGE_KINDS)
def test_large_things_given_to_steps_are_let_go(kind, replay_calls):
    watched = Watched()
    run_outside(*LARGE_KINDS[kind], 10, watched)
    assert watched.num_alive() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE_KINDS)
def test_large_things_take_no_more_memory_than_in_eager(kind, replay_calls):
    make, use = LARGE_KINDS[kind]
    growth = []
    for step in (use, terra.function(use)):
        watched = Watched()
        for _ in range(120):
            thing, parts = make()
            for _ in range(NUM_CALLS):
                step(thing, tf.constant(2.0))
            watched.add(*parts)
        growth.append(watched.growth())
    assert growth[1] < growth[0] + 8 * 2**20, growth


@FEW_OR_MANY
@pytest.mark.parametrize("kind", ["variable", "tensor", "metric", "object", "closure"])
def test_things_made_in_steps_are_let_go(kind, replay_calls, num_things):
    make, use = KINDS[kind]
    watched = Watched()

    @terra.function
    def step(x):
        thing, parts = make()
        watched.add(*parts)
        return use(thing, x)

    for _ in range(num_things):
        step(tf.constant(2.0))
    assert_let_go(watched)


@pytest.mark.parametrize("kind", [*KINDS, *LARGE_KINDS])
def test_the_one_thing_of_all_steps_is_let_go_though_the_function_lives(kind, replay_calls):
    make, use = {**KINDS, **LARGE_KINDS}[kind]
    current = None
    step = terra.function(lambda x: use(current, x))
    references = []
    for _ in range(2):
        current, parts = make()
        references += [weakref.ref(part) for part in parts]
        for _ in range(6):
            step(tf.constant(2.0))
        del parts
    current = None
    terra.synchronize()
    gc.collect()
    assert [reference() for reference in references if reference() is not None] == []


def test_a_step_that_is_given_a_fresh_variable_now_and_then_frees_each(replay_calls):
    handles, sizes = [], []

    @terra.function
    def step(variable):
        variable.assign_add(tf.ones([1024, 1024]))  # 4 MB
        return tf.reduce_sum(variable)

    for _ in range(61):
        variable = tf.Variable(tf.zeros([1024, 1024]))
        handles.append(weakref.ref(variable.handle))
        for _ in range(3):
            step(variable)
        sizes.append(resident_bytes())
    del variable
    terra.synchronize()
    gc.collect()
    assert sum(handle() is not None for handle in handles) == 0
    assert sizes[-1] - sizes[5] < 40 * 2**20


class OfTheStepError(Exception):
    """One that knows weak references."""


def test_exceptions_of_steps_keep_nothing(replay_calls):
    watched = Watched()

    @terra.function
    def step(tensor, error):
        total = tf.reduce_sum(tensor)
        if error is not None:
            raise error
        return tf.gather(tensor, tf.cast(total * 0.0, tf.int32) + 65)  # out of range

    for k in range(60):
        tensor = tf.random.normal([64, 1024])
        error = OfTheStepError() if k % 3 == 0 else None
        watched.add(tensor, *([error] if error else []))
        with pytest.raises((OfTheStepError, tf.errors.InvalidArgumentError)):
            step(tensor, error)
        del tensor, error
    assert_let_go(watched)


def test_functions_that_are_dropped_leave_nothing(replay_calls):
    watched = Watched()

    def make_run_and_drop():
        model, parts = make_layer()

        @terra.function
        def step(x):
            return model(tf.ones([8, 16]) * x)

        for _ in range(4):
            step(tf.constant(2.0))
        assert step.stats().phase == "co-execution"
        watched.add(step, step.python_function, step.trace_graph, *parts)

    num_functions = None
    for k in range(NUM_WARM + 10):
        make_run_and_drop()
        if k == NUM_WARM:
            gc.collect()
            num_functions = len(context.context().list_function_names())
    assert_let_go(watched)
    assert len(context.context().list_function_names()) <= num_functions + 2


@pytest.mark.parametrize("num_steps", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_many_steps_keep_no_memory(replay_calls, num_steps):
    weight = tf.Variable(tf.ones([8, 8]))
    watched = Watched()

    @terra.function
    def step(x, extra):
        weight.assign(weight * 0.999 + x)
        if extra is not None:
            extra.assign_add(x)
        return tf.reduce_sum(tf.linalg.matvec(weight, x))

    for k in range(num_steps):
        extra = tf.Variable(tf.zeros([8])) if k % 50 == 0 else None
        step(tf.ones([8]), extra)
        if extra is not None:
            watched.add(extra)
    del extra
    assert step.stats().phase == "co-execution"
    assert_let_go(watched)


# ------------------------------------------------------------------ another at the same address


def assert_as_in_eager(make, use, num_things=25):
    """Make things that differ, one at the address of another, and compare all results."""
    step = terra.function(use)
    addresses = set()
    for k in range(8 * num_things):
        if k >= num_things and len(addresses) < k:
            break
        thing = make(k)
        addresses.add(id(thing))
        for _ in range(NUM_CALLS):
            x = tf.constant(float(k + 1))
            np.testing.assert_array_equal(step(thing, x), use(thing, x))
        del thing
        gc.collect()
    else:
        raise AssertionError("no address has been used again")
    return step


def test_a_layer_at_the_address_of_another_is_another(replay_calls):
    step = assert_as_in_eager(lambda k: keras.layers.Rescaling(k + 0.5), lambda layer, x: layer(x))
    assert step.stats().phase == "co-execution"


def test_a_pure_function_at_the_address_of_another_is_another(replay_calls):
    def make(k):
        return terra.pure(lambda x: x * float(k % 7))

    assert_as_in_eager(make, lambda function, x: function(x))


def test_a_variable_at_the_address_of_another_is_another(replay_calls):
    def use(variable, x):
        return variable.assign_add(tf.ones([2]) * x).read_value() + variable[0:1]

    step = terra.function(use)
    for k in range(25):
        ours, eagers = (tf.Variable(tf.fill([2], float(k))) for _ in range(2))
        for _ in range(NUM_CALLS):
            x = tf.constant(float(k))
            np.testing.assert_array_equal(step(ours, x), use(eagers, x))


def test_a_captured_tensor_at_the_address_of_another_is_another(replay_calls):
    current = None
    step = terra.function(lambda x: tf.reduce_sum(current) * x)
    for k in range(30):
        current = tf.random.normal([64])
        expected = float(tf.reduce_sum(current) * 2.0)
        for _ in range(k % 4 + 1):
            assert float(step(tf.constant(2.0))) == expected
        current = None


def test_values_of_attributes_at_the_addresses_of_others_are_others():
    layer = keras.layers.Rescaling(1.5)
    step = terra.function(lambda x: layer(x))
    for k in range(60):
        layer.scale = None
        layer.scale = float(k) + 0.25 if k % 2 else [float(k), float(k + 1)]
        for _ in range(3):
            x = tf.constant([1.0, 2.0])
            np.testing.assert_array_equal(step(x), x.numpy() * np.float32(layer.scale))
    assert step.stats().calls_replayed
