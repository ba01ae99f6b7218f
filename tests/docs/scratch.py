r"""The folder in which the pages' commands run: toy inputs under the names that the pages use.

Models of the Hub are folders here: bert-base-multilingual-cased is a BERT with two layers.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import XLMRobertaTokenizer

from ppa_fast.data.store.wordpiece import train_wordpiece
from ppa_fast.model.initialise import init_model
from tests.conftest import pseudo_text
from tests.docs.pages import ROOT

SIZES = {"layers": 2, "hidden": 32, "heads": 2, "max_positions": 256}
PROGRAMS = {
    "python": 'exec "$PYTHON" "$@"',
    "ppa-fast": 'exec "$PYTHON" -c "import sys; from ppa_fast.cli import main; sys.exit(main())" "$@"',
    "deepspeed": 'exec "$PYTHON" -m deepspeed.launcher.runner --master_port 0 "$@"',  # any free port
    "make": f'exec "$(command -v -p make)" --dry-run --silent -C {ROOT} "$@"',
}
TIMEOUT = 600  # timeout per block in seconds; a block takes a few seconds


def write_inputs(folder: Path) -> Path:
    """Writes everything that the pages' commands read; returns ``folder``."""
    folder.mkdir()
    for seed, (part, lines) in enumerate({"train": 400, "dev": 40, "test": 40}.items()):
        texts = {code: line[seed * 1000 : seed * 1000 + lines] for code, line in pseudo_text(7, 2040).items()}
        for code, sentences in texts.items():
            (folder / f"{part}.{code}").write_text("\n".join(sentences) + "\n", encoding="utf-8")
        _write_tasks(folder, part, texts)
    _write_evaluation_sets(folder, texts)
    columns = zip(*((folder / f"train.{code}").read_text().splitlines() for code in ("en", "fr")), strict=True)
    with gzip.open(folder / "corpus.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{a}\t{b}\n" for a, b in columns)
    _write_models(folder)
    for name in ("ppa_fast", "ds_configs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    return folder


def _write_tasks(folder: Path, part: str, texts: dict[str, list[str]]) -> None:
    """Writes for each language a row-parallel NLI file, a topic file, a file of tags, a question answering file, and
    links and mined pairs."""
    labels = ("entailment", "neutral", "contradictory")
    for code in ("en", "de"):
        rows = list(zip(texts[code], reversed(texts[code]), strict=True))
        nli = [f"{a}\t{b}\t{labels[i % 3]}" for i, (a, b) in enumerate(rows)]
        _write_lines(folder / f"{part}.{code}.tsv", ["premise\thypo\tlabel", *nli])
        topics = [f"{text}\t{'sports' if i % 2 else 'travel'}" for i, text in enumerate(texts[code])]
        _write_lines(folder / f"topic.{part}.{code}.tsv", ["text\tcategory", *topics])
        words = [[(word, ("NOUN", "VERB")[len(word) % 2]) for word in text.split()] for text in texts[code]]
        tagged = [[f"# s{i}", *map("\t".join, sentence), ""] for i, sentence in enumerate(words)]
        _write_lines(folder / f"tags.{part}.{code}.tsv", [line for sentence in tagged for line in sentence])
        paragraphs = []
        for i, text in enumerate(texts[code][:30]):
            answer = {"text": text.split()[0], "answer_start": 0}
            paragraphs.append({"context": text, "qas": [{"id": str(i), "question": text, "answers": [answer]}]})
        gold = {"version": "1.1", "data": [{"title": "toy", "paragraphs": paragraphs}]}
        (folder / f"qa.{part}.{code}.json").write_text(json.dumps(gold), encoding="utf-8")
        answers = {qa["id"]: qa["answers"][0]["text"] for p in paragraphs for qa in p["qas"]}
        (folder / f"answers.{code}.json").write_text(json.dumps(answers), encoding="utf-8")
        _write_lines(folder / f"bucc.{part}.{code}", [f"{code}-{i}\t{text}" for i, text in enumerate(texts[code])])
        _write_lines(folder / f"labels.{code}.txt", [labels[i % 3] for i in range(len(rows))])
    _write_lines(folder / f"bucc.{part}.gold", [f"de-{i}\ten-{i}" for i in range(0, len(texts["en"]), 2)])
    links = [" ".join(f"{i}-{i}" for i in range(len(text.split()))) for text in texts["en"]]
    _write_lines(folder / f"{part}.gold", links)


def _write_evaluation_sets(folder: Path, texts: dict[str, list[str]]) -> None:
    """Writes a folder of published file names for ``evaluate suite``, and a file that it does not know."""
    (folder / "evaluation").mkdir()
    for code, name, kind in (("de", "deu", "ref"), ("en", "eng", "src")):
        _write_lines(folder / "evaluation" / f"tatoeba.deu-eng.{name}", texts[code])
        _write_lines(folder / "evaluation" / f"newstest2019-{kind}.{name}.txt", texts[code])
    _write_lines(folder / "evaluation" / "README.txt", ["toy"])


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_models(folder: Path) -> None:
    files = [folder / f"train.{code}" for code in ("en", "de", "fr")]
    train_wordpiece(files, folder / "wordpiece", vocab_size=300)
    init_model(folder / "bert-base-multilingual-cased", str(folder / "wordpiece"), seed=1, **SIZES)
    pieces = sorted({piece for file in files for piece in file.read_text(encoding="utf-8")} - {"\n", " "})
    vocabulary = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [(piece, -1.0) for piece in ["▁", *pieces]] + [("<mask>", 0.0)]
    XLMRobertaTokenizer(vocab=vocabulary).save_pretrained(folder / "sentencepiece")
    init_model(folder / "xlm-roberta-base", str(folder / "sentencepiece"), family="xlm-roberta", seed=1, **SIZES)
    for name in ("wordpiece", "sentencepiece"):
        shutil.rmtree(folder / name)


def write_programs(folder: Path, programs: dict[str, str]) -> Path:
    """Returns a folder for the PATH with a shell script for each of ``programs``."""
    folder.mkdir()
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def run(language: str, text: str, folder: Path, programs: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Executes a block in ``folder``; standard error is part of the output."""
    values = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHON": sys.executable}
    values |= {"PYTHONPATH": str(ROOT), **environment}
    script = programs / f"block.{language}"
    script.write_text(text, encoding="utf-8")
    return subprocess.run(
        ["bash" if language == "sh" else sys.executable, str(script)],
        cwd=folder,
        env=values,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
