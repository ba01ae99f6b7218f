"""``ppa-fast sample``, ``tokenizer`` and ``prepare``: argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb_of, calling
from ppa_fast.settings import PrepareSettings, SampleSettings, TokenizerSettings


def _sample(settings: SampleSettings) -> None:
    from ppa_fast.sample.corpus import write_sample

    files = write_sample(**vars(settings))
    print(f"{len(files)} files in {settings.out}: {' '.join(sorted(path.name for path in files.values()))}")


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``sample``, ``tokenizer`` and ``prepare``."""
    add_verb_of(
        SampleSettings,
        verbs,
        "sample",
        "write the built-in corpus of generated sentences: parallel text and a topic classification set",
        "ppa-fast sample --out corpus --pairs 20000 --seed 0 --languages de fr zh",
        _sample,
    )

    add_verb_of(
        TokenizerSettings,
        verbs,
        "tokenizer",
        "train a WordPiece tokenizer (like mBERT's) on text files",
        "ppa-fast tokenizer --files train.en train.de --vocab-size 16000 --out tokenizer",
        calling("ppa_fast.data.store.wordpiece.train_wordpiece", "tokenizer in {out}"),
    )

    add_verb_of(
        PrepareSettings,
        verbs,
        "prepare",
        "tokenize parallel text into a token store",
        "ppa-fast prepare --pairs en-de:train.en,train.de --tokenizer bert-base-multilingual-cased --out store",
        calling("ppa_fast.data.store.prepare.prepare"),
    )
