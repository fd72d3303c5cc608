"""The mutations of `tests/mutations.py` can still be made, and are in the documents."""

import pathlib

import pytest

from tests.mutations import MUTATIONS

ROOT = pathlib.Path(__file__).resolve().parents[2]
by_name = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)


@by_name
def test_what_a_mutation_replaces_is_in_the_source_once(mutation):
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1, f"{mutation.file} has changed; what breaks the rule now?"
    assert mutation.new != mutation.old


@by_name
def test_tests_of_a_mutation_exist(mutation):
    assert [name for name in mutation.tests if not (ROOT / name).exists()] == []


@by_name
def test_mutation_is_documented(mutation):
    rows = (ROOT / "docs" / "mutations.md").read_text().splitlines()
    (row,) = (row for row in rows if row.startswith(f"| `{mutation.name}` |"))
    assert mutation.rule in row
    assert f"`{mutation.file}`" in row


def test_ten_rules_are_broken():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 10
