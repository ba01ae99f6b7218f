"""Sentence and token vectors for evaluation: longest sentences first, without padding where possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppa_fast.errors import UserError, shortened
from ppa_fast.model.encoder import max_sequence
from ppa_fast.model.forward import hidden_states
from ppa_fast.model.packed import pool_packed
from ppa_fast.ops.assemble import PackedSequences
from ppa_fast.progress import Progress
from ppa_fast.settings import POOLINGS

if TYPE_CHECKING:
    from ppa_fast.data.store.tokenize import SpecialIds

Rows: TypeAlias = Sequence[Sequence[int] | NDArray[np.int32]]
"""Token ids of sentences, without special tokens."""


def check_layer(encoder: nn.Module, layer: int | None) -> None:
    """Raises UserError unless ``layer`` is None (the last), 0 (the embeddings) or the number of a layer."""
    config: Any = encoder.config
    if layer is not None and not 0 <= layer <= config.num_hidden_layers:
        raise UserError(
            f"layer: found {layer}, expected 0 (the embeddings) to {config.num_hidden_layers} (the last layer)"
        )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Sets a model to eval mode; restores the previous mode of each module on exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Yields row numbers, longest first, in batches of at most ``tokens_per_batch`` padded tokens, at least one row."""
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


def pack_rows(rows: Rows, special: SpecialIds, device: torch.device | str = "cpu") -> PackedSequences:
    """Packs the rows as ``[CLS] row [SEP]``, on ``device``."""
    lengths = np.array([len(row) + 2 for row in rows], dtype=np.int64)
    bounds = np.concatenate([[0], lengths.cumsum()])
    tokens = np.full(bounds[-1], special.cls, dtype=np.int32)
    text = np.ones(bounds[-1], dtype=bool)
    text[bounds[:-1]] = text[bounds[1:] - 1] = False
    tokens[bounds[1:] - 1] = special.sep
    tokens[text] = np.concatenate(rows)
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    tensors = [torch.from_numpy(part.astype(np.int32)).to(device) for part in (tokens, bounds, positions)]
    return PackedSequences(tensors[0], tensors[1], tensors[2], lengths)


@torch.no_grad()
def _encode(
    encoder: nn.Module,
    rows: Rows,
    special: SpecialIds,
    layer: int | None,
    device: torch.device | str | None,
    tokens_per_batch: int,
    progress: str | None,
) -> Iterator[tuple[list[int], Tensor, PackedSequences]]:
    """Yields for each batch: its row numbers, a layer's output fp32 [T, H], its packed sequences."""
    check_layer(encoder, layer)
    config: Any = encoder.config
    lengths = [len(row) + 2 for row in rows]
    longest, limit = max(lengths, default=0), max_sequence(config)
    if longest > limit:
        raise UserError(
            f"a sentence: found {longest - 2} tokens, expected at most {limit - 2}; the model has {limit} positions, "
            "two for specials"
        )
    target = torch.device(device) if device is not None else next(encoder.parameters()).device
    bar = Progress(progress or "", len(rows), "sentences", enabled=progress is not None)
    with evaluation_mode(encoder), bar:
        for batch in length_batches(lengths, tokens_per_batch):
            stream = pack_rows([rows[row] for row in batch], special, target)
            yield batch, hidden_states(encoder, stream, layer).float(), stream
            bar.update(len(batch))


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

    Each row is encoded as ``[CLS] row [SEP]``; an empty row as ``[CLS] [SEP]``. ``layer`` is the layer to pool, in
    fp32: None the last, 0 the embeddings, 1 … L the layers. Ids are moved to ``device``, by default the encoder's. A
    batch holds at most ``tokens_per_batch`` tokens, padding included. It runs packed if the encoder's attention is
    :data:`ppa_fast.model.packed.ATTENTION`, else padded. ``progress`` is the title of a progress bar. The encoder runs
    in eval mode; the previous mode of each module is restored.

    Raises UserError for an unknown pooling, a layer out of range, and rows longer than the encoder's positions.
    """
    if pooling not in POOLINGS:
        raise UserError(f"pooling: found {pooling!r}, expected one of {', '.join(POOLINGS)}")
    config: Any = encoder.config
    vectors = torch.empty(len(rows), config.hidden_size)
    for batch, hidden, stream in _encode(encoder, rows, special, layer, device, tokens_per_batch, progress):
        vectors[batch] = pool_packed(hidden, stream.cu_seqlens, pooling).cpu()
    return vectors


def check_outputs(model: str, outputs: Iterable[Tensor], text_of: Callable[[int], str]) -> None:
    """Raises UserError, naming the model and the text, for the first text whose output is not finite.

    ``outputs``: for each text a tensor of any shape: a vector, the vectors of its tokens, or logits. ``text_of``: the
    text of an index. NaN sorts like a number, so scores of such outputs would look plausible.
    """
    for index, output in enumerate(outputs):
        if not output.isfinite().all():
            raise UserError(
                f"{model}: the output for {shortened(text_of(index), 80)!r} has NaN or infinite elements, expected "
                "finite numbers; use another checkpoint"
            )


def token_vectors(
    encoder: nn.Module,
    rows: Rows,
    special: SpecialIds,
    layer: int | None = None,
    device: torch.device | str | None = None,
    tokens_per_batch: int = 16384,
) -> list[Tensor]:
    """Vectors fp32 [len(row), H] on the CPU of each row's tokens, without special tokens.

    Arguments and errors are as in :func:`sentence_vectors`.
    """
    vectors = [torch.empty(0)] * len(rows)
    for batch, hidden, stream in _encode(encoder, rows, special, layer, device, tokens_per_batch, None):
        for row, tokens in zip(batch, hidden.cpu().split(stream.lengths.tolist()), strict=True):
            vectors[row] = tokens[1:-1]
    return vectors
