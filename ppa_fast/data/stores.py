"""The stores of a run: one table, in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ppa_fast.data.encode import SpecialIds
from ppa_fast.data.pack import Packer, packer_for
from ppa_fast.data.store import Store
from ppa_fast.data.table import ROW_BITS, Table
from ppa_fast.errors import UserError


class Stores(Table):
    """Stores made with one tokenizer. Pair ids are ``(store number << 40) + row``, the stores numbered as given.

    ``language_pairs``: their names, each once, in the order of the stores. ``segments``: int64 [S, 3], runs of
    consecutive rows of one language pair: its index in ``language_pairs``, its first row, the row behind its last.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        batches = [
            batch._replace(pair_ids=batch.pair_ids + (number << ROW_BITS))
            for number, store in enumerate(stores)
            for batch in store.batches
        ]
        a, b = (max(store.longest[side] for store in stores) for side in (0, 1))
        super().__init__(batches, (a, b), stores[0].vocab_size)
        self.language_pairs = list(dict.fromkeys(name for store in stores for name in store.language_pairs))
        first, segments = 0, []
        for store in stores:
            indices = np.array([self.language_pairs.index(name) for name in store.language_pairs])
            index, begin, end = store.segments.T
            segments.append(np.stack([indices[index], begin + first, end + first], 1))
            first += len(store)
        self.segments: NDArray[np.int64] = np.concatenate(segments)

    @classmethod
    def open(cls, paths: Sequence[str | Path]) -> Stores:
        """Opens the stores of a run.

        Raises:
            UserError: one does not open (see :meth:`Store.open`), is given twice, or was made with another tokenizer
                than the first.
        """
        stores = [Store.open(path) for path in paths]
        first = stores[0].manifest["tokenizer"]
        for number, store in enumerate(stores):
            if store.path.resolve() in (other.path.resolve() for other in stores[:number]):
                raise UserError(f"data: {store.path} is given twice; expected each store once")
            tokenizer = store.manifest["tokenizer"]
            if tokenizer["fingerprint"] != first["fingerprint"]:
                raise UserError(
                    f"data: {stores[0].path} was prepared with the tokenizer {first['name']}, {store.path} with "
                    f"{tokenizer['name']}, which encodes otherwise; expected one tokenizer: prepare one of them again"
                )
        return cls(stores)

    def packer(self, **draws: Any) -> Packer:
        """See :func:`packer_for`."""
        return packer_for(self, **draws)

    @property
    def fingerprint(self) -> str:
        """Of the rows in order, 32 hex digits: of a single store its own."""
        if len(self.stores) == 1:
            return self.stores[0].fingerprint
        return xxhash.xxh3_128_hexdigest("".join(store.fingerprint for store in self.stores).encode())

    @property
    def special(self) -> SpecialIds:
        """The special ids and vocabulary size of the tokenizer that made the rows."""
        return self.stores[0].special

    @property
    def max_tokens(self) -> int:
        """The length that sentences were truncated to, special tokens not counted: the largest of the stores'."""
        return max(store.max_tokens for store in self.stores)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows each language pair has."""
        index, begin, end = self.segments.T
        counts = np.bincount(index, end - begin, len(self.language_pairs)).astype(np.int64)
        return dict(zip(self.language_pairs, counts.tolist(), strict=True))
