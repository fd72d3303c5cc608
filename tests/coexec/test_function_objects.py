"""What a program does with a function besides calling it, it can do with a decorated one."""

import copy
import functools
import inspect
import pickle
import time
import types

import pytest
import tensorflow as tf

import terra_tf as terra
from terra_tf.testing import Program, assert_matches_eager

pytestmark = pytest.mark.timeout(60)


@terra.function
def of_module(x):
    return x + 1.0


class Trainer:
    def __init__(self, start):
        self.weight = tf.Variable(start)
        self.train = terra.function(self._train)

    def _train(self, x):
        self.weight.assign_add(x)
        return self.weight * 2.0

    @terra.function
    def evaluate(self, x):
        return self.weight * x


def counted(function):
    @functools.wraps(function)
    def wrapper(*args):
        wrapper.calls += 1
        return function(*args)

    wrapper.calls = 0
    return wrapper


def test_attributes_are_those_of_the_decorated_function():
    def make(wrap):
        @wrap
        @counted
        def function(x):
            if not hasattr(function, "cache"):
                function.cache = {}
            function.cache[function.calls % 3] = x
            return x * 2.0

        def step():
            result = function(tf.constant(1.0))
            if function.calls == 5:
                function.calls = 100
                del function.cache
            return result, function.calls, len(getattr(function, "cache", ()))

        return Program(step, [])

    (function,) = assert_matches_eager(make)
    assert function.stats().co_executed_steps >= 4


def test_attribute_that_nobody_has_set():
    with pytest.raises(AttributeError, match="nothing"):
        of_module.nothing  # noqa: B018
    assert not hasattr(of_module, "__wrapped_by_nobody__")


def test_method_is_a_bound_method():
    trainer = Trainer(1.0)
    method = trainer.evaluate
    assert isinstance(method, types.MethodType)
    assert method == trainer.evaluate
    assert method != Trainer(1.0).evaluate
    assert {method: 1}[trainer.evaluate] == 1
    assert method.__self__ is trainer
    assert method.__name__ == "evaluate"
    assert str(inspect.signature(method)) == "(x)"
    assert method(tf.constant(3.0)) == 3.0
    assert method.stats().steps == 1


def test_copy_of_an_object_trains_itself():
    original = Trainer(1.0)
    original.train(tf.constant(1.0))
    copied = copy.copy(original)
    copied.weight, copied.train = tf.Variable(5.0), copy.copy(original.train)
    assert copied.train is original.train
    memo = {id(original.weight): tf.Variable(10.0)}
    deep = copy.deepcopy(original, memo)
    assert deep.train(tf.constant(1.0)) == 22.0
    assert (original.weight.numpy(), deep.weight.numpy()) == (2.0, 11.0)


def test_functions_are_pickled_as_python_pickles_them():
    assert pickle.loads(pickle.dumps(of_module)) is of_module
    trainer = types.SimpleNamespace(train=terra.function(functools.partial(tf.add, 1.0)))
    trainer.train(tf.constant(1.0))
    assert pickle.loads(pickle.dumps(trainer)).train(tf.constant(2.0)) == 3.0
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(terra.function(lambda x: x))


@pytest.mark.parametrize(
    "call",
    [
        lambda function: tf.map_fn(function, tf.constant([2.0])),
        lambda function: tf.function(function)(tf.constant([2.0])),
        lambda function: tf.function(lambda x: function(x))(tf.constant([2.0])),
        lambda function: next(iter(tf.data.Dataset.from_tensors([2.0]).map(function))),
        lambda function: terra.function(lambda x: tf.function(lambda y: function(y))(x))(
            tf.constant([2.0])
        ),
    ],
    ids=["map_fn", "tf_function", "inside", "dataset", "inside_of_a_step"],
)
def test_autograph_converts_the_function_and_not_what_runs_it(call):
    @terra.function
    def positive(x):
        if tf.reduce_sum(x) > 0.0:  # needs AutoGraph in a graph
            return x * 3.0
        return x

    started = time.perf_counter()
    assert call(positive).numpy().tolist() == [6.0]
    assert time.perf_counter() - started < 10.0  # this package converted took 50 s


# ----------------------------------------------------------- what tf.function has


def test_static_and_class_methods_may_be_decorated():
    class Steps:
        @terra.function
        @staticmethod
        def add_one(x):
            return x + 1.0

        @terra.function
        @classmethod
        def name_and_double(cls, x):
            return cls.__name__, x * 2.0

    for _ in range(5):
        assert float(Steps.add_one(tf.ones([]))) == float(Steps().add_one(tf.ones([]))) == 2.0
        name, doubled = Steps().name_and_double(tf.ones([]))
        assert (name, float(doubled)) == ("Steps", 2.0)
    assert Steps.add_one.stats().co_executed_steps == 10 - 2


def test_methods_for_export_are_those_of_tf_function():
    signature = [tf.TensorSpec([None])]

    @terra.function(input_signature=signature)
    def double(x):
        return x * 2.0

    assert double.experimental_get_tracing_count() == 0
    assert [spec.shape.as_list() for spec in double.input_signature] == [[None]]
    concrete = double.get_concrete_function()
    assert concrete(tf.ones([3])).numpy().tolist() == [2.0] * 3
    assert double.experimental_get_tracing_count() == 1
    assert "TensorSpec(shape=(None,)" in double.pretty_printed_concrete_signatures()


def test_attributes_of_a_function_can_be_deleted():
    double = terra.function(lambda x: x * 2.0)
    double.note = "mine"
    del double.note
    with pytest.raises(AttributeError):
        double.note  # noqa: B018
    with pytest.raises(AttributeError):
        del double.note
