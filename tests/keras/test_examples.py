"""The examples print the same losses eagerly and accelerated."""

import json
import pathlib
import runpy
import sys

import keras
import pytest

pytest.importorskip("sklearn")
EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "keras"
HELPERS = ("cart_pole", "common")
FEW_BATCHES = ("actor_critic", "seq2seq")  # where a batch is an episode, or a text to decode
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in HELPERS)

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras'
]


def histories_of(name, mode, monkeypatch, capsys):
    keras.backend.clear_session()
    num_batches = "2" if name in FEW_BATCHES else "4"
    command = [name, "--mode", mode, "--epochs", "2", "--batches", num_batches]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


# Their steps have thousands of ops: half a minute and more on a busy machine.
SLOW = ("ddim", "masked_autoencoder", "real_nvp", "wgan_gp")
PROGRAMS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]


@pytest.mark.parametrize("name", PROGRAMS)
def test_example_has_eagers_losses(name, monkeypatch, capsys):
    eager = histories_of(name, "eager", monkeypatch, capsys)
    assert eager and all(len(losses) == 2 for losses in eager[0].values())
    assert histories_of(name, "terra", monkeypatch, capsys) == eager


def test_there_are_examples():
    assert len(NAMES) == 11 and set(SLOW) < set(NAMES)


def test_episode_cannot_be_a_graph_as_it_is_written(monkeypatch, capsys):
    assert histories_of("actor_critic", "stock", monkeypatch, capsys) == []
