"""``make demo``: the whole job on the built-in sample corpus, by the commands that a user would type.

Demonstrations start from random weights: mean pooling, a fast momentum encoder, a small queue and fine-tuning at a high
learning rate are the demo's own settings. A pretrained encoder takes the defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ppa_fast.data.sample import LANGUAGES, TOPICS
from ppa_fast.evaluation.retrieval import format_table
from ppa_fast.finetune import table

PAIRS, DEV_PAIRS = 3000, 250
PARTS = ("corpus", "tokenizer", "model", "store", "run", "export", "topic-before", "topic-after")
ROOT = Path(os.path.relpath(Path(__file__).resolve().parent.parent))
TRAINING = {
    "steps": 350,
    "pooling": "mean",
    "learning-rate": 3e-3,
    "momentum": 0.99,
    "queue-size": 1024,
    "eval-every": 100,
    "save-every": 200,
}
FINETUNING = {"learning-rate": 1e-3, "epochs": 2}  # with both encoders enough to learn English to the full


def run(*command: str | Path) -> None:
    """Shows a command and runs it; a failure ends the demo with the command's status."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    words[0] = str(Path(sys.executable).parent / words[0])  # of this environment, activated or not
    status = subprocess.run(words, check=False).returncode
    if status:
        sys.exit(status)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def topic_table(before: table.Scores, after: table.Scores) -> str:
    """The accuracy of both classifiers in the languages that they were not trained on, and what it compares with."""
    sizes = [len(templates) for templates in TOPICS.values()]
    english = [f"{100 * scores['en']['accuracy']:.1f}" for scores in (before, after)]
    languages = {
        language: {"before": before[language]["accuracy"], "after": after[language]["accuracy"]}
        for language in after
        if language != "en"
    }
    return (
        f"Zero-shot topic classification, accuracy in %: trained on English alone, {len(sizes)} topics.\n"
        f"The most frequent topic is {100 * max(sizes) / sum(sizes):.1f} % of the lines. "
        f"English itself: {english[0]} before, {english[1]} after.\n\n"
        f"{table.format_table(table.summarise([languages]), 100)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ppa_fast.demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="its parts are made anew (default runs/demo)"
    )
    out = parser.parse_args().out
    for part in PARTS:
        shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()

    languages = sorted(set(LANGUAGES) - {"en"})
    corpus, tokenizer, model, store, training, export, *topics = (out / part for part in PARTS)
    pairs = {s: [f"en-{x}:{corpus}/{s}.en,{corpus}/{s}.{x}" for x in languages] for s in ("train", "dev")}
    texts = [corpus / f"train.{language}" for language in ["en", *languages]]
    flags = [f"--{name}={value}" for name, value in TRAINING.items()]
    sizes = ("--layers", "2", "--hidden", "128", "--heads", "4", "--max-positions", "256", "--dropout", "0")

    run("ppa-fast", "sample", "--out", corpus, "--pairs", str(PAIRS), "--dev-pairs", str(DEV_PAIRS), "--seed", "0")
    run("ppa-fast", "tokenizer", "--files", *texts, "--vocab-size", "6000", "--out", tokenizer)
    run("ppa-fast", "init", "--tokenizer", tokenizer, *sizes, "--out", model)
    run("ppa-fast", "prepare", "--pairs", *pairs["train"], "--tokenizer", tokenizer, "--out", store)
    evaluate = ("ppa-fast", "evaluate", "retrieval", "--pairs", *pairs["dev"], "--pooling", "mean")
    run(*evaluate, "--model", model, "--json", out / "before.json")
    where = ("--model", model, "--data", store, "--output", training)
    config = ("--deepspeed_config", ROOT / "ds_configs" / "demo_cpu.json")
    launch = ("deepspeed", "--num_gpus", "1", "--master_port", "0", ROOT / "ppa_fast" / "train.py")  # any free port
    run(*launch, *config, *where, *flags, "--eval-pairs", *pairs["dev"])
    run("ppa-fast", "export", training, "--out", export)
    run(*evaluate, "--model", export, "--json", out / "after.json")
    tests = [f"{language}:{corpus}/topic.test.{language}.tsv" for language in ["en", *languages]]
    finetune = ("ppa-fast", "finetune", "classify", "--train", f"en:{corpus}/topic.train.en.tsv", "--test", *tests)
    flags = [f"--{name}={value}" for name, value in FINETUNING.items()]
    for encoder, folder in zip((model, export), topics, strict=True):
        run(*finetune, *flags, "--model", encoder, "--out", folder)

    run("ppa-fast", "report", training, "--out", out / "report.html")

    before, after = (_read(out / f"{name}.json") for name in ("before", "after"))
    scores = [_read(folder / "result.json")["runs"][0]["test"] for folder in topics]
    summary = {"before": before, "after": after, "topic": dict(zip(("before", "after"), scores, strict=True))}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"\n{format_table(after, before)}\n\n{topic_table(*scores)}\n")
    print(f"{time.monotonic() - begin:,.0f} s in all. What it made:")
    for part in (*PARTS, "summary.json", "report.html"):
        print(f"  {out / part}")


if __name__ == "__main__":
    main()
