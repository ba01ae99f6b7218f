"""``ppa-fast VERB``: argument parsing only; the work lives with its subject."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ppa_fast import __version__
from ppa_fast.cli import evaluate, finetune
from ppa_fast.cli.filters import add_filters, chosen_filters
from ppa_fast.cli.verb import PAIRS_HELP, add_read_options, add_verb, read_options
from ppa_fast.errors import UserError, input_error

BAD_INPUT = 2  # exit status of a UserError, as of a wrong command line


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


def _init(arguments: argparse.Namespace) -> None:
    from ppa_fast.model.initialise import init_model

    init_model(
        arguments.out,
        arguments.tokenizer,
        family=arguments.family,
        layers=arguments.layers,
        hidden=arguments.hidden,
        heads=arguments.heads,
        intermediate=arguments.intermediate,
        max_positions=arguments.max_positions,
        dropout=arguments.dropout,
        seed=arguments.seed,
    )
    print(f"model in {arguments.out}")


def _pretrain(arguments: argparse.Namespace) -> None:
    from ppa_fast.finetune.pretrain import pretrain

    pretrain(
        arguments.model,
        arguments.files,
        arguments.out,
        steps=arguments.steps,
        epochs=arguments.epochs,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        max_tokens=arguments.max_tokens,
        seed=arguments.seed,
        max_rejected=arguments.max_rejected,
    )
    print(f"model in {arguments.out}")


def _ablate(arguments: argparse.Namespace) -> None:
    from ppa_fast.ablation.runner import ablate

    ablate(arguments.plan, arguments.out, arguments.seeds, arguments.only, arguments.dry_run)


def _prepare(arguments: argparse.Namespace) -> None:
    from ppa_fast.data.prepare import prepare

    prepare(
        arguments.pairs,
        arguments.tokenizer,
        arguments.out,
        max_tokens=arguments.max_tokens,
        workers=arguments.workers,
        max_rejected=arguments.max_rejected,
        options=read_options(arguments),
        append=arguments.append,
        multi=arguments.multi,
        pivots=arguments.pivots,
        filters=chosen_filters(arguments),
        deduplicate=arguments.deduplicate,
    )


def _export(arguments: argparse.Namespace) -> None:
    from ppa_fast.training.export import export

    export(arguments.run, arguments.out, arguments.checkpoint)
    print(f"model in {arguments.out}")


def _doctor(arguments: argparse.Namespace) -> None:
    from ppa_fast import doctor

    doctor.main()


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``ppa-fast``."""
    parser = argparse.ArgumentParser(
        prog="ppa-fast", description="Align multilingual encoders with parallel text. Training: see ppa_fast/train.py."
    )
    parser.add_argument("--version", action="version", version=f"ppa-fast {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

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
        "init",
        "make a randomly initialised BERT or XLM-R for a tokenizer",
        "ppa-fast init --tokenizer tokenizer --layers 4 --hidden 256 --heads 4 --out model",
        _init,
    )
    p.add_argument("--tokenizer", required=True, help="name or folder")
    p.add_argument("--out", required=True, help="new folder")
    p.add_argument("--family", default="bert", choices=("bert", "xlm-roberta"), help="(default bert)")
    sizes = (("layers", 4), ("hidden", 256), ("heads", 4), ("max-positions", 512), ("seed", 0))
    for name, value in sizes:
        p.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"(default {value})")
    p.add_argument("--intermediate", type=int, metavar="N", help="(default 4 × hidden)")
    p.add_argument("--dropout", type=float, default=0.1, help="(default 0.1)")

    p = add_verb(
        verbs,
        "pretrain",
        "train an encoder with its MLM head on plain text (small encoders, from random weights)",
        "ppa-fast pretrain --model model --files text.en text.de --steps 5000 --out pretrained",
        _pretrain,
    )
    p.add_argument("--model", required=True, help="name or folder, such as ppa-fast init makes")
    p.add_argument(
        "--files", required=True, nargs="+", action="extend", metavar="FILE", help="UTF-8 text; .gz .bz2 .xz .zst too"
    )
    p.add_argument("--out", required=True, help="new folder; the same command goes on after a kill")
    p.add_argument("--steps", type=int, metavar="N", help="length of the run; give this or --epochs")
    p.add_argument("--epochs", type=float, metavar="X", help="(default 1 where --steps is not given)")
    p.add_argument("--batch", type=int, default=64, metavar="N", help="lines a step (default 64)")
    p.add_argument("--learning-rate", type=float, default=5e-4, metavar="X", help="peak (default 5e-4)")
    p.add_argument("--max-tokens", type=int, default=126, metavar="N", help="of a line, without specials (default 126)")
    p.add_argument("--seed", type=int, default=0, help="of the order, the masks and dropout (default 0)")
    p.add_argument("--max-rejected", type=float, default=0.05, metavar="SHARE", help="(default 0.05)")

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
    p.add_argument("--workers", type=int, metavar="N", help="encoding processes (default: one a core)")
    p.add_argument("--max-rejected", type=float, default=0.05, metavar="SHARE", help="(default 0.05)")
    add_read_options(p)
    add_filters(p)

    evaluate.add_verbs(verbs)
    finetune.add_verbs(verbs)

    p = add_verb(
        verbs,
        "export",
        "turn a run into a Hugging Face folder that sentence-transformers loads too",
        "ppa-fast export runs/mine --out aligned-mbert",
        _export,
    )
    p.add_argument("run", metavar="RUN", help="run folder")
    p.add_argument("--out", required=True, help="new folder")
    p.add_argument("--checkpoint", metavar="NAME", help="best, latest or step-… (default: best if any)")

    p = add_verb(
        verbs,
        "ablate",
        "run the ablation of a plan: alignment with and without its parts, then tasks, over seeds",
        "ppa-fast ablate benchmarks/plans/small.yaml --out runs/ablation/small",
        _ablate,
    )
    p.add_argument("plan", metavar="PLAN", help="YAML file, see benchmarks/plans/")
    p.add_argument("--out", required=True, help="folder; the same command goes on where it was cut")
    p.add_argument("--seeds", type=int, metavar="N", help="seeds 0 … N - 1 (default: the plan's)")
    p.add_argument("--only", nargs="+", metavar="ROW", help="these rows (default: the plan's)")
    p.add_argument("--dry-run", action="store_true", help="check the plan and print the commands")

    add_verb(verbs, "doctor", "tell what is installed and built, and what runs where", "ppa-fast doctor", _doctor)
    return parser


