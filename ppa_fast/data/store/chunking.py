"""Splits the records of sources into chunks, the tasks of prepare's worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import xxhash

from ppa_fast.data.reading.source import Item, Pair, Source

# The size of a worker's task; it limits the memory of the chunks in flight.
CHUNK_RECORDS = 4_096
CHUNK_CHARACTERS = 500_000


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of source ``number``, from record ``first``; ``pair`` is the index of its language pair. None
    stands for a record outside of the fraction to prepare."""

    source: Source
    number: int
    pair: int
    first: int
    items: list[Item | None]


def read_chunks(sources: Sequence[Source], names: list[str], done: list[int], fraction: float) -> Iterator[Chunk]:
    """Yields the chunks after the ``done`` records of each source; ``names`` lists the language pairs by index."""
    for number, (source, first) in enumerate(zip(sources, done, strict=True)):
        items: Iterator[Item | None] = islice(source.read(), first, None)
        if fraction < 1:
            items = sampled(items, source.name, first, fraction)
        while chunk := take(items):
            yield Chunk(source, number, names.index(source.name), first + 1, chunk)
            first += len(chunk)


def sampled(items: Iterator[Item | None], name: str, first: int, fraction: float) -> Iterator[Item | None]:
    """Keeps a ``fraction`` of the records of language pair ``name`` and replaces the others by None.

    ``first``: the number of records before ``items``. A hash of name and record number chooses, so the choice is the
    same after a kill.
    """
    limit = int(fraction * 2**64)
    for record, item in enumerate(items, first + 1):
        yield item if xxhash.xxh3_64_intdigest(f"{name} {record}".encode()) < limit else None


def take(items: Iterator[Item | None]) -> list[Item | None]:
    """Takes the items of the next chunk."""
    taken: list[Item | None] = []
    characters = 0
    for item in items:
        taken.append(item)
        characters += len(item.a) + len(item.b) if isinstance(item, Pair) else 0
        if len(taken) == CHUNK_RECORDS or characters >= CHUNK_CHARACTERS:
            break
    return taken
