"""Parallel text in, a token store out, in one pass: read in order, encoded in processes, written in order.

The text is cut into chunks of consecutive records. A shard of the store ends with a chunk, and the journal then says
how many records of each source it took: a prepare that was killed reads those again without encoding them, cuts the
same chunks from there on, and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import copy
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ppa_fast import __version__
from ppa_fast.data.corpus import parse_pairs, sentence_group
from ppa_fast.data.dropped import DROPPED, Samples, format_table
from ppa_fast.data.duplicates import SeenPairs, UniqueSource
from ppa_fast.data.encode import TextEncoder, load_tokenizer, special_ids, tokenizer_fingerprint
from ppa_fast.data.filters import Filters
from ppa_fast.data.journal import JOURNAL, Journal
from ppa_fast.data.lines import Reject
from ppa_fast.data.multi import parse_multi
from ppa_fast.data.source import AS_NAMED, Drop, Item, Pair, ReadOptions, Source
from ppa_fast.data.store import (
    MAX_TOKENS_LIMIT,
    StoreWriter,
    check_output,
    list_array,
    read_manifest,
    record_batch,
)
from ppa_fast.data.workers import Workers, available_cores
from ppa_fast.errors import UserError
from ppa_fast.files import alone
from ppa_fast.progress import Progress, note

REJECTED = "rejected.tsv"  # in the store: the records that were no usable pair, as file:line: reason
NO_TOKENS = "no tokens"

# What a worker gets at once: little enough that the chunks under way need little memory, whatever the text.
CHUNK_RECORDS = 4_096
CHUNK_CHARACTERS = 500_000
MOST_WORKERS = 16  # by default: the one process that reads feeds no more, and each takes 70 MB
ROWS_PER_SHARD = 1 << 20  # what a kill can cost: two minutes on two cores (8,200 pairs/s)

WARN_FROM = 10_000  # records; fewer say little about the share that is rejected
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one source, the first being record ``first``; ``pair``: its language pair's index."""

    source: Source
    number: int
    pair: int
    first: int
    items: list[Item]


@dataclass(frozen=True)
class Encoded:
    """What became of a chunk of source ``number``: rows for the store and the record that each is (int64 [n], from 1),
    rejects and drops in order, and how many sentences were truncated."""

    number: int
    records: int
    rows: pa.RecordBatch
    numbers: NDArray[np.int64]
    rejects: list[Reject]
    drops: list[Drop]
    truncated: int


@dataclass(frozen=True)
class Encode:
    """Encodes chunks, in any process."""

    encoder: TextEncoder
    filters: Filters

    def __call__(self, chunk: Chunk) -> Encoded:
        source = chunk.source
        rejects: dict[int, Reject] = {}
        drops: list[Drop] = []
        records: list[int] = []
        pairs: list[Pair] = []
        for record, item in enumerate(chunk.items, chunk.first):
            if isinstance(item, Reject):
                rejects[record] = item
            elif isinstance(item, Drop):
                drops.append(item)
            elif reason := self.filters.check(item, source):
                drops.append(Drop(source.paths[0], record, reason, item.a, item.b))
            else:
                records.append(record)
                pairs.append(item)
        sides = [self.encoder.arrays(texts) for texts in ([pair.a for pair in pairs], [pair.b for pair in pairs])]
        column_a, column_b = (list_array(ids, lengths) for ids, lengths, _ in sides)
        rows = record_batch(column_a, column_b, [sentence_group(pair.pivot) for pair in pairs], chunk.pair)
        whole = np.logical_and(*(lengths > 0 for _, lengths, _ in sides))
        for index in np.flatnonzero(~whole):
            side = 0 if sides[0][1][index] == 0 else -1
            rejects[records[index]] = Reject(source.paths[side], records[index], NO_TOKENS)
        return Encoded(
            chunk.number,
            len(chunk.items),
            rows if whole.all() else rows.filter(pa.array(whole)),
            np.array(records, np.int64)[whole],
            [rejects[record] for record in sorted(rejects)],
            drops,
            sum(int((truncated & whole).sum()) for _, _, truncated in sides),
        )


