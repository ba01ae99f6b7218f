"""What was dropped and why, with samples; and the table of what became of a corpus."""

from __future__ import annotations

import json
import os
from bisect import insort
from pathlib import Path
from typing import Any

import xxhash

from ppa_fast.data.corpus import Drop
from ppa_fast.files import write_text

DROPPED = "dropped.json"
SAMPLES = 20
SAMPLE_CHARACTERS = 500


class Dropped:
    """Counts the drops of each language pair and reason, and keeps 20 samples of each.

    The samples are those with the least hashes of file and record: spread over the corpus, and the same whatever the
    order in which the drops come. :meth:`to_json` is the whole state; given back, counting goes on.
    """

    def __init__(self, state: dict[str, dict[str, Any]] | None = None) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._samples: dict[tuple[str, str], list[tuple[int, str, int, str, str]]] = {}
        for name, reasons in (state or {}).items():
            for reason, found in reasons.items():
                self._counts[name, reason] = found["count"]
                for sample in found["samples"]:
                    self._add_sample((name, reason), sample["file"], sample["record"], sample["a"], sample["b"])

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, name: str, drop: Drop) -> None:
        """Counts a drop of the language pair ``name``."""
        key = name, drop.reason
        self._counts[key] = self._counts.get(key, 0) + 1
        file = os.fsencode(drop.path).decode("utf-8", "replace")
        self._add_sample(key, file, drop.record, _cut(drop.a), _cut(drop.b))

    def _add_sample(self, key: tuple[str, str], file: str, record: int, a: str, b: str) -> None:
        samples = self._samples.setdefault(key, [])
        insort(samples, (xxhash.xxh3_64_intdigest(f"{file}:{record}".encode()), file, record, a, b))
        del samples[SAMPLES:]

    def counts(self, name: str) -> dict[str, int]:
        """How many of the language pair ``name`` were dropped, by reason, the most frequent first."""
        found = {reason: count for (pair, reason), count in self._counts.items() if pair == name}
        return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By language pair and reason ``{"count": …, "samples": [{"file": …, "record": …, "a": …, "b": …}, …]}``."""
        state: dict[str, dict[str, Any]] = {}
        for (name, reason), count in sorted(self._counts.items()):
            samples = sorted(sample[1:] for sample in self._samples[name, reason])
            state.setdefault(name, {})[reason] = {
                "count": count,
                "samples": [dict(zip(("file", "record", "a", "b"), sample, strict=True)) for sample in samples],
            }
        return state

    def write(self, folder: Path) -> None:
        """Writes ``dropped.json``."""
        write_text(folder / DROPPED, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"


def format_table(language_pairs: dict[str, dict[str, Any]]) -> str:
    """What became of the records of each language pair: a manifest's ``language_pairs`` as a table.

    Each has the counts ``pairs`` (kept), ``rejected``, ``dropped`` (by reason) and ``truncated`` (of sentences).
    """
    rows: list[tuple[str, ...]] = [("", "kept", "rejected", "dropped", "truncated")]
    for name, found in language_pairs.items():
        numbers = found["pairs"], found["rejected"], sum(found["dropped"].values()), found["truncated"]
        rows.append((name, *(f"{number:,}" for number in numbers)))
        rows += [(f"  {reason}", "", "", f"{count:,}", "") for reason, count in found["dropped"].items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            (row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
        ).rstrip()
        for row in rows
    )
