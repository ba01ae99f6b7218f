"""The token store: rows of token ids on disk, in memory-mapped Arrow files.

STORE/rows-00000.arrow, …  the rows in shards; each is an Arrow IPC file with the columns a, b: list<int32>,
                           group: int64, pair: int16 (index into the manifest's language_pairs); a record batch has
                           at most 65,536 rows
STORE/manifest.json        describes the rows and the number of shards; written last: a store without it is
                           unfinished, and shards beyond its count are not part of the store
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from ppa_fast.data.store.dataset import Batch, TokenDataset
from ppa_fast.data.store.tokenize import SpecialIds
from ppa_fast.errors import UserError
from ppa_fast.files import sync, write_errors, write_text

FORMAT_VERSION = 2
ROWS_PER_BATCH = 65_536

MANIFEST, PARTIAL = "manifest.json", ".partial"

SCHEMA = pa.schema(
    [
        pa.field("a", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("b", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("pair", pa.int16(), nullable=False),
    ]
)


@dataclass(frozen=True)
class _Side:
    """Zero-copy views of one list column of one record batch."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, column: pa.ListArray) -> _Side:
        return cls(column.values.to_numpy(), column.offsets.to_numpy())

    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def _batch(rows: pa.RecordBatch, first: int, name: str) -> Batch:
    """Returns views of a record batch whose first row is the store's row ``first``."""
    a, b = _Side.of(rows.column("a")), _Side.of(rows.column("b"))
    groups, ids = rows.column("group").to_numpy(), np.array([first], np.int64)
    return Batch(a.values, a.offsets, b.values, b.offsets, groups, ids, name)


class Store(TokenDataset):
    """A finished store, open for reading; a pair id is a row number. Pickling stores only the path.

    ``segments``: int64 [S, 3], runs of consecutive rows of one language pair: its index in ``language_pairs``, the
    first row, and the row after the last.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], batches: list[pa.RecordBatch]) -> None:
        self.path = path
        self.manifest = manifest
        firsts = accumulate((batch.num_rows for batch in batches), initial=0)
        rows = [_batch(batch, first, str(path)) for batch, first in zip(batches, firsts, strict=False)]
        super().__init__(rows, (manifest["longest_a"], manifest["longest_b"]), manifest["vocab_size"])
        self.segments = np.array(manifest["segments"], np.int64).reshape(-1, 3)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Opens a store.

        Raises:
            UserError: the store is missing, unfinished, in another format, or does not match its manifest.
        """
        path = Path(path)
        manifest = read_manifest(path)
        batches = [batch for number in range(manifest["shards"]) for batch in _read_shard(shard(path, number))]
        rows = sum(batch.num_rows for batch in batches)
        if rows != manifest["pairs"]:
            raise UserError(
                f"{path}: found {rows:,} rows, expected {manifest['pairs']:,} according to {MANIFEST}; run "
                "prepare again"
            )
        return cls(path, manifest, batches)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path,)

    @property
    def fingerprint(self) -> str:
        """XXH3-128 of the rows in order, 32 hex digits."""
        return self.manifest["fingerprint"]

    @property
    def language_pairs(self) -> list[str]:
        """The names of the language pairs (``en-de``), in the order of their index."""
        return list(self.manifest["language_pairs"])

    @property
    def special(self) -> SpecialIds:
        """The special ids and the vocabulary size of the tokenizer."""
        return SpecialIds(**self.manifest["special_ids"], vocab_size=self.manifest["vocab_size"])

    @property
    def max_tokens(self) -> int:
        """The maximum length of a sentence in tokens, without special tokens."""
        return self.manifest["max_tokens"]


def shard(path: Path, number: int) -> Path:
    """Returns the path of shard ``number``, counted from 0."""
    return path / f"rows-{number:05d}.arrow"


def _read_shard(file: Path) -> list[pa.RecordBatch]:
    try:
        with pa.memory_map(str(file)) as mapped:  # closed here: the batches keep the mapping without an open file
            reader = pa.ipc.open_file(mapped)
            if not reader.schema.equals(SCHEMA):
                raise UserError(
                    f"{file}: found another schema, expected the columns {', '.join(SCHEMA.names)}; run prepare again"
                )
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()  # checks the sizes of the buffers without reading rows
        return batches
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: damaged or truncated ({error}); run prepare again") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest of a finished store.

    Raises:
        UserError: the store is missing, unfinished or in another format.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such store; expected a folder that prepare wrote")
    if not (path / MANIFEST).exists():
        unfinished = any(_is_store_file(entry.name) for entry in path.iterdir())
        found = "an unfinished store, run prepare again" if unfinished else "not a store"
        raise UserError(f"{path}: {found} (no {MANIFEST})")
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / MANIFEST}: cannot be read as the manifest of a store; run prepare again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: found store format {version}, expected {FORMAT_VERSION}; run prepare again")
    needed = {"pairs", "fingerprint", "special_ids", "vocab_size", "max_tokens", "language_pairs"}
    needed |= {"longest_a", "longest_b", "segments", "shards"}
    if missing := sorted(needed - manifest.keys()):
        raise UserError(f"{path / MANIFEST}: lacks {', '.join(missing)}; run prepare again")
    return manifest


def _is_store_file(name: str) -> bool:
    """Whether prepare writes files of this name."""
    return bool(
        re.fullmatch(r"rows-\d{5,}\.arrow(\.partial)?|rejected\.tsv|\.?(manifest|journal|dropped)\.json(\.tmp)?", name)
    )