def _guarded(work: Callable[[], object], rank: int = 0) -> int:
    """Runs ``work``; a UserError becomes one line on stderr (of rank 0) and the exit status of bad input."""
    try:
        work()
    except BrokenPipeError:  # the reader of our output (head, say) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        message = input_error(error)
        if message is None:
            raise
        if rank == 0:
            print(f"error: {message}", file=sys.stderr)
        return BAD_INPUT
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the ``ppa-fast`` command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return _guarded(lambda: arguments.work(arguments), rank=int(os.environ.get("RANK", "0")))


def main_train(argv: Sequence[str] | None = None) -> int:
    """Entry of ``ppa_fast/train.py``, run in every rank by the deepspeed launcher; returns the exit status."""
    from ppa_fast import settings

    parser = argparse.ArgumentParser(
        prog="deepspeed ppa_fast/train.py",
        description="Align an encoder with a token store. Every setting is a flag and a key of the YAML file.",
        allow_abbrev=False,
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher adds it
    settings.add_arguments(parser)
    arguments = parser.parse_args(argv)
    rank = int(os.environ.get("RANK", "0"))

    def work() -> None:
        chosen = settings.from_arguments(arguments)
        from ppa_fast.training.loop import train

        # Until the loop saves on it: killed outright, DeepSpeed's first compilation leaves a lock behind, for which
        # every later start waits.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        train(chosen)

    return _guarded(work, rank)
