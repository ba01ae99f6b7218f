"""Tokenizes parallel text into a token store in one pass.

It reads in order, tokenizes in worker processes, and writes in order. The text is split into chunks of consecutive
records. Each shard ends at a chunk boundary, and the journal then records how many records of each source were
consumed. After a kill, prepare skips these records without tokenizing them and forms the same chunks from there, so the
store has the same bytes as without the kill.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ppa_fast.data.reading.corpus import parse_pairs
from ppa_fast.data.reading.deduplication import SeenPairs, UniqueSource
from ppa_fast.data.reading.dropped import DROPPED, Samples, format_table
from ppa_fast.data.reading.filters import check_languages, check_pair, excluded_files
from ppa_fast.data.reading.groups import GROUP_RULE, sentence_group
from ppa_fast.data.reading.lines import Reject
from ppa_fast.data.reading.row_parallel import parse_multi
from ppa_fast.data.reading.source import Drop, Pair, Source
from ppa_fast.data.store.chunking import Chunk, read_chunks
from ppa_fast.data.store.journal import JOURNAL, Journal
from ppa_fast.data.store.store import (
    StoreWriter,
    check_output,
    list_array,
    read_manifest,
    record_batch,
)
from ppa_fast.data.store.tokenize import TextTokenizer, load_tokenizer, special_ids, tokenizer_fingerprint
from ppa_fast.data.store.workers import Workers, available_cores
from ppa_fast.errors import UserError
from ppa_fast.files import folder_lock, write_errors
from ppa_fast.progress import Progress
from ppa_fast.settings import Filters, PrepareSettings, takes
from ppa_fast.version import __version__

log = logging.getLogger(__name__)

REJECTED = "rejected.tsv"  # in the store: the unusable records, as file:line: reason
NO_TOKENS = "no tokens"
UNKNOWN = "mostly unknown tokens"

MOST_WORKERS = 16  # default limit: the reading process cannot keep more workers busy, and each uses 70 MB
ROWS_PER_SHARD = 1 << 20  # the work that a kill can lose: two minutes on two cores (8,200 pairs/s)

WARN_FROM = 10_000  # records; the rejected share of fewer records is not reliable
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Encoded:
    """The result of a chunk of source ``number``.

    ``rows``: the rows for the store; ``numbers``: int64 [n], the record of each row, from 1; ``rejects`` and ``drops``:
    in order; ``truncated``: the number of truncated sentences.
    """

    number: int
    records: int
    rows: pa.RecordBatch
    numbers: NDArray[np.int64]
    rejects: list[Reject]
    drops: list[Drop]
    truncated: int


@dataclass(frozen=True)
class Encode:
    """Tokenizes chunks; picklable."""

    encoder: TextTokenizer
    filters: Filters
    max_unknown: float

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
            elif item is None:
                continue
            elif reason := check_pair(self.filters, item, source):
                drops.append(Drop(source.paths[0], record, reason, item.a, item.b))
            else:
                records.append(record)
                pairs.append(item)
        sides = [self.encoder.arrays(texts) for texts in ([pair.a for pair in pairs], [pair.b for pair in pairs])]
        column_a, column_b = (list_array(ids, lengths) for ids, lengths, _ in sides)
        rows = record_batch(column_a, column_b, [sentence_group(pair.pivot) for pair in pairs], chunk.pair)
        usable = np.logical_and(*(lengths > 0 for _, lengths, _ in sides))
        for index in np.flatnonzero(~usable):
            side = 0 if sides[0][1][index] == 0 else -1
            rejects[records[index]] = Reject(source.paths[side], records[index], NO_TOKENS)
        for side, code in ((0, source.a), (-1, source.b)):
            ids, lengths, _ = sides[side]
            for index in np.flatnonzero(usable & (self.encoder.unknown_shares(ids, lengths) > self.max_unknown)):
                usable[index] = False
                rejects[records[index]] = Reject(source.paths[side], records[index], f"{UNKNOWN} in {code}")
        return Encoded(
            chunk.number,
            len(chunk.items),
            rows if usable.all() else rows.filter(pa.array(usable)),
            np.array(records, np.int64)[usable],
            [rejects[record] for record in sorted(rejects)],
            drops,
            sum(int((truncated & usable).sum()) for _, _, truncated in sides),
        )


@takes(PrepareSettings)
def prepare(settings: PrepareSettings) -> dict[str, Any]:
    """Tokenizes parallel text into a token store and returns its manifest.

    The arguments are the fields of :class:`PrepareSettings`. Rows are in the order of ``pairs`` and of their records.
    Bytes and fingerprint do not depend on the number of ``workers`` or on kills: a call with the same arguments resumes
    after the last shard. ``append`` adds rows to a finished store; the store stays valid until all of them are written.

    Raises:
        UserError: an invalid argument, a file that cannot be read, no usable pair, or more unusable records than
            ``max_rejected`` allows (``rejected.tsv`` lists them).
    """
    out, filters = Path(settings.out), settings.filters
    seen = SeenPairs(out)
    sources: list[Source] = [parse_pairs(spec, settings.options) for spec in settings.pairs]
    if settings.deduplicate:
        sources = [UniqueSource(source, seen, filters) for source in sources]
    for specs in settings.multi:
        sources += [UniqueSource(source, seen, filters) for source in parse_multi(specs, settings.pivots)]
    check_languages(filters, sources)
    _check_store(out, settings.append)
    with folder_lock(out, "another prepare"):
        return _prepare(settings, sources, out)


def _check_store(out: Path, append: bool) -> dict[str, Any] | None:
    """Returns the manifest of the store to append to, or None for a new store; raises UserError for another folder."""
    if append:
        return read_manifest(out)
    check_output(out)
    return None


def _prepare(settings: PrepareSettings, sources: Sequence[Source], out: Path) -> dict[str, Any]:
    """Does the work of :func:`prepare` in a locked folder."""
    tokenizer, max_tokens = settings.tokenizer, settings.max_tokens
    workers = settings.workers or min(available_cores(), MOST_WORKERS)
    base = _check_store(out, settings.append)  # again, because another prepare may have finished before the lock
    loaded = load_tokenizer(tokenizer)
    fingerprint = tokenizer_fingerprint(loaded)
    if base and (base["tokenizer"]["fingerprint"], base["max_tokens"]) != (fingerprint, max_tokens):
        raise UserError(
            f"--append: {out} was made with tokenizer {base['tokenizer']['name']} and --max-tokens "
            f"{base['max_tokens']}; expected the same, found {tokenizer} and {max_tokens}"
        )
    if base and base.get("group_rule") != GROUP_RULE:
        raise UserError(
            f"--append: {out} was made by version {base['package_version']}, which groups translations of one sentence "
            "by another rule; prepare all pairs again in a new folder"
        )

    files = [*(path for source in sources for path in source.paths), *excluded_files(settings.filters)]
    arguments = {
        "package_version": __version__,
        "group_rule": GROUP_RULE,
        **{name: getattr(settings, name) for name in ("pairs", "multi", "pivots", "deduplicate")},
        "options": repr(settings.options),
        "filters": repr(settings.filters),
        "files": [_file_state(path) for path in files],
        "tokenizer": fingerprint,
        "max_tokens": max_tokens,
        "max_unknown": settings.max_unknown,
        "fraction": settings.fraction,
    }
    journal = _journal(out, arguments, base, sources)
    counts, names = journal.counts, list(journal.counts["language_pairs"])
    mine, samples = counts["sources"][-len(sources) :], Samples(journal.dropped)
    begin, warned, unknown = time.monotonic(), False, set[str]()
    with (
        StoreWriter(out, keep=journal.shards) as writer,
        _rejected_file(out / REJECTED, journal.rejected_bytes) as rejected,
        Progress("tokenizing", _megabytes(sources), "MB") as progress,
        Workers(Encode(TextTokenizer(loaded, max_tokens), settings.filters, settings.max_unknown), workers) as pool,
    ):
        if base and journal.shards == base["shards"] and writer.fingerprint != base["fingerprint"]:
            raise UserError(f"--append: {out} is damaged: its rows do not match its fingerprint; run prepare again")
        before = writer.pairs

        def end_shard() -> None:
            writer.end_shard()
            with write_errors(out / REJECTED):
                rejected.flush()
                os.fsync(rejected.fileno())
            journal.shards, journal.rejected_bytes = writer.shards, rejected.tell()
            journal.dropped = samples.to_json()
            journal.save(out)

        end_shard()
        for part in pool.map(read_chunks(sources, names, [source["records"] for source in mine], settings.fraction)):
            writer.add(part.rows)
            for reject in part.rejects:
                with write_errors(out / REJECTED):
                    rejected.write(f"{reject}\n".encode("utf-8", "surrogateescape"))
                if reject.reason.startswith(UNKNOWN) and reject.reason not in unknown:
                    unknown.add(reject.reason)
                    log.warning(f"{reject}: the tokenizer {tokenizer} does not cover this script; see --max-unknown")
            for drop in part.drops:
                samples.add(mine[part.number]["pair"], drop)
            _count(part, counts, mine[part.number])
            read = sum(source.bytes_read for source in sources) // MEGABYTE
            progress.update(read - progress.done, f"{_total(mine, 'pairs'):,} pairs")
            if not warned and _total(mine, "records") >= WARN_FROM and (too_many := _rejected_error(mine, settings)):
                log.warning(f"{too_many}; see {out / REJECTED}")
                warned = True
            if writer.shard_rows >= ROWS_PER_SHARD:
                end_shard()
        end_shard()
        samples.write(out)
        _check_rejected(mine, counts, settings, out)
        special = special_ids(loaded)
        manifest = writer.finish(
            {
                "package_version": __version__,
                "group_rule": GROUP_RULE,
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


def _file_state(path: Path) -> list[int] | None:
    """Returns size and modification time of a file, to detect changes; None for the name of a data set."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None


