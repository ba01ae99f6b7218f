"""Prepares the real text for plans/small.yaml, divided into training and test files.

    python benchmarks/ablation_text.py DATA_DIR --out runs/ablation/text

It reads ``DATA_DIR``: ``nli/`` and ``tatoeba/`` as for real_text.py; ``ntrex/newstest2019-*.txt``; SIB-200 in
``topic/``; ``qa/xquad.<code>.json``. It writes files that are named by language code:

- ``bitext.en-xx.{en,xx}``: premises and hypotheses of NLI rows 1 … 11,000, identical pairs once.
- ``mlm.xx.txt``: the same sentences, each once, and NTREX, in every language of NLI or NTREX.
- ``nli.{train,dev,test}.xx.tsv``: rows 1 … 10,500; rows 10,501 … 11,000; the rows after 11,000 whose English premise
  does not occur before.
- ``topic.{train,dev,test}.xx.tsv``: SIB-200, unchanged.
- ``qa.{train,dev,test}.xx.json``: XQuAD, divided by article, so that no paragraph is in two files. Of every five
  articles, in the order of the file, the first three are train, the fourth is dev, the fifth is test.
- ``tatoeba.en-xx.{en,xx}``: Tatoeba, unchanged.

The bitext and the MLM text contain no test text: no SIB-200, XQuAD or Tatoeba, and no held-out NLI row.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import exit_status
from real_text import find_data, read_nli, split_all, write_pairs

from ppa_fast.data.reading.corpus import parse_pairs
from ppa_fast.errors import UserError

ROWS, DEV_ROWS = 11_000, 500
PARTS = ("train", "train", "train", "dev", "test")  # per five articles of XQuAD
# NTREX and SIB-200 name the languages by ISO 639-3 codes, with a country or a script.
CODES = {
    "arb": "ar",
    "bul": "bg",
    "deu": "de",
    "ell": "el",
    "eng": "en",
    "fra": "fr",
    "hin": "hi",
    "rus": "ru",
    "spa": "es",
    "swa": "sw",
    "swh": "sw",
    "tha": "th",
    "tur": "tr",
    "urd": "ur",
    "vie": "vi",
    "zho": "zh",
}


def _language_code(name: str) -> str:
    return CODES[name[:3]]


def _matching_files(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise UserError(f"{folder}: no {pattern}; expected the files that the docstring of this script lists")
    return paths


def write_nli(nli: dict[str, Path], out: Path, rows: int, dev_rows: int) -> None:
    """Divides row-parallel NLI files by row; a held-out row is kept if its English premise is new."""
    english = [premise for premise, _ in read_nli(nli["en"])]
    known = set(english[:rows])
    test = [row for row in range(rows, len(english)) if english[row] not in known]
    parts = {"train": range(rows - dev_rows), "dev": range(rows - dev_rows, rows), "test": test}
    for code, path in nli.items():
        header, *lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        for part, kept in parts.items():
            text = "".join(f"{line}\n" for line in (header, *(lines[row] for row in kept)))
            (out / f"nli.{part}.{code}.tsv").write_text(text, encoding="utf-8")


def write_qa(path: Path, out: Path) -> None:
    """Divides a SQuAD file by article."""
    content = json.loads(path.read_text(encoding="utf-8"))
    code = path.name.split(".")[1]
    for part in dict.fromkeys(PARTS):
        articles = [article for i, article in enumerate(content["data"]) if PARTS[i % len(PARTS)] == part]
        text = json.dumps({**content, "data": articles}, ensure_ascii=False)
        (out / f"qa.{part}.{code}.json").write_text(text, encoding="utf-8")


def write_all(data: Path, out: Path, rows: int = ROWS, dev_rows: int = DEV_ROWS) -> None:
    """Writes every file; raises UserError for a missing or invalid file."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; expected a new name (--out)")
    nli, tatoeba = find_data(data)
    splits = split_all(nli, rows)
    if not 0 < dev_rows < rows:
        raise UserError(f"--dev-rows: found {dev_rows}, expected 1 to {rows - 1}, fewer than --rows")
    ntrex, topic = _matching_files(data / "ntrex", "newstest2019-*.txt"), _matching_files(data / "topic", "*/*.tsv")
    qa = _matching_files(data / "qa", "xquad.*.json")

    out.mkdir(parents=True)
    sentences: dict[str, list[str]] = {}
    for code, split in splits.items():
        write_pairs(out, "bitext", code, split.train)
        english, other = zip(*split.train, strict=True)
        sentences |= {"en": list(english), code: list(other)}  # the English text is the same for every language
    for path in ntrex:
        sentences.setdefault(_language_code(path.name.split("-", 1)[1][4:]), []).extend(
            path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        )
    for code, lines in sentences.items():
        text = "".join(f"{line}\n" for line in dict.fromkeys(lines))
        (out / f"mlm.{code}.txt").write_text(text, encoding="utf-8")
    write_nli(nli, out, rows, dev_rows)
    for path in topic:
        shutil.copy(path, out / f"topic.{path.stem}.{_language_code(path.parent.name)}.tsv")
    for path in qa:
        write_qa(path, out)
    for code, spec in tatoeba.items():
        for side, path in zip(("en", code), parse_pairs(spec).paths, strict=True):
            shutil.copy(path, out / f"tatoeba.en-{code}.{side}")
    print(f"{len([*out.iterdir()])} files in {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status, 2 for invalid input."""
    parser = argparse.ArgumentParser(description="Text for plans/small.yaml: see the head of this file.")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of nli/, ntrex/, topic/, qa/, tatoeba/")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation/text"), help="new folder (default %(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help="NLI rows to train (default %(default)s)")
    parser.add_argument("--dev-rows", type=int, default=DEV_ROWS, metavar="N", help="of them (default %(default)s)")
    options = parser.parse_args(argv)
    return exit_status(lambda: write_all(options.data, options.out, options.rows, options.dev_rows))


if __name__ == "__main__":
    sys.exit(main())
