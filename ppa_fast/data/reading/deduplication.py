"""Finds duplicate pairs in a corpus of any size, by hashes in a memory-mapped file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ppa_fast.data.reading.filters import check_score
from ppa_fast.data.reading.groups import comparison_form
from ppa_fast.data.reading.languages import standard_code
from ppa_fast.data.reading.source import Drop, Item, Pair, Source
from ppa_fast.files import write_errors
from ppa_fast.settings import Filters

DUPLICATE = "duplicate"
CHUNK_ITEMS = 512  # looked up together; at most 64 MB, when every line has the maximum length
FIRST_SLOTS = 1 << 16
SLOT_BYTES = 16
MAX_LOAD = 0.75


@dataclass(frozen=True)
class UniqueSource:
    """A source that replaces each duplicate pair by a :class:`Drop`, across all sources that share ``seen``.

    The first of equal pairs is kept. A pair that the score filter drops does not count as seen. Reading adds the pairs
    to ``seen``, so a source is read once; to resume after item n, read the first n items again with a new ``seen``.
    Pickling, for a worker process, keeps only the inner source.
    """

    source: Source
    seen: SeenPairs
    filters: Filters

    def __reduce__(self) -> tuple[Any, ...]:
        return copy, (self.source,)

    @property
    def a(self) -> str:
        return self.source.a

    @property
    def b(self) -> str:
        return self.source.b

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def paths(self) -> list[Path]:
        return self.source.paths

    @property
    def bytes_total(self) -> int | None:
        return self.source.bytes_total

    @property
    def bytes_read(self) -> int:
        return self.source.bytes_read

    def read(self) -> Iterator[Item]:
        """Reads the inner source and replaces duplicates by drops."""
        a, b = map(standard_code, (self.a, self.b))
        items, number = self.source.read(), 1
        while chunk := list(islice(items, CHUNK_ITEMS)):
            pairs = {i: x for i, x in enumerate(chunk) if isinstance(x, Pair) and not check_score(self.filters, x)}
            before = self.seen.add([_digest(a, b, x.a, x.b) for x in pairs.values()])
            for i, duplicate in zip(pairs, before, strict=True):
                if duplicate:
                    chunk[i] = Drop(self.paths[0], number + i, DUPLICATE, pairs[i].a, pairs[i].b)
            yield from chunk
            number += len(chunk)


class SeenPairs:
    """A set of pairs by their XXH3-128 hashes.

    An open-addressing table of 16-byte slots, doubled at a load of 3/4: 512 MiB at 20 million pairs. The table is a
    memory-mapped unnamed file in ``folder``, which disappears with the process, even a killed one. The probability that
    two of n different pairs collide is n² / 2^129: 6e-25 at 20 million.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._table = np.empty((0, 2), np.uint64)

    def _open(self, slots: int) -> None:
        with write_errors(self.folder), tempfile.TemporaryFile(dir=self.folder) as file:
            # A full disk raises an error here; in a mapped page it would kill the process.
            for _ in range(slots * SLOT_BYTES >> 20):
                file.write(bytes(1 << 20))
            file.flush()
            # A slot of zeros is empty, so a hash of zero counts as a collision. The mapping keeps the file.
            self._table = np.memmap(file, np.uint64, "r+", shape=(slots, 2)).view(np.ndarray)

    def add(self, digests: Sequence[bytes]) -> list[bool]:
        """Adds 16-byte digests; returns for each whether it was in the set or earlier in ``digests``."""
        first: dict[bytes, int] = {}
        for index, digest in enumerate(digests):
            first.setdefault(digest, index)
        while self._count + len(first) >= MAX_LOAD * len(self._table):
            self._grow()
        seen = np.ones(len(digests), bool)
        found = self._insert(np.frombuffer(b"".join(first), np.uint64).reshape(-1, 2))
        seen[np.fromiter(first.values(), np.intp, len(first))] = found
        self._count += len(first) - int(found.sum())
        return seen.tolist()

    def _insert(self, keys: np.ndarray) -> np.ndarray:
        """Inserts distinct keys (uint64 [n, 2]) into the table; returns bool [n]: which were already present."""
        last = len(self._table) - 1
        found = np.zeros(len(keys), bool)
        slots = (keys[:, 0] & np.uint64(last)).astype(np.int64)
        left = np.arange(len(keys))
        while len(left):
            at, mine = slots[left], keys[left]
            there = self._table[at]
            found[left] = (there == mine).all(1)
            empty = ~there.any(1)
            self._table[at[empty]] = mine[empty]  # when keys collide in a slot, one stays and the others probe on
            left = left[(self._table[at] != mine).any(1)]
            slots[left] = (slots[left] + 1) & last
        return found

    def _grow(self) -> None:
        table = self._table
        self._open(2 * len(table) or FIRST_SLOTS)
        for begin in range(0, len(table), FIRST_SLOTS):
            keys = np.array(table[begin : begin + FIRST_SLOTS])
            self._insert(keys[keys.any(1)])


def _digest(language_a: str, language_b: str, a: str, b: str) -> bytes:
    """Returns 16 bytes that are equal for pairs of equal texts (``comparison_form``), in either order of the sides."""
    a, b = comparison_form(a), comparison_form(b)
    if language_a > language_b:
        language_a, language_b, a, b = language_b, language_a, b, a
    return xxhash.xxh3_128_digest(f"{language_a}\n{language_b}\n{len(a)}\n{a}{b}".encode())