def prepare(
    pairs: Sequence[str],
    tokenizer: str,
    out: str | Path,
    max_tokens: int = 126,
    workers: int | None = None,
    max_rejected: float = 0.05,
    append: bool = False,
    options: ReadOptions = AS_NAMED,
    multi: Sequence[Sequence[str]] = (),
    pivots: Sequence[str] = (),
    filters: Filters | None = None,
    deduplicate: bool = False,
) -> dict[str, Any]:
    """Encodes parallel text into a token store and returns its manifest.

    Rows come in the order of ``pairs`` and of their records, bytes and fingerprint equal for any number of ``workers``
    and of kills: called again with the same arguments, it goes on from the last shard.

    Args:
        pairs: what :func:`parse_pairs` reads; several of one language pair too.
        tokenizer: Hugging Face name or folder of a fast tokenizer.
        out: the store, a new or empty folder or what a killed prepare left; with ``append`` a finished store.
        max_tokens: longer sentences are truncated to it, special tokens not counted.
        workers: encoding processes, by default one for each CPU at hand, at most 16.
        max_rejected: the largest share of records, 0 to 1, that may be unusable; judged at the end.
        append: adds rows behind those of a finished store, which stays whole until all of them are there.
        options: the format and columns of the files of ``pairs``, where their names do not say it.
        multi: sets of row-parallel files, ``["en:train.en", "de:train.de", "fr:train.fr"]`` each.
        pivots: languages of ``multi`` that are paired with all others (default: English).
        filters: which pairs are dropped (default: none).
        deduplicate: drops pairs that came before in what this call reads; those of ``multi`` always are.

    Raises:
        UserError: an argument that cannot be used, a file that is broken as a whole, no usable pair, or more unusable
            records than ``max_rejected`` allows (``rejected.tsv`` then stays for reading).
    """
    out = Path(out)
    if workers is None:
        workers = min(available_cores(), MOST_WORKERS)
    if not 1 <= max_tokens <= MAX_TOKENS_LIMIT:
        raise UserError(f"--max-tokens {max_tokens}: expected 1 to {MAX_TOKENS_LIMIT}")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1")
    if not 0 <= max_rejected <= 1:
        raise UserError(f"--max-rejected {max_rejected}: expected a share between 0 and 1")
    if not pairs and not multi:
        raise UserError("--pairs: none given, expected at least one, or --multi")
    if pivots and not multi:
        raise UserError(f"--pivots {' '.join(pivots)}: expected --multi, whose languages they are")
    filters, seen = filters or Filters(), SeenPairs(out)
    sources: list[Source] = [parse_pairs(spec, options) for spec in pairs]
    if deduplicate:
        sources = [UniqueSource(source, seen, filters) for source in sources]
    sources += [UniqueSource(source, seen, filters) for specs in multi for source in parse_multi(specs, pivots)]
    filters.check_languages(sources)
    asked = {
        "pairs": list(pairs),
        "multi": [list(specs) for specs in multi],
        "pivots": list(pivots),
        "options": repr(options),
        "filters": repr(filters),
        "deduplicate": deduplicate,
    }
    _check_store(out, append)
    with alone(out, "another prepare"):
        return _prepare(sources, asked, tokenizer, out, max_tokens, workers, max_rejected, append, filters)


def _check_store(out: Path, append: bool) -> dict[str, Any] | None:
    """The manifest of the store to append to, None for a new one; raises UserError where it is not as expected."""
    if append:
        return read_manifest(out)
    check_output(out)
    return None


