"""Text: ``ppa-fast sample``, ``tokenizer`` and ``prepare``; argument parsing only."""

from __future__ import annotations

import argparse
from pathlib import Path

from ppa_fast.cli.filters import add_filters, chosen_filters
from ppa_fast.cli.verb import PAIRS_HELP, Verbs, add_read_options, add_verb, read_options


def _sample(arguments: argparse.Namespace) -> None:
    from ppa_fast.data.sample import write_sample

    files = write_sample(
        arguments.out, arguments.pairs, arguments.seed, arguments.languages, dev_pairs=arguments.dev_pairs
    )
    print(f"{len(files)} files in {arguments.out}: {' '.join(sorted(path.name for path in files.values()))}")


def _tokenizer(arguments: argparse.Namespace) -> None:
    from ppa_fast.data.wordpiece import train_wordpiece

    train_wordpiece(arguments.files, arguments.out, arguments.vocab_size, arguments.lowercase)
    print(f"tokenizer in {arguments.out}")


def _prepare(arguments: argparse.Namespace) -> None:
    from ppa_fast.data.prepare import prepare

    prepare(
        arguments.pairs,
        arguments.tokenizer,
        arguments.out,
        max_tokens=arguments.max_tokens,
        workers=arguments.workers,
        max_rejected=arguments.max_rejected,
        append=arguments.append,
        options=read_options(arguments),
        multi=arguments.multi,
        pivots=arguments.pivots,
        filters=chosen_filters(arguments),
        deduplicate=arguments.deduplicate,
    )


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``sample``, ``tokenizer`` and ``prepare``."""
    p = add_verb(
        verbs,
        "sample",
        "write the built-in corpus (generated sentences): parallel text, and a classification by topic",
        "ppa-fast sample --out corpus --pairs 20000 --seed 0 --languages de fr zh",
        _sample,
    )
    p.add_argument("--out", required=True, type=Path, help="new folder for train.LANG, dev.LANG, topic.*.LANG.tsv")
    p.add_argument("--pairs", required=True, type=int, metavar="N", help="lines of each train file")
    p.add_argument(
        "--dev-pairs", type=int, default=250, metavar="N", help="lines of each dev and test file (default 250)"
    )
    p.add_argument("--seed", type=int, default=0, help="equal seeds give equal bytes (default 0)")
    p.add_argument("--languages", nargs="+", metavar="LANG", help="besides English (default: all there are)")

    p = add_verb(
        verbs,
        "tokenizer",
        "train a WordPiece tokenizer (mBERT's kind) on text files",
        "ppa-fast tokenizer --files train.en train.de --vocab-size 16000 --out tokenizer",
        _tokenizer,
    )
    p.add_argument("--files", required=True, nargs="+", metavar="FILE", help="UTF-8 text; .gz .bz2 .xz .zst too")
    p.add_argument("--out", required=True, help="new folder")
    p.add_argument("--vocab-size", type=int, default=8000, metavar="N", help="(default 8000)")
    p.add_argument("--lowercase", action="store_true", help="uncased: lower-case and strip accents")

    p = add_verb(
        verbs,
        "prepare",
        "turn parallel text into a token store",
        "ppa-fast prepare --pairs en-de:train.en,train.de --tokenizer bert-base-multilingual-cased --out store",
        _prepare,
    )
    p.add_argument("--pairs", nargs="+", action="extend", default=[], metavar="SPEC", help=PAIRS_HELP)
    p.add_argument(
        "--multi",
        nargs="+",
        action="append",
        default=[],
        metavar="LANG:FILE",
        help="row-parallel files, one a language: each pivot is paired with every other; repeatable",
    )
    p.add_argument("--pivots", nargs="+", default=[], metavar="LANG", help="of --multi (default: en, else the first)")
    p.add_argument("--tokenizer", required=True, help="name or folder of a fast tokenizer, the model's own")
    p.add_argument("--out", required=True, help="new folder, or what a killed prepare left: it goes on from there")
    p.add_argument("--append", action="store_true", help="add to the finished store --out, of the same tokenizer")
    p.add_argument(
        "--max-tokens", type=int, default=126, metavar="N", help="of a sentence, without specials (default 126)"
    )
    p.add_argument("--workers", type=int, metavar="N", help="encoding processes (default: one a core, at most 16)")
    p.add_argument("--max-rejected", type=float, default=0.05, metavar="SHARE", help="(default 0.05)")
    add_read_options(p)
    add_filters(p)
