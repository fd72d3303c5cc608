"""Knobs of `terra_tf.config`: defaults, types, environment, overrides and messages."""

import re

import pytest

from terra_tf.config import KNOBS, Config, Knob
from terra_tf.errors import ConfigError, UnknownKnobError


@pytest.fixture
def config():
    return Config({})


def test_defaults_are_those_of_the_table(config):
    assert {name: getattr(config, name) for name in KNOBS} == {
        "max_inflight_steps": 2,
        "run_ahead_on_fallible": False,
        "synchronous_errors": False,
        "max_constant_bytes": 1024,
        "max_fold_elements": 128,
        "roll_loops_from": 6,
        "roll_constant_loops_from": 500,
        "max_entry_signatures": 8,
        "max_exact_shapes": 4,
        "traces_before_build": 2,
        "max_divergences": 8,
        "max_graph_nodes": 50_000,
        "max_siblings": 40,
        "retry_after_steps": 64,
        "weigh_costs": True,
        "budget_s": 2.0,
        "budget_share": 0.1,
        "rebuild_share": 0.5,
        "stall_warning_s": 10.0,
        "wait_slice_s": 0.05,
        "max_trace_ops": 200_000,
        "grappler_arithmetic": False,
        "replay_calls": True,
        "check_pure": False,
        "verify": False,
        "inject_delays": "",
        "log": "",
    }


@pytest.mark.parametrize("knob", KNOBS.values(), ids=lambda knob: knob.name)
def test_knob_is_well_formed(knob):
    assert knob.accept(knob.default) == knob.default
    assert re.fullmatch(r"TERRA_[A-Z_]+", knob.env)
    assert knob.help.endswith(".")


def test_environment_variables_are_all_different():
    assert len({knob.env for knob in KNOBS.values()}) == len(KNOBS)


def test_knobs_are_plain_instance_attributes(config):
    config.max_inflight_steps = 3
    assert vars(config)["max_inflight_steps"] == 3


def test_int_is_taken_for_a_float(config):
    config.stall_warning_s = 3
    assert config.stall_warning_s == 3.0 and type(config.stall_warning_s) is float


def test_text_without_choices_is_any_text_and_nothing_else():
    knob = Knob("title", str, "", "TERRA_TITLE", "What to call it.")
    assert knob.accept("anything, at all") == "anything, at all"
    with pytest.raises(ConfigError, match=r"Why: it takes a str \(What to call it\.\)"):
        knob.accept(7)


@pytest.mark.parametrize(
    ("name", "value", "domain"),
    [
        ("max_inflight_steps", 2.0, "an int of at least 1"),
        ("max_inflight_steps", True, "an int of at least 1"),
        ("max_inflight_steps", 0, "an int of at least 1"),
        ("max_constant_bytes", -1, "an int of at least 0"),
        ("synchronous_errors", 1, "a bool"),
        ("wait_slice_s", 0.0, "a finite float of at least 0.001"),
        ("stall_warning_s", float("nan"), "a finite float of at least 0.0"),
        ("stall_warning_s", float("inf"), "a finite float of at least 0.0"),
        ("log", None, "a list with commas of phases, fallbacks, graphs, cursor, replay, commits"),
    ],
)
def test_wrong_value_is_refused_and_changes_nothing(config, name, value, domain):
    before = getattr(config, name)
    with pytest.raises(ConfigError) as caught:
        setattr(config, name, value)
    knob = KNOBS[name]
    assert f"config.{name} cannot be {value!r} [TERRA-CONFIG-VALUE]" in str(caught.value)
    assert f"Why: it takes {domain} ({knob.help})" in str(caught.value)
    assert knob.env in str(caught.value)
    assert getattr(config, name) == before


def test_wrong_value_has_this_text(config):
    with pytest.raises(ConfigError) as caught:
        config.synchronous_errors = "yes"
    assert str(caught.value) == (
        "config.synchronous_errors cannot be 'yes' [TERRA-CONFIG-VALUE]\n"
        "  Why: it takes a bool (whether an op's error surfaces at that op,"
        " at the price of co-execution.)\n"
        "  Try: 1) terra_tf.config.synchronous_errors = False (the default)"
        " 2) TERRA_SYNCHRONOUS_ERRORS=0 in the environment"
    )


def test_environment_sets_knobs_of_every_type():
    config = Config(
        {
            "TERRA_MAX_INFLIGHT_STEPS": " 7 ",
            "TERRA_SYNCHRONOUS_ERRORS": "On",
            "TERRA_STALL_WARNING_S": "0.5",
            "TERRA_LOGS": "phases,graphs",
        }
    )
    assert config.max_inflight_steps == 7
    assert config.synchronous_errors is True
    assert config.stall_warning_s == 0.5
    assert config.log == "phases,graphs"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TERRA_MAX_INFLIGHT_STEPS", "two"),
        ("TERRA_MAX_INFLIGHT_STEPS", "0"),
        ("TERRA_MAX_INFLIGHT_STEPS", ""),
        ("TERRA_SYNCHRONOUS_ERRORS", "maybe"),
        ("TERRA_STALL_WARNING_S", "nan"),
    ],
)
def test_wrong_environment_is_refused_naming_the_variable(variable, text):
    knob = next(knob for knob in KNOBS.values() if knob.env == variable)
    with pytest.raises(ConfigError) as caught:
        Config({variable: text})
    assert str(caught.value).startswith(f"config.{knob.name} cannot be {text!r} [TERRA-CONFIG-")
    assert f"\n  Where: environment variable {variable}\n" in str(caught.value)


@pytest.mark.parametrize("use", [getattr, lambda config, name: setattr(config, name, 1)])
def test_unknown_knob_suggests_close_names(config, use):
    with pytest.raises(UnknownKnobError) as caught:
        use(config, "max_inflight_step")
    message = str(caught.value)
    assert message.startswith("config has no knob named 'max_inflight_step' [TERRA-CONFIG-NAME]\n")
    assert "\n  Try: 1) config.max_inflight_steps" in message


def test_unknown_knob_is_an_attribute_error(config):
    assert not hasattr(config, "nothing_like_it")
    assert not hasattr(config, "__array__")


def test_override_holds_within_the_block_only(config):
    with config.override(max_inflight_steps=5, log="graphs"):
        assert (config.max_inflight_steps, config.log) == (5, "graphs")
    assert (config.max_inflight_steps, config.log) == (2, "")


def test_override_is_undone_by_an_exception(config):
    with pytest.raises(KeyError), config.override(max_inflight_steps=5):
        raise KeyError
    assert config.max_inflight_steps == 2


def test_override_nests(config):
    with config.override(max_inflight_steps=5), config.override(max_inflight_steps=6):
        assert config.max_inflight_steps == 6
    assert config.max_inflight_steps == 2


def test_override_sets_nothing_if_one_value_is_wrong(config):
    with (
        pytest.raises(ConfigError, match=r"config\.log cannot be 3"),
        config.override(max_inflight_steps=5, log=3),
    ):
        pytest.fail("the block must not run")
    assert config.max_inflight_steps == 2


def test_deleting_a_knob_restores_its_default(config):
    config.max_inflight_steps = 5
    del config.max_inflight_steps
    assert config.max_inflight_steps == 2


def test_repr_tells_every_knob_with_its_variable(config):
    lines = repr(config).splitlines()
    assert len(lines) == len(KNOBS)
    assert lines[0].startswith("max_inflight_steps = 2  # TERRA_MAX_INFLIGHT_STEPS: how many")
