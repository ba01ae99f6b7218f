"""Assembles token rows of pairs into query sentences, key sentences and masked TLM sequences."""

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
class PackedSequences:
    """Concatenated sequences without padding.

    ``tokens``: int32 [T]; ``cu_seqlens``: int32 [S+1], the boundaries of the sequences; ``positions``: int32 [T], the
    index of each token in its sequence; ``lengths``: int64 [S], the sequence lengths, on the host.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    positions: Tensor
    lengths: NDArray[np.int64]

    @property
    def sequence(self) -> Tensor:
        """int32 [T], the index of each token's sequence."""
        return torch.repeat_interleave(self.cu_seqlens.diff(), output_size=len(self.tokens))

    def padded(self, pad: int) -> tuple[Tensor, Tensor]:
        """Token ids (int32) and attention mask (bool), both [S, L], where L is the maximum sequence length."""
        count, max_seqlen = len(self.cu_seqlens) - 1, int(self.positions.max()) + 1
        ids = self.tokens.new_full((count, max_seqlen), pad)
        mask = torch.zeros((count, max_seqlen), dtype=torch.bool, device=self.tokens.device)
        sequence = self.sequence
        ids[sequence, self.positions] = self.tokens
        mask[sequence, self.positions] = True
        return ids, mask


@dataclass(frozen=True)
class AssembledBatch:
    """The result of :func:`assemble`.

    ``query``, ``key``, ``tlm``: one sequence per pair each. ``masked_positions``: int64 [M], the sorted indices of the
    selected tokens in ``tlm.tokens``; ``labels``: int64 [M], their original ids. ``is_swapped``: bool [N], whether side
    b is the query.
    """

    query: PackedSequences
    key: PackedSequences
    tlm: PackedSequences
    masked_positions: Tensor
    labels: Tensor
    is_swapped: Tensor


@dataclass(frozen=True)
class Layout:
    """The output sizes for N pairs, computed on the host, so that :func:`assemble` does not synchronize.

    ``query_cu_seqlens``: int32 [N+1], the boundaries of the query sequences; ``masked_offsets``: int32 [N+1], the
    cumulative number of masked positions by pair; ``query_tokens`` and ``masked``: the last element of each;
    ``query_lengths``, ``key_lengths``: int64 [N], specials included, always on the host.
    """

    query_cu_seqlens: Tensor
    masked_offsets: Tensor
    query_tokens: int
    masked: int
    query_lengths: NDArray[np.int64]
    key_lengths: NDArray[np.int64]


