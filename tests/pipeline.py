"""Runs the pipeline with the commands of an installed ``ppa-fast``, at a tiny size: from text to retrieval scores."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def run(*command: str | Path, **options) -> str:
    """Returns the standard output of a command, which must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


TRAIN = ("train", "--model", "model", "--data", "store", "--output", "run")
DEV = ("--pairs", "en-de:corpus/dev.en,corpus/dev.de")


def run_until_training(tool: Path, folder: Path, **options) -> None:
    """Runs sample, tokenizer, init, prepare and a dry run of train in ``folder``.

    Args:
        tool: the program ``ppa-fast`` of the environment to test.
        folder: receives all files.
        options: of ``subprocess.run``.
    """
    options["cwd"] = folder
    run(tool, "sample", "--out", "corpus", "--pairs", "200", "--dev-pairs", "20", "--languages", "de", **options)
    texts = ("corpus/train.en", "corpus/train.de")
    run(tool, "tokenizer", "--files", *texts, "--vocab-size", "500", "--out", "tokenizer", **options)
    small = ("--layers", "1", "--hidden", "32", "--heads", "2")
    run(tool, "init", "--tokenizer", "tokenizer", *small, "--out", "model", **options)
    run(tool, "prepare", "--pairs", f"en-de:{','.join(texts)}", "--tokenizer", "tokenizer", "--out", "store", **options)
    ready = Path(run(tool, *TRAIN, "--dry-run", **options).partition("--deepspeed_config=")[2].split()[0])
    assert (folder / ready).is_file()


def run_pipeline(tool: Path, folder: Path, **options) -> None:
    """As :func:`run_until_training`, then train, train again (which resumes), export and evaluate."""
    run_until_training(tool, folder, **options)
    options["cwd"] = folder
    (folder / "ds.json").write_text('{"train_batch_size": 8}', encoding="utf-8")
    shape = ("--deepspeed_config", "ds.json", "--queue-size", "8", "--schedule", "constant", "--log-every", "1")
    for steps in (2, 4):  # the second command resumes the run
        run(tool, *TRAIN, *shape, "--steps", str(steps), **options)
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    run(tool, "export", "run", "--out", "export", **options)
    assert "en-de" in run(tool, "evaluate", "retrieval", "--model", "export", *DEV, **options)
