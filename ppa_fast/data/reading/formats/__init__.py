"""The formats of parallel text: one module for each format, and the tables of formats and extensions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ppa_fast.data.reading.formats import json_lines, parquet, po, table, tmx, xliff
from ppa_fast.data.reading.source import Item, PairSource

READERS: dict[str, Callable[[PairSource], Iterator[Item]]] = {
    "tsv": table.read_tsv,
    "csv": table.read_csv,
    "jsonl": json_lines.read,
    "tmx": tmx.read,
    "xliff": xliff.read,
    "po": po.read,
    "parquet": parquet.read,
}

EXTENSIONS = {
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".tmx": "tmx",
    ".xlf": "xliff",
    ".xliff": "xliff",
    ".sdlxliff": "xliff",
    ".mqxliff": "xliff",
    ".mxliff": "xliff",
    ".po": "po",
    ".parquet": "parquet",
}
