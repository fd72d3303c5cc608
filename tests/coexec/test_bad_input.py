"""Each mistake in a call of this package is an error in the one form, which says what to do."""

import re

import programs
import pytest
import tensorflow as tf

import terra_tf as terra


def assert_in_form(error, code, *mentioned):
    """Assert that an error's text has the form of HOUSE.md and mentions what it is about."""
    text = str(error)
    first, *rest = text.splitlines()
    assert re.search(rf"\[{code}\]$", first), text
    assert any(re.match(r"  Why: .+", line) for line in rest), text
    assert any(re.match(r"  Try: 1\) .+", line) for line in rest), text
    for words in mentioned:
        assert words in text, text


@pytest.mark.parametrize("thing", [3, "name", [abs]], ids=repr)
def test_function_of_something_that_cannot_be_called(thing):
    with pytest.raises(TypeError) as caught:
        terra.function(thing)
    assert isinstance(caught.value, terra.TerraError)
    assert_in_form(caught.value, "TERRA-[A-Z-]+", repr(thing), "callable")


def test_unknown_keyword_of_function():
    with pytest.raises(terra.TerraError) as caught:
        terra.function(lambda x: x, jit_compil=True)
    assert_in_form(caught.value, "TERRA-[A-Z-]+", "jit_compil", "jit_compile")


def test_keywords_of_tf_function_are_taken():
    signature = [tf.TensorSpec([None], tf.float32)]
    function = terra.function(
        lambda x: x * 2.0, input_signature=signature, autograph=False, reduce_retracing=True
    )
    assert function(tf.constant([1.0])).numpy() == [2.0]


def test_decorator_with_keywords_but_no_function():
    @terra.function(autograph=False)
    def double(x):
        return x * 2.0

    assert double(tf.constant(1.5)).numpy() == 3.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_inflight_steps", "two"),
        ("max_inflight_steps", 0),
        ("max_inflight_steps", True),
        ("synchronous_errors", 1),
        ("stall_warning_s", float("nan")),
        ("inject_delays", 3),
    ],
)
def test_knob_of_a_wrong_type_or_out_of_range(name, value):
    before = getattr(terra.config, name)
    with pytest.raises(ValueError) as caught:
        setattr(terra.config, name, value)
    assert_in_form(caught.value, "TERRA-CONFIG-VALUE", name, repr(value))
    assert getattr(terra.config, name) == before


def test_unknown_knob():
    with pytest.raises(AttributeError) as caught:
        terra.config.max_inflight_step = 3
    assert_in_form(caught.value, "TERRA-CONFIG-NAME", "max_inflight_steps")


def test_unknown_stance():
    with pytest.raises(ValueError) as caught:
        terra.set_stance("eager")
    assert_in_form(caught.value, "TERRA-[A-Z-]+", "'eager'", "imperative", "fail_on_divergence")


def test_wrong_arguments_raise_what_the_plain_function_raises():
    def double(x):
        return x * 2.0

    with pytest.raises(TypeError) as eager:
        double()
    with pytest.raises(TypeError) as under_terra:
        terra.function(double)()
    assert str(under_terra.value) == str(eager.value)


def test_divergence_under_the_failing_stance_names_place_and_reason():
    is_other = []
    weight = tf.Variable(2.0)

    @terra.function
    def step(x):
        weight.assign(weight * 0.5)
        return tf.sin(x) if is_other else tf.cos(x)

    programs.warm_up(step, lambda: step(tf.constant(1.0)))
    is_other.append(True)
    with terra.set_stance("fail_on_divergence"), pytest.raises(RuntimeError) as caught:
        step(tf.constant(1.0))
    assert isinstance(caught.value, terra.TerraError)
    assert_in_form(caught.value, "TERRA-DIVERGED", "test_bad_input.py:", "Sin")
