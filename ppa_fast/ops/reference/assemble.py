"""Assembles token rows of pairs into query, key and TLM sequences, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ppa_fast.ops.philox import STREAM_COIN, STREAM_MASKING, pair_words, threshold

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def boundaries(lengths: Tensor) -> Tensor:
    """The boundaries, int64 [S+1], of concatenated sequences of these lengths (int64 [S])."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def places(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """For every token of concatenated sequences of these lengths (int64 [S]): its sequence and its position in it,
    both int64 [T]."""
    sequence = torch.repeat_interleave(lengths)
    return sequence, torch.arange(len(sequence), device=lengths.device) - boundaries(lengths)[sequence]


def sides(swap: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the query side and of the key side, from the values of sides a and b; all [N]."""
    return torch.where(swap, b, a), torch.where(swap, a, b)


def coins(seed: int, epochs: Tensor, pair_ids: Tensor, input_shuffling: bool) -> Tensor:
    """Random input shuffling, bool [N]. False: a is the query side and b the key side; True: the reverse."""
    w0, _, _, _ = pair_words(seed, epochs, pair_ids, STREAM_COIN, torch.zeros_like(pair_ids))
    return (w0 >> 31).bool() & input_shuffling


def masking(
    first: Tensor, second: Tensor, pair_ids: Tensor, epochs: Tensor, seed: int, mask_probability: float
) -> tuple[Tensor, Words]:
    """Whether each position of ``[CLS] first [SEP] second [SEP]`` is selected (bool [T]), and its four random words.

    ``first``, ``second``: int64 [N], lengths without special tokens.
    """
    sequence, at = places(first + second + 3)
    special = (at == 0) | (at == first[sequence] + 1) | (at == (first + second + 2)[sequence])
    words = pair_words(seed, epochs[sequence], pair_ids[sequence], STREAM_MASKING, at)
    return ~special & (words[0] < threshold(mask_probability)), words


def count_rows(selected: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The cumulative number of selected positions by sequence, int64 [N+1]."""
    return boundaries(selected.long())[cu_seqlens]


def offsets_fault(offsets: Tensor, tokens: int) -> str:
    """The error in the boundaries of concatenated rows, "" if valid. ``tokens``: the total number of tokens."""
    if offsets[0] != 0 or offsets[-1] != tokens or (offsets.diff() < 0).any():
        return f"expected 0 first, {tokens} (the number of tokens) last, and no decrease"
    return ""


def flatten(parts: list[Tensor]) -> Tensor:
    """Concatenates the bytes of one-dimensional tensors in one int32 tensor, each padded with zeros to a multiple of 16
    bytes."""
    return torch.cat([F.pad(part.view(torch.uint8), (0, -part.nbytes % 16)) for part in parts]).view(torch.int32)


def assemble(
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
    seed: int,
    cls: int,
    sep: int,
    mask: int,
    vocab_size: int,
    mask_probability: float,
    input_shuffling: bool,
) -> Tensor:
    """The outputs in the order of ``ops.assemble``, in one buffer (see :func:`flatten`). Computes the layout itself and
    raises RuntimeError if the given one differs."""
    for name, offsets, tokens in (("a", a_offsets, a_tokens), ("b", b_offsets, b_tokens)):
        if fault := offsets_fault(offsets, len(tokens)):
            raise RuntimeError(f"{name}_offsets: {fault}")
        if ((tokens < 0) | (tokens.long() >= vocab_size)).any():  # int32 cannot hold a vocab_size of 2^31
            raise RuntimeError(
                f"{name}_tokens: found an id outside the vocabulary, expected ids from 0 to below vocab_size"
            )
    a_offsets, b_offsets = a_offsets.long(), b_offsets.long()
    swap = coins(seed, epochs, pair_ids, input_shuffling)
    query_length, key_length = sides(swap, a_offsets.diff(), b_offsets.diff())
    query_start, key_start = sides(swap, a_offsets[:-1], b_offsets[:-1] + len(a_tokens))
    source = torch.cat([a_tokens, b_tokens])

    def fill(ids: Tensor, at: Tensor, starts: Tensor, lengths: Tensor) -> None:
        """Sets ``ids`` to token ``at`` of the sentence where ``0 <= at < lengths``."""
        inside = (at >= 0) & (at < lengths)
        ids[inside] = source[(starts + at)[inside]]

    def sentences(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[CLS] sentence [SEP]``: tokens, boundaries, positions."""
        sequence, at = places(lengths + 2)
        ids = torch.where(at == 0, cls, sep).int()
        fill(ids, at - 1, starts[sequence], lengths[sequence])
        return ids, boundaries(lengths + 2).int(), at.int()

    query, query_bounds, query_positions = sentences(query_start, query_length)
    key, key_bounds, key_positions = sentences(key_start, key_length)

    tlm_bounds = boundaries(query_length + key_length + 3)
    sequence, at = places(query_length + key_length + 3)
    original = torch.where(at == 0, cls, sep).int()
    second_at = at - query_length[sequence] - 2
    fill(original, at - 1, query_start[sequence], query_length[sequence])
    fill(original, second_at, key_start[sequence], key_length[sequence])

    selected, (_, w1, w2, _) = masking(query_length, key_length, pair_ids, epochs, seed, mask_probability)
    drawn = torch.where(w1 < threshold(0.9), ((w2 * vocab_size) >> 32).int(), original)
    replaced = torch.where(w1 < threshold(0.8), mask, drawn)
    masked_positions = selected.nonzero().squeeze(1)

    if query_tokens != len(query) or not torch.equal(query_cu_seqlens, query_bounds):
        raise RuntimeError("query_cu_seqlens: not the layout of these pairs with this seed and input_shuffling")
    if masked != len(masked_positions) or not torch.equal(masked_offsets, count_rows(selected, tlm_bounds).int()):
        raise RuntimeError(
            "masked_offsets: not the layout of these pairs with this seed, mask_probability and input_shuffling"
        )
    return flatten(
        [
            query,
            query_positions,
            key,
            key_bounds,
            key_positions,
            torch.where(selected, replaced, original),
            tlm_bounds.int(),
            at.int(),
            masked_positions,
            original[masked_positions].long(),
            swap,
        ]
    )
