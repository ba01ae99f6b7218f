"""Parallel text in, a token store out: count, encode in threads, write in order."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ppa_fast import __version__
from ppa_fast.data.corpus import (
    AS_NAMED,
    Drop,
    Item,
    Pair,
    PairSource,
    ReadOptions,
    count_pairs,
    parse_pairs,
    sentence_group,
)
from ppa_fast.data.encode import TextEncoder, load_tokenizer, special_ids, tokenizer_fingerprint
from ppa_fast.data.lines import Reject
from ppa_fast.data.store import MAX_TOKENS_LIMIT, REJECTED, StoreWriter, check_output, record_batch
from ppa_fast.errors import UserError
from ppa_fast.progress import Progress

NO_TOKENS = "no tokens"

# What one call of the tokenizer gets. Small enough that the chunks in flight need little memory whatever the text.
CHUNK_LINES = 1_000
CHUNK_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class _Chunk:
    """Consecutive lines of one source, the first being line ``first_line``."""

    source: PairSource
    pair: int
    first_line: int
    lines: list[Item]


@dataclass(frozen=True)
class _Encoded:
    """What became of a chunk: rows for the store, rejected and dropped lines, and how many sentences were truncated."""

    chunk: _Chunk
    rows: pa.RecordBatch
    rejects: list[Reject]
    drops: list[Drop]
    truncated: int


def prepare(
    pairs: Sequence[str],
    tokenizer: str,
    out: str | Path,
    max_tokens: int = 126,
    workers: int | None = None,
    max_rejected: float = 0.05,
    options: ReadOptions = AS_NAMED,
) -> dict[str, Any]:
    """Encodes parallel text into a token store and returns its manifest.

    Rows come in the order of ``pairs`` and of their lines, bytes and fingerprint equal for any number of ``workers``.
    Nothing is written before all arguments are checked and all lines are counted.

    Args:
        pairs: what :func:`parse_pairs` reads; several of one language pair too.
        tokenizer: Hugging Face name or folder of a fast tokenizer.
        out: the store, a new or empty folder; what a killed prepare left in it is started over.
        max_tokens: longer sentences are truncated to it, special tokens not counted.
        workers: encoding threads, by default one for each CPU at hand.
        max_rejected: the largest share of lines, 0 to 1, that may be unusable.
        options: the format and columns of the files, where their names do not say it.

    Raises:
        UserError: an argument that cannot be used, files of unequal length, a broken file, no usable pair, or more
            unusable lines than ``max_rejected`` allows (``rejected.tsv`` then stays for reading).
    """
    out = Path(out)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= max_tokens <= MAX_TOKENS_LIMIT:
        raise UserError(f"--max-tokens {max_tokens}: expected 1 to {MAX_TOKENS_LIMIT}")
    if workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1")
    if not 0 <= max_rejected <= 1:
        raise UserError(f"--max-rejected {max_rejected}: expected a share between 0 and 1")
    if not pairs:
        raise UserError("--pairs: none given, expected at least one")
    sources = [parse_pairs(spec, options) for spec in pairs]
    unfinished = check_output(out)
    loaded = load_tokenizer(tokenizer)

    lines = []
    with Progress("counting", len(sources), "sources") as progress:
        for source in sources:
            lines.append(count_pairs(source))
            progress.update()
    total = sum(lines)
    if total == 0:
        raise UserError(f"--pairs: no usable pair, no lines in {', '.join(str(p) for s in sources for p in s.paths)}")

    if unfinished:
        print(f"{out}: an unfinished prepare, started over")
    names = list(dict.fromkeys(source.name for source in sources))
    by_pair = {name: {"pairs": 0, "truncated": 0, "rejected": 0} for name in names}
    rejected: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    encoder = TextEncoder(loaded, max_tokens)
    begin, seen = time.monotonic(), 0
    chunks = (chunk for source in sources for chunk in _chunks(source, names.index(source.name)))
    with (
        StoreWriter(out) as writer,
        Progress("encoding", total, "lines") as progress,
        _encoded_in_order(chunks, encoder, workers) as encoded,
    ):
        for part in encoded:
            for reject in part.rejects:
                writer.reject(reject)
                rejected[reject.reason] += 1
            dropped.update(drop.reason for drop in part.drops)
            writer.add(part.rows)
            counts = by_pair[part.chunk.source.name]
            counts["pairs"] += part.rows.num_rows
            counts["truncated"] += part.truncated
            counts["rejected"] += len(part.rejects)
            seen += len(part.chunk.lines)
            progress.update(len(part.chunk.lines))
            # Stops as soon as the limit cannot be kept, not hours later at the end.
            if (bad := rejected.total()) / total > max_rejected:
                raise UserError(
                    f"{bad:,} of {seen:,} lines read ({total:,} in all) are no usable pairs, more than --max-rejected "
                    f"{max_rejected:g} allows: {_by_reason(rejected)}; see {out / REJECTED}"
                )
        if seen != total:
            raise UserError(f"the text changed while it was read: {total:,} lines were counted, then {seen:,} read")
        if seen == rejected.total():
            raise UserError(f"--pairs: no usable pair in {seen:,} lines: {_by_reason(rejected)}; see {out / REJECTED}")
        special = special_ids(loaded)
        manifest = writer.finish(
            {
                "package_version": __version__,
                "tokenizer": {"name": tokenizer, "fingerprint": tokenizer_fingerprint(loaded)},
                "special_ids": {"cls": special.cls, "sep": special.sep, "mask": special.mask, "pad": special.pad},
                "vocab_size": special.vocab_size,
                "max_tokens": max_tokens,
                "language_pairs": by_pair,
                "rejected": dict(sorted(rejected.items())),
                "dropped": dict(sorted(dropped.items())),
                "sources": [
                    {"pair": source.name, "files": [str(path) for path in source.paths], "lines": count}
                    for source, count in zip(sources, lines, strict=True)
                ],
            }
        )
    _report(manifest, out, time.monotonic() - begin)
    return manifest


def _chunks(source: PairSource, pair: int) -> Iterator[_Chunk]:
    lines: list[Item] = []
    first_line, characters = 1, 0
    for line in source.read():
        lines.append(line)
        characters += len(line.a) + len(line.b) if isinstance(line, Pair) else 0
        if len(lines) == CHUNK_LINES or characters >= CHUNK_CHARACTERS:
            yield _Chunk(source, pair, first_line, lines)
            lines, first_line, characters = [], first_line + len(lines), 0
    if lines:
        yield _Chunk(source, pair, first_line, lines)


def _encode(chunk: _Chunk, encoder: TextEncoder) -> _Encoded:
    pairs = [line for line in chunk.lines if isinstance(line, Pair)]
    sides = ([pair.a for pair in pairs], [pair.b for pair in pairs])
    rows = iter(zip(*(_encode_side(texts, encoder) for texts in sides), strict=True))
    source, truncated = chunk.source, 0
    rejects: list[Reject] = []
    drops: list[Drop] = []
    a: list[list[int]] = []
    b: list[list[int]] = []
    groups: list[int] = []
    for number, line in enumerate(chunk.lines, chunk.first_line):
        if isinstance(line, Reject):
            rejects.append(line)
            continue
        if isinstance(line, Drop):
            drops.append(line)
            continue
        (ids_a, cut_a), (ids_b, cut_b) = next(rows)
        if not ids_a or not ids_b:
            rejects.append(Reject(source.paths[0] if not ids_a else source.paths[-1], number, NO_TOKENS))
            continue
        a.append(ids_a)
        b.append(ids_b)
        groups.append(sentence_group(line.pivot))
        truncated += cut_a + cut_b
    return _Encoded(chunk, record_batch(a, b, groups, chunk.pair), rejects, drops, truncated)


def _encode_side(texts: list[str], encoder: TextEncoder) -> list[tuple[list[int], bool]]:
    return list(zip(*encoder.encode(texts), strict=True))


@contextmanager
def _encoded_in_order(chunks: Iterable[_Chunk], encoder: TextEncoder, workers: int) -> Iterator[Iterator[_Encoded]]:
    """The encoded chunks in the order of ``chunks``; two for each worker are read ahead, no more."""

    def results() -> Iterator[_Encoded]:
        waiting: deque[Future[_Encoded]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_encode, chunk, encoder))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    # By default each call spreads over the process's one pool of all CPUs, so that ``workers`` would decide nothing and
    # threads wait for each other (tried on 2 CPUs: a second thread gains 5 %; with one CPU a call, 90 %).
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _by_reason(rejected: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejected.items()))


def _report(manifest: dict[str, Any], out: Path, seconds: float) -> None:
    for name, counts in manifest["language_pairs"].items():
        print(
            f"{name}: {counts['pairs']:,} pairs, {counts['rejected']:,} lines rejected, "
            f"{counts['truncated']:,} sentences truncated to {manifest['max_tokens']} tokens"
        )
    if manifest["rejected"]:
        print(f"rejected: {_by_reason(Counter(manifest['rejected']))}; see {out / REJECTED}")
    rate = manifest["pairs"] / max(seconds, 1e-9)
    print(f"{out}: {manifest['pairs']:,} pairs in {seconds:,.1f} s ({rate:,.0f} pairs/s)")
