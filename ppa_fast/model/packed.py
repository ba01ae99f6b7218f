"""The encoder over sequences laid end to end: one row of T tokens, no padding, attention within each sequence.

Everything but attention works token by token and needs no change. Attention is a function registered with transformers
(:data:`ATTENTION`); :func:`packed_hidden` hands it the sequences' boundaries through the encoder's keyword arguments.
Called without them, as for padded batches, it is transformers' own SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ppa_fast.errors import UserError
from ppa_fast.model import POOLINGS
from ppa_fast.model.encoder import max_sequence
from ppa_fast.ops.assemble import Stream

ATTENTION = "ppa_fast_packed"
"""Name of the attention function. Set it where a model is loaded (``attn_implementation=``) or afterwards by
``model.set_attn_implementation``; transformers saves no such name with a model."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Sequences of similar length, padded to the longest of their block; the blocks' rows lie in one buffer.

    ``slots``: int64 [T], a token's row in the buffer; ``shapes``: a block's (sequences, width); ``masks``: which of a
    block's rows are tokens, bool [sequences, 1, 1, width].
    """

    slots: Tensor
    shapes: list[tuple[int, int]]
    masks: list[Tensor]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], device: torch.device) -> Blocks:
        """Blocks of sequences of these lengths, on ``device``; made on the host, so that nothing waits for it."""
        order = np.argsort(lengths, kind="stable")
        ascending = lengths[order]
        starts = np.empty_like(lengths)  # the row of each sequence's first token
        shapes = []
        first = size = 0
        while first < len(order):
            # Up to a fifth longer: about 10 calls a layer for sentences, and one row in ten is padding.
            end = int(np.searchsorted(ascending, ascending[first] * 1.2, side="right"))
            count, width = end - first, int(ascending[end - 1])
            starts[order[first:end]] = size + width * np.arange(count)
            shapes.append((count, width))
            first, size = end, size + count * width
        shifts = starts - (lengths.cumsum() - lengths)
        slots = torch.from_numpy(np.repeat(shifts, lengths) + np.arange(lengths.sum())).to(device, non_blocking=True)
        tokens = torch.zeros(size, dtype=torch.bool, device=device).index_fill(0, slots, True)
        parts = tokens.split([count * width for count, width in shapes])
        return cls(slots, shapes, [part.view(n, 1, 1, width) for part, (n, width) in zip(parts, shapes, strict=True)])


class Packing(NamedTuple):
    """Where S sequences lie in a packed row, for every layer of one forward.

    ``cu_seqlens``: int32 [S+1], their boundaries; ``longest``: length of the longest; ``blocks``: None for flash
    attention, which needs no more than that.
    """

    cu_seqlens: Tensor
    longest: int
    blocks: Blocks | None


def has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether PyTorch has flash attention for heads of this width on the device."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and width % 8 == 0
        and width <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, dropout: float, scale: float
) -> Tensor:
    """Attention within each sequence: query, key, value [T, heads, D] → [T, heads, D], half precision on CUDA."""
    # torch.nn.attention.varlen has no dropout; the operator beneath it has, and a backward.
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seqlens, cu_seqlens, longest, longest, dropout, False, False, scale=scale
    )[0]
    return output


# Shapes differ from batch to batch: a compiled version would be compiled anew each time.
@torch.compiler.disable
def block_attention(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, dropout: float, scale: float) -> Tensor:
    """As :func:`flash_attention`, of any type on any device: SDPA over padded blocks."""
    heads, width = query.shape[1:]
    rows = [count * longest for count, longest in blocks.shapes]
    buffers = [x.new_zeros(sum(rows), heads, width).index_copy(0, blocks.slots, x) for x in (query, key, value)]
    outputs = []
    for *parts, (count, longest), mask in zip(
        *(buffer.split(rows) for buffer in buffers), blocks.shapes, blocks.masks, strict=True
    ):
        q, k, v = (part.view(count, longest, heads, width).transpose(1, 2) for part in parts)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        outputs.append(output.transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(outputs).index_select(0, blocks.slots)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query, key, value [B, heads, L, D] → [B, L, heads, D]."""
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if packing.blocks is None:
        output = flash_attention(q, k, v, packing.cu_seqlens, packing.longest, dropout, scaling)
    else:
        output = block_attention(q, k, v, packing.blocks, dropout, scaling)
    return output[None], None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def join(*streams: Stream) -> Stream:
    """One stream of all sequences of ``streams``, in order; the tokens of the first come first."""
    starts = accumulate((len(stream.tokens) for stream in streams[:-1]), initial=0)
    bounds = [stream.cu_seqlens[1:] + start for stream, start in zip(streams, starts, strict=True)]
    return Stream(
        torch.cat([stream.tokens for stream in streams]),
        torch.cat([streams[0].cu_seqlens[:1], *bounds]),
        torch.cat([stream.positions for stream in streams]),
        np.concatenate([stream.lengths for stream in streams]),
    )


