"""Training straight from text: no store, the order shuffled within shards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ppa_fast.data.corpus import parse_pairs
from ppa_fast.data.encode import TextEncoder, special_ids, tokenizer_fingerprint
from ppa_fast.data.pack import GlobalStep, Packer, packer_for
from ppa_fast.data.sampler import Sampler, permute
from ppa_fast.data.spool import Maker, Spool
from ppa_fast.errors import UserError


def is_text(data: Sequence[str]) -> bool:
    """Whether ``data`` names text, as ``en-de:train.en,train.de`` does, and not stores.

    Raises:
        UserError: it names both.
    """
    texts = [value for value in data if re.match(r"[^/:]+-[^/:]+:.", value) and not Path(value).exists()]
    if texts and len(texts) < len(data):
        store = next(value for value in data if value not in texts)
        raise UserError(f"data: found the text {texts[0]} and the store {store}, expected either texts or stores")
    return bool(texts)


class Stream:
    """Parallel text as a run reads it, in shards of ``shard`` records; the sources take turns.

    ``(file number << 40) + record``, both from 0, is a pair's id. Its rows, for sampler and packer, are positions: the
    place among all pairs in the order of the text, pass after pass.

    Args:
        specs: of the text, as for ``ppa-fast prepare``. tokenizer, max_tokens: what encodes it.
        shard: records of a shard.
        run: the run folder, which holds the shards while they are used.
        held: so many positions before the latest stay readable.

    Raises:
        UserError: a text cannot be read, or several are streamed of which one does not tell its size.
    """

    def __init__(
        self,
        specs: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        shard: int,
        run: Path,
        held: int,
    ) -> None:
        self.sources = [parse_pairs(spec) for spec in specs]
        for spec, source in zip(specs, self.sources, strict=True):
            if len(specs) > 1 and source.bytes_total is None:
                raise UserError(f"data: {spec}: its size is not known, so it cannot take turns; stream it alone")
        self.special, self.max_tokens = special_ids(tokenizer), max_tokens
        self.longest = (max_tokens, max_tokens)
        self.language_pairs = list(dict.fromkeys(source.name for source in self.sources))
        self.maker = Maker(self.sources, TextEncoder(tokenizer, max_tokens), run, shard)
        self.spool = Spool(run, (max_tokens, self.special.vocab_size), held)
        sizes = [[source.name, source.bytes_total] for source in self.sources]
        content = [sizes, tokenizer_fingerprint(tokenizer), max_tokens, shard]
        self.fingerprint = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs each language pair has: of text it is not known."""
        return {}

    def packer(self, **draws: Any) -> Packer:
        """As :func:`packer_for`."""
        return StreamPacker(self.spool, **draws)

    def pair_ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the pairs at these rows: int64 [n] of int64 [n]."""
        start, table = self.spool.table(int(rows.min()), int(rows.max()))
        return table.pair_ids(rows - start)


class StreamSampler(Sampler):
    """Draws the pairs of a stream: shard by shard, each shuffled by (seed, pass over the text, number of the shard)."""

    def __init__(self, spool: Spool, batch: int, seed: int) -> None:
        super().__init__(0, batch, seed)
        self._spool = spool

    def head(self) -> int:
        """Pairs of the first shard."""
        return self._spool.shard(0)[1].pairs

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, epochs = np.empty_like(positions), np.empty_like(positions)
        left = np.ones(len(positions), bool)
        while left.any():
            start, shard = self._spool.shard(int(positions[left].min()))
            here = left & (positions < start + shard.pairs)
            index = positions[here] - start
            rows[here] = start + permute(index, shard.pairs, self.seed, shard.epoch, shard.number)
            epochs[here] = shard.epoch
            left &= ~here
        self._spool.release(int(positions.min()))
        return rows, epochs


class StreamPacker:
    """Packs pairs of a stream, whose rows are positions."""

    def __init__(self, spool: Spool, **draws: Any) -> None:
        self._spool, self._draws = spool, draws
        self._start, self._end = 0, 0
        self._packer: Packer | None = None

    def step(self, rows: NDArray[np.int64], epochs: NDArray[np.int64], parts: int) -> GlobalStep:
        if self._packer is None or rows.min() < self._start or rows.max() >= self._end:
            self._start, table = self._spool.table(int(rows.min()), int(rows.max()))
            self._end = self._start + len(table)
            self._packer = packer_for(table, **self._draws)
        return self._packer.step(rows - self._start, epochs, parts)