def _prepare(
    sources: Sequence[Source],
    asked: dict[str, Any],
    tokenizer: str,
    out: Path,
    max_tokens: int,
    workers: int,
    max_rejected: float,
    append: bool,
    filters: Filters,
) -> dict[str, Any]:
    """What :func:`prepare` does; ``asked``: its arguments that say which rows, in JSON."""
    base = _check_store(out, append)  # again, now that no other prepare works here
    loaded = load_tokenizer(tokenizer)
    fingerprint = tokenizer_fingerprint(loaded)
    if base and (base["tokenizer"]["fingerprint"], base["max_tokens"]) != (fingerprint, max_tokens):
        raise UserError(
            f"--append: {out} was made with tokenizer {base['tokenizer']['name']} and --max-tokens "
            f"{base['max_tokens']}; expected the same, found {tokenizer} and {max_tokens}"
        )

    arguments = {
        "package_version": __version__,
        **asked,
        "files": [_stamp(path) for source in sources for path in source.paths],
        "tokenizer": fingerprint,
        "max_tokens": max_tokens,
    }
    journal = _journal(out, arguments, base, sources)
    counts, names = journal.counts, list(journal.counts["language_pairs"])
    mine, samples = counts["sources"][-len(sources) :], Samples(journal.dropped)
    begin, warned = time.monotonic(), False
    with (
        StoreWriter(out, keep=journal.shards) as writer,
        _rejected_file(out / REJECTED, journal.rejected_bytes) as rejected,
        Progress("encoding", _megabytes(sources), "MB") as progress,
        Workers(Encode(TextEncoder(loaded, max_tokens), filters), workers) as pool,
    ):
        if base and journal.shards == base["shards"] and writer.fingerprint != base["fingerprint"]:
            raise UserError(f"--append: {out} is damaged: its rows are not those of its fingerprint; run prepare again")
        before = writer.pairs

        def end_shard() -> None:
            writer.end_shard()
            rejected.flush()
            os.fsync(rejected.fileno())
            journal.shards, journal.rejected_bytes = writer.shards, rejected.tell()
            journal.dropped = samples.to_json()
            journal.save(out)

        end_shard()
        for part in pool.map(_chunks(sources, names, [source["records"] for source in mine])):
            writer.add(part.rows)
            for reject in part.rejects:
                rejected.write(f"{reject}\n".encode("utf-8", "surrogateescape"))
            for drop in part.drops:
                samples.add(mine[part.number]["pair"], drop)
            _count(part, counts, mine[part.number])
            read = sum(source.bytes_read for source in sources) // MEGABYTE
            progress.update(read - progress.done, f"{_total(mine, 'pairs'):,} pairs")
            if not warned and _total(mine, "records") >= WARN_FROM and _too_many(mine, max_rejected):
                note(f"warning: {_too_many(mine, max_rejected)}; see {out / REJECTED}")
                warned = True
            if writer.shard_rows >= ROWS_PER_SHARD:
                end_shard()
        end_shard()
        samples.write(out)
        _judge(mine, counts, max_rejected, out)
        special = special_ids(loaded)
        manifest = writer.finish(
            {
                "package_version": __version__,
                "tokenizer": {"name": tokenizer, "fingerprint": fingerprint},
                "special_ids": {"cls": special.cls, "sep": special.sep, "mask": special.mask, "pad": special.pad},
                "vocab_size": special.vocab_size,
                "max_tokens": max_tokens,
                **counts,
            }
        )
    (out / JOURNAL).unlink()
    _report(manifest, out, manifest["pairs"] - before, time.monotonic() - begin)
    return manifest


