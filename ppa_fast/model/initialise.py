"""Creates a randomly initialized BERT or XLM-R of a given size for a tokenizer: for demos, tests, benchmarks."""

from __future__ import annotations

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    PretrainedConfig,
    XLMRobertaConfig,
)

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.files import check_new_folder, new_folder
from ppa_fast.model.folder import save_folder
from ppa_fast.settings import InitSettings, takes


@takes(InitSettings)
def init_model(settings: InitSettings) -> None:
    """Saves a randomly initialized encoder with MLM head and pooler, and its tokenizer, as a Hugging Face folder.

    The arguments are the fields of :class:`InitSettings`. The embeddings have a row for each token of the tokenizer.
    Weights are initialized as in the original models (normal, standard deviation 0.02). The caller's random state does
    not change. Raises UserError for an unknown family, incompatible sizes, a tokenizer that cannot be loaded, or an
    ``out`` that is not empty.
    """
    max_positions, dropout = settings.max_positions, settings.dropout
    check_new_folder(settings.out)
    tok = load_tokenizer(settings.tokenizer)
    tok.model_max_length = max_positions

    common = {
        "vocab_size": len(tok),
        "hidden_size": settings.hidden,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": settings.intermediate or 4 * settings.hidden,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "pad_token_id": tok.pad_token_id,
        "bos_token_id": tok.cls_token_id,
        "eos_token_id": tok.sep_token_id,
    }
    config: PretrainedConfig
    if settings.family == "bert":
        config = BertConfig(max_position_embeddings=max_positions, type_vocab_size=2, **common)
    else:
        # Positions start at pad_id + 1; earlier rows of the table are never read.
        config = XLMRobertaConfig(
            max_position_embeddings=max_positions + tok.pad_token_id + 1,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            **common,
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        mlm = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
        pooler = AutoModel.from_config(config, dtype=torch.float32).pooler
    prefix = f"{mlm.base_model_prefix}.pooler."
    with new_folder(settings.out) as folder:
        save_folder(mlm, {prefix + name: tensor for name, tensor in pooler.state_dict().items()}, tok, folder)