def _journal(out: Path, arguments: dict[str, Any], base: dict[str, Any] | None, sources: Sequence[Source]) -> Journal:
    """Returns the journal to resume from if it has the same arguments, or a new one."""
    left = Journal.load(out)
    if left and left.base != (base and base["fingerprint"]):
        left = None  # its prepare finished, but was killed between writing the manifest and removing the journal
    if left and left.arguments == arguments:
        if left.shards > (base["shards"] if base else 0):
            log.info(
                f"{out}: resuming an unfinished prepare after {_total(left.counts['sources'], 'records'):,} records"
            )
        return left
    if left:
        changed = sorted(key for key in arguments if arguments[key] != left.arguments.get(key))
        log.info(f"{out}: found an unfinished prepare with different arguments ({', '.join(changed)}), starting over")
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
    """Opens the file of rejected records, truncated to ``size``, for appending."""
    with write_errors(path):
        file = path.open("ab")
    try:
        if file.tell() < size:
            raise UserError(
                f"{path}: found {file.tell():,} bytes, expected {size:,}; remove {path.parent} and run prepare again"
            )
        file.truncate(size)
        file.seek(size)
        yield file
    finally:
        with write_errors(path):  # closing writes what is left in the buffer
            file.close()


def _count(part: Encoded, counts: dict[str, Any], source: dict[str, Any]) -> None:
    """Adds the counts of a chunk to those of the manifest and of its source."""
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
    """The size of all files on disk; None if a size is unknown."""
    sizes = [source.bytes_total for source in sources]
    return None if None in sizes else sum(filter(None, sizes)) // MEGABYTE


