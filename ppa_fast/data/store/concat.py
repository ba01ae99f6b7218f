"""The stores of a run, concatenated in the given order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from ppa_fast.data.store.dataset import ROW_BITS, TokenDataset
from ppa_fast.data.store.store import Store
from ppa_fast.data.store.tokenize import SpecialIds
from ppa_fast.errors import UserError


class ConcatDataset(TokenDataset):
    """Concatenates stores that were prepared with the same tokenizer.

    Pair ids are ``(store number << 40) + row``; stores are numbered in the given order.

    ``language_pairs``: the distinct names, in the order of the stores. ``segments``: int64 [S, 3], runs of consecutive
    rows of one language pair: its index in ``language_pairs``, the first row, and the row after the last.
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
    def open(cls, paths: Sequence[str | Path]) -> ConcatDataset:
        """Opens the stores of a run.

        Raises:
            UserError: a store cannot be opened (see :meth:`Store.open`), is given twice, or has a different tokenizer
                or a different rule for groups than the first.
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
                    f"{tokenizer['name']}, which differs; expected the same tokenizer: prepare one of them again"
                )
            if store.manifest.get("group_rule") != stores[0].manifest.get("group_rule"):
                raise UserError(
                    f"data: {stores[0].path} and {store.path} were prepared by versions that group translations of one "
                    "sentence by different rules; prepare the older one again"
                )
        return cls(stores)

    @property
    def fingerprint(self) -> str:
        """A hash of the rows in order, 32 hex digits; for a single store, the store's fingerprint."""
        if len(self.stores) == 1:
            return self.stores[0].fingerprint
        return xxhash.xxh3_128_hexdigest("".join(store.fingerprint for store in self.stores).encode())

    @property
    def special(self) -> SpecialIds:
        """The special ids and the vocabulary size of the tokenizer."""
        return self.stores[0].special

    @property
    def max_tokens(self) -> int:
        """The maximum length of a sentence in tokens, without special tokens, over all stores."""
        return max(store.max_tokens for store in self.stores)

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows of each language pair."""
        index, begin, end = self.segments.T
        counts = np.bincount(index, end - begin, len(self.language_pairs)).astype(np.int64)
        return dict(zip(self.language_pairs, counts.tolist(), strict=True))
