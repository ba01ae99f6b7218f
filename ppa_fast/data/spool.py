"""Text that is streamed, in shards of token rows: made one ahead by a process of their own, read by every rank, gone
after use.

RUN/stream/shards.jsonl       a line for each shard that was made: where it is in the text, how many pairs it has
RUN/stream/shard-00000.arrow  the rows of a shard that is in use
RUN/rejected.tsv              the records that were no usable pair, as file:line: reason

A shard is a function of the text, the tokenizer and the shards before it. A run that goes on reads the text again up to
the shard that it needs, encodes from there on, and never encodes what lies before.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from ppa_fast.data.corpus import Item, PairSource
from ppa_fast.data.encode import TextEncoder
from ppa_fast.data.filters import Filters
from ppa_fast.data.prepare import REJECTED, Chunk, Encode, take
from ppa_fast.data.store import SCHEMA
from ppa_fast.data.table import ROW_BITS, Batch, Table
from ppa_fast.data.workers import Worker
from ppa_fast.errors import UserError
from ppa_fast.files import remove_folder, sync, writing

FOLDER, JOURNAL = "stream", "shards.jsonl"
SHARD_SCHEMA = pa.schema([*(SCHEMA.field(name) for name in ("a", "b", "group")), pa.field("id", pa.int64(), False)])
POLL_SECONDS = 0.05  # a rank looks so often for a shard that is not there yet


@dataclass(frozen=True)
class Shard:
    """A line of the journal. ``epoch``: which pass over the text; ``number``: of the shard in it; ``pairs``: its rows;
    ``records``: how many of each source the pass has read at its end; ``rejected``: bytes of ``rejected.tsv`` then."""

    epoch: int
    number: int
    pairs: int
    records: tuple[int, ...]
    rejected: int


def read_journal(folder: Path) -> list[Shard]:
    """The shards that were made, in order; a line that a kill cut short is none."""
    try:
        lines = (folder / JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [Shard(**{**values, "records": tuple(values["records"])}) for values in map(json.loads, lines)]


def shard_file(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.arrow"


class _Pass:
    """One reading of all sources from where ``records`` of each are read. They take turns: next is the one of which the
    smallest share of bytes is read, so that all end at about the same time."""

    def __init__(self, sources: Sequence[PairSource], records: Sequence[int]) -> None:
        self.sources, self.records = sources, list(records)
        self._items = [source.read() for source in sources]
        for items, count in zip(self._items, records, strict=True):
            next(islice(items, count, count), None)  # read, not encoded
        self._open = list(range(len(sources)))

    def take(self, most: int) -> Chunk | None:
        """The next chunk, of at most so many records; None at the end of the text."""
        while self._open:
            number = min(self._open, key=self._share)
            source, first = self.sources[number], self.records[number] + 1
            items: list[Item] = take(islice(self._items[number], most))
            if items:
                self.records[number] += len(items)
                return Chunk(source, number, 0, first, items)
            self._open.remove(number)
        return None

    def _share(self, number: int) -> float:
        source = self.sources[number]
        return source.bytes_read / max(1, source.bytes_total or 0)


@dataclass
class Maker:
    """Makes shards, in a process of its own: called with an index it writes that shard and its line in the journal, or
    returns why it cannot. It goes on reading where the shard before ended.

    Args:
        sources: the text. encoder: of the sentences. run: the run folder. size: records of a shard.
    """

    sources: list[PairSource]
    encoder: TextEncoder
    run: Path
    size: int
    _text: _Pass | None = None
    _last: Shard | None = None

    def __call__(self, index: int) -> str:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the only such process, which all encoding waits for
        try:
            with writing(self.run / FOLDER):
                self._make(index)
            return ""
        except UserError as error:
            return str(error)

    def _make(self, index: int) -> None:
        folder = self.run / FOLDER
        journal = read_journal(folder)
        before = journal[index - 1] if index else Shard(0, -1, 0, (0,) * len(self.sources), 0)
        if self._text is None or self._last != before:
            self._text = _Pass(self.sources, before.records)
        partial = shard_file(folder, index).with_suffix(".partial")
        with (self.run / REJECTED).open("ab") as rejected:
            rejected.truncate(before.rejected)  # what a run that was killed had gone on to write
            rejected.seek(0, os.SEEK_END)
            pairs = self._write(partial, self._text, rejected, first=before.epoch == 0)
            epoch, number = before.epoch, before.number + 1
            if self._text.records == list(before.records):  # the end of the text: the next pass begins
                if not any(shard.pairs for shard in journal[:index]):
                    files = ", ".join(str(path) for source in self.sources for path in source.paths)
                    raise UserError(f"data: no usable pair in {files}; see {self.run / REJECTED}")
                self._text = _Pass(self.sources, [0] * len(self.sources))
                pairs = self._write(partial, self._text, rejected, first=False)
                epoch, number = before.epoch + 1, 0
            rejected.flush()
            os.fsync(rejected.fileno())
            self._last = Shard(epoch, number, pairs, tuple(self._text.records), rejected.tell())
        known = journal[index] if index < len(journal) else None
        if known and known != self._last:
            raise UserError(
                f"data: shard {index} of the text has {self._last.pairs:,} pairs, not as before {known.pairs:,}: the "
                "text has changed; expected what the run was trained on"
            )
        partial.rename(shard_file(folder, index))
        if known:
            return
        with (folder / JOURNAL).open("ab") as file:
            file.write(json.dumps(asdict(self._last)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync(folder)

    def _write(self, path: Path, text: _Pass, rejected: BinaryIO, first: bool) -> int:
        """Writes the next ``size`` records, or those that are left; returns how many pairs they are."""
        encode = Encode(self.encoder, Filters())
        pairs, left = 0, self.size
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SHARD_SCHEMA) as writer:
            while left and (chunk := text.take(left)):
                left -= len(chunk.items)
                made = encode(chunk)
                ids = pa.array((chunk.number << ROW_BITS) + made.numbers - 1)
                columns = [made.rows.column(name) for name in ("a", "b", "group")]
                writer.write_batch(pa.record_batch([*columns, ids], schema=SHARD_SCHEMA))
                pairs += made.rows.num_rows
                for reject in made.rejects if first else []:
                    rejected.write(f"{reject}\n".encode("utf-8", "surrogateescape"))
        return pairs


class Spool:
    """The shards of a run, as every rank reads them; rank 0 has them made. A position counts the pairs of all shards.

    Args:
        held: so many positions before the latest stay readable.
    """

    def __init__(self, run: Path, limits: tuple[int, int], held: int) -> None:
        self.folder, self.limits, self.held = run / FOLDER, limits, held
        self._shards: list[Shard] = []
        self._starts = np.zeros(1, np.int64)
        self._wanted, self._removed, self._error = -1, 0, ""
        self._change = threading.Condition()
        self._worker: Worker | None = None

    def start(self, maker: Maker, position: int, anew: bool) -> None:
        """In rank 0, before any rank reads: shards from that of ``position`` on will be made when they are wanted."""
        if anew:
            remove_folder(self.folder)
            (maker.run / REJECTED).unlink(missing_ok=True)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob("shard-*"):
                leftover.unlink()
            journal = self.folder / JOURNAL
            if journal.exists():  # without the line that a kill cut short
                content = journal.read_bytes()
                with journal.open("r+b") as file:
                    file.truncate(content.rfind(b"\n") + 1)
        self._read()
        first = min(self._index(position), len(self._shards))
        self._worker, self._removed = Worker(maker), first
        threading.Thread(target=self._drive, args=(first,), name="spool", daemon=True).start()

    def _drive(self, index: int) -> None:
        worker = self._worker
        assert worker is not None
        while self._is_wanted(index):
            try:
                error = worker(index)
            except (UserError, RuntimeError) as failure:
                error = str(failure)
            if error:
                self._error = self._error or error
                return
            index += 1

    def _is_wanted(self, index: int) -> bool:
        """Waits until shard ``index`` is wanted; False when the run has ended."""
        with self._change:
            self._change.wait_for(lambda: self._worker is None or self._wanted >= index)
            return self._worker is not None

    def _read(self) -> None:
        self._shards = read_journal(self.folder)
        self._starts = np.array(list(accumulate((shard.pairs for shard in self._shards), initial=0)), np.int64)

    def _index(self, position: int) -> int:
        """The shard that holds a position; if it is not known yet, one behind the last."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def shard(self, position: int) -> tuple[int, Shard]:
        """The first position of the shard that holds ``position``, and the shard; waits until it is made.

        Raises:
            UserError: it cannot be made.
        """
        while True:
            index = self._index(position)
            with self._change:
                self._wanted = max(self._wanted, index + 1)  # the next one while this one is read
                self._change.notify_all()
            if index < len(self._shards) and shard_file(self.folder, index).exists():
                break
            if self._error:
                raise UserError(self._error)
            time.sleep(POLL_SECONDS)
            self._read()
        return int(self._starts[index]), self._shards[index]

    def release(self, position: int) -> None:
        """Removes, in rank 0, the shards that end ``held`` before a position or earlier."""
        while self._worker is not None and self._starts[self._removed + 1] <= position - self.held:
            shard_file(self.folder, self._removed).unlink(missing_ok=True)
            self._removed += 1

    def table(self, first: int, last: int) -> tuple[int, Table]:
        """The rows of the shards that hold the positions ``first`` to ``last``, and the position of the first row."""
        start, _ = self.shard(first)
        self.shard(last)
        batches = [
            batch
            for index in range(self._index(first), self._index(last) + 1)
            for batch in _batches(shard_file(self.folder, index))
        ]
        longest, vocab_size = self.limits
        return start, Table(batches, (longest, longest), vocab_size)

    def close(self) -> None:
        """Ends the process and whoever waits for a shard; the shards are removed, the journal stays."""
        self._error = self._error or "the run has ended"
        worker, self._worker = self._worker, None
        if worker is not None:
            with self._change:
                self._change.notify_all()
            worker.kill()
            for leftover in self.folder.glob("shard-*"):
                leftover.unlink(missing_ok=True)


def _batches(file: Path) -> Iterator[Batch]:
    try:
        with pa.memory_map(str(file)) as mapped:
            reader = pa.ipc.open_file(mapped)
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    for batch in batches:
        if batch.num_rows:
            a, b, groups, ids = batch.columns
            sides = (a.values.to_numpy(), a.offsets.to_numpy(), b.values.to_numpy(), b.offsets.to_numpy())
            yield Batch(*sides, groups.to_numpy(), ids.to_numpy(), str(file))
