"""Real text for plans/small.yaml, split into what is trained on and what is scored.

    python benchmarks/ablation_text.py DATA_DIR --out runs/ablation/text

reads ``DATA_DIR`` (``nli/`` and ``tatoeba/`` as real_text.py; ``ntrex/newstest2019-*.txt``; SIB-200 in ``topic/``;
``qa/xquad.<code>.json``) and writes files that go by language codes:

- ``bitext.en-xx.{en,xx}``: premises and hypotheses of NLI rows 1 … 11,000, identical pairs once.
- ``mlm.xx.txt``: the same sentences, each once, and NTREX, in every language of either.
- ``nli.{train,dev,test}.xx.tsv``: rows 1 … 10,500, 10,501 … 11,000, and those after 11,000 whose English premise does
  not occur before.
- ``topic.{train,dev,test}.xx.tsv``: SIB-200 as it is.
- ``qa.{train,dev,test}.xx.json``: XQuAD by article, so that no paragraph is on both sides: of every five articles, in
  the file's order, the first three train, the fourth is dev, the fifth is test.
- ``tatoeba.en-xx.{en,xx}``: as it is.

Nothing in bitext or MLM text comes from a test set: neither SIB-200, XQuAD, Tatoeba nor a held-out NLI row.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from real_text import find_data, read_nli, split_all, write_pairs

from ppa_fast.data.corpus import parse_pairs
from ppa_fast.errors import UserError

ROWS, DEV_ROWS = 11_000, 500
PARTS = ("train", "train", "train", "dev", "test")  # of five articles of XQuAD
# NTREX and SIB-200 call the languages by their ISO 639-3 codes, with a country or a script.
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


def _code(name: str) -> str:
    return CODES[name[:3]]


def _found(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise UserError(f"{folder}: no {pattern}; expected the text that the head of this file tells of")
    return paths


def write_nli(nli: dict[str, Path], out: Path, rows: int, dev_rows: int) -> None:
    """Splits row-parallel NLI files by row; a held-out row is kept where its English premise is new."""
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
    """Splits a SQuAD file by article."""
    content = json.loads(path.read_text(encoding="utf-8"))
    code = path.name.split(".")[1]
    for part in dict.fromkeys(PARTS):
        articles = [article for i, article in enumerate(content["data"]) if PARTS[i % len(PARTS)] == part]
        text = json.dumps({**content, "data": articles}, ensure_ascii=False)
        (out / f"qa.{part}.{code}.json").write_text(text, encoding="utf-8")


def write_all(data: Path, out: Path, rows: int = ROWS, dev_rows: int = DEV_ROWS) -> None:
    """Writes every file; raises UserError for a file that is missing or cannot be used."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; expected a new name (--out)")
    nli, tatoeba = find_data(data)
    splits = split_all(nli, rows)
    if not 0 < dev_rows < rows:
        raise UserError(f"--dev-rows: found {dev_rows}, expected 1 to {rows - 1}, fewer than --rows")
    ntrex, topic = _found(data / "ntrex", "newstest2019-*.txt"), _found(data / "topic", "*/*.tsv")
    qa = _found(data / "qa", "xquad.*.json")

    out.mkdir(parents=True)
    sentences: dict[str, list[str]] = {}
    for code, split in splits.items():
        write_pairs(out, "bitext", code, split.train)
        english, other = zip(*split.train, strict=True)
        sentences |= {"en": list(english), code: list(other)}  # English is the same text for every language
    for path in ntrex:
        sentences.setdefault(_code(path.name.split("-", 1)[1][4:]), []).extend(
            path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        )
    for code, lines in sentences.items():
        text = "".join(f"{line}\n" for line in dict.fromkeys(lines))
        (out / f"mlm.{code}.txt").write_text(text, encoding="utf-8")
    write_nli(nli, out, rows, dev_rows)
    for path in topic:
        shutil.copy(path, out / f"topic.{path.stem}.{_code(path.parent.name)}.tsv")
    for path in qa:
        write_qa(path, out)
    for code, spec in tatoeba.items():
        for side, path in zip(("en", code), parse_pairs(spec).paths, strict=True):
            shutil.copy(path, out / f"tatoeba.en-{code}.{side}")
    print(f"{len([*out.iterdir()])} files in {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry; returns the exit status, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description="Text for plans/small.yaml: see the head of this file.")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of nli/, ntrex/, topic/, qa/, tatoeba/")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation/text"), help="new folder (default %(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help="NLI rows to train (default %(default)s)")
    parser.add_argument("--dev-rows", type=int, default=DEV_ROWS, metavar="N", help="of them (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        write_all(options.data, options.out, options.rows, options.dev_rows)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
