"""Samples of the dropped records by reason, and the table of kept, rejected and dropped records."""

from __future__ import annotations

import json
import os
from bisect import insort
from pathlib import Path
from typing import Any

import xxhash

from ppa_fast.data.reading.source import Drop
from ppa_fast.files import write_text

DROPPED = "dropped.json"  # in the store
SAMPLES = 20
SAMPLE_CHARACTERS = 500

State = dict[str, dict[str, list[dict[str, Any]]]]  # the content of dropped.json


class Samples:
    """At most 20 dropped records for each language pair and reason.

    It keeps the records with the smallest hashes of file and record number: they spread over the corpus and do not
    depend on the order of :meth:`add`. To resume sampling, pass the result of :meth:`to_json` as ``state``.
    """

    def __init__(self, state: State) -> None:
        self._samples: dict[tuple[str, str], list[tuple[int, str, int, str, str]]] = {}
        for name, reasons in state.items():
            for reason, samples in reasons.items():
                for sample in samples:
                    self._add((name, reason), **sample)

    @staticmethod
    def read(store: Path) -> State:
        """Reads the state from a store's ``dropped.json``; {} if there is none."""
        return json.loads((store / DROPPED).read_text("utf-8")) if (store / DROPPED).exists() else {}

    def add(self, name: str, drop: Drop) -> None:
        """Offers a dropped record of the language pair ``name``."""
        file = os.fsencode(drop.path).decode("utf-8", "replace")
        self._add((name, drop.reason), file, drop.record, _cut(drop.a), _cut(drop.b))

    def _add(self, key: tuple[str, str], file: str, record: int, a: str, b: str) -> None:
        samples = self._samples.setdefault(key, [])
        insort(samples, (xxhash.xxh3_64_intdigest(f"{file}:{record}".encode()), file, record, a, b))
        del samples[SAMPLES:]

    def to_json(self) -> State:
        """By language pair and reason, ``[{"file": …, "record": …, "a": …, "b": …}, …]`` sorted by file and record."""
        state: State = {}
        for (name, reason), samples in sorted(self._samples.items()):
            ordered = sorted(sample[1:] for sample in samples)
            fields = ("file", "record", "a", "b")
            state.setdefault(name, {})[reason] = [dict(zip(fields, sample, strict=True)) for sample in ordered]
        return state

    def write(self, store: Path) -> None:
        """Writes ``dropped.json``, or removes it if there are no samples."""
        if self._samples:
            write_text(store / DROPPED, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")
        else:
            (store / DROPPED).unlink(missing_ok=True)  # from a prepare with other arguments


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"


def format_table(language_pairs: dict[str, dict[str, Any]]) -> str:
    """Formats a manifest's ``language_pairs`` as a table.

    Each language pair has the counts ``pairs`` (kept), ``rejected``, ``dropped`` (by reason) and ``truncated``
    (sentences).
    """
    rows: list[tuple[str, ...]] = [("", "kept", "rejected", "dropped", "truncated")]
    for name, found in language_pairs.items():
        reasons = sorted(found["dropped"].items(), key=lambda entry: (-entry[1], entry[0]))
        numbers = found["pairs"], found["rejected"], sum(found["dropped"].values()), found["truncated"]
        rows.append((name, *(f"{number:,}" for number in numbers)))
        rows += [(f"  {reason}", "", "", f"{count:,}", "") for reason, count in reasons]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            (row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
        ).rstrip()
        for row in rows
    )
