"""A dataset of token rows in memory-mapped record batches; the packers read from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROW_BITS = 40  # a pair id is (store number << 40) + row


class Batch(NamedTuple):
    """The columns of n rows, views without a copy.

    ``a``, ``b``: int32, the tokens of all rows; row i of side a is ``a[a_offsets[i]:a_offsets[i + 1]]``.
    ``a_offsets``, ``b_offsets``: int32 [n + 1]. ``groups``: int64 [n]. ``pair_ids``: int64 [n], or [1]: the id of the
    first row, if the ids are consecutive. ``name``: the file or folder, for error messages.
    """

    a: NDArray[np.int32]
    a_offsets: NDArray[np.int32]
    b: NDArray[np.int32]
    b_offsets: NDArray[np.int32]
    groups: NDArray[np.int64]
    pair_ids: NDArray[np.int64]
    name: str

    def ids(self, inner: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pair ids of the rows ``inner`` of this batch (both int64 [n])."""
        return self.pair_ids[0] + inner if len(self.pair_ids) == 1 else self.pair_ids[inner]


@dataclass(frozen=True)
class Rows:
    """Pairs read from a dataset. Row i of side a is ``a_tokens[a_offsets[i]:a_offsets[i + 1]]``, b likewise.

    ``a_tokens``, ``b_tokens``: int32 [Ta], [Tb], without special tokens. ``a_offsets``, ``b_offsets``: int64 [n + 1].
    ``pair_ids``, ``groups``: int64 [n].
    """

    a_tokens: NDArray[np.int32]
    a_offsets: NDArray[np.int64]
    b_tokens: NDArray[np.int32]
    b_offsets: NDArray[np.int64]
    pair_ids: NDArray[np.int64]
    groups: NDArray[np.int64]


class TokenDataset:
    """A dataset of ``len(dataset)`` rows in consecutive batches.

    ``starts``: int64 [batches + 1], the first row of each batch, then the number of rows. ``longest``: the tokens of
    the longest sentence of side a and of side b. Every read checks this limit, so a damaged file raises an error and
    never causes an out-of-bounds read. ``vocab_size``: the exclusive upper bound of token ids.
    """

    def __init__(self, batches: Sequence[Batch], longest: tuple[int, int], vocab_size: int) -> None:
        self.batches, self.longest, self.vocab_size = list(batches), longest, vocab_size
        self.starts = _offsets(np.array([len(batch.groups) for batch in self.batches], np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def pair_ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pair ids of the rows ``indices`` (both int64 [n]).

        Raises:
            IndexError: an index is negative or not below ``len(dataset)``.
        """
        ids = np.empty(len(indices), np.int64)
        for batch, inner, at in self._rows_by_batch(indices):
            ids[at] = batch.ids(inner)
        return ids

    def lengths(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token counts of the sides a and b of the rows ``indices``: two int32 [n]; reads only the offsets.

        Raises:
            IndexError: an index is negative or not below ``len(dataset)``.
            ValueError: a row exceeds its batch or ``longest``, because the file is damaged.
        """
        a_lengths, b_lengths = np.empty(len(indices), np.int32), np.empty(len(indices), np.int32)
        for batch, inner, at in self._rows_by_batch(indices):
            sides = (("a", batch.a, batch.a_offsets, a_lengths), ("b", batch.b, batch.b_offsets, b_lengths))
            for (side, values, offsets, lengths), longest in zip(sides, self.longest, strict=True):
                begins, ends = offsets[inner].astype(np.int64), offsets[inner + 1].astype(np.int64)
                bad = (begins < 0) | (ends < begins) | (ends > len(values)) | (ends - begins > longest)
                if bad.any():
                    first = int(bad.argmax())
                    raise ValueError(
                        f"{self.place(indices[at[first]], side)}: found tokens {begins[first]} to {ends[first]} of "
                        f"{len(values)}, expected at most {longest} tokens; the file is damaged, run prepare again"
                    )
                lengths[at] = ends - begins
        return a_lengths, b_lengths

    def rows(self, indices: NDArray[np.int64]) -> Rows:
        """Reads the rows ``indices`` (int64 [n]) in the given order; indices may repeat.

        Raises:
            IndexError: an index is negative or not below ``len(dataset)``.
            ValueError: a row exceeds its batch or ``longest``, because the file is damaged.
        """
        a_lengths, b_lengths = self.lengths(indices)
        a_offsets, b_offsets = _offsets(a_lengths), _offsets(b_lengths)
        a_tokens, b_tokens = np.empty(a_offsets[-1], np.int32), np.empty(b_offsets[-1], np.int32)
        groups = np.empty(len(indices), np.int64)
        for batch, inner, at in self._rows_by_batch(indices):
            _copy_rows(batch.a, batch.a_offsets, inner, a_tokens, a_offsets, at)
            _copy_rows(batch.b, batch.b_offsets, inner, b_tokens, b_offsets, at)
            groups[at] = batch.groups[inner]
        return Rows(a_tokens, a_offsets, b_tokens, b_offsets, self.pair_ids(indices), groups)

    def place(self, index: int, side: str) -> str:
        """Returns the start of an error message: the file or folder of a row, its row number there, and the side."""
        batch = self.batches[int(np.searchsorted(self.starts, index, side="right")) - 1]
        row = int(self.pair_ids(np.array([index]))[0]) & ((1 << ROW_BITS) - 1)
        return f"{batch.name}: row {row}, side {side}"

    def _rows_by_batch(
        self, indices: NDArray[np.int64]
    ) -> Iterator[tuple[Batch, NDArray[np.int64], NDArray[np.int64]]]:
        """Yields each batch that has some of the rows, with their positions in the batch and in ``indices``."""
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"rows: found {indices.min()} to {indices.max()}, expected 0 to {len(self) - 1}")
        numbers = np.searchsorted(self.starts, indices, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []:
            number = numbers[at[0]]
            yield self.batches[number], indices[at] - self.starts[number], at


def _offsets(lengths: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Returns int64 [n + 1]: 0 and the cumulative sums of integers [n]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _copy_rows(
    values: NDArray[np.int32],
    offsets: NDArray[np.int32],
    inner: NDArray[np.int64],
    tokens: NDArray[np.int32],
    into: NDArray[np.int64],
    at: NDArray[np.int64],
) -> None:
    """Copies the rows ``inner`` of one batch to the rows ``at`` of ``tokens``, without a Python loop."""
    begins, lengths = offsets[inner].astype(np.int64), into[at + 1] - into[at]
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # 0, 1, … within each row
    tokens[np.repeat(into[at], lengths) + steps] = values[np.repeat(begins, lengths) + steps]
