"""Vectors of sentences and of their tokens, for evaluation: longest sentences first, without padding where possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppa_fast.errors import UserError
from ppa_fast.model import POOLINGS
from ppa_fast.model.encoder import max_sequence
from ppa_fast.model.packed import ATTENTION, packed_hidden, pool_packed
from ppa_fast.ops.assemble import Stream
from ppa_fast.progress import Progress

if TYPE_CHECKING:
    from ppa_fast.data.encode import SpecialIds

Rows: TypeAlias = Sequence[Sequence[int] | NDArray[np.int32]]
"""Token ids of sentences, without special tokens."""


def check_layer(encoder: nn.Module, layer: int | None) -> None:
    """Raises UserError unless ``layer`` is None (the last), 0 (the embeddings) or the number of a layer."""
    config: Any = encoder.config
    if layer is not None and not 0 <= layer <= config.num_hidden_layers:
        raise UserError(
            f"layer: found {layer}, expected 0 (the embeddings) to {config.num_hidden_layers} (the last layer)"
        )


def _batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Row numbers, longest rows first, in batches of at most ``tokens_per_batch`` padded tokens (at least one row)."""
    batch: list[int] = []
    width = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * width > tokens_per_batch:
            yield batch
            batch = []
        if not batch:
            width = lengths[row]
        batch.append(row)
    if batch:
        yield batch


def _stream(rows: Rows, special: SpecialIds, device: torch.device) -> Stream:
    """The rows as ``[CLS] row [SEP]``, end to end, on ``device``."""
    lengths = np.array([len(row) + 2 for row in rows], dtype=np.int64)
    bounds = np.concatenate([[0], lengths.cumsum()])
    tokens = np.full(bounds[-1], special.cls, dtype=np.int32)
    text = np.ones(bounds[-1], dtype=bool)
    text[bounds[:-1]] = text[bounds[1:] - 1] = False
    tokens[bounds[1:] - 1] = special.sep
    tokens[text] = np.concatenate(rows)
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    tensors = [torch.from_numpy(part.astype(np.int32)).to(device) for part in (tokens, bounds, positions)]
    return Stream(tensors[0], tensors[1], tensors[2], lengths)


def _hidden(encoder: nn.Module, stream: Stream, pad: int, layer: int | None) -> Tensor:
    """Output [T, H] of a layer: packed where the encoder's attention can do that, else by a padded batch."""
    config: Any = encoder.config
    if config._attn_implementation == ATTENTION:
        return packed_hidden(encoder, stream, layer)
    ids, mask = stream.padded(pad)
    output = encoder(input_ids=ids.long(), attention_mask=mask.long(), output_hidden_states=layer is not None)
    hidden: Tensor = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return hidden[mask]


@torch.no_grad()
def _encode(
    encoder: nn.Module,
    rows: Rows,
    special: SpecialIds,
    layer: int | None,
    device: torch.device | str | None,
    tokens_per_batch: int,
    progress: str | None,
) -> Iterator[tuple[list[int], Tensor, Stream]]:
    """Batch by batch: the numbers of its rows, a layer's output fp32 [T, H] over them, their stream."""
    check_layer(encoder, layer)
    config: Any = encoder.config
    lengths = [len(row) + 2 for row in rows]
    longest, limit = max(lengths, default=0), max_sequence(config)
    if longest > limit:
        raise UserError(f"a sentence has {longest - 2} tokens and two specials; the model has {limit} positions")
    target = torch.device(device) if device is not None else next(encoder.parameters()).device
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with Progress(progress or "", len(rows), "sentences", enabled=progress is not None) as bar:
            for batch in _batches(lengths, tokens_per_batch):
                stream = _stream([rows[row] for row in batch], special, target)
                yield batch, _hidden(encoder, stream, special.pad, layer).float(), stream
                bar.update(len(batch))
    finally:
        for module, training in modes:
            module.training = training


def sentence_vectors(
    encoder: nn.Module,
    rows: Rows,
    special: SpecialIds,
    pooling: str,
    layer: int | None = None,
    device: torch.device | str | None = None,
    tokens_per_batch: int = 16384,
    progress: str | None = None,
) -> Tensor:
    """Vectors fp32 [N, H] on the CPU of N rows of token ids (without special tokens), in the rows' order.

    Each row is read as ``[CLS] row [SEP]``; an empty row is just that. ``layer`` is the layer whose output is pooled:
    None the last, 0 the embeddings, 1 … L the layers; it is pooled in fp32. Ids are put on ``device``, by default the
    encoder's. A batch holds at most ``tokens_per_batch`` tokens, counted as if padded; it runs packed if the encoder's
    attention is :data:`ppa_fast.model.packed.ATTENTION`, else padded. ``progress`` is the title of a progress bar. The
    encoder runs in eval mode; the mode of each of its modules is as before afterwards.

    Raises UserError for an unknown pooling, a layer out of range, and rows longer than the encoder's positions.
    """
    if pooling not in POOLINGS:
        raise UserError(f"pooling: found {pooling!r}, expected one of {', '.join(POOLINGS)}")
    config: Any = encoder.config
    vectors = torch.empty(len(rows), config.hidden_size)
    for batch, hidden, stream in _encode(encoder, rows, special, layer, device, tokens_per_batch, progress):
        vectors[batch] = pool_packed(hidden, stream.cu_seqlens, pooling).cpu()
    return vectors


def token_vectors(
    encoder: nn.Module,
    rows: Rows,
    special: SpecialIds,
    layer: int | None = None,
    device: torch.device | str | None = None,
    tokens_per_batch: int = 16384,
) -> list[Tensor]:
    """Vectors fp32 [len(row), H] on the CPU of each row's tokens, the special ones left out.

    Arguments and errors are those of :func:`sentence_vectors`.
    """
    vectors = [torch.empty(0)] * len(rows)
    for batch, hidden, stream in _encode(encoder, rows, special, layer, device, tokens_per_batch, None):
        for row, tokens in zip(batch, hidden.cpu().split(stream.lengths.tolist()), strict=True):
            vectors[row] = tokens[1:-1]
    return vectors
