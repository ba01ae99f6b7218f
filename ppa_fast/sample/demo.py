"""``make demo``: aligns a small encoder with the built-in sample corpus, and tests it on retrieval and on a task.

The demo starts from random weights and therefore uses its own settings: mean pooling, a fast momentum encoder, a small
queue and a high learning rate. For a pretrained encoder, use the defaults.
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
from statistics import fmean
from typing import Any

import torch
import yaml

from ppa_fast.reporting.run import read_run
from ppa_fast.sample.corpus import LANGUAGES, TOPICS
from ppa_fast.tasks.tables import text_table

PAIRS, DEV_PAIRS = 3000, 250
PARTS = ("corpus", "tokenizer", "model", "aligned", "topic-before", "topic-after")
CONFIG = Path(os.path.relpath(Path(__file__).resolve().parent.parent / "ds_configs" / "demo_cpu.json"))
TRAINING = {
    "deepspeed_config": str(CONFIG),
    "steps": 350,
    "pooling": "mean",
    "learning_rate": 3e-3,
    "momentum": 0.99,
    "queue_size": 1024,
    "eval_every": 100,
    "save_every": 200,
}
FINETUNING = {"learning-rate": 1e-3, "epochs": 2}  # with these, both encoders learn English completely
STAGES = 6
TOTAL_TO_PROBE = 450.0  # a rough ratio of durations: about 5 minutes and 0.6 s on 2 CPU cores
TAIL = 15  # lines of the log that are shown if a command fails


def probe() -> float:
    """The seconds of a fixed amount of training work on this machine's CPU, from which the total is estimated.

    It is extrapolated from the fastest repetition, which other programs disturb least.
    """
    layer = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    tokens = torch.ones(64, 32, 128)
    layer(tokens).sum().backward()
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        layer(tokens).sum().backward()
        seconds.append(time.perf_counter() - begin)
    return len(seconds) * min(seconds)


class Stages:
    """Runs numbered stages, each a command with one line of progress; its output goes to the file ``log``, or to the
    terminal if ``log`` is None."""

    def __init__(self, log: Path | None) -> None:
        self.log, self.number = log, 0

    def __call__(self, title: str, *command: str | Path) -> None:
        """Runs a command; if it fails, prints the end of the log and exits with its status."""
        self.number += 1
        words = [str(word) for word in command]
        line, begin = f"[{self.number}/{STAGES}] {title}", time.monotonic()
        print(line, end="\n" if self.log is None else " ", flush=True)
        status = self.execute(words, line)
        if status:
            print(f"\n{self._tail()}exit status {status}: {shlex.join(words)}", flush=True)
            sys.exit(status)
        print(f"{line if self.log is None else ''}({time.monotonic() - begin:,.0f} s)", flush=True)

    def execute(self, words: list[str], line: str) -> int:
        """Runs a command to its end; returns its exit status. On a terminal, ``line`` shows the elapsed time."""
        program = [str(Path(sys.executable).parent / words[0]), *words[1:]]  # even if no environment is activated
        if self.log is None:
            print(f"$ {shlex.join(words)}", flush=True)
            return subprocess.run(program, check=False).returncode
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {shlex.join(words)}\n")
            log.flush()
            begin = time.monotonic()
            child = subprocess.Popen(program, stdout=log, stderr=subprocess.STDOUT)
            while True:
                try:
                    return child.wait(1)
                except subprocess.TimeoutExpired:
                    if sys.stdout.isatty():
                        print(f"\r{line} {time.monotonic() - begin:,.0f} s ", end="", flush=True)

    def _tail(self) -> str:
        if self.log is None:
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        return f"{''.join(lines[-TAIL:])}the complete log is {self.log}\n"


def _accuracies(folder: Path) -> dict[str, float]:
    test = json.loads((folder / "result.json").read_text(encoding="utf-8"))["runs"][0]["test"]
    return {language: scores["accuracy"] for language, scores in test.items() if language in LANGUAGES}


def table(summary: dict[str, Any]) -> str:
    """The scores before and after alignment, by language and on average over the languages except English."""
    retrieval, topic = summary["retrieval"], summary["topic"]
    rows = {
        language: [*(scores[language] for scores in retrieval), *(scores[language] for scores in topic)]
        for language in retrieval[0]
    }
    rows["mean"] = [fmean(column) for column in zip(*rows.values(), strict=True)]
    sizes = [len(templates) for templates in TOPICS.values()]
    english = [f"{100 * scores['en']:.1f}" for scores in topic]
    cells = [[name, *(f"{100 * share:.1f}" for share in shares)] for name, shares in rows.items()]
    heads = [f"{task} {when}" for task in ("retrieval", "topic") for when in ("before", "after")]
    return (
        f"{text_table(['language', *heads], cells)}\n"
        f"retrieval: precision at 1 in %, {DEV_PAIRS} sentences with English, mean of both directions.\n"
        f"topic: accuracy in % of classifiers trained on English alone (English: {english[0]} before, {english[1]} "
        f"after).\n       The most frequent topic is {100 * max(sizes) / sum(sizes):.1f} % of the lines."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ppa_fast.sample.demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="output folder, overwritten (default runs/demo)"
    )
    parser.add_argument("--debug", action="store_true", help="show the commands and all their output")
    arguments = parser.parse_args()
    out = arguments.out
    for part in PARTS:
        shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    log = None if arguments.debug else out / "demo.log"
    if log:
        log.write_text("", encoding="utf-8")
    begin = time.monotonic()
    minutes = max(1, round(TOTAL_TO_PROBE * probe() / 60))
    print(f"The demo takes about {minutes} minutes on this machine.{f' Commands and log: {log}' if log else ''}")

    languages = sorted(set(LANGUAGES) - {"en"})
    corpus, tokenizer, model, aligned, *topics = (out / part for part in PARTS)
    pairs = {s: [f"en-{x}:{corpus}/{s}.en,{corpus}/{s}.{x}" for x in languages] for s in ("train", "dev")}
    texts = [corpus / f"train.{language}" for language in ["en", *languages]]
    sizes = ("--layers", "2", "--hidden", "128", "--heads", "4", "--max-positions", "256", "--dropout", "0")
    settings = out / "train.yaml"
    settings.write_text(yaml.safe_dump(TRAINING), encoding="utf-8")
    tests = [f"{language}:{corpus}/topic.test.{language}.tsv" for language in ["en", *languages]]
    finetune = ("ppa-fast", "finetune", "classify", "--train", f"en:{corpus}/topic.train.en.tsv", "--test", *tests)
    finetune = (*finetune, *(f"--{name}={value}" for name, value in FINETUNING.items()))
    size = ("--pairs", str(PAIRS), "--dev-pairs", str(DEV_PAIRS))

    run = Stages(log)
    run(f"Generate text in {len(LANGUAGES)} languages", "ppa-fast", "sample", "--out", corpus, *size, "--seed", "0")
    run("Train a tokenizer", "ppa-fast", "tokenizer", "--files", *texts, "--vocab-size", "6000", "--out", tokenizer)
    run("Create an encoder with random weights", "ppa-fast", "init", "--tokenizer", tokenizer, *sizes, "--out", model)
    given = ("--dev", *pairs["dev"], "--train-settings", settings, "--out", aligned)
    run(f"Align it with {len(languages)} languages", "ppa-fast", "align", model, "--pairs", *pairs["train"], *given)
    run("Fine-tune the first encoder on topics", *finetune, "--model", model, "--out", topics[0])
    run("Fine-tune the aligned encoder on topics", *finetune, "--model", aligned, "--out", topics[1])

    evaluations = read_run(aligned / "run").before_after()
    assert evaluations  # align ends with an error without them
    summary = {
        "retrieval": [
            {name.split("-")[1]: fmean((s["a_to_b"], s["b_to_a"])) for name, s in each["pairs"].items()}
            for each in evaluations
        ],
        "topic": [_accuracies(folder) for folder in topics],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(summary)}\n\n{time.monotonic() - begin:,.0f} s in total.")
    print(f"encoder: {aligned}\nreport:  {aligned / 'report.html'}\nscores:  {out / 'summary.json'}")


if __name__ == "__main__":
    main()
