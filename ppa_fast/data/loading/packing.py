"""The host packer: splits the pairs of a global step into micro-batches with nearly equal numbers of tokens.

Each micro-batch is written into one buffer, together with the layout of its sequences. ``csrc/host/packer.cpp`` is the
native implementation. :class:`ReferencePacker` gives the same bits in NumPy and PyTorch; it runs if the native module
is not built or with ``PPA_FAST_BACKEND=reference``.
"""

from __future__ import annotations

import importlib
import os
from bisect import bisect_left
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppa_fast.data.store.dataset import TokenDataset
from ppa_fast.ops.assemble import layout
from ppa_fast.ops.philox import MASK32


class Sizes(NamedTuple):
    """The sizes of a micro-batch: pairs, tokens of the sides a and b, tokens of the queries, masked positions."""

    pairs: int
    a_tokens: int
    b_tokens: int
    query_tokens: int
    masked: int

    def sections(self) -> list[tuple[str, torch.dtype, int]]:
        """Name, dtype and length of the sections of a buffer, in order; each is aligned to 16 bytes, padded with 0."""
        rows = [(name, torch.int64, self.pairs) for name in ("pair_ids", "epochs", "groups", "step_indices")]
        names = ("a_offsets", "b_offsets", "query_cu_seqlens", "masked_offsets")
        bounds = [(name, torch.int32, self.pairs + 1) for name in names]
        tokens = [("a_tokens", torch.int32, self.a_tokens), ("b_tokens", torch.int32, self.b_tokens)]
        return [*rows, *bounds, *tokens]

    @property
    def bytes(self) -> int:
        return sum(_aligned(dtype.itemsize * length) for _, dtype, length in self.sections())

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Returns views of the sections of a buffer (uint8 [bytes], on any device), by name."""
        words = {dtype: buffer.view(dtype) for dtype in (torch.int64, torch.int32)}
        views, begin = {}, 0
        for name, dtype, length in self.sections():
            first = begin // dtype.itemsize
            views[name] = words[dtype][first : first + length]
            begin += _aligned(dtype.itemsize * length)
        return views


def _aligned(size: int) -> int:
    return (size + 15) // 16 * 16


class GlobalStep(Protocol):
    """The split of a global step: ``pairs`` of each micro-batch, and over the step ``masked``, the masked positions,
    and ``text_tokens``, the tokens of the sentences without special tokens."""

    @property
    def pairs(self) -> list[int]: ...

    @property
    def masked(self) -> int: ...

    @property
    def text_tokens(self) -> int: ...

    def sizes(self, number: int) -> tuple[int, ...]:
        """Returns the :class:`Sizes` of micro-batch ``number``; raises IndexError if it does not exist."""
        ...

    def fill(self, number: int, buffer: NDArray[np.uint8]) -> None:
        """Writes the sections of micro-batch ``number`` into a buffer of its size.

        Raises:
            ValueError: a token id is not in the vocabulary, because the file is damaged.
        """
        ...


class Packer(Protocol):
    """Packs pairs of a dataset."""

    def step(self, rows: NDArray[np.int64], epochs: NDArray[np.int64], parts: int) -> GlobalStep:
        """Splits pairs into ``parts`` micro-batches.

        The pairs are sorted by length (stable), and each micro-batch is a run of the sorted pairs. The runs minimize
        the number of tokens of the largest micro-batch; none is empty. A pair counts ``2 (a + b) + 7`` tokens, which
        the encoders read. The split does not change results: the objective's means are over the global step, and keys
        enter the queue by step index.

        Args:
            rows: int64 [B], rows of the dataset.
            epochs: int64 [B], the epoch of each row.

        Raises:
            IndexError: a row is negative or not below ``len(dataset)``.
            ValueError: ``parts`` is not 1 to B, a part has 2^31 or more tokens, or a row exceeds its batch or
                ``dataset.longest`` because the file is damaged.
        """
        ...


def _load() -> tuple[Any, str]:
    """Returns the native module and "", or None and the reason why it is not used."""
    if os.environ.get("PPA_FAST_BACKEND") == "reference":
        return None, "PPA_FAST_BACKEND=reference"
    try:
        return importlib.import_module("ppa_fast._packer"), ""
    except ImportError as error:
        return None, f"_packer is not built for this Python ({error})"


_native, WHY_NOT_NATIVE = _load()


def packer_for(table: TokenDataset, *, seed: int, mask_probability: float, input_shuffling: bool) -> Packer:
    """Returns the native packer if it is built (:data:`WHY_NOT_NATIVE` is empty), else the reference.

    Args:
        seed, mask_probability, input_shuffling: as in ``ops.assemble``.
    """
    if WHY_NOT_NATIVE:
        return ReferencePacker(table, seed, mask_probability, input_shuffling)
    return native_packer(table, seed, mask_probability, input_shuffling, threads=torch.get_num_threads())


def native_packer(
    table: TokenDataset, seed: int, mask_probability: float, input_shuffling: bool, threads: int
) -> Packer:
    """Returns the native packer, which reads the memory-mapped columns; ``threads`` share large steps."""
    return _native.Packer(
        batches=table.batches,
        longest_a=table.longest[0],
        longest_b=table.longest[1],
        vocab_size=table.vocab_size,
        seed=seed & MASK32,
        mask_probability=mask_probability,
        input_shuffling=input_shuffling,
        threads=threads,
    )


class ReferencePacker:
    """The packer in NumPy and PyTorch."""

    def __init__(self, table: TokenDataset, seed: int, mask_probability: float, input_shuffling: bool) -> None:
        self.table = table
        self.draws: dict[str, Any] = {
            "seed": seed,
            "mask_probability": mask_probability,
            "input_shuffling": input_shuffling,
        }

    def step(self, rows: NDArray[np.int64], epochs: NDArray[np.int64], parts: int) -> GlobalStep:
        if rows.shape != epochs.shape:
            raise ValueError(f"epochs: found {len(epochs)}, expected one for each of {len(rows)} rows")
        if not 1 <= parts <= len(rows):
            raise ValueError(f"parts: found {parts} micro-batches for {len(rows)} pairs, expected 1 to {len(rows)}")
        return _ReferenceStep(self, rows, epochs, parts)


class _ReferenceStep:
    def __init__(self, packer: ReferencePacker, rows: NDArray[np.int64], epochs: NDArray[np.int64], parts: int) -> None:
        self.table, self.rows, self.epochs = packer.table, rows, epochs
        a_lengths, b_lengths = self.table.lengths(rows)
        tokens = 2 * (a_lengths.astype(np.int64) + b_lengths) + 7
        order = np.argsort(tokens, kind="stable")
        self.step_indices = np.split(order, boundaries(tokens[order], parts)[1:-1])
        if (most := max(int(tokens[at].sum()) for at in self.step_indices)) >= 1 << 31:
            raise ValueError(
                f"parts: found {parts}, but one micro-batch has {most} tokens, expected fewer than 2^31; use more parts"
            )
        self._offsets = [(_running(a_lengths[at]), _running(b_lengths[at])) for at in self.step_indices]
        pair_ids = self.table.pair_ids(rows)
        self._layouts = [
            layout(*offsets, torch.from_numpy(pair_ids[at]), torch.from_numpy(epochs[at]), **packer.draws)
            for offsets, at in zip(self._offsets, self.step_indices, strict=True)
        ]

    @property
    def pairs(self) -> list[int]:
        return [len(at) for at in self.step_indices]

    @property
    def masked(self) -> int:
        return sum(layout.masked for layout in self._layouts)

    @property
    def text_tokens(self) -> int:
        return sum(int(a[-1]) + int(b[-1]) for a, b in self._offsets)

    def sizes(self, number: int) -> Sizes:
        (a_offsets, b_offsets), layout = self._offsets[number], self._layouts[number]
        pairs = len(self.step_indices[number])
        return Sizes(pairs, int(a_offsets[-1]), int(b_offsets[-1]), layout.query_tokens, layout.masked)

    def fill(self, number: int, buffer: NDArray[np.uint8]) -> None:
        sizes, at, layout = self.sizes(number), self.step_indices[number], self._layouts[number]
        if len(buffer) != sizes.bytes:
            raise ValueError(f"buffer: found {len(buffer)} bytes, expected {sizes.bytes}, the micro-batch's size")
        read = self.table.rows(self.rows[at])
        self._check_ids("a", self.rows[at], read.a_tokens, read.a_offsets)
        self._check_ids("b", self.rows[at], read.b_tokens, read.b_offsets)
        buffer[:] = 0
        for name, section in sizes.views(torch.from_numpy(buffer)).items():
            if name in ("query_cu_seqlens", "masked_offsets"):
                section.copy_(getattr(layout, name))
            else:
                values = {"epochs": self.epochs[at], "step_indices": at}
                section.copy_(torch.from_numpy(values[name] if name in values else getattr(read, name)))

    def _check_ids(
        self, side: str, rows: NDArray[np.int64], ids: NDArray[np.int32], offsets: NDArray[np.int64]
    ) -> None:
        size = self.table.vocab_size
        bad = np.flatnonzero((ids < 0) | (ids >= size))
        if len(bad):
            row = rows[np.searchsorted(offsets, bad[0], side="right") - 1]
            found = f"token id {ids[bad[0]]}, expected 0 to {size - 1}"
            raise ValueError(f"{self.table.place(row, side)}: {found}")


def _running(lengths: NDArray[np.int32]) -> Tensor:
    """Returns int32 [n + 1]: 0 and the cumulative sums of int32 [n]."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def boundaries(tokens: NDArray[np.int64], parts: int) -> list[int]:
    """Returns boundaries [parts + 1] of contiguous, non-empty runs that minimize the largest sum.

    For a bound on the sums, runs are filled greedily from the left. Bisection finds the smallest bound with at most
    ``parts`` runs. It is at most the mean plus the longest item: runs filled to that bound have at least the mean each.
    """
    sums = np.concatenate([[0], np.cumsum(tokens)])

    def reach(begin: int, largest: int) -> int:
        return int(np.searchsorted(sums, sums[begin] + largest, side="right")) - 1

    def fits(largest: int) -> bool:
        end = 0
        for _ in range(parts):
            end = reach(end, largest)
        return end == len(tokens)

    low = max(int(tokens.max()), -(-int(sums[-1]) // parts))
    largest = low + bisect_left(range(low, low + int(tokens.max())), True, key=fits)
    ends = [0]
    for left in range(parts - 1, -1, -1):  # leave at least one pair for each remaining part
        ends.append(min(reach(ends[-1], largest), len(tokens) - left))
    return ends
