"""Runs the encoder over packed sequences: one row of T tokens, no padding, attention within each sequence.

All layers except attention work on single tokens and stay unchanged. Attention is a function registered with
transformers (:data:`ATTENTION`). :func:`packed_hidden` passes it the sequence boundaries through the encoder's keyword
arguments. The layers pass it the heads, scale, dropout and window of local attention. Without boundaries, as for padded
batches, it calls transformers' own SDPA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from ppa_fast.model.encoder import max_sequence
from ppa_fast.model.families import family_of
from ppa_fast.ops.assemble import PackedSequences
from ppa_fast.settings import POOLINGS

ATTENTION = "ppa_fast_packed"
"""Name of the attention function. Set it when loading a model (``attn_implementation=``) or later with
``model.set_attn_implementation``. transformers does not save this name with a model."""


# Not frozen: torch 2.11 guards all fields of a frozen dataclass and would recompile for each number of blocks.
@dataclass(eq=False)
class Blocks:
    """Sequences of similar length, padded to the longest in their block; one buffer holds the rows of all blocks.

    ``slots``: int64 [T], each token's row in the buffer; ``shapes``: each block's (sequences, width); ``masks``: for
    each block bool [sequences, 1, 1, width], True for tokens.
    """

    slots: Tensor
    shapes: list[tuple[int, int]]
    masks: list[Tensor]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], device: torch.device) -> Blocks:
        """Blocks for sequences of these lengths, on ``device``; computed on the host to avoid synchronization."""
        order = np.argsort(lengths, kind="stable")
        ascending = lengths[order]
        starts = np.empty_like(lengths)  # the row of each sequence's first token
        shapes = []
        first = size = 0
        while first < len(order):
            # Lengths in a block differ by up to 20%: about 10 calls per layer for sentences, 10% padding.
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
    """Layout of S sequences in a packed row, shared by all layers of one forward.

    ``cu_seqlens``: int32 [S+1], sequence boundaries; ``max_seqlen``: the longest length; ``blocks``: None for flash
    attention, which does not need them.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    blocks: Blocks | None


def has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether PyTorch supports flash attention for heads of this width on the device."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and width % 8 == 0
        and width <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout: float,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention within each sequence: query, key, value [T, heads, D] → [T, heads, D], half precision on CUDA.

    With ``window`` w, a token attends to tokens less than w positions away.
    """
    reach = {} if window is None else {"window_size_left": window - 1, "window_size_right": window - 1}
    # torch.nn.attention.varlen lacks dropout; its underlying operator supports dropout and backward.
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout, False, False, scale=scale, **reach
    )[0]
    return output


def band_mask(mask: Tensor, window: int) -> Tensor:
    """Attention mask of local attention, bool [sequences, 1, width, width]; ``mask`` as in :class:`Blocks`."""
    places = torch.arange(mask.shape[-1], device=mask.device)
    near = (places - places[:, None]).abs() < window
    # Padding rows attend to all tokens: a fully masked row would have non-finite gradients.
    return mask & (near | ~mask.transpose(-1, -2))


# Shapes differ between batches: a compiled version would be recompiled each time.
@torch.compiler.disable
def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Blocks,
    dropout: float,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Same as :func:`flash_attention`, for any dtype and device: SDPA over padded blocks."""
    heads, width = query.shape[1:]
    rows = [count * longest for count, longest in blocks.shapes]
    buffers = [x.new_zeros(sum(rows), heads, width).index_copy(0, blocks.slots, x) for x in (query, key, value)]
    outputs = []
    for *parts, (count, longest), mask in zip(
        *(buffer.split(rows) for buffer in buffers), blocks.shapes, blocks.masks, strict=True
    ):
        q, k, v = (part.view(count, longest, heads, width).transpose(1, 2) for part in parts)
        if window is not None and window < longest:
            mask = band_mask(mask, window)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        outputs.append(output.transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(outputs).index_select(0, blocks.slots)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, dropout: float, scale: float, window: int | None = None
) -> Tensor:
    """Attention within each sequence of a packed row: [T, heads, D] → [T, heads, D]; keys may have fewer heads."""
    if k.shape[1] < q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if packing.blocks is None:
        return flash_attention(q, k, v, packing.cu_seqlens, packing.max_seqlen, dropout, scale, window)
    return block_attention(q, k, v, packing.blocks, dropout, scale, window)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention interface of transformers: query, key, value [B, heads, L, D] → [B, L, heads, D].

    ``sliding_window`` w: a token attends to tokens less than w away; padded batches use ``attention_mask`` instead.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    # squeeze(0), not x[0]: the backward of x[0] would copy each gradient into a tensor of zeros.
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    return _attend(q, k, v, packing, dropout, scaling, sliding_window).unsqueeze(0), None


