"""``ppa-fast init``, ``pretrain`` and ``export``: argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb_of, calling
from ppa_fast.settings import ExportSettings, InitSettings, PretrainSettings


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``init``, ``pretrain`` and ``export``."""
    add_verb_of(
        InitSettings,
        verbs,
        "init",
        "create a randomly initialized BERT or XLM-R model for a tokenizer",
        "ppa-fast init --tokenizer tokenizer --layers 4 --hidden 256 --heads 4 --out model",
        calling("ppa_fast.model.initialise.init_model", "model in {out}"),
    )

    add_verb_of(
        PretrainSettings,
        verbs,
        "pretrain",
        "train an encoder with its MLM head on plain text (for small encoders with random weights)",
        "ppa-fast pretrain --model model --files text.en text.de --steps 5000 --out pretrained",
        calling("ppa_fast.tasks.pretrain.pretrain", "model in {out}"),
    )

    add_verb_of(
        ExportSettings,
        verbs,
        "export",
        "export a run as a Hugging Face model folder, which sentence-transformers also loads",
        "ppa-fast export runs/mine --out aligned-mbert",
        calling("ppa_fast.training.export.export", "model in {out}"),
    )
