"""``ppa-fast finetune TASK``: argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_family, add_verb

FORMS = {
    "nli": "XNLI's and MultiNLI's TSV or JSON lines",
    "qa": "SQuAD 1.1 JSON, joined by question id",
    "classify": "TSV with the columns text and category or label, or JSON lines",
}


def _finetune(arguments: argparse.Namespace) -> None:
    from ppa_fast.finetune.runner import TASKS, finetune
    from ppa_fast.finetune.table import format_table
    from ppa_fast.finetune.task import first_rank

    command = ("work", "local_rank", "quiet", "debug")
    options = {name: value for name, value in vars(arguments).items() if name not in command}
    result = finetune(**options)
    if first_rank():
        print(format_table(result, TASKS[arguments.task].scale))


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``finetune`` and its tasks."""
    tasks = add_family(
        verbs,
        "finetune",
        "fine-tune an encoder on a task, switching languages",
        "ppa-fast finetune nli --model aligned-mbert --train en:train.tsv --test de:test.de.tsv --out runs/nli",
    )
    texts = {
        "nli": ("natural language inference", "128, 2e-05, 5"),
        "qa": ("extractive question answering", "384 with windows that share 128, 3e-05, 3"),
        "classify": ("text classification", "128, 2e-05, 5"),
    }
    for task, (text, defaults) in texts.items():
        suffix = "json" if task == "qa" else "tsv"
        p = add_verb(
            tasks,
            task,
            f"fine-tune an encoder for {text} (tokens, learning rate, epochs by default, XTREME's: {defaults})",
            f"ppa-fast finetune {task} --model aligned-mbert --train en:train.en.{suffix} de:train.de.{suffix} "
            f"--code-switch 0.5 --dev en:dev.en.{suffix} --test en:test.en.{suffix} de:test.de.{suffix} --seeds 3 "
            "--out runs/switched",
            _finetune,
        )
        p.set_defaults(task=task)
        p.add_argument("--model", required=True, help="name or folder of a Hugging Face encoder")
        p.add_argument(
            "--train",
            required=True,
            nargs="+",
            action="extend",
            metavar="LANG:FILE",
            help=f"row-parallel files, one a language: {FORMS[task]}; .gz too",
        )
        p.add_argument("--out", required=True, help="new folder, or what the same command left")
        p.add_argument(
            "--dev",
            nargs="+",
            action="extend",
            default=[],
            metavar="LANG:FILE",
            help="keep the epoch with the best mean score on these (zero-shot: English; default: the last epoch)",
        )
        p.add_argument("--test", nargs="+", action="extend", default=[], metavar="LANG:FILE", help="files to score")
        p.add_argument(
            "--recipe",
            default="zero-shot",
            choices=("zero-shot", "translate-train", "translate-train-all"),
            help="train on English, on --language, or on every language's rows (default zero-shot)",
        )
        p.add_argument("--language", metavar="LANG", help="of translate-train")
        p.add_argument(
            "--code-switch",
            type=float,
            default=0.0,
            metavar="P",
            help="share of examples with one side in English and one in another language of --train (default 0: off)",
        )
        p.add_argument("--dump-switched", metavar="FILE", help="write the training sets as drawn, as JSON lines")
        p.add_argument("--seeds", type=int, default=1, metavar="N", help="how many to run (default 1)")
        p.add_argument("--first-seed", type=int, default=0, metavar="S", help="run seeds S to S + N - 1 (default 0)")
        p.add_argument("--max-tokens", type=int, metavar="N", help="of a sequence, specials included")
        p.add_argument("--learning-rate", type=float, metavar="LR")
        p.add_argument("--epochs", type=int, metavar="N")
        p.add_argument("--batch", type=int, metavar="N", help="examples of a step, all ranks together (default 32)")
        p.add_argument("--micro-batch", type=int, metavar="N", help="examples of a forward (default: batch / ranks)")
        p.add_argument("--max-rejected", type=float, default=0.05, metavar="SHARE", help="(default 0.05)")
        if task == "qa":
            p.add_argument("--metric", choices=("mlqa", "squad"), default="mlqa", help="(default mlqa)")
        p.add_argument(
            "--deepspeed", metavar="FILE", help='DeepSpeed file with "auto" values (ds_configs/finetune.json)'
        )
        p.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # a launcher adds it
