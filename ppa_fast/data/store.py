"""The token store: rows of token ids on disk, in Arrow, memory-mapped.

STORE/rows.arrow     Arrow IPC file; columns a, b: list<int32>, group: int64, pair: int16 (index into the
                     manifest's language_pairs); every record batch but the last has rows_per_batch rows
STORE/manifest.json  what the rows are; written last, so that a store without it is unfinished
STORE/rejected.tsv   the lines that were no usable pair, as file:line: reason
STORE/dropped.json   the sound pairs that were not wanted: counts and samples by language pair and reason
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ppa_fast.data.dropped import DROPPED
from ppa_fast.data.encode import SpecialIds
from ppa_fast.errors import UserError
from ppa_fast.files import sync

FORMAT_VERSION = 1
ROWS_PER_BATCH = 65_536
MAX_TOKENS_LIMIT = 32_767  # list offsets are int32: ROWS_PER_BATCH * MAX_TOKENS_LIMIT < 2^31

ROWS, MANIFEST, REJECTED = "rows.arrow", "manifest.json", "rejected.tsv"
ROWS_PARTIAL, MANIFEST_PARTIAL = ROWS + ".partial", MANIFEST + ".partial"
UNFINISHED = {ROWS, ROWS_PARTIAL, MANIFEST_PARTIAL, REJECTED, DROPPED}  # all that a killed prepare can leave

SCHEMA = pa.schema(
    [
        pa.field("a", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("b", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("pair", pa.int16(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Rows:
    """Pairs read from a store. Row i of side a is ``a_tokens[a_offsets[i]:a_offsets[i + 1]]``, b likewise.

    ``a_tokens``, ``b_tokens``: int32 [Ta], [Tb], without special tokens. ``a_offsets``, ``b_offsets``: int64 [n + 1].
    ``pair_ids``: int64 [n], of :meth:`Store.pair_ids`. ``groups``: int64 [n].
    """

    a_tokens: np.ndarray
    a_offsets: np.ndarray
    b_tokens: np.ndarray
    b_offsets: np.ndarray
    pair_ids: np.ndarray
    groups: np.ndarray


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


@dataclass(frozen=True)
class _Batch:
    a: _Side
    b: _Side
    groups: np.ndarray

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> _Batch:
        return cls(_Side.of(batch.column("a")), _Side.of(batch.column("b")), batch.column("group").to_numpy())


class Store:
    """A finished store, open for reading. Pickling it passes the path on; the file is mapped anew, not copied."""

    def __init__(self, path: Path, manifest: dict[str, Any], batches: list[_Batch]) -> None:
        self.path = path
        self.manifest = manifest
        self._batches = batches

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Opens a store.

        Raises:
            UserError: there is none, it is unfinished, of another format, or its rows do not match its manifest.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path / ROWS)))
            if not reader.schema.equals(SCHEMA):
                raise UserError(f"{path / ROWS}: expected the columns {', '.join(SCHEMA.names)} of this format")
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate()  # the buffers hold what the columns' lengths promise; no row is read
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path / ROWS}: damaged or truncated ({error}); run prepare again") from error
        rows, step = [batch.num_rows for batch in batches], manifest["rows_per_batch"]
        if sum(rows) != manifest["pairs"]:
            raise UserError(
                f"{path / ROWS}: {sum(rows):,} rows, but {MANIFEST} says {manifest['pairs']:,}; run prepare again"
            )
        if any(count != step for count in rows[:-1]) or any(count > step for count in rows[-1:]):
            raise UserError(f"{path / ROWS}: record batches are not of {step:,} rows; run prepare again")
        return cls(path, manifest, [_Batch.of(batch) for batch in batches])

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path,)

    def __len__(self) -> int:
        return self.manifest["pairs"]

    @property
    def fingerprint(self) -> str:
        """XXH3-128 of the rows in order, 32 hex digits."""
        return self.manifest["fingerprint"]

    @property
    def special(self) -> SpecialIds:
        """The special ids and vocabulary size of the tokenizer that made the rows."""
        return SpecialIds(**self.manifest["special_ids"], vocab_size=self.manifest["vocab_size"])

    @property
    def max_tokens(self) -> int:
        """The length that sentences were truncated to, special tokens not counted."""
        return self.manifest["max_tokens"]

    @property
    def longest(self) -> tuple[int, int]:
        """Tokens of the longest sentence of side a and of side b."""
        return self.manifest["longest_a"], self.manifest["longest_b"]

    def columns(self) -> list[tuple[np.ndarray, ...]]:
        """Of each record batch, without a copy: values and offsets of side a, of side b (int32), groups (int64)."""
        return [(b.a.values, b.a.offsets, b.b.values, b.b.offsets, b.groups) for b in self._batches]

    def pair_ids(self, indices: np.ndarray) -> np.ndarray:
        """Pair ids of the rows ``indices`` (both int64 [n]): ``(store number << 40) + row``, the store's number is 0.

        Raises:
            IndexError: an index is negative or not below ``len(store)``.
        """
        return self._checked(indices).copy()

    def rows(self, indices: np.ndarray) -> Rows:
        """Reads the rows ``indices`` (int64 [n], in any order, repeats allowed), in that order.

        Raises:
            IndexError: an index is negative or not below ``len(store)``.
            ValueError: a row leaves its record batch or is longer than the manifest says: the file is damaged.
        """
        indices = self._checked(indices)
        a_lengths, b_lengths = self.lengths(indices)
        a_offsets, b_offsets = _offsets(a_lengths), _offsets(b_lengths)
        a_tokens, b_tokens = np.empty(a_offsets[-1], np.int32), np.empty(b_offsets[-1], np.int32)
        groups = np.empty(len(indices), np.int64)
        for batch, inner, at in self._touched(indices):
            _copy_rows(batch.a, inner, a_tokens, a_offsets, at)
            _copy_rows(batch.b, inner, b_tokens, b_offsets, at)
            groups[at] = batch.groups[inner]
        return Rows(a_tokens, a_offsets, b_tokens, b_offsets, self.pair_ids(indices), groups)

    def lengths(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token counts of the sides a and b of the rows ``indices``: two int32 [n]; no token is read.

        Raises:
            IndexError: an index is negative or not below ``len(store)``.
            ValueError: a row leaves its record batch or is longer than the manifest says: the file is damaged.
        """
        indices = self._checked(indices)
        a_lengths, b_lengths = np.empty(len(indices), np.int32), np.empty(len(indices), np.int32)
        for batch, inner, at in self._touched(indices):
            for side, name, longest, lengths in zip(
                (batch.a, batch.b), "ab", self.longest, (a_lengths, b_lengths), strict=True
            ):
                begins, ends = side.offsets[inner].astype(np.int64), side.offsets[inner + 1].astype(np.int64)
                bad = (begins < 0) | (ends < begins) | (ends > len(side.values)) | (ends - begins > longest)
                if bad.any():
                    first = int(bad.argmax())
                    raise ValueError(
                        f"{self.path / ROWS}: row {indices[at[first]]}, side {name}: tokens {begins[first]} to "
                        f"{ends[first]} of {len(side.values)}, expected at most {longest}"
                    )
                lengths[at] = ends - begins
        return a_lengths, b_lengths

    def _checked(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"rows {indices.min()}…{indices.max()} of a store of {len(self)} rows")
        return indices

    def _touched(self, indices: np.ndarray) -> Iterator[tuple[_Batch, np.ndarray, np.ndarray]]:
        """For each record batch that holds some of the rows: it, their places in it, their places in ``indices``."""
        numbers, inner = np.divmod(indices, self.manifest["rows_per_batch"])
        order = np.argsort(numbers, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []:
            yield self._batches[numbers[at[0]]], inner[at], at


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: 0 and the running sums of int32 [n]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _copy_rows(side: _Side, inner: np.ndarray, tokens: np.ndarray, offsets: np.ndarray, at: np.ndarray) -> None:
    """Copies the rows ``inner`` of one batch to the places ``at`` of ``tokens``, all at once."""
    begins, lengths = side.offsets[inner].astype(np.int64), offsets[at + 1] - offsets[at]
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # 0, 1, … within each row
    tokens[np.repeat(offsets[at], lengths) + steps] = side.values[np.repeat(begins, lengths) + steps]


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"{path}: no such store (a folder that prepare wrote)")
    if not (path / MANIFEST).exists():
        unfinished = any((path / name).exists() for name in UNFINISHED)
        found = "an unfinished store, run prepare again" if unfinished else "not a store"
        raise UserError(f"{path}: {found} (no {MANIFEST})")
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / MANIFEST}: cannot be read as a store's manifest; run prepare again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: store format {version}, this version reads {FORMAT_VERSION}; run prepare again")
    needed = {"pairs", "fingerprint", "special_ids", "vocab_size", "max_tokens", "rows_per_batch", "language_pairs"}
    needed |= {"longest_a", "longest_b"}
    if missing := sorted(needed - manifest.keys()):
        raise UserError(f"{path / MANIFEST}: lacks {', '.join(missing)}; run prepare again")
    return manifest