def _word_counts(pairs: int, ordinary: int, query_tokens: int, masked: int) -> list[int]:
    """The sizes of the operator's outputs in its int32 buffer, in words of 4 bytes: the query, key and TLM sequences,
    ``masked_positions`` and ``labels`` (int64), and ``is_swapped`` (bool)."""
    key_tokens, tlm_tokens, bounds = ordinary + 4 * pairs - query_tokens, ordinary + 3 * pairs, pairs + 1
    streams = [query_tokens, query_tokens, key_tokens, bounds, key_tokens, tlm_tokens, bounds, tlm_tokens]
    return [*streams, 2 * masked, 2 * masked, (pairs + 3) // 4]


def _fake(
    a_tokens: Tensor,
    a_offsets: Tensor,
    b_tokens: Tensor,
    b_offsets: Tensor,
    pair_ids: Tensor,
    epochs: Tensor,
    query_cu_seqlens: Tensor,
    masked_offsets: Tensor,
    query_tokens: int,
    masked: int,
    *_: object,
) -> Tensor:
    words = _word_counts(len(pair_ids), len(a_tokens) + len(b_tokens), query_tokens, masked)
    return a_tokens.new_empty(sum((size + 3) // 4 * 4 for size in words), dtype=torch.int32)


_assemble = operation(
    "assemble(Tensor a_tokens, Tensor a_offsets, Tensor b_tokens, Tensor b_offsets, Tensor pair_ids, Tensor epochs, "
    "Tensor query_cu_seqlens, Tensor masked_offsets, SymInt query_tokens, SymInt masked, int seed, int cls, int sep, "
    "int mask, int vocab_size, float mask_probability, bool input_shuffling) "
    "-> Tensor",
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
    """Computes the layout of N pairs on the host, from the lengths of their rows and their random decisions.

    Args:
        a_offsets, b_offsets: int32 [N+1], boundaries of the rows, on the CPU.
        pair_ids, epochs: int64 [N], on the CPU.
        seed, mask_probability, input_shuffling: as for :func:`assemble`.

    Raises:
        TypeError, ValueError: invalid argument; the message names it.
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
    masked_offsets = reference.count_rows(selected, reference.boundaries(query + key + 3))
    return Layout(
        query_cu_seqlens.int(),
        masked_offsets.int(),
        int(query_cu_seqlens[-1]),
        int(masked_offsets[-1]),
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
) -> AssembledBatch:
    """Shuffles the sides, inserts special tokens and applies TLM masking (paper, section 2; 80/10/10 as in BERT).

    Query sequences are ``[CLS] query [SEP]``, key sequences ``[CLS] key [SEP]``, and TLM sequences
    ``[CLS] query [SEP] key [SEP]`` with masking. A token at position i of its TLM sequence is selected iff
    ``w0 < T(mask_probability)`` and it is not a special token inserted here. A selected token becomes ``mask`` if
    ``w1 < T(0.8)``, the id ``(w2 * vocab_size) >> 32`` if ``T(0.8) <= w1 < T(0.9)``, and stays unchanged otherwise. All
    backends agree bit for bit.

    Args:
        a_tokens, b_tokens: int32 [Ta], [Tb], the concatenated rows of each side, without special tokens.
        a_offsets, b_offsets: int32 [N+1], their boundaries. Ta + Tb + 4 N must be below 2^31.
        pair_ids, epochs: int64 [N]; epochs are taken modulo 2^32.
        layout: the result of :func:`layout` for these pairs, with the same seed, probability and shuffling, moved to
            their device.
        seed: the run's seed, modulo 2^32.
        cls, sep, mask: token ids, below vocab_size.
        vocab_size: 1 to 2^31. Random replacements are drawn from all ids below it, specials included.
        input_shuffling: if False, side a is the query of every pair.

    Returns:
        :class:`AssembledBatch`, on the device of the arguments: views of one allocation, each aligned to 16 bytes.
        Does not synchronize.

    Raises:
        TypeError, ValueError: invalid argument; the message names it.
        RuntimeError: on the CPU, if the tensors' values are invalid: offsets, a layout of other pairs, or an id outside
            the vocabulary. CUDA does not check values, because that would synchronize; it stays within bounds, but the
            result is undefined. :func:`layout` checks the offsets on the host.
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
        ("layout.masked_offsets", layout.masked_offsets, torch.int32, pairs + 1),
    ):
        check(name, tensor, [dtype], [size], like=pair_ids)
    ordinary = len(a_tokens) + len(b_tokens)
    check_range("a_tokens: number of tokens of both sides plus 4 per pair", ordinary + 4 * pairs, 0, 2**31 - 1)
    check_range("layout.query_tokens", layout.query_tokens, 2 * pairs, 2 * pairs + ordinary)
    check_range("layout.masked", layout.masked, 0, ordinary)
    check_range("vocab_size", vocab_size, 1, 2**31)
    for name, token in (("cls", cls), ("sep", sep), ("mask", mask)):
        check_range(name, token, 0, vocab_size - 1)
    check_range("mask_probability", mask_probability, 0.0, 1.0)
    buffer = _assemble(
        a_tokens,
        a_offsets,
        b_tokens,
        b_offsets,
        pair_ids,
        epochs,
        layout.query_cu_seqlens,
        layout.masked_offsets,
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
    words = _word_counts(pairs, ordinary, layout.query_tokens, layout.masked)
    # The unsafe variant skips autograd's view tracking, which halves the time; integers have no gradient.
    sections = torch.unsafe_split_with_sizes(buffer, [size for used in words for size in (used, -used % 4)])[::2]
    query, query_at, key, key_bounds, key_at, tlm, tlm_bounds, tlm_at, masked_positions, labels, swap = sections
    return AssembledBatch(
        query=PackedSequences(query, layout.query_cu_seqlens, query_at, layout.query_lengths),
        key=PackedSequences(key, key_bounds, key_at, layout.key_lengths),
        tlm=PackedSequences(tlm, tlm_bounds, tlm_at, layout.query_lengths + layout.key_lengths - 1),
        masked_positions=masked_positions.view(torch.int64),
        labels=labels.view(torch.int64),
        is_swapped=swap.view(torch.bool)[:pairs],
    )
