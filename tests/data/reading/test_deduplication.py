"""Deduplication of pairs."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_fast.data.reading import deduplication as module
from ppa_fast.data.reading.deduplication import SeenPairs, UniqueSource
from ppa_fast.data.reading.lines import Reject
from ppa_fast.data.reading.source import Drop, Item, Pair
from ppa_fast.errors import UserError
from ppa_fast.settings import Filters


@dataclass
class Listed:
    """A source of the given items."""

    items: list[Item]
    a: str = "en"
    b: str = "de"
    name: str = ""
    paths: tuple[Path, ...] = (Path("t.en"), Path("t.de"))
    bytes_total: int = 0
    bytes_read: int = 0

    def read(self) -> Iterator[Item]:
        return iter(self.items)


def pair(a: str, b: str, score: float | None = None) -> Pair:
    return Pair(a, b, a, score)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("chunk", [1, 2, 512])
def test_the_first_of_equal_pairs_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK_ITEMS", chunk)
    bad = Reject(Path("t.de"), 2, "empty side")
    items = [pair("a", "b"), bad, pair("a", "c"), pair("a", "b"), pair("ab", "c"), pair("a", "bc"), pair("a", "b")]
    seen = SeenPairs(folder)
    duplicates = {number: Drop(Path("t.en"), number, "duplicate", "a", "b") for number in (4, 7)}
    expected = [duplicates.get(number, item) for number, item in enumerate(items, 1)]
    assert list(UniqueSource(Listed(items), seen, Filters()).read()) == expected
    again = UniqueSource(Listed(items), seen, Filters()).read()  # another file with the same text
    assert all(isinstance(item, Drop | Reject) for item in again)


def test_both_directions_and_spellings_are_one_language_pair(folder: Path) -> None:
    seen = SeenPairs(folder)
    for source, kept in (
        (Listed([pair("a", "b")]), 1),
        (Listed([pair("b", "a")], "de", "en"), 0),
        (Listed([pair("a", "b")], "eng", "deu"), 0),
        (Listed([pair("a", "b")], "en", "fr"), 1),
        (Listed([pair("b", "a")]), 1),
    ):
        assert sum(isinstance(item, Pair) for item in UniqueSource(source, seen, Filters()).read()) == kept


def test_the_first_of_equal_pairs_with_a_sufficient_score_is_kept(folder: Path) -> None:
    items = [pair("a", "b", score) for score in (0.1, None, 0.9, 0.8)]
    filters = Filters(min_score=0.5)
    source = UniqueSource(Listed(items), SeenPairs(folder), filters)
    assert list(source.read()) == [*items[:3], Drop(Path("t.en"), 4, "duplicate", "a", "b")]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 40), max_size=30)), st.integers(0, 2**128 - 1).map(lambda key: key | 1 << 64))
def test_the_hash_table_equals_a_set(folder: Path, chunks: list[list[int]], key: int) -> None:
    """Compares with Python's set. The table grows from 4 slots; hashes differ in their upper or lower half."""
    slots, module.FIRST_SLOTS = module.FIRST_SLOTS, 4
    try:
        seen, known = SeenPairs(folder), set()
        for chunk in chunks:
            digests = [((number << 120 if number % 2 else number) ^ key).to_bytes(16, "little") for number in chunk]
            expected = [digest in known or digest in digests[:index] for index, digest in enumerate(digests)]
            assert seen.add(digests) == expected
            known.update(digests)
    finally:
        module.FIRST_SLOTS = slots


def test_the_hash_table_grows(folder: Path) -> None:
    digests = [
        random.Random(number).randbytes(16) for number in range(60_000)
    ]  # 65,536 slots, which are three quarters full
    seen = SeenPairs(folder)
    for begin in range(0, len(digests), 512):
        assert not any(seen.add(digests[begin : begin + 512]))
    assert all(seen.add(digests))
    assert not any(seen.add([random.Random(f"other {number}").randbytes(16) for number in range(1000)]))


def test_workers_receive_the_source_without_the_table(folder: Path) -> None:
    seen = SeenPairs(folder)
    seen.add([bytes(range(16))])
    source = UniqueSource(Listed([pair("a", "b")]), seen, Filters())
    assert pickle.loads(pickle.dumps(source)) == source.source


def test_no_temporary_file_remains(tmp_path: Path) -> None:
    seen = SeenPairs(tmp_path)
    assert seen.add([bytes(range(16))]) == [False]
    assert list(tmp_path.iterdir()) == []  # a kill leaves no file either


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: cannot be written"):
        SeenPairs(tmp_path / "absent").add([bytes(16)])