def packed_hidden(encoder: nn.Module, stream: Stream, layer: int | None = None) -> Tensor:
    """The encoder's last layer [T, H] over a packed stream, in one forward; no token sees another sequence.

    On CUDA in half precision attention is flash attention over the boundaries, elsewhere SDPA over blocks of similar
    length. Dropout is the encoder's own. Nothing here waits for the device.

    Args:
        encoder: the encoder of a model of one of ``encoder.FAMILIES`` whose attention is :data:`ATTENTION`.
        stream: S sequences, on the encoder's device.
        layer: another layer than the last: 0 the embeddings, 1 … L the layers.

    Raises:
        ValueError: the attention is another one, which would look across sequences; or the stream's lengths do not
            fit its tokens or pass the encoder's positions.
    """
    config: Any = encoder.config
    if config._attn_implementation != ATTENTION:
        raise ValueError(f"encoder: found attention {config._attn_implementation!r}, expected {ATTENTION!r}")
    lengths = stream.lengths
    tokens, sequences, limit = len(stream.tokens), len(stream.cu_seqlens) - 1, max_sequence(config)
    if sequences < 1 or lengths.shape != (sequences,) or lengths.sum() != tokens or lengths.min() < 1:
        raise ValueError(f"lengths: expected {sequences} lengths of at least 1, together {tokens}, found {lengths}")
    longest, device = int(lengths.max()), stream.tokens.device
    if longest > limit:
        raise ValueError(f"lengths: found a sequence of {longest} tokens; the encoder has {limit} positions")
    flash = has_flash(device, next(encoder.parameters()).dtype, config.hidden_size // config.num_attention_heads)
    packing = Packing(stream.cu_seqlens, longest, None if flash else Blocks.of(lengths, device))
    # XLM-R numbers positions from pad_id + 1. int64: transformers gathers the token types, all zero, by them.
    positions = stream.positions.long() + (config.max_position_embeddings - limit)
    output = encoder(
        input_ids=stream.tokens[None],
        position_ids=positions[None],
        packing=packing,
        output_hidden_states=layer is not None,
    )
    hidden: Tensor = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return hidden[0]


def compile_layers(encoder: nn.Module) -> None:
    """``torch.compile`` of each layer, in place and under the same parameter names; all lengths share one compilation.

    The layers run the same code, so the first one's compilation serves all. Where attention is over blocks it stays as
    it is, between two compiled halves.
    """
    stack: Any = encoder
    for layer in stack.encoder.layer:
        layer.compile(dynamic=True)


def pool_packed(hidden: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """Sentence vectors [S, H] of packed ``hidden`` [T, H], in its type; ``cu_seqlens`` int32 [S+1].

    ``cls`` takes the first token's vector (the paper's choice), ``mean`` the mean over all tokens of the sentence,
    specials included, summed in fp32. Raises UserError for another ``pooling``.
    """
    if pooling == "cls":
        return hidden.index_select(0, cu_seqlens[:-1])
    if pooling != "mean":
        raise UserError(f"pooling: found {pooling!r}, expected one of {', '.join(POOLINGS)}")
    return torch.segment_reduce(hidden.float(), "mean", offsets=cu_seqlens.long(), axis=0).to(hidden.dtype)
