"""Messages, exception tree and reasons of `terra_tf.errors`."""

import pickle

import pytest

from terra_tf import _native, errors
from terra_tf.errors import ImperativeReason, Reason, format_message


def test_message_has_the_documented_form():
    message = format_message(
        "the step left the graph at op 17",
        "TERRA-DIVERGED",
        where="train.py:43 in step (op 17 MatMul; the graph expected Relu)",
        why="a Python branch took another way.",
        suggestions=["trace it again", "terra.config.max_divergences = 9"],
    )
    assert message == (
        "the step left the graph at op 17 [TERRA-DIVERGED]\n"
        "  Where: train.py:43 in step (op 17 MatMul; the graph expected Relu)\n"
        "  Why: a Python branch took another way.\n"
        "  Try: 1) trace it again 2) terra.config.max_divergences = 9"
    )


def test_message_leaves_out_what_is_not_given():
    assert format_message("it broke", "TERRA-X1") == "it broke [TERRA-X1]"


def test_later_lines_of_a_part_are_indented_below_its_label():
    message = format_message("it broke", "TERRA-X", why="because\nof this")
    assert message == "it broke [TERRA-X]\n  Why: because\n    of this"


@pytest.mark.parametrize("code", ["", "DIVERGED", "TERRA", "TERRA-", "TERRA-diverged", "TERRA-A B"])
def test_malformed_code_is_refused(code):
    with pytest.raises(ValueError, match=r"not an error code: .*one looks like TERRA-DIVERGED"):
        format_message("it broke", code)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.UnknownKnobError, AttributeError),
        (errors.NotCallableError, TypeError),
        (errors.DivergenceError, RuntimeError),
        (errors.PendingTensorError, RuntimeError),
        (errors.NativeLibraryError, ImportError),
    ],
)
def test_error_is_caught_as_its_builtin_and_as_terra_error(error, builtin):
    for expected in (builtin, errors.TerraError):
        with pytest.raises(expected, match="it broke"):
            raise error("it broke")


def test_unsupported_and_internal_errors_are_kept_apart():
    assert issubclass(errors.UnsupportedError, errors.TerraError)
    assert issubclass(errors.InternalError, errors.TerraError)
    assert not issubclass(errors.InternalError, errors.UnsupportedError)


def test_code_is_read_from_the_message_and_survives_pickling():
    error = errors.InternalError(format_message("it broke", "TERRA-LOST-TENSOR", why="[TERRA-B]"))
    assert error.code == "TERRA-LOST-TENSOR"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.code) == (type(error), str(error), error.code)


def test_message_without_code_has_none():
    assert errors.TerraError("it broke").code is None


REASON_VALUES = {
    "new_path",
    "step_ended_early",
    "constant_changed",
    "feed_changed",
    "capture_changed",
    "attributes_changed",
    "dataflow_changed",
    "variable_changed",
    "device_changed",
    "unplanned_materialization",
    "live_tensor_not_fetched",
    "op_error",
    "python_exception",
    "keyboard_interrupt",
    "seized_by_other_thread",
    "concurrent",
    "op_callbacks",
    "graph_mode",
    "generator",
    "stance",
    "too_many_divergences",
    "too_many_signatures",
    "trace_too_long",
    "graph_build_failed",
}


def test_every_stable_reason_is_still_there():
    assert {reason.value for reason in Reason} >= REASON_VALUES


def test_native_reasons_are_among_them():
    reasons = _native.load().module.reasons
    assert set(reasons) <= {reason.value for reason in Reason}
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("reason", [*Reason, *ImperativeReason], ids=str)
def test_reason_is_a_string_with_a_one_line_explanation(reason):
    assert reason == reason.value == str(reason) == f"{reason}"
    assert reason.name == reason.value.upper()
    assert type(reason)(reason.value) is reason
    assert reason.explanation.endswith(".") and "\n" not in reason.explanation


def test_reason_survives_pickling_and_works_as_a_string_key():
    assert pickle.loads(pickle.dumps(Reason.NEW_PATH)) is Reason.NEW_PATH
    assert {Reason.NEW_PATH: 3}["new_path"] == 3
