"""The host packer: a global step's pairs cut into micro-batches of nearly equal tokens, each gathered into one buffer
together with the layout of its streams.

``csrc/host/packer.cpp`` does it natively; :class:`ReferencePacker` is the same in NumPy and PyTorch, equal bit for bit,
and runs where the module is not built or with ``PPA_FAST_BACKEND=reference``.
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

from ppa_fast.data.table import Table
from ppa_fast.ops.assemble import layout
from ppa_fast.ops.philox import MASK32


class Sizes(NamedTuple):
    """Of a micro-batch: pairs, tokens of the sides a and b, tokens of the query stream, masked rows."""

    pairs: int
    a_tokens: int
    b_tokens: int
    query_tokens: int
    masked: int

    def sections(self) -> list[tuple[str, torch.dtype, int]]:
        """Name, type and length of what a micro-batch's buffer holds, in this order, each from a multiple of 16 bytes
        on (what lies between is 0)."""
        rows = [(name, torch.int64, self.pairs) for name in ("pair_ids", "epochs", "groups", "positions")]
        names = ("a_offsets", "b_offsets", "query_cu_seqlens", "masked_cu_rows")
        bounds = [(name, torch.int32, self.pairs + 1) for name in names]
        tokens = [("a_tokens", torch.int32, self.a_tokens), ("b_tokens", torch.int32, self.b_tokens)]
        return [*rows, *bounds, *tokens]

    @property
    def bytes(self) -> int:
        return sum(_aligned(dtype.itemsize * length) for _, dtype, length in self.sections())

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The sections of a buffer (uint8 [bytes], on any device), by name, without a copy."""
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
    """The cut of a global step: ``pairs`` of each micro-batch; of all of them ``masked``, the masked rows, and
    ``text_tokens``, the tokens of the sentences, special tokens not counted."""

    @property
    def pairs(self) -> list[int]: ...

    @property
    def masked(self) -> int: ...

    @property
    def text_tokens(self) -> int: ...

    def sizes(self, number: int) -> tuple[int, ...]:
        """:class:`Sizes` of micro-batch ``number``. Raises IndexError where there is none."""
        ...

    def fill(self, number: int, buffer: NDArray[np.uint8]) -> None:
        """Writes the sections of micro-batch ``number`` into a buffer of its size.

        Raises:
            ValueError: a token id is not in the vocabulary: the file is damaged.
        """
        ...


class Packer(Protocol):
    """Packs pairs of one table for one run."""

    def step(self, rows: NDArray[np.int64], epochs: NDArray[np.int64], parts: int) -> GlobalStep:
        """Cuts the pairs at these rows of the table, drawn for these epochs (both [B]), into ``parts`` micro-batches.

        A micro-batch is a run of pairs in the order of their length (equal ones in the order given), so that neighbours
        in length are together; the runs end where the largest has as few tokens as can be, and none is empty. The
        tokens are those that the encoders read, ``2 (a + b) + 7`` of a pair. The cut changes no result: the objective's
        means are over the global step, and keys enter the queue by position.

        Raises:
            IndexError: a row is negative or not below ``len(table)``.
            ValueError: not 1 to B parts, more than 2^31 tokens in one, or a row that leaves its batch or is longer than
                ``table.longest``: the file is damaged.
        """
        ...


def _load() -> tuple[Any, str]:
    """The native module, or why it is not used."""
    if os.environ.get("PPA_FAST_BACKEND") == "reference":
        return None, "PPA_FAST_BACKEND=reference"
    try:
        return importlib.import_module("ppa_fast._packer"), ""
    except ImportError as error:
        return None, f"_packer is not built for this Python ({error})"


_native, WHY_NOT_NATIVE = _load()


