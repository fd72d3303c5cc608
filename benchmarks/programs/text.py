"""Real text that every Python carries: the docstrings of its standard library, as token ids.

    documents = load_documents()
    vocabulary = Vocabulary(documents, size=2000)
    vocabulary.encode(["return", "a", "list"])    # [17, 5, 92]

Words are lower-cased; punctuation marks are words of their own.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

PAD, UNKNOWN, CLS, SEP = range(4)
_SPECIAL_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
_SENTENCE_END = "."

# Modules without side effects on import whose public names are written about at length.
_MODULES = re.findall(
    r"\S+",
    """
    argparse collections configparser csv datetime decimal difflib email.message fractions
    functools heapq itertools json logging math os pathlib random re shutil socket statistics
    string subprocess tarfile tempfile textwrap threading unittest urllib.parse zipfile
    """,
)
_MIN_WORDS = 24


@dataclasses.dataclass(frozen=True)
class Document:
    """The docstring of one public object of the standard library, in words."""

    module: str
    name: str
    words: tuple[str, ...]

    def sentences(self) -> list[tuple[str, ...]]:
        """Return the words cut behind each full stop; each sentence has at least four."""
        ends = [i + 1 for i, word in enumerate(self.words) if word == _SENTENCE_END]
        bounds = [0, *ends, len(self.words)]
        cut = (self.words[a:b] for a, b in itertools.pairwise(bounds))
        return [sentence for sentence in cut if len(sentence) >= 4]


class Vocabulary:
    """The most frequent words, numbered by frequency behind the four special words.

    Args:
      documents: the text to count words in.
      size: the number of ids, special words included; rarer words become `UNKNOWN`.
    """

    def __init__(self, documents: Iterable[Document], size: int):
        counts = collections.Counter(word for document in documents for word in document.words)
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        words = [*_SPECIAL_WORDS, *ordered][:size]
        self.size = size
        self._ids = {word: i for i, word in enumerate(words)}

    def encode(self, words: Sequence[str]) -> list[int]:
        """Return the id of each word."""
        return [self._ids.get(word, UNKNOWN) for word in words]


def split_words(text: str) -> tuple[str, ...]:
    """Return the words and punctuation marks of a text, in lower case."""
    return tuple(_WORD.findall(text.lower()))


@functools.cache
def load_documents() -> tuple[Document, ...]:
    """Return the docstrings of at least 24 words, ordered by module and name."""
    found = []
    for module_name in _MODULES:
        module = importlib.import_module(module_name)
        for name, member in _public_members(module):
            words = split_words(inspect.getdoc(member) or "")
            if len(words) >= _MIN_WORDS:
                found.append(Document(module_name, name, words))
    return tuple(dict.fromkeys(found))


def pad(ids: Sequence[int], length: int) -> np.ndarray:
    """Return int32[length]: the ids, cut or filled up with `PAD`."""
    row = np.full(length, PAD, np.int32)
    row[: min(length, len(ids))] = ids[:length]
    return row


def _public_members(module: Any) -> list[tuple[str, Any]]:
    """Return the public functions and classes of a module, and the methods of the latter."""
    members = []
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        members.append((name, value))
        if inspect.isclass(value) and value.__module__ == module.__name__:
            methods = sorted(vars(value).items())
            members += [
                (f"{name}.{method}", function)
                for method, function in methods
                if not method.startswith("_") and inspect.isroutine(function)
            ]
    return members