def _total(sources: list[dict[str, Any]], what: str) -> int:
    return sum(source[what] for source in sources)


def _rejected_error(sources: list[dict[str, Any]], settings: PrepareSettings) -> str:
    """Returns an error message if more records are rejected than allowed, or ""."""
    rejected, records = _total(sources, "rejected"), round(settings.fraction * _total(sources, "records"))
    allowed = settings.max_rejected
    if not records or rejected / records <= allowed:
        return ""
    return f"{rejected:,} of {records:,} records are unusable, more than --max-rejected {allowed:g} allows"


def _check_rejected(
    sources: list[dict[str, Any]], counts: dict[str, Any], settings: PrepareSettings, out: Path
) -> None:
    """Raises UserError if the complete text has no usable pair or too many rejected records."""
    records, found = _total(sources, "records"), f"{_by_reason(counts['rejected'])}; see {out / REJECTED}"
    if records == 0:
        files = ", ".join(file for source in sources for file in source["files"])
        raise UserError(f"--pairs: found no records in {files}, expected at least one pair")
    if too_many := _rejected_error(sources, settings):
        raise UserError(f"{too_many}: {found}; with a larger --max-rejected, prepare resumes from here")
    if _total(sources, "pairs") == 0:
        dropped = sum((Counter(each["dropped"]) for each in counts["language_pairs"].values()), Counter[str]())
        found = f"rejected: {_by_reason(counts['rejected']) or 'none'}; dropped: {_by_reason(dropped) or 'none'}"
        raise UserError(f"--pairs: found no usable pair in {records:,} records; {found}; see {out}")


def _by_reason(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def _report(manifest: dict[str, Any], out: Path, added: int, seconds: float) -> None:
    print(format_table(manifest["language_pairs"]))
    if manifest["rejected"]:
        print(f"rejected: {_by_reason(manifest['rejected'])}; see {out / REJECTED}")
    if any(counts["dropped"] for counts in manifest["language_pairs"].values()):
        print(f"dropped: see {out / DROPPED}")
    print(f"{out}: {added:,} pairs in {seconds:,.1f} s ({added / max(seconds, 1e-9):,.0f} pairs/s)")