def _self_attention(
    module: Any, plain: Callable[..., Any], hidden: Tensor, *args: Any, packing: Packing | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The forward of a self-attention ``module`` over a packed row [1, T, H]; ``plain`` is its original forward."""
    if packing is None:
        return plain(hidden, *args, **kwargs)
    layers = module.query, module.key, module.value
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    q, k, v = F.linear(hidden, weight, bias).view(hidden.shape[1], 3, -1, module.attention_head_size).unbind(1)
    attended = _attend(q, k, v, packing, module.dropout.p if module.training else 0.0, module.scaling)
    return attended.flatten(1).unsqueeze(0), None


def fuse_projections(encoder: nn.Module) -> None:
    """Makes packed forwards compute query, key and value of a layer with one product instead of three.

    Works in place; parameters and their names do not change. The fused forward reads the weights of the linear layers
    without calling these, so their hooks do not run. Do not use it with ZeRO-3, which gathers weights in these hooks.
    """
    config: Any = encoder.config
    family = family_of(config)
    for layer in family.layers(encoder):
        if (attention := family.self_attention(layer)) is not None:
            attention.forward = partial(_self_attention, attention, attention.forward)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def join(*streams: PackedSequences) -> PackedSequences:
    """Concatenates packed sequences, in order."""
    starts = accumulate((len(stream.tokens) for stream in streams[:-1]), initial=0)
    bounds = [stream.cu_seqlens[1:] + start for stream, start in zip(streams, starts, strict=True)]
    return PackedSequences(
        torch.cat([stream.tokens for stream in streams]),
        torch.cat([streams[0].cu_seqlens[:1], *bounds]),
        torch.cat([stream.positions for stream in streams]),
        np.concatenate([stream.lengths for stream in streams]),
    )


def packed_hidden(encoder: nn.Module, stream: PackedSequences) -> Tensor:
    """The encoder's last layer [T, H] over packed sequences, in one forward; sequences stay separate.

    Attention is flash attention in half precision on CUDA, otherwise SDPA over blocks of similar length. The encoder's
    dropout applies. The host never synchronizes with the device.

    Args:
        encoder: an encoder of one of ``families.FAMILIES``, with the attention :data:`ATTENTION`.
        stream: S sequences, on the encoder's device.

    Raises:
        ValueError: the encoder has another attention, which would attend across sequences; or the sequences' lengths
            do not match its tokens or exceed the encoder's positions.
    """
    config: Any = encoder.config
    if config._attn_implementation != ATTENTION:
        raise ValueError(f"encoder: found attention {config._attn_implementation!r}, expected {ATTENTION!r}")
    lengths = stream.lengths
    tokens, sequences, limit = len(stream.tokens), len(stream.cu_seqlens) - 1, max_sequence(config)
    if sequences < 1 or lengths.shape != (sequences,) or lengths.sum() != tokens or lengths.min() < 1:
        raise ValueError(f"lengths: expected {sequences} lengths of at least 1, together {tokens}, found {lengths}")
    max_seqlen, device = int(lengths.max()), stream.tokens.device
    if max_seqlen > limit:
        raise ValueError(f"lengths: found a sequence of {max_seqlen} tokens; the encoder has {limit} positions")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    flash = has_flash(device, next(encoder.parameters()).dtype, width)
    packing = Packing(stream.cu_seqlens, max_seqlen, None if flash else Blocks.of(lengths, device))
    # int64: transformers uses them as indices to gather the token types, all zero.
    positions = stream.positions.long() + family_of(config).first_position(config)
    output = encoder(
        input_ids=stream.tokens[None],
        position_ids=positions[None],
        # transformers treats a 4-dimensional tensor as a finished mask; otherwise it would create one of T × T.
        attention_mask=stream.cu_seqlens[None, None, None],
        packing=packing,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden.squeeze(0)


def compile_layers(encoder: nn.Module) -> None:
    """Applies ``torch.compile`` to each layer in place; parameter names do not change, all lengths share a compilation.

    The layers run the same code and reuse the first layer's compilation. Block attention is not compiled; it runs
    between two compiled halves.
    """
    config: Any = encoder.config
    for layer in family_of(config).layers(encoder):
        layer.compile(dynamic=True)


def pool_packed(hidden: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """Sentence vectors [S, H] of packed ``hidden`` [T, H], in its dtype; ``cu_seqlens`` int32 [S+1].

    ``cls`` takes the first token's vector (the paper's choice). ``mean`` averages all tokens of the sentence, special
    tokens included, and sums in fp32. Raises UserError for any other ``pooling``.
    """
    if pooling == "cls":
        return hidden.index_select(0, cu_seqlens[:-1])
    if pooling != "mean":
        raise UserError(f"pooling: found {pooling!r}, expected one of {', '.join(POOLINGS)}")
    return torch.segment_reduce(hidden.float(), "mean", offsets=cu_seqlens.long(), axis=0).to(hidden.dtype)
