"""From token rows of pairs to the three streams of a step: query sentences, key sentences, masked TLM sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppa_fast.ops.checks import check, check_range
from ppa_fast.ops.library import operation
from ppa_fast.ops.philox import MASK32
from ppa_fast.ops.reference import assemble as reference


@dataclass(frozen=True)
class Stream:
    """Sequences laid end to end.

    ``tokens``: int32 [T]; ``cu_seqlens``: int32 [S+1], the sequences' boundaries; ``positions``: int32 [T], a token's
    index in its own sequence; ``lengths``: int64 [S], of the sequences, on the host.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    positions: Tensor
    lengths: NDArray[np.int64]

    @property
    def sequence(self) -> Tensor:
        """int32 [T], the number of the sequence that a token belongs to."""
        return torch.repeat_interleave(self.cu_seqlens.diff(), output_size=len(self.tokens))

    def padded(self, pad: int) -> tuple[Tensor, Tensor]:
        """Token ids (int32) and attention mask (bool), both [S, L] with L the longest sequence."""
        count, longest = len(self.cu_seqlens) - 1, int(self.positions.max()) + 1
        ids = self.tokens.new_full((count, longest), pad)
        mask = torch.zeros((count, longest), dtype=torch.bool, device=self.tokens.device)
        sequence = self.sequence
        ids[sequence, self.positions] = self.tokens
        mask[sequence, self.positions] = True
        return ids, mask


@dataclass(frozen=True)
class Assembled:
    """What one call of :func:`assemble` gives.

    ``query``, ``key``, ``tlm``: one sequence a pair each. ``masked_rows``: int64 [M], sorted indices into
    ``tlm.tokens`` of the selected tokens; ``labels``: int64 [M], their original ids. ``swap``: bool [N], the coin.
    """

    query: Stream
    key: Stream
    tlm: Stream
    masked_rows: Tensor
    labels: Tensor
    swap: Tensor


@dataclass(frozen=True)
class Layout:
    """What the host knows about N pairs before they are assembled: so nothing waits for the device to count.

    ``query_cu_seqlens``: int32 [N+1], boundaries of the query stream; ``masked_cu_rows``: int32 [N+1], running count of
    the masked rows, pair by pair; ``query_tokens`` and ``masked``: the last of each; ``query_lengths``,
    ``key_lengths``: int64 [N], specials included, which stay on the host.
    """

    query_cu_seqlens: Tensor
    masked_cu_rows: Tensor
    query_tokens: int
    masked: int
    query_lengths: NDArray[np.int64]
    key_lengths: NDArray[np.int64]


def _fake(
    a_tokens: Tensor,
    a_offsets: Tensor,
    b_tokens: Tensor,
    b_offsets: Tensor,
    pair_ids: Tensor,
    epochs: Tensor,
    query_cu_seqlens: Tensor,
    masked_cu_rows: Tensor,
    query_tokens: int,
    masked: int,
    *_: object,
) -> tuple[Tensor, ...]:
    pairs, ordinary = len(pair_ids), len(a_tokens) + len(b_tokens)
    key_tokens = ordinary + 4 * pairs - query_tokens
    bounds, tlm_tokens = pairs + 1, ordinary + 3 * pairs
    sizes = [query_tokens, query_tokens, key_tokens, bounds, key_tokens, tlm_tokens, bounds, tlm_tokens]
    return (
        *(a_tokens.new_empty(size, dtype=torch.int32) for size in sizes),
        *(a_tokens.new_empty(masked, dtype=torch.int64) for _ in range(2)),
        a_tokens.new_empty(pairs, dtype=torch.bool),
    )


_assemble = operation(
    "assemble(Tensor a_tokens, Tensor a_offsets, Tensor b_tokens, Tensor b_offsets, Tensor pair_ids, Tensor epochs, "
    "Tensor query_cu_seqlens, Tensor masked_cu_rows, SymInt query_tokens, SymInt masked, int seed, int cls, int sep, "
    "int mask, int vocab_size, float mask_probability, bool input_shuffling) "
    f"-> ({', '.join(['Tensor'] * 11)})",
    reference=reference.assemble,
    fake=_fake,
)


def layout(
    a_offsets: Tensor,
    b_offsets: Tensor,
    pair_ids: Tensor,
    epochs: Tensor,
    *,
    seed: int,
    mask_probability: float = 0.15,
    input_shuffling: bool = True,
) -> Layout:
    """Lays out the streams of N pairs on the host, from the lengths of their rows and their random decisions.

    Args:
        a_offsets, b_offsets: int32 [N+1], boundaries of the rows. pair_ids, epochs: int64 [N]. All on the CPU.
        seed, mask_probability, input_shuffling: as for :func:`assemble`.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.
    """
    check_range("mask_probability", mask_probability, 0.0, 1.0)
    check("pair_ids", pair_ids, [torch.int64], [None])
    check("epochs", epochs, [torch.int64], [len(pair_ids)], like=pair_ids)
    for name, offsets in (("a_offsets", a_offsets), ("b_offsets", b_offsets)):
        check(name, offsets, [torch.int32], [len(pair_ids) + 1], like=pair_ids)
        if fault := reference.offsets_fault(offsets, int(offsets[-1])):
            raise ValueError(f"{name}: {fault}")
    swap = reference.coins(seed, epochs, pair_ids, input_shuffling)
    query, key = reference.sides(swap, a_offsets.diff().long(), b_offsets.diff().long())
    selected, _ = reference.masking(query, key, pair_ids, epochs, seed, mask_probability)
    query_cu_seqlens = reference.boundaries(query + 2)
    masked_cu_rows = reference.count_rows(selected, reference.boundaries(query + key + 3))
    return Layout(
        query_cu_seqlens.int(),
        masked_cu_rows.int(),
        int(query_cu_seqlens[-1]),
        int(masked_cu_rows[-1]),
        (query + 2).numpy(),
        (key + 2).numpy(),
    )


