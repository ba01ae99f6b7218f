"""A randomly initialised BERT or XLM-R of a given size for a given tokenizer: for demonstrations, tests, benchmarks."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    PretrainedConfig,
    XLMRobertaConfig,
)

from ppa_fast.data.encode import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder
from ppa_fast.model.folder import save_folder

INIT_FAMILIES = ("bert", "xlm-roberta")


def _check(
    folder: Path, family: str, sizes: dict[str, int], hidden: int, heads: int, max_positions: int, dropout: float
) -> None:
    if family not in INIT_FAMILIES:
        raise UserError(f"family: found {family!r}, expected one of {', '.join(INIT_FAMILIES)}")
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: found {size}, expected at least 1")
    if hidden % heads:
        raise UserError(f"heads: {heads} heads do not divide a hidden size of {hidden}")
    if max_positions < 3:
        raise UserError(f"max_positions: found {max_positions}, expected at least 3 (two specials and a token)")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: found {dropout}, expected 0 or more and less than 1")
    check_new_folder(folder)


def init_model(
    out: str | Path,
    tokenizer: str,
    family: str = "bert",
    layers: int = 4,
    hidden: int = 256,
    heads: int = 4,
    intermediate: int | None = None,
    max_positions: int = 512,
    dropout: float = 0.1,
    seed: int = 0,
) -> None:
    """Saves a randomly initialised encoder with MLM head and pooler, and its tokenizer, as a Hugging Face folder.

    Args:
        out: a new or empty folder.
        tokenizer: name or folder of the tokenizer; the vocabulary has ``len(tokenizer)`` rows.
        family: "bert" or "xlm-roberta".
        layers, hidden, heads: number of layers, width of the hidden states, attention heads a layer.
        intermediate: width of the feed-forward layer; None is 4 × ``hidden``.
        max_positions: longest sequence in tokens, specials included.
        dropout: of hidden states and of attention.
        seed: equal seeds give equal weights; the caller's random state is not touched.

    Weights follow the initialisation of the original models (normal, standard deviation 0.02). Raises UserError for
    an unknown family, sizes that do not fit, a tokenizer that cannot be loaded, an ``out`` that is not empty.
    """
    folder = Path(out)
    intermediate = 4 * hidden if intermediate is None else intermediate
    sizes = {"layers": layers, "hidden": hidden, "heads": heads, "intermediate": intermediate}
    _check(folder, family, sizes, hidden, heads, max_positions, dropout)
    tok = load_tokenizer(tokenizer)
    tok.model_max_length = max_positions

    common = {
        "vocab_size": len(tok),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "pad_token_id": tok.pad_token_id,
        "bos_token_id": tok.cls_token_id,
        "eos_token_id": tok.sep_token_id,
    }
    config: PretrainedConfig
    if family == "bert":
        config = BertConfig(max_position_embeddings=max_positions, type_vocab_size=2, **common)
    else:
        # Positions are numbered from pad_id + 1: the rows before are never read.
        config = XLMRobertaConfig(
            max_position_embeddings=max_positions + tok.pad_token_id + 1,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            **common,
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        mlm = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
        pooler = AutoModel.from_config(config, dtype=torch.float32).pooler
    prefix = f"{mlm.base_model_prefix}.pooler."
    save_folder(mlm, {prefix + name: tensor for name, tensor in pooler.state_dict().items()}, tok, folder)