def packer_for(table: Table, *, seed: int, mask_probability: float, input_shuffling: bool) -> Packer:
    """The packer of a run: native where it is built (:data:`WHY_NOT_NATIVE` is empty), else the reference.

    Args:
        seed, mask_probability, input_shuffling: of ``ops.assemble``, which gets the micro-batches.
    """
    if WHY_NOT_NATIVE:
        return ReferencePacker(table, seed, mask_probability, input_shuffling)
    return native_packer(table, seed, mask_probability, input_shuffling, threads=torch.get_num_threads())


def native_packer(table: Table, seed: int, mask_probability: float, input_shuffling: bool, threads: int) -> Packer:
    """The native packer over the table's memory-mapped columns; a step of many pairs is shared by ``threads``."""
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

    def __init__(self, table: Table, seed: int, mask_probability: float, input_shuffling: bool) -> None:
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
            raise ValueError(f"parts: found {parts} micro-batches for {len(rows)} pairs, expected 1 to one a pair")
        return _ReferenceStep(self, rows, epochs, parts)


class _ReferenceStep:
    def __init__(self, packer: ReferencePacker, rows: NDArray[np.int64], epochs: NDArray[np.int64], parts: int) -> None:
        self.table, self.rows, self.epochs = packer.table, rows, epochs
        a_lengths, b_lengths = self.table.lengths(rows)
        tokens = 2 * (a_lengths.astype(np.int64) + b_lengths) + 7
        order = np.argsort(tokens, kind="stable")
        self.positions = np.split(order, boundaries(tokens[order], parts)[1:-1])
        if (most := max(int(tokens[at].sum()) for at in self.positions)) >= 1 << 31:
            raise ValueError(
                f"parts: found {parts}, of which one has {most} tokens, expected less than 2^31; cut into more"
            )
        self._offsets = [(_running(a_lengths[at]), _running(b_lengths[at])) for at in self.positions]
        pair_ids = self.table.pair_ids(rows)
        self._layouts = [
            layout(*offsets, torch.from_numpy(pair_ids[at]), torch.from_numpy(epochs[at]), **packer.draws)
            for offsets, at in zip(self._offsets, self.positions, strict=True)
        ]

    @property
    def pairs(self) -> list[int]:
        return [len(at) for at in self.positions]

    @property
    def masked(self) -> int:
        return sum(layout.masked for layout in self._layouts)

    @property
    def text_tokens(self) -> int:
        return sum(int(a[-1]) + int(b[-1]) for a, b in self._offsets)

    def sizes(self, number: int) -> Sizes:
        (a_offsets, b_offsets), layout = self._offsets[number], self._layouts[number]
        pairs = len(self.positions[number])
        return Sizes(pairs, int(a_offsets[-1]), int(b_offsets[-1]), layout.query_tokens, layout.masked)

    def fill(self, number: int, buffer: NDArray[np.uint8]) -> None:
        sizes, at, layout = self.sizes(number), self.positions[number], self._layouts[number]
        if len(buffer) != sizes.bytes:
            raise ValueError(f"buffer: {len(buffer)} bytes are not the micro-batch's size")
        read = self.table.rows(self.rows[at])
        self._check_ids("a", self.rows[at], read.a_tokens, read.a_offsets)
        self._check_ids("b", self.rows[at], read.b_tokens, read.b_offsets)
        buffer[:] = 0
        for name, section in sizes.views(torch.from_numpy(buffer)).items():
            if name in ("query_cu_seqlens", "masked_cu_rows"):
                section.copy_(getattr(layout, name))
            else:
                values = {"epochs": self.epochs[at], "positions": at}
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
    """int32 [n + 1]: 0 and the running sums of int32 [n]."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def boundaries(tokens: NDArray[np.int64], parts: int) -> list[int]:
    """Boundaries [parts + 1] of contiguous runs, none empty, whose largest sum is as small as can be.

    A largest sum allows the runs that are filled up to it from the left; the least one that gets along with ``parts``
    of them is found by bisection. It is at most the mean plus the longest: runs filled up to that have the mean each.
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
    for left in range(parts - 1, -1, -1):  # a pair for each of the parts that are left
        ends.append(min(reach(ends[-1], largest), len(tokens) - left))
    return ends