def _stamp(path: Path) -> list[int] | None:
    """What changes with a file; None for the name of a data set."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None


def _journal(out: Path, arguments: dict[str, Any], base: dict[str, Any] | None, sources: Sequence[Source]) -> Journal:
    """The journal to go on from: what a prepare with the same arguments left, or a new one."""
    left = Journal.load(out)
    if left and left.base != (base and base["fingerprint"]):
        left = None  # of a prepare that ended: it was killed between its manifest and the end of its journal
    if left and left.arguments == arguments:
        if left.shards > (base["shards"] if base else 0):
            note(f"{out}: an unfinished prepare, going on behind {_total(left.counts['sources'], 'records'):,} records")
        return left
    if left:
        changed = sorted(key for key in arguments if arguments[key] != left.arguments.get(key))
        note(f"{out}: an unfinished prepare with other arguments ({', '.join(changed)}), started over")
    known = base or {"language_pairs": {}, "rejected": {}, "sources": []}
    counts = copy.deepcopy({key: known[key] for key in ("language_pairs", "rejected", "sources")})
    for source in sources:
        counts["language_pairs"].setdefault(source.name, {"pairs": 0, "truncated": 0, "rejected": 0, "dropped": {}})
        files = [str(path) for path in source.paths]
        counts["sources"].append({"pair": source.name, "files": files, "records": 0, "pairs": 0, "rejected": 0})
    rejected_bytes = (out / REJECTED).stat().st_size if base and (out / REJECTED).exists() else 0
    fingerprint, shards = (base["fingerprint"], base["shards"]) if base else (None, 0)
    return Journal(arguments, fingerprint, shards, rejected_bytes, Samples.read(out) if base else {}, counts)


@contextmanager
def _rejected_file(path: Path, size: int) -> Iterator[BinaryIO]:
    """The file of rejected records, cut to ``size``, for writing behind that."""
    with path.open("ab") as file:
        if file.tell() < size:
            raise UserError(f"{path}: {file.tell():,} bytes, expected {size:,}; remove {path.parent} and prepare anew")
        file.truncate(size)
        file.seek(size)
        yield file


def _chunks(sources: Sequence[Source], names: list[str], done: list[int]) -> Iterator[Chunk]:
    """The chunks behind the records of each source that are done; their names are in the order of their index."""
    for number, (source, first) in enumerate(zip(sources, done, strict=True)):
        items = islice(source.read(), first, None)
        while chunk := take(items):
            yield Chunk(source, number, names.index(source.name), first + 1, chunk)
            first += len(chunk)


def take(items: Iterator[Item]) -> list[Item]:
    """The items of the next chunk."""
    taken: list[Item] = []
    characters = 0
    for item in items:
        taken.append(item)
        characters += len(item.a) + len(item.b) if isinstance(item, Pair) else 0
        if len(taken) == CHUNK_RECORDS or characters >= CHUNK_CHARACTERS:
            break
    return taken


def _count(part: Encoded, counts: dict[str, Any], source: dict[str, Any]) -> None:
    """Adds a chunk's numbers to the manifest's counts and to those of its source."""
    language_pair = counts["language_pairs"][source["pair"]]
    source["records"] += part.records
    for each in (source, language_pair):
        each["pairs"] += part.rows.num_rows
        each["rejected"] += len(part.rejects)
    language_pair["truncated"] += part.truncated
    for by_reason, items in ((counts["rejected"], part.rejects), (language_pair["dropped"], part.drops)):
        for item in items:
            by_reason[item.reason] = by_reason.get(item.reason, 0) + 1


def _megabytes(sources: Sequence[Source]) -> int | None:
    """The size of all files, packed as they are; None where one has none."""
    sizes = [source.bytes_total for source in sources]
    return None if None in sizes else sum(filter(None, sizes)) // MEGABYTE


def _total(sources: list[dict[str, Any]], what: str) -> int:
    return sum(source[what] for source in sources)


def _too_many(sources: list[dict[str, Any]], max_rejected: float) -> str:
    """What is wrong where more records than allowed are no usable pairs, or ""."""
    rejected, records = _total(sources, "rejected"), _total(sources, "records")
    if not records or rejected / records <= max_rejected:
        return ""
    return f"{rejected:,} of {records:,} records are no usable pairs, more than --max-rejected {max_rejected:g} allows"


def _judge(sources: list[dict[str, Any]], counts: dict[str, Any], max_rejected: float, out: Path) -> None:
    """Raises UserError where the text, all of it read, does not make a store."""
    records, found = _total(sources, "records"), f"{_by_reason(counts['rejected'])}; see {out / REJECTED}"
    if records == 0:
        files = ", ".join(file for source in sources for file in source["files"])
        raise UserError(f"--pairs: no usable pair, no records in {files}")
    if too_many := _too_many(sources, max_rejected):
        raise UserError(f"{too_many}: {found}; with a larger share prepare goes on from here")
    if _total(sources, "pairs") == 0:
        dropped = sum((Counter(each["dropped"]) for each in counts["language_pairs"].values()), Counter[str]())
        found = f"rejected: {_by_reason(counts['rejected']) or 'none'}; dropped: {_by_reason(dropped) or 'none'}"
        raise UserError(f"--pairs: no usable pair in {records:,} records; {found}; see {out}")


def _by_reason(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def _report(manifest: dict[str, Any], out: Path, added: int, seconds: float) -> None:
    print(format_table(manifest["language_pairs"]))
    if manifest["rejected"]:
        print(f"rejected: {_by_reason(manifest['rejected'])}; see {out / REJECTED}")
    if any(counts["dropped"] for counts in manifest["language_pairs"].values()):
        print(f"dropped: see {out / DROPPED}")
    print(f"{out}: {added:,} pairs in {seconds:,.1f} s ({added / max(seconds, 1e-9):,.0f} pairs/s)")
