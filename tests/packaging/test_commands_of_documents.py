"""Every fenced block of the documents runs, or says why not.

`python` blocks are run by `tests/unit/test_docs.py`. In a `sh` block every line is a command:

- `make TARGET` is checked with `make -n`, which fails where there is no such target;
- any other command is run, in an empty folder, with this Python and this package first;
- a block that follows `<!-- not run: REASON -->` is left alone.

A long command goes on in the next line after a backslash.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "sh", "text", "mermaid"}  # the last two are shown, and nothing to run
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(path):
    """Return the `(language, body, why it is not run or None)` of a document's fenced blocks."""
    found = _FENCE.finditer(path.read_text(encoding="utf-8"))
    return [(block["language"], block["body"], block["reason"]) for block in found]


def commands_of(body):
    """Return the commands of a `sh` block, without comments."""
    lines = body.replace("\\\n", " ").splitlines()
    commands = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines]
    return [command for command in commands if command]


def as_checked(command):
    """Return what to run in place of a command."""
    return re.sub(r"^make\b", f"make -C {ROOT} -n", command)


def shell_commands():
    for path in DOCUMENTS:
        for language, body, reason in blocks_of(path):
            if language == "sh" and reason is None:
                for command in commands_of(body):
                    yield pytest.param(command, id=f"{path.name}: {command}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_fenced_blocks_have_a_language_that_is_known(path):
    text = path.read_text(encoding="utf-8")
    blocks = blocks_of(path)
    assert {language for language, _, _ in blocks} <= LANGUAGES
    assert 2 * len(blocks) == len(re.findall("^```", text, re.MULTILINE))
    assert text.count("<!-- not run:") == sum(reason is not None for _, _, reason in blocks)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_not_run_has_a_reason(path):
    reasons = [reason for _, _, reason in blocks_of(path) if reason is not None]
    assert [reason for reason in reasons if len(reason.split()) < 3] == []


@pytest.mark.parametrize("command", list(shell_commands()))
def test_command_of_a_document_runs(command, tmp_path):
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "TERRA_ROOT": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        as_checked(command),
        shell=True,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_make_of_a_target_that_is_not_there_fails():
    done = subprocess.run(as_checked("make no-such-target"), shell=True, capture_output=True)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("body", "commands"),
    [
        ("make test     # all\n", ["make test"]),
        ("# a comment\n\npython -c 'print(1)'\n", ["python -c 'print(1)'"]),
        ("a --b \\\n  --c\nd\n", ["a --b    --c", "d"]),
    ],
)
def test_commands_are_read_from_a_block(body, commands):
    assert commands_of(body) == commands
