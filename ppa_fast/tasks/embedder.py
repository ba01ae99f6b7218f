"""Embeds sentences and words with an encoder and its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppa_fast.data.store.tokenize import TextTokenizer, load_tokenizer, special_ids
from ppa_fast.errors import UserError, shortened
from ppa_fast.model.encoder import check_vocabulary, load_encoder, max_sequence, stated_layer
from ppa_fast.model.forward import use_packed_attention
from ppa_fast.model.sentence_transformer import stated_pooling
from ppa_fast.model.vectors import check_layer, check_outputs, sentence_vectors, token_vectors
from ppa_fast.settings import PrepareSettings

log = logging.getLogger(__name__)

MAX_TOKENS = 126
CHUNK = 10_000  # texts tokenized at once; the tokenizer's output takes a hundred times the memory of the ids


class Embedder:
    """Embeds sentences or words with a layer of an encoder.

    Runs on a GPU if available, in bf16 if the GPU supports it, otherwise on the CPU in fp32. Supported families run on
    packed sequences, other architectures on padded ones.

    Args:
        model: name or folder of a Hugging Face encoder with its tokenizer. Only the encoder is used; further modules of
            a sentence-transformers folder (such as Dense) are ignored.
        layer: 0 for the embeddings, 1 to L for a layer; None for the ``contrast_layer`` that an exported folder states
            in its configuration, else the last.

    Raises UserError for a model or tokenizer that cannot be loaded, a tokenizer with more tokens than the encoder, a
    layer out of range, and vectors that are not finite.
    """

    def __init__(self, model: str, layer: int | None = None) -> None:
        self.model = model
        self.encoder = load_encoder(model)
        self.layer: int | None = stated_layer(self.encoder.config) if layer is None else layer
        self.tokenizer = load_tokenizer(model)
        self.special = special_ids(self.tokenizer)
        check_vocabulary(model, self.special.vocab_size, self.encoder.config)
        check_layer(self.encoder, self.layer)
        use_packed_attention(self.encoder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        nn.Module.to(self.encoder, self.device, torch.bfloat16 if bf16 else torch.float32)
        self.max_tokens = max_sequence(self.encoder.config) - 2

    def sentences(self, texts: Sequence[str], pooling: str, progress: str) -> Tensor:
        """Vectors fp32 [N, H] on the CPU, not normalized. Truncates texts to 126 tokens, or to the model's limit."""
        tokenize = TextTokenizer(self.tokenizer, min(MAX_TOKENS, self.max_tokens))
        rows = [
            np.array(ids, dtype=np.int32)
            for start in range(0, len(texts), CHUNK)
            for ids in tokenize(list(texts[start : start + CHUNK]))
        ]
        vectors = sentence_vectors(self.encoder, rows, self.special, pooling, self.layer, progress=progress)
        check_outputs(self.model, vectors, lambda row: texts[row])
        return vectors

    def check_known(self, texts: Sequence[str], language: str) -> None:
        """Warns of texts whose share of unknown tokens exceeds ``prepare``'s default limit (a half). Raises UserError
        if these are more than half of the texts."""
        tokenize = TextTokenizer(self.tokenizer, min(MAX_TOKENS, self.max_tokens))
        rejected: list[str] = []
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            ids, lengths, _ = tokenize.arrays(chunk)
            unknown = tokenize.unknown_shares(ids, lengths) > PrepareSettings.max_unknown
            rejected += [chunk[index] for index in unknown.nonzero()[0]]
        if not rejected:
            return
        found = (
            f"{self.model}: the tokenizer does not cover {len(rejected):,} of {len(texts):,} {language} texts, such as "
            f"{shortened(rejected[0], 60)!r}: their tokens are mostly unknown, so that their vectors are almost equal"
        )
        if 2 * len(rejected) > len(texts):
            raise UserError(f"{found}; expected a model for this language")
        log.warning(found)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors fp32 [N, H] on the CPU, with the pooling that the model's folder states, else the mean."""
        vectors = self.sentences(texts, stated_pooling(self.model) or "mean", progress="encoding")
        return F.normalize(vectors, dim=1)

    def words(self, sentences: Sequence[Sequence[str]]) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
        """The subword vectors of each sentence, fp32 [S, H], with the index of each subword's word, int64 [S]; on CPU.

        Words are tokenized one by one; a word may have no subword. Sentences are truncated to the model's limit. The
        second result lists the indices of truncated sentences.
        """
        tokenize = TextTokenizer(self.tokenizer, self.max_tokens)
        known = list(dict.fromkeys(word for sentence in sentences for word in sentence))
        ids_of = dict(zip(known, tokenize(known), strict=True))
        rows, words = [], []
        for sentence in sentences:
            parts = [ids_of[word] for word in sentence]
            rows.append([id_ for part in parts for id_ in part])
            words.append(torch.repeat_interleave(torch.tensor([len(part) for part in parts])))
        longer = [number for number, row in enumerate(rows) if len(row) > self.max_tokens]
        rows, words = [row[: self.max_tokens] for row in rows], [word[: self.max_tokens] for word in words]
        vectors = token_vectors(self.encoder, rows, self.special, self.layer)
        check_outputs(self.model, vectors, lambda row: " ".join(sentences[row]))
        return list(zip(vectors, words, strict=True)), longer
