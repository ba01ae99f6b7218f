"""The token store: rows of token ids on disk, in Arrow, memory-mapped.

STORE/rows-00000.arrow, …  the rows in shards, each an Arrow IPC file of its own; columns a, b: list<int32>,
                           group: int64, pair: int16 (index into the manifest's language_pairs); a record batch has
                           at most 65,536 rows
STORE/manifest.json        what the rows are and how many shards hold them; written last: a store without it is
                           unfinished, and a shard that it does not count is not part of the store
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

from ppa_fast.data.encode import SpecialIds
from ppa_fast.data.table import Batch, Table
from ppa_fast.errors import UserError
from ppa_fast.files import sync, write_text, writing

FORMAT_VERSION = 2
ROWS_PER_BATCH = 65_536
MAX_TOKENS_LIMIT = 32_767  # list offsets are int32: ROWS_PER_BATCH * MAX_TOKENS_LIMIT < 2^31

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
    """Views of a record batch, its first row being the store's row ``first``."""
    a, b = _Side.of(rows.column("a")), _Side.of(rows.column("b"))
    groups, ids = rows.column("group").to_numpy(), np.array([first], np.int64)
    return Batch(a.values, a.offsets, b.values, b.offsets, groups, ids, name)


class Store(Table):
    """A finished store, open for reading; its pair ids are its rows. Pickling it passes the path on; the files are
    mapped anew, not copied.

    ``segments``: int64 [S, 3], the runs of consecutive rows of one language pair: its index in ``language_pairs``, its
    first row, the row behind its last.
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
            UserError: there is none, it is unfinished, of another format, or its rows do not match its manifest.
        """
        path = Path(path)
        manifest = read_manifest(path)
        batches = [batch for number in range(manifest["shards"]) for batch in _read_shard(shard(path, number))]
        rows = sum(batch.num_rows for batch in batches)
        if rows != manifest["pairs"]:
            raise UserError(f"{path}: {rows:,} rows, but {MANIFEST} says {manifest['pairs']:,}; run prepare again")
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
        """The special ids and vocabulary size of the tokenizer that made the rows."""
        return SpecialIds(**self.manifest["special_ids"], vocab_size=self.manifest["vocab_size"])

    @property
    def max_tokens(self) -> int:
        """The length that sentences were truncated to, special tokens not counted."""
        return self.manifest["max_tokens"]


def shard(path: Path, number: int) -> Path:
    """The file of a store's shard, counted from 0."""
    return path / f"rows-{number:05d}.arrow"


def _read_shard(file: Path) -> list[pa.RecordBatch]:
    try:
        with pa.memory_map(str(file)) as mapped:  # the batches keep the mapping; a thousand files need not be open
            reader = pa.ipc.open_file(mapped)
            if not reader.schema.equals(SCHEMA):
                raise UserError(f"{file}: expected the columns {', '.join(SCHEMA.names)} of this format")
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()  # the buffers hold what the columns' lengths promise; no row is read
        return batches
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: damaged or truncated ({error}); run prepare again") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a finished store.

    Raises:
        UserError: there is none, it is unfinished or of another format.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such store (a folder that prepare wrote)")
    if not (path / MANIFEST).exists():
        unfinished = any(_of_a_store(entry.name) for entry in path.iterdir())
        found = "an unfinished store, run prepare again" if unfinished else "not a store"
        raise UserError(f"{path}: {found} (no {MANIFEST})")
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / MANIFEST}: cannot be read as a store's manifest; run prepare again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: store format {version}, this version reads {FORMAT_VERSION}; run prepare again")
    needed = {"pairs", "fingerprint", "special_ids", "vocab_size", "max_tokens", "language_pairs"}
    needed |= {"longest_a", "longest_b", "segments", "shards"}
    if missing := sorted(needed - manifest.keys()):
        raise UserError(f"{path / MANIFEST}: lacks {', '.join(missing)}; run prepare again")
    return manifest


