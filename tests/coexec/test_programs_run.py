"""The benchmark programs train: run eagerly at tiny sizes, with the identity as decorator."""

import numpy as np
import pytest

from benchmarks.programs import PROGRAMS

_TINY_MLP = {"depth": 2, "width": 8, "batch": 4}
_TINY_CNN = {"size": 8, "channels": 2, "batch": 2}
_TINY_BLOCK = {"width": 8, "batch": 2, "length": 4, "num_heads": 2}
_TINY_GPT = {**_TINY_BLOCK, "num_layers": 1, "vocabulary": 11}

_CASES = {
    "mlp": ("mlp", _TINY_MLP),
    "mlp_adam": ("mlp", {**_TINY_MLP, "optimizer": "adam"}),
    "mlp_dropout": ("mlp", {**_TINY_MLP, "dropout": 0.5}),
    "mlp_batch_norm": ("mlp", {**_TINY_MLP, "batch_norm": True}),
    "gpt": ("gpt", _TINY_GPT),
    "gpt_adam": ("gpt", {**_TINY_GPT, "optimizer": "adam"}),
    "pinn": ("pinn", {"depth": 2, "width": 8, "batch": 4}),
    "keras_mlp": ("keras_mlp", _TINY_MLP),
    "keras_cnn": ("keras_cnn", {**_TINY_CNN, "channels": (2, 2)}),
    "cnn": ("cnn", _TINY_CNN),
    "cnn_adam": ("cnn", {**_TINY_CNN, "optimizer": "adam"}),
    "transformer_block": ("transformer_block", _TINY_BLOCK),
    "transformer_block_adam": ("transformer_block", {**_TINY_BLOCK, "optimizer": "adam"}),
}


def _identity(function):
    return function


def _run_three_steps(case):
    name, sizes = _CASES[case]
    program = PROGRAMS[name](_identity, **sizes)
    before = [variable.numpy() for variable in program.variables]
    losses = [float(program.step(i)) for i in range(3)]
    after = [variable.numpy() for variable in program.variables]
    num_changed = sum(not np.array_equal(b, a) for b, a in zip(before, after, strict=True))
    return losses, num_changed, len(before)


@pytest.mark.parametrize("case", _CASES)
def test_program_trains_with_finite_losses(case):
    losses, num_changed, num_variables = _run_three_steps(case)
    assert np.all(np.isfinite(losses))
    # Biases before a batch norm and Adam's learning rate may stand still; most variables move.
    assert num_changed > num_variables // 2


@pytest.mark.parametrize("case", _CASES)
def test_program_made_twice_repeats_its_losses(case):
    assert _run_three_steps(case)[0] == _run_three_steps(case)[0]


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="'sgd' or 'adam', not 'lion'"):
        PROGRAMS["mlp"](_identity, **_TINY_MLP, optimizer="lion")
