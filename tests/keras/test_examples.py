"""The examples print the same losses eagerly and accelerated."""

import json
import pathlib
import runpy
import sys

import keras
import pytest

pytest.importorskip("sklearn")
EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "keras"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "common")

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras'
]


def histories_of(name, mode, monkeypatch, capsys):
    keras.backend.clear_session()
    command = [name, "--mode", mode, "--epochs", "2", "--batches", "4"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


# Gradients of gradients, four times in a step: a minute on a busy machine.
PROGRAMS = [
    pytest.param(name, marks=pytest.mark.slow) if name == "wgan_gp" else name for name in NAMES
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_example_has_eagers_losses(name, monkeypatch, capsys):
    eager = histories_of(name, "eager", monkeypatch, capsys)
    assert eager and all(len(losses) == 2 for losses in eager[0].values())
    assert histories_of(name, "terra", monkeypatch, capsys) == eager


def test_there_are_examples():
    assert {"knowledge_distillation", "vq_vae", "wgan_gp"} <= set(NAMES)
