"""From token rows of pairs to the three streams of a step: query sentences, key sentences, masked TLM sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppa_fast.ops.philox import STREAM_COIN, STREAM_MASKING, pair_words, threshold


@dataclass(frozen=True)
class Stream:
    """Sequences laid end to end.

    ``tokens``: int64 [T]; ``cu_seqlens``: int64 [S+1], the sequences' boundaries; ``positions``: int64 [T], a token's
    index in its own sequence; ``sequence``: int64 [T], the number of the sequence that a token belongs to.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    positions: Tensor
    sequence: Tensor

    def padded(self, pad: int) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask (bool), both [S, L] with L the longest sequence."""
        count, longest = len(self.cu_seqlens) - 1, int(self.positions.max()) + 1
        ids = self.tokens.new_full((count, longest), pad)
        mask = torch.zeros((count, longest), dtype=torch.bool, device=self.tokens.device)
        ids[self.sequence, self.positions] = self.tokens
        mask[self.sequence, self.positions] = True
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


def coins(seed: int, epochs: Tensor, pair_ids: Tensor) -> Tensor:
    """Random input shuffling: bool [N]; False: a is the query side and b the key side, True: the other way round."""
    w0, _, _, _ = pair_words(seed, epochs, pair_ids, STREAM_COIN, torch.zeros_like(pair_ids))
    return (w0 >> 31).bool()


def _lay_out(lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cu_seqlens [S+1], sequence [T] and positions [T] of sequences of these lengths."""
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    positions = torch.arange(len(sequence), device=lengths.device) - cu_seqlens[sequence]
    return cu_seqlens, sequence, positions


def _gather(source: Tensor, starts: Tensor, index: Tensor, inside: Tensor, otherwise: Tensor) -> Tensor:
    """``source[starts + index]`` where ``inside``, else ``otherwise``."""
    return torch.where(inside, source[torch.where(inside, starts + index, 0)], otherwise)


def assemble(
    a_tokens: Tensor,
    a_offsets: Tensor,
    b_tokens: Tensor,
    b_offsets: Tensor,
    pair_ids: Tensor,
    epochs: Tensor,
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
    ``(w2 * vocab_size) >> 32`` if ``w1 < T(0.9)``, else stays. Special = inserted here; no other token is exempt.

    Args:
        a_tokens, b_tokens: integer [Ta], [Tb], the rows of both sides laid end to end, without special tokens.
        a_offsets, b_offsets: integer [N+1], their boundaries.
        pair_ids, epochs: int64 [N].
        seed: of the run. cls, sep, mask: token ids. vocab_size: ids drawn are below it, specials included.
        input_shuffling: False makes side a the query of every pair.

    Returns:
        :class:`Assembled`, on the device of the arguments.
    """
    a_offsets, b_offsets = a_offsets.long(), b_offsets.long()
    swap = coins(seed, epochs, pair_ids) if input_shuffling else torch.zeros_like(pair_ids, dtype=torch.bool)
    source = torch.cat([a_tokens, b_tokens, a_tokens.new_zeros(1)]).long()  # one spare: an empty source can be indexed
    a_start, b_start = a_offsets[:-1], b_offsets[:-1] + len(a_tokens)
    a_length, b_length = a_offsets.diff(), b_offsets.diff()
    query_start, key_start = torch.where(swap, b_start, a_start), torch.where(swap, a_start, b_start)
    query_length, key_length = torch.where(swap, b_length, a_length), torch.where(swap, a_length, b_length)

    def sentence(starts: Tensor, lengths: Tensor) -> Stream:
        cu_seqlens, sequence, at = _lay_out(lengths + 2)
        inside = (at > 0) & (at <= lengths[sequence])
        special = torch.where(at == 0, cls, sep)
        return Stream(_gather(source, starts[sequence], at - 1, inside, special), cu_seqlens, at, sequence)

    cu_seqlens, sequence, at = _lay_out(query_length + key_length + 3)
    first, second = query_length[sequence], key_length[sequence]
    in_first = (at > 0) & (at <= first)
    in_second = (at > first + 1) & (at <= first + 1 + second)
    special = torch.where(at == 0, cls, sep)
    original = _gather(source, query_start[sequence], at - 1, in_first, special)
    original = _gather(source, key_start[sequence], at - first - 2, in_second, original)

    w0, w1, w2, _ = pair_words(seed, epochs[sequence], pair_ids[sequence], STREAM_MASKING, at)
    selected = (in_first | in_second) & (w0 < threshold(mask_probability))
    drawn = torch.where(w1 < threshold(0.9), (w2 * vocab_size) >> 32, original)
    replaced = torch.where(w1 < threshold(0.8), mask, drawn)
    masked_rows = selected.nonzero().squeeze(1)
    return Assembled(
        query=sentence(query_start, query_length),
        key=sentence(key_start, key_length),
        tlm=Stream(torch.where(selected, replaced, original), cu_seqlens, at, sequence),
        masked_rows=masked_rows,
        labels=original[masked_rows],
        swap=swap,
    )
