"""Pairs that were seen before, of a corpus of any size: hashes in a memory-mapped file."""

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

from ppa_fast.data.filters import Filters
from ppa_fast.data.languages import standard_code
from ppa_fast.data.source import Drop, Item, Pair, Source
from ppa_fast.files import writing

DUPLICATE = "duplicate"
CHUNK_ITEMS = 512  # read ahead, so that the table is asked in bulk: 64 MB where every line is as long as may be
FIRST_SLOTS = 1 << 16
SLOT_BYTES = 16
MAX_LOAD = 0.75


@dataclass(frozen=True)
class UniqueSource:
    """A source with a :class:`Drop` in place of each pair that was seen before, in it or in another with this ``seen``.

    The first of equal pairs stays, but one whose score ``filters`` reject does not count as seen. Reading it puts its
    pairs into ``seen``, so it is read once, and whoever goes on behind item n reads n items anew. Pickled, for a worker
    process, it is the source alone.
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
        """As the source's own."""
        a, b = map(standard_code, (self.a, self.b))
        items, number = self.source.read(), 1
        while chunk := list(islice(items, CHUNK_ITEMS)):
            pairs = {i: x for i, x in enumerate(chunk) if isinstance(x, Pair) and not self.filters.check_score(x)}
            before = self.seen.add([_digest(a, b, x.a, x.b) for x in pairs.values()])
            for i, duplicate in zip(pairs, before, strict=True):
                if duplicate:
                    chunk[i] = Drop(self.paths[0], number + i, DUPLICATE, pairs[i].a, pairs[i].b)
            yield from chunk
            number += len(chunk)


class SeenPairs:
    """A set of pairs by their XXH3-128 hashes.

    An open-addressing table, 16 bytes a slot, doubled when it is three quarters full: 512 MiB at 20 million pairs. It
    lies in a nameless file of ``folder``, mapped and not held in memory, which is gone with the process, even a killed
    one. The chance that any two of n different pairs are taken for equal is n² / 2^129: 6e-25 at 20 million.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._table = np.empty((0, 2), np.uint64)

    def _open(self, slots: int) -> None:
        with writing(self.folder), tempfile.TemporaryFile(dir=self.folder) as file:
            for _ in range(slots * SLOT_BYTES >> 20):  # a full disk is an error here, and a crash in a mapped page
                file.write(bytes(1 << 20))
            file.flush()
            # A slot of zeros is empty; that a hash is zero is one of the collisions. The mapping keeps the file.
            self._table = np.memmap(file, np.uint64, "r+", shape=(slots, 2)).view(np.ndarray)

    def add(self, digests: Sequence[bytes]) -> list[bool]:
        """Whether each of the 16-byte digests is in the set already, or equal to an earlier one; all are in it then."""
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
        """Puts keys (uint64 [n, 2], all different) into the table; bool [n]: which of them were there."""
        last = len(self._table) - 1
        found = np.zeros(len(keys), bool)
        slots = (keys[:, 0] & np.uint64(last)).astype(np.int64)
        left = np.arange(len(keys))
        while len(left):
            at, mine = slots[left], keys[left]
            there = self._table[at]
            found[left] = (there == mine).all(1)
            empty = ~there.any(1)
            self._table[at[empty]] = mine[empty]  # of keys that meet in one slot one stays, the others go on
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
    """16 bytes that are equal for equal pairs, whichever side comes first."""
    if language_a > language_b:
        language_a, language_b, a, b = language_b, language_a, b, a
    return xxhash.xxh3_128_digest(f"{language_a}\n{language_b}\n{len(a)}\n{a}{b}".encode())