def _of_a_store(name: str) -> bool:
    """Whether prepare writes files of this name."""
    return bool(
        re.fullmatch(r"rows-\d{5,}\.arrow(\.partial)?|rejected\.tsv|\.?(manifest|journal|dropped)\.json(\.tmp)?", name)
    )


def check_output(path: Path) -> bool:
    """Whether ``path`` holds what an unfinished prepare left, and nothing else.

    Raises:
        UserError: it is a finished store, or anything else but an absent or empty folder.
    """
    if not path.exists():
        return False
    if not path.is_dir():
        raise UserError(f"--out {path}: exists and is not a folder")
    found = sorted(entry.name for entry in path.iterdir())
    if others := [name for name in found if not _of_a_store(name)]:
        raise UserError(f"--out {path}: not empty ({others[0]}); expected a new or empty folder")
    if MANIFEST in found:
        raise UserError(f"--out {path}: a finished store; expected a new or empty folder")
    return bool(found)


def record_batch(
    a: list[list[int]] | pa.ListArray, b: list[list[int]] | pa.ListArray, groups: list[int], pair: int
) -> pa.RecordBatch:
    """Rows of one language pair (its index) as :class:`StoreWriter` takes them."""
    columns = [
        pa.array(a, SCHEMA.field("a").type),
        pa.array(b, SCHEMA.field("b").type),
        pa.array(groups, pa.int64()),
        pa.array(np.full(len(a), pair, np.int16)),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def list_array(ids: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """A column of token ids, without a copy: int32 [T], one row after the other, and int32 [n], how many each has."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, ids, SCHEMA.field("a").type)


class StoreWriter:
    """Writes the shards of a store, each under another name until it is whole and synced, and at last the manifest.

    Bytes depend on the rows and on where :meth:`end_shard` was called, the fingerprint on the rows alone. As a context
    manager it removes the shard under way when it is left without :meth:`finish`.

    Args:
        path: the folder.
        rows_per_batch: the most rows of a record batch.
        keep: how many of its shards stay; the others are removed. Those that stay are read once, because the
            fingerprint is of all rows.

    Raises:
        UserError: a shard that should stay is damaged or not there, or a file cannot be written.
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
                self._note(batch)
        self._shard_begin = self.pairs
        path.mkdir(parents=True, exist_ok=True)
        for file in path.glob("rows-*"):
            if file not in kept:
                file.unlink()

    @property
    def shard_rows(self) -> int:
        """Rows added since the last shard ended."""
        return self.pairs + self._waiting_rows - self._shard_begin

    @property
    def fingerprint(self) -> str:
        """XXH3-128 of the rows written so far, whatever batches and shards they lie in."""
        digests = b"".join(self._hashes[name].digest() for name in sorted(self._hashes))
        return xxhash.xxh3_128_hexdigest(digests)

    def add(self, rows: pa.RecordBatch) -> None:
        """Appends rows (:data:`SCHEMA`); they are written in batches of ``rows_per_batch``, however they come."""
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
        with writing(self._partial):
            if self._file is None:
                self._file = self._partial.open("wb")
                self._writer = pa.ipc.new_file(self._file, SCHEMA)
            self._writer.write_batch(batch)
        self._note(batch)
        self._waiting, self._waiting_rows = [], 0

    @property
    def _partial(self) -> Path:
        file = shard(self.path, self.shards)
        return file.with_name(file.name + PARTIAL)

    def _note(self, batch: pa.RecordBatch) -> None:
        """Takes rows that are written into what the manifest says of all."""
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
        """Makes the rows since the last shard a shard, whole and synced; nothing where there are none."""
        if self._waiting:
            self._write_batch()
        if self._file is None:
            return
        with writing(self._partial):
            self._writer.close()
            self._file.close()
            sync(self._partial)
            self._partial.rename(shard(self.path, self.shards))
            sync(self.path)
        self._file, self._shard_begin = None, self.pairs
        self.shards += 1

    def finish(self, description: dict[str, Any]) -> dict[str, Any]:
        """Makes the store whole; returns the manifest: ``description`` and what the writer knows of the rows."""
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