def check_output(path: Path) -> bool:
    """Whether ``path`` contains an unfinished store.

    Raises:
        UserError: the path is not a folder, is a finished store, or contains other files.
    """
    if not path.exists():
        return False
    if not path.is_dir():
        raise UserError(f"--out {path}: exists and is not a folder; expected a new or empty folder")
    found = sorted(entry.name for entry in path.iterdir())
    if others := [name for name in found if not _is_store_file(name)]:
        raise UserError(f"--out {path}: not empty ({others[0]}); expected a new or empty folder")
    if MANIFEST in found:
        raise UserError(f"--out {path}: a finished store; expected a new or empty folder")
    return bool(found)


def record_batch(
    a: list[list[int]] | pa.ListArray, b: list[list[int]] | pa.ListArray, groups: list[int], pair: int
) -> pa.RecordBatch:
    """Builds rows of the language pair with index ``pair`` for :class:`StoreWriter`."""
    columns = [
        pa.array(a, SCHEMA.field("a").type),
        pa.array(b, SCHEMA.field("b").type),
        pa.array(groups, pa.int64()),
        pa.array(np.full(len(a), pair, np.int16)),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def list_array(ids: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """Builds a column from the concatenated ids (int32 [T], not copied) and the length of each row (int32 [n])."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, ids, SCHEMA.field("a").type)


class StoreWriter:
    """Writes the shards of a store, then the manifest. A shard has a temporary name until it is complete and synced.

    The bytes depend on the rows and on the calls of :meth:`end_shard`; the fingerprint depends only on the rows. As a
    context manager, it removes an incomplete shard on exit.

    Args:
        path: the folder.
        rows_per_batch: the maximum number of rows of a record batch.
        keep: the number of existing shards to keep; the others are removed. The kept shards are read once, because the
            fingerprint covers all rows.

    Raises:
        UserError: a shard to keep is damaged or missing, or a file cannot be written.
    """

    def __init__(self, path: Path, rows_per_batch: int = ROWS_PER_BATCH, keep: int = 0) -> None:
        self.path, self.rows_per_batch, self.shards = path, rows_per_batch, keep
        self.pairs = 0
        self.longest = {"a": 0, "b": 0}
        self._segments: list[list[int]] = []
        self._hashes = {name: xxhash.xxh3_128() for name in ("a", "a lengths", "b", "b lengths", "group", "pair")}
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._file: BinaryIO | None = None
        kept = [shard(path, number) for number in range(keep)]
        for file in kept:
            for batch in _read_shard(file):
                self._record(batch)
        self._shard_begin = self.pairs
        path.mkdir(parents=True, exist_ok=True)
        for file in path.glob("rows-*"):
            if file not in kept:
                file.unlink()

    @property
    def shard_rows(self) -> int:
        """The number of rows added since the last shard ended."""
        return self.pairs + self._waiting_rows - self._shard_begin

    @property
    def fingerprint(self) -> str:
        """XXH3-128 of the rows written so far, independent of batches and shards."""
        digests = b"".join(self._hashes[name].digest() for name in sorted(self._hashes))
        return xxhash.xxh3_128_hexdigest(digests)

    def add(self, rows: pa.RecordBatch) -> None:
        """Appends rows (:data:`SCHEMA`); they are written in batches of ``rows_per_batch``."""
        while rows.num_rows:
            part = rows.slice(0, self.rows_per_batch - self._waiting_rows)
            rows = rows.slice(part.num_rows)
            self._waiting.append(part)
            self._waiting_rows += part.num_rows
            if self._waiting_rows == self.rows_per_batch:
                self._write_batch()

    def _write_batch(self) -> None:
        columns = [pa.concat_arrays([part.column(name) for part in self._waiting]) for name in SCHEMA.names]
        batch = pa.record_batch(columns, schema=SCHEMA)
        with write_errors(self._partial):
            if self._file is None:
                self._file = self._partial.open("wb")
                self._writer = pa.ipc.new_file(self._file, SCHEMA)
            self._writer.write_batch(batch)
        self._record(batch)
        self._waiting, self._waiting_rows = [], 0

    @property
    def _partial(self) -> Path:
        file = shard(self.path, self.shards)
        return file.with_name(file.name + PARTIAL)

    def _record(self, batch: pa.RecordBatch) -> None:
        """Adds written rows to the hashes, segments and counts of the manifest."""
        for name in ("a", "b"):
            side = _Side.of(batch.column(name))
            self._hashes[name].update(side.values.data)
            self._hashes[f"{name} lengths"].update(side.lengths().data)
            self.longest[name] = max(self.longest[name], int(side.lengths().max()))
        kinds = batch.column("pair").to_numpy()
        self._hashes["group"].update(batch.column("group").to_numpy().data)
        self._hashes["pair"].update(kinds.data)
        bounds = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
        for begin, end in pairwise(bounds):
            if not self._segments or self._segments[-1][0] != kinds[begin]:
                self._segments.append([int(kinds[begin]), self.pairs + begin, 0])
            self._segments[-1][2] = self.pairs + end
        self.pairs += len(kinds)

    def end_shard(self) -> None:
        """Completes and syncs the current shard; does nothing if it has no rows."""
        if self._waiting:
            self._write_batch()
        if self._file is None:
            return
        with write_errors(self._partial):
            self._writer.close()
            self._file.close()
            sync(self._partial)
            self._partial.rename(shard(self.path, self.shards))
            sync(self.path)
        self._file, self._shard_begin = None, self.pairs
        self.shards += 1

    def finish(self, description: dict[str, Any]) -> dict[str, Any]:
        """Completes the store; returns the manifest: ``description`` and the writer's own entries."""
        self.end_shard()
        manifest = {
            "format_version": FORMAT_VERSION,
            **description,
            "pairs": self.pairs,
            "longest_a": self.longest["a"],
            "longest_b": self.longest["b"],
            "segments": self._segments,
            "shards": self.shards,
            "fingerprint": self.fingerprint,
        }
        write_text(self.path / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        return manifest

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._partial.unlink()
