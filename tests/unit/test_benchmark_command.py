"""The flags of `python -m benchmarks` explain themselves, and refuse what they do not know."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_command(*arguments):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_help_names_programs_modes_and_sizes():
    done = run_command("--help")
    text = " ".join(done.stdout.split())
    for words in ("faster_rcnn, yolov3", "tf_function_xla", "tiny|small|paper", "Ctrl-C"):
        assert words in text


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--programs=gpt3", "programs are all, or some of dropblock"),
        ("--programs=", "programs are all, or some of dropblock"),
        ("--modes=eager,jax", "modes are eager, tf_function, tf_function_xla, terra"),
        ("--size=huge", "value should be one of <tiny|small|paper>"),
        ("--steps=0", "0 is not a positive integer"),
        ("gpt2", "unexpected arguments: ['gpt2']"),
    ],
)
def test_bad_flag_is_refused_with_what_would_be_right(argument, complaint):
    done = run_command(argument)
    assert done.returncode != 0
    assert complaint in " ".join((done.stdout + done.stderr).split())
