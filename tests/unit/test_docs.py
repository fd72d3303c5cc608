"""The documents name every knob, reason and error code that the source has, and their code runs."""

import pathlib
import re

import pytest

import terra_tf as terra
from terra_tf.config import KNOBS
from terra_tf.errors import ImperativeReason, Reason

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
GLOSSARY = [
    *("trace", "TraceGraph", "node", "location", "feed", "fetch", "switch-case", "divergence"),
    *("replay", "epoch", "commit", "drain", "seize", "step", "entry signature"),
]

_QUOTED_FIRST_CELL = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
_CODE = re.compile(r"\bTERRA(?:-[A-Z0-9]+)+\b")
# A block after `<!-- not run: REASON -->` is left out; test_commands_of_documents.py says how.
_PYTHON_BLOCK = re.compile(
    r"^(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def read(path):
    return path.read_text(encoding="utf-8")


def source_of(*patterns):
    """Return the text of all source files that match one of the patterns."""
    paths = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
    assert paths, patterns
    return "\n".join(map(read, paths))


def first_cells(path):
    """Return the code-quoted first cells of all table rows of a document."""
    return set(_QUOTED_FIRST_CELL.findall(read(path)))


def knob_row(knob):
    """Return the line of docs/knobs.md that describes a knob."""
    minimum = "" if knob.minimum is None else f", at least {knob.type(knob.minimum)}"
    default = repr(knob.default) if knob.default != "" else '""'
    return (
        f"| `{knob.name}` | {knob.type.__name__}{minimum} | `{default}` | `{knob.env}` |"
        f" {knob.help} |"
    )


@pytest.mark.parametrize("knob", KNOBS.values(), ids=lambda knob: knob.name)
def test_knob_is_documented_as_it_is(knob):
    row = knob_row(knob)
    assert row in read(DOCS / "knobs.md").splitlines(), f"docs/knobs.md needs the line\n{row}"


def test_knobs_that_nothing_reads_are_documented_as_such():
    source = source_of("terra_tf/**/*.py").replace(read(ROOT / "terra_tf/config.py"), "")
    unread = {name for name in KNOBS if not re.search(rf"\bconfig\.{name}\b", source)}
    (line,) = re.findall(r"^\*\*Not read in this version:\*\* (.*)$", read(DOCS / "knobs.md"), re.M)
    assert set(re.findall(r"`(\w+)`", line)) == unread


@pytest.mark.parametrize("reason", [*Reason, *ImperativeReason], ids=str)
def test_reason_is_documented_with_its_explanation(reason):
    rows = [row for row in read(DOCS / "errors.md").splitlines() if f"| `{reason}` |" in row]
    assert len(rows) == 1, f"docs/errors.md has {len(rows)} rows for {reason}"
    assert reason.explanation.rstrip(".") in rows[0]


@pytest.mark.parametrize("reason", [*Reason, *ImperativeReason], ids=str)
def test_reason_that_nothing_gives_is_documented_as_such(reason):
    python = source_of("terra_tf/**/*.py").replace(read(ROOT / "terra_tf/errors.py"), "")
    native = source_of("kernels/**/*.cc", "kernels/**/*.h")
    name = f"{type(reason).__name__}.{reason.name}"
    is_given = re.search(rf"\b{re.escape(name)}\b", python) or f'"{reason}"' in native
    (row,) = (row for row in read(DOCS / "errors.md").splitlines() if f"| `{reason}` |" in row)
    assert bool(is_given) != ("in this version" in row), row


def test_every_code_in_the_source_is_documented_and_no_other():
    source = source_of("terra_tf/**/*.py", "kernels/**/*.cc", "kernels/**/*.h", "setup.py")
    in_source = set(_CODE.findall(source))
    in_docs = {cell for cell in first_cells(DOCS / "errors.md") if _CODE.fullmatch(cell)}
    assert in_docs == in_source


def test_every_error_class_is_documented():
    text = read(DOCS / "errors.md")
    classes = [n for n in terra.__all__ if n.endswith("Error")] + ["NativeLibraryError"]
    assert [name for name in classes if f"`{name}`" not in text] == []


def test_glossary_has_every_word():
    rows = re.findall(r"^\| ([^|]+?) \|", read(DOCS / "glossary.md"), re.MULTILINE)
    assert [word for word in GLOSSARY if word not in rows] == []
    words = [row for row in rows if row not in ("word", "---")]
    assert len(words) == len(set(words))


def test_marked_blocks_are_closed():
    text = read(ROOT / "README.md")
    for name in ("demo-output", "micro-output"):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_document_lead_somewhere(path):
    for target, anchor in _LINK.findall(read(path)):
        if "://" in target:
            continue
        file = path.parent / target
        assert file.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", read(file), re.MULTILINE)
            anchors = {"#" + re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{path.name} links to {target}{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_a_document_exist(path):
    named = re.findall(r"`((?:terra_tf|kernels|benchmarks|tests|docs)/[\w/.-]+\.\w+)`", read(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_of_a_document_run(path, capsys):
    values = dict(terra.config.__dict__)
    namespace = {"__name__": "document"}
    num_run = 0
    blocks = [body for reason, body in _PYTHON_BLOCK.findall(read(path)) if not reason]
    try:
        for block in blocks:
            exec(compile(block, str(path), "exec"), namespace)
            num_run += 1
    finally:
        terra.config.__dict__.update(values)
    capsys.readouterr()
    assert num_run == len(blocks)
