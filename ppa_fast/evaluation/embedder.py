"""A model's folder ready to embed text: the encoder and its tokenizer, checked, on the device that is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from ppa_fast.data.encode import TextEncoder, load_tokenizer, special_ids
from ppa_fast.errors import UserError
from ppa_fast.model import POOLINGS
from ppa_fast.model.encoder import FAMILIES, load_encoder, max_sequence
from ppa_fast.model.packed import ATTENTION
from ppa_fast.model.vectors import check_layer, sentence_vectors, token_vectors

MAX_TOKENS = 126
POOLING_FILE = "1_Pooling/config.json"
CHUNK = 10_000  # texts tokenised at once: what the tokenizer knows of a token is a hundred times its id


def stated_pooling(name_or_dir: str) -> str | None:
    """The pooling that a model states in sentence-transformers' ``1_Pooling/config.json``; None where it states none.

    Raises UserError where it states one that is neither "cls" nor "mean".
    """
    path = Path(name_or_dir) / POOLING_FILE
    if not Path(name_or_dir).is_dir():
        try:
            path = Path(hf_hub_download(name_or_dir, POOLING_FILE))
        except EntryNotFoundError:
            return None
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    # One key since sentence-transformers 6, before that a boolean for each pooling.
    modes = config.get("pooling_mode")
    if modes is None:
        flags = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        modes = [flags.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(f"{path}: states pooling {modes}; choose one of {', '.join(POOLINGS)} for the evaluation")
    return modes[0]


class Embedder:
    """Embeds sentences, or their words, with a layer of an encoder.

    Runs on a GPU if there is one, in bf16 where it can; else on the CPU in fp32. The families that can be trained run
    packed, other architectures padded.

    Args:
        model: name or folder of any Hugging Face encoder, with its tokenizer. Only the encoder is used: further modules
            that a sentence-transformers folder may have (Dense) are not.
        layer: None the last, 0 the embeddings, 1 … L the layers.

    Raises UserError for a model or tokenizer that cannot be loaded, tokens that the encoder does not have, and a layer
    out of range.
    """

    def __init__(self, model: str, layer: int | None = None) -> None:
        self.model, self.layer = model, layer
        self.encoder = load_encoder(model)
        self.tokenizer = load_tokenizer(model)
        self.special = special_ids(self.tokenizer)
        if self.special.vocab_size > self.encoder.config.vocab_size:
            raise UserError(
                f"{model}: the tokenizer has {self.special.vocab_size} tokens, the encoder "
                f"{self.encoder.config.vocab_size}; expected the encoder's own tokenizer"
            )
        check_layer(self.encoder, layer)
        if self.encoder.config.model_type in FAMILIES:
            self.encoder.set_attn_implementation(ATTENTION)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        nn.Module.to(self.encoder, self.device, torch.bfloat16 if bf16 else torch.float32)
        self.max_tokens = max_sequence(self.encoder.config) - 2

    def sentences(self, texts: Sequence[str], pooling: str, progress: str) -> Tensor:
        """Vectors fp32 [N, H] on the CPU, not normalised; a text is read up to 126 tokens, or the model's limit."""
        encode = TextEncoder(self.tokenizer, min(MAX_TOKENS, self.max_tokens))
        rows = [
            np.array(ids, dtype=np.int32)
            for start in range(0, len(texts), CHUNK)
            for ids in encode(list(texts[start : start + CHUNK]))
        ]
        return sentence_vectors(self.encoder, rows, self.special, pooling, self.layer, progress=progress)

    def words(self, sentences: Sequence[Sequence[str]]) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
        """For each sentence its subwords' vectors fp32 [S, H] and the numbers of the words they are of, int64 [S]; CPU.

        Words are tokenised one by one; a word may have no subword. A sentence is read up to the model's limit; which
        ones are longer is returned too.
        """
        encode = TextEncoder(self.tokenizer, self.max_tokens)
        known = list(dict.fromkeys(word for sentence in sentences for word in sentence))
        ids_of = dict(zip(known, encode(known), strict=True))
        rows, words = [], []
        for sentence in sentences:
            parts = [ids_of[word] for word in sentence]
            rows.append([id_ for part in parts for id_ in part])
            words.append(torch.repeat_interleave(torch.tensor([len(part) for part in parts])))
        longer = [number for number, row in enumerate(rows) if len(row) > self.max_tokens]
        rows, words = [row[: self.max_tokens] for row in rows], [word[: self.max_tokens] for word in words]
        vectors = token_vectors(self.encoder, rows, self.special, self.layer)
        return list(zip(vectors, words, strict=True)), longer
