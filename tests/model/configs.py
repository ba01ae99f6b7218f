"""A tiny trainable encoder of each family, without dropout."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AlbertConfig,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    EuroBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RemBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
    XLMRobertaXLConfig,
)

from tests.model.sizes import SIZES

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STILL: dict[str, Any] = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
AFTER_PAD: dict[str, Any] = {**STILL, "pad_token_id": 1, "type_vocab_size": 1}
MODERN = {**SIZES, **SPECIAL, "cls_token_id": 1, "sep_token_id": 2}
DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 40}

PACKED: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**STILL, pad_token_id=0),
    "camembert": CamembertConfig(**AFTER_PAD),
    "distilbert": DistilBertConfig(**DISTIL, dropout=0.0, attention_dropout=0.0, initializer_range=0.2),
    # The head width differs from hidden / heads; keys and values have half as many heads.
    "eurobert": EuroBertConfig(**SIZES, **SPECIAL, mask_token_id=3, num_key_value_heads=2, head_dim=12),
    # A token attends to 4 tokens on either side in layers 1 and 2 of 4.
    "modernbert": ModernBertConfig(**{**MODERN, "num_hidden_layers": 4, "local_attention": 8}),
    "roberta": RobertaConfig(**AFTER_PAD),
    "xlm-roberta": XLMRobertaConfig(**AFTER_PAD),
    "xlm-roberta-xl": XLMRobertaXLConfig(**AFTER_PAD),
}
if hasattr(transformers, "GteConfig"):  # since transformers 5.23
    PACKED["gte"] = transformers.GteConfig(**STILL, pad_token_id=1)

PADDED: dict[str, PretrainedConfig] = {
    "albert": AlbertConfig(**STILL, embedding_size=16),
    "deberta-v2": DebertaV2Config(**STILL, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm"),
    "electra": ElectraConfig(**STILL, embedding_size=16),
    "mpnet": MPNetConfig(**STILL, pad_token_id=1),
    "rembert": RemBertConfig(**STILL, input_embedding_size=16, output_embedding_size=24),
}