def check_output(path: Path) -> bool:
    """Whether ``path`` holds the leftovers of an unfinished prepare (and nothing else), which may be started over.

    Raises:
        UserError: it is a finished store, or anything else but an absent or empty folder.
    """
    if not path.exists():
        return False
    if not path.is_dir():
        raise UserError(f"--out {path}: exists and is not a folder")
    found = {entry.name for entry in path.iterdir()}
    if found - UNFINISHED:
        what = "a finished store" if MANIFEST in found else f"not empty ({sorted(found - UNFINISHED)[0]})"
        raise UserError(f"--out {path}: {what}; expected a new or empty folder")
    return bool(found)


def record_batch(a: list[list[int]], b: list[list[int]], groups: list[int], pair: int) -> pa.RecordBatch:
    """Rows of one language pair (its index) as :class:`StoreWriter` takes them."""
    columns = [
        pa.array(a, SCHEMA.field("a").type),
        pa.array(b, SCHEMA.field("b").type),
        pa.array(groups, pa.int64()),
        pa.array(np.full(len(a), pair, np.int16)),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


class StoreWriter:
    """Writes a store so that it is whole or not there: rows under another name, the manifest last, both synced.

    As a context manager it removes its unfinished rows when it is left without :meth:`finish`; ``rejected.tsv`` stays
    for reading. What a kill leaves has no manifest and does not open.
    """

    def __init__(self, path: Path, rows_per_batch: int = ROWS_PER_BATCH) -> None:
        self.path = path
        self.rows_per_batch = rows_per_batch
        self.pairs = 0
        self.longest = {"a": 0, "b": 0}
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._hashes = {name: xxhash.xxh3_128() for name in ("a", "a lengths", "b", "b lengths", "group", "pair")}
        path.mkdir(parents=True, exist_ok=True)
        for name in UNFINISHED:
            (path / name).unlink(missing_ok=True)
        self._rejected = (path / REJECTED).open("w", encoding="utf-8", errors="surrogateescape", newline="\n")
        self._file = (path / ROWS_PARTIAL).open("wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def reject(self, line: object) -> None:
        """Adds a line to ``rejected.tsv``."""
        self._rejected.write(f"{line}\n")

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
        for name in ("a", "b"):
            side = _Side.of(batch.column(name))
            self._hashes[name].update(side.values.data)
            self._hashes[f"{name} lengths"].update(side.lengths().data)
            self.longest[name] = max(self.longest[name], int(side.lengths().max()))
        self._hashes["group"].update(batch.column("group").to_numpy().data)
        self._hashes["pair"].update(batch.column("pair").to_numpy().data)
        self._writer.write_batch(batch)
        self.pairs += batch.num_rows
        self._waiting, self._waiting_rows = [], 0

    def finish(self, description: dict[str, Any]) -> dict[str, Any]:
        """Makes the store whole; returns the manifest: ``description`` and what the writer knows of the rows."""
        if self._waiting:
            self._write_batch()
        self._writer.close()
        for file in (self._file, self._rejected):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        os.replace(self.path / ROWS_PARTIAL, self.path / ROWS)
        digests = b"".join(self._hashes[name].digest() for name in sorted(self._hashes))
        manifest = {
            "format_version": FORMAT_VERSION,
            **description,
            "pairs": self.pairs,
            "longest_a": self.longest["a"],
            "longest_b": self.longest["b"],
            "rows_per_batch": self.rows_per_batch,
            "fingerprint": xxhash.xxh3_128_hexdigest(digests),
        }
        sync(self.path)  # the rows are there under their name before the manifest is
        with (self.path / MANIFEST_PARTIAL).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.path / MANIFEST_PARTIAL, self.path / MANIFEST)
        sync(self.path)
        return manifest

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._rejected.close()
        if not self._file.closed:
            self._file.close()
            (self.path / ROWS_PARTIAL).unlink(missing_ok=True)