def assemble(
    a_tokens: Tensor,
    a_offsets: Tensor,
    b_tokens: Tensor,
    b_offsets: Tensor,
    pair_ids: Tensor,
    epochs: Tensor,
    layout: Layout,
    *,
    seed: int,
    cls: int,
    sep: int,
    mask: int,
    vocab_size: int,
    mask_probability: float = 0.15,
    input_shuffling: bool = True,
) -> Assembled:
    """Coins, special tokens and TLM masking (paper, section 2; 80/10/10 as in BERT).

    The query stream is ``[CLS] query [SEP]``, the key stream ``[CLS] key [SEP]``, the TLM stream
    ``[CLS] query [SEP] key [SEP]`` with the masking applied. An ordinary token at position i of its TLM sequence is
    selected iff ``w0 < T(mask_probability)``; a selected one becomes ``mask`` if ``w1 < T(0.8)``, else the id
    ``(w2 * vocab_size) >> 32`` if ``w1 < T(0.9)``, else stays. Special = inserted here; no other token is exempt. Every
    backend agrees bit for bit.

    Args:
        a_tokens, b_tokens: int32 [Ta], [Tb], the rows of both sides laid end to end, without special tokens.
        a_offsets, b_offsets: int32 [N+1], their boundaries. Ta + Tb + 4 N is below 2^31.
        pair_ids, epochs: int64 [N]; epochs count modulo 2^32.
        layout: of these pairs, by :func:`layout` with the same seed, probability and shuffling, moved to their device.
        seed: of the run, modulo 2^32. cls, sep, mask: token ids, below vocab_size.
        vocab_size: 1 to 2^31; ids drawn are below it, specials included.
        input_shuffling: False makes side a the query of every pair.

    Returns:
        :class:`Assembled`, on the device of the arguments; nothing waits for the device.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.
        RuntimeError: on the CPU, what the tensors hold is wrong: offsets, a layout that does not fit, an id outside the
            vocabulary. CUDA could tell only by waiting for the device; it stays within bounds, and the streams are then
            undefined. Check on the host before: :func:`layout` checks the offsets.
    """
    check("pair_ids", pair_ids, [torch.int64], [None])
    pairs = len(pair_ids)
    for name, tensor, dtype, size in (
        ("a_tokens", a_tokens, torch.int32, None),
        ("a_offsets", a_offsets, torch.int32, pairs + 1),
        ("b_tokens", b_tokens, torch.int32, None),
        ("b_offsets", b_offsets, torch.int32, pairs + 1),
        ("epochs", epochs, torch.int64, pairs),
        ("layout.query_cu_seqlens", layout.query_cu_seqlens, torch.int32, pairs + 1),
        ("layout.masked_cu_rows", layout.masked_cu_rows, torch.int32, pairs + 1),
    ):
        check(name, tensor, [dtype], [size], like=pair_ids)
    ordinary = len(a_tokens) + len(b_tokens)
    check_range("a_tokens: tokens of both sides, and 4 a pair", ordinary + 4 * pairs, 0, 2**31 - 1)
    check_range("layout.query_tokens", layout.query_tokens, 2 * pairs, 2 * pairs + ordinary)
    check_range("layout.masked", layout.masked, 0, ordinary)
    check_range("vocab_size", vocab_size, 1, 2**31)
    for name, token in (("cls", cls), ("sep", sep), ("mask", mask)):
        check_range(name, token, 0, vocab_size - 1)
    check_range("mask_probability", mask_probability, 0.0, 1.0)
    query, query_at, key, key_bounds, key_at, tlm, tlm_bounds, tlm_at, masked_rows, labels, swap = _assemble(
        a_tokens,
        a_offsets,
        b_tokens,
        b_offsets,
        pair_ids,
        epochs,
        layout.query_cu_seqlens,
        layout.masked_cu_rows,
        layout.query_tokens,
        layout.masked,
        seed & MASK32,
        cls,
        sep,
        mask,
        vocab_size,
        mask_probability,
        input_shuffling,
    )
    return Assembled(
        query=Stream(query, layout.query_cu_seqlens, query_at, layout.query_lengths),
        key=Stream(key, key_bounds, key_at, layout.key_lengths),
        tlm=Stream(tlm, tlm_bounds, tlm_at, layout.query_lengths + layout.key_lengths - 1),
        masked_rows=masked_rows,
        labels=labels,
        swap=swap,
    )
