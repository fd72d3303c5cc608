"""The benchmark tells rounding from a wrong loss, and finds the message in an exception."""

import math

import pytest

from benchmarks.measuring import (
    PeakMemory,
    Spec,
    WrongError,
    check_losses,
    max_difference,
    summarize,
)

SPEC = Spec("gpt2", "tiny", ("eager",), relative_tolerance=1e-5, absolute_tolerance=0.0)


def test_difference_of_rounding_may_double_with_every_step():
    reference = [1.0] * 12
    check_losses(reference, [1.0 + 0.9e-5 * 2**min(i, 9) for i in range(12)], SPEC)
    with pytest.raises(WrongError, match=r"loss of step 3 is 1\.0001; eager's is 1"):
        check_losses(reference, [1.0, 1.0, 1.0, 1.0001, *[1.0] * 8], SPEC)


def test_difference_is_never_allowed_beyond_one_percent():
    reference = [1.0] * 30
    with pytest.raises(WrongError, match=r"loss of step 29 is 1\.011"):
        check_losses(reference, [*reference[:-1], 1.011], SPEC)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_where_eagers_is_is_wrong(loss):
    with pytest.raises(WrongError, match="loss of step 0"):
        check_losses([1.0], [loss], SPEC)
    assert max_difference([1.0], [loss]) == math.inf


def test_losses_that_are_nan_in_both_agree():
    check_losses([math.nan], [math.nan], SPEC)
    assert max_difference([math.nan, 1.0], [math.nan, 1.5]) == 0.5


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no\nmore"), "ValueError: no"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (
            AttributeError(
                'in user code:\n\n    File "x.py", line 3, in step  *\n        x.numpy()\n\n'
                "    AttributeError: 'SymbolicTensor' object has no attribute 'numpy'\n"
            ),
            "AttributeError: 'SymbolicTensor' object has no attribute 'numpy'",
        ),
    ],
)
def test_exception_is_summarized_in_one_line(error, text):
    assert summarize(error) == text


def test_peak_memory_counts_what_is_freed_again():
    memory = PeakMemory()
    before_mb = memory.peak_mb()
    block = bytearray(64 << 20)
    del block
    assert memory.peak_mb() >= before_mb + 30.0
