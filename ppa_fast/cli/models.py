"""Models: ``ppa-fast init`` and ``pretrain`` make one, ``export`` takes it out of a run; argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb


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


def _export(arguments: argparse.Namespace) -> None:
    from ppa_fast.training.export import export

    export(arguments.run, arguments.out, arguments.checkpoint)
    print(f"model in {arguments.out}")


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``init``, ``pretrain`` and ``export``."""
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
        "export",
        "turn a run into a Hugging Face folder that sentence-transformers loads too",
        "ppa-fast export runs/mine --out aligned-mbert",
        _export,
    )
    p.add_argument("run", metavar="RUN", help="run folder")
    p.add_argument("--out", required=True, help="new folder")
    p.add_argument("--checkpoint", metavar="NAME", help="best, latest or step-… (default: best if any)")
