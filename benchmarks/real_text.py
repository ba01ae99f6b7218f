"""The whole job on real parallel text, from TSV files to an aligned encoder, with the commands that a user types.

    python benchmarks/real_text.py DATA_DIR --out runs/real_text

reads ``DATA_DIR/nli/multinli.<code>.tsv`` (a header, then premise, hypothesis, label; row i of every file is the same
example) and ``DATA_DIR/tatoeba/tatoeba.<l3>-eng.{<l3>,eng}``. A small BERT is trained from random weights on English
with each other language; retrieval is scored before and after on held-out rows and on Tatoeba, by language. The text,
the models, ``result.json`` and ``report.html`` are in the output folder. Within 30 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppa_fast.errors import UserError
from ppa_fast.evaluation.retrieval import format_table

ROOT = Path(os.path.relpath(Path(__file__).resolve().parent.parent))
CONFIG = ROOT / "ds_configs" / "demo_cpu.json"
# Tatoeba calls the languages by their ISO 639-3 codes.
ISO_639_3 = {"ar": "ara", "de": "deu", "es": "spa", "fr": "fra", "sw": "swh", "tr": "tur", "ur": "urd", "vi": "vie"}
ISO_639_3["zh"] = "cmn"
EVALUATIONS = 5  # while training, for the report
CANDIDATES = 1000  # held-out pairs a language at most, as many as Tatoeba has
SIZES = {"rows": 11_000, "vocab-size": 20_000, "max-tokens": 48, "layers": 2, "hidden": 128, "steps": 1300, "seed": 0}
# For a small encoder from random weights; a pretrained one wants others. Its keys drift fast at first: with momentum
# 0.9 the contrast learned to tell new keys from old ones instead of translations from other sentences (README.md here).
SETTINGS = {"pooling": "mean", "learning-rate": 1.5e-3, "queue-size": 1024, "momentum": 0.995}

Pair = tuple[str, str]


@dataclass(frozen=True)
class Split:
    """English with one language: pairs to train and to score, and how many were left out of either."""

    train: list[Pair]
    held_out: list[Pair]
    repeated: int  # training pairs that occur before, word for word
    known: int  # held-out pairs with a sentence of the training rows or of an earlier held-out pair


def find_data(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The NLI file of each language, English too, and of the others the Tatoeba set as a ``--pairs`` spec.

    Raises UserError that names the first file that is missing or of an unknown language.
    """
    nli = {path.name.split(".")[1]: path for path in sorted(folder.glob("nli/multinli.*.tsv"))}
    if len(nli) < 2 or "en" not in nli:
        raise UserError(f"{folder}: no nli/multinli.{'de' if 'en' in nli else 'en'}.tsv; expected English and others")
    tatoeba = {}
    for code in sorted(set(nli) - {"en"}):
        if code not in ISO_639_3:
            raise UserError(f"{nli[code]}: unknown language {code!r}, expected one of {', '.join(ISO_639_3)}")
        english, other = (folder / f"tatoeba/tatoeba.{ISO_639_3[code]}-eng.{x}" for x in ("eng", ISO_639_3[code]))
        for path in (english, other):
            if not path.is_file():
                raise UserError(f"{path}: no such file")
        tatoeba[code] = f"en-{code}:{english},{other}"
    return nli, tatoeba


def read_nli(path: Path) -> list[Pair]:
    """Premise and hypothesis of each row; raises UserError that names the line of a row that has not both."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:], 2):
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 3 or not all(columns):
            raise UserError(f"{path}:{number}: found {line!r}, expected premise, hypothesis, label with tabs between")
        rows.append((columns[0], columns[1]))
    return rows


def split(english: Sequence[Pair], other: Sequence[Pair], rows: int, candidates: int = CANDIDATES) -> Split:
    """Makes bitext of row-parallel examples: premise with premise, hypothesis with hypothesis.

    The first ``rows`` rows are to train, identical pairs once. Of the rest, in order, the first ``candidates`` pairs
    are held out whose two sentences occur neither in the training rows nor in an earlier held-out pair: nothing that
    is scored was trained on, and each query has one right answer.
    """
    bitext = [pair for e, o in zip(english, other, strict=True) for pair in zip(e, o, strict=True)]
    seen, unseen = bitext[: 2 * rows], bitext[2 * rows :]
    train = list(dict.fromkeys(seen))
    known_english, known_other = map(set, zip(*train, strict=True))
    held_out = []
    for e, o in unseen:
        if e not in known_english and o not in known_other:
            held_out.append((e, o))
            known_english.add(e)
            known_other.add(o)
    return Split(train, held_out[:candidates], len(seen) - len(train), len(unseen) - len(held_out))


def split_all(nli: dict[str, Path], rows: int) -> dict[str, Split]:
    """The split of English with each other language; raises UserError for files that do not fit each other."""
    text = {code: read_nli(path) for code, path in nli.items()}
    for code, path in nli.items():
        if len(text[code]) != len(text["en"]):
            raise UserError(f"{path}: found {len(text[code])} rows, expected {len(text['en'])} as in {nli['en']}")
    if not 0 < rows < len(text["en"]):
        raise UserError(f"--rows: found {rows}, expected 1 to {len(text['en']) - 1}: {nli['en']} has one row more")
    return {code: split(text["en"], text[code], rows) for code in nli if code != "en"}


def write_pairs(folder: Path, name: str, code: str, pairs: Sequence[Pair]) -> str:
    """Writes two line-parallel files; returns their ``--pairs`` spec."""
    files = [folder / f"{name}.en-{code}.{side}" for side in ("en", code)]
    for side, file in enumerate(files):
        file.write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
    return f"en-{code}:{files[0]},{files[1]}"


@dataclass
class Commands:
    """Runs commands one after the other; keeps how they were called and how long they took."""

    lines: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, step: str, command: str, *options: object) -> None:
        words = [*command.split(), *map(str, options)]
        self.lines.append(shlex.join(words))
        print(f"\n$ {self.lines[-1]}", flush=True)
        words[0] = str(Path(sys.executable).parent / words[0])  # of this environment, activated or not
        begin = time.monotonic()
        if status := subprocess.run(words, check=False).returncode:
            raise UserError(f"{step}: the command above ended with exit status {status}")
        self.seconds[step] = round(time.monotonic() - begin, 1)
        print(f"{step}: {self.seconds[step]} s", flush=True)


def run(options: argparse.Namespace) -> None:
    """The job from beginning to end; raises UserError for bad input, before work, and for a command that failed."""
    out, begin, call = options.out, time.monotonic(), Commands()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; expected a new name (--out)")
    if not options.deepspeed_config.is_file():
        raise UserError(f"{options.deepspeed_config}: no such file (--deepspeed_config)")
    nli, tatoeba = find_data(options.data)
    splits = split_all(nli, options.rows)

    parts = ("text", "scores", "tokenizer", "model", "store", "run", "export", "report.html")
    text, scores, tokenizer, model, store, trained, export, report = (out / part for part in parts)
    text.mkdir(parents=True)
    scores.mkdir()
    train = {code: write_pairs(text, "train", code, s.train) for code, s in splits.items()}
    held_out = {code: write_pairs(text, "held_out", code, s.held_out) for code, s in splits.items()}
    for code, s in splits.items():
        counts = f"{len(s.train):,} pairs to train ({s.repeated:,} repeated ones left out)"
        print(f"en-{code}: {counts}, {len(s.held_out):,} held out ({s.known:,} known or repeated ones left out)")
    call.seconds["text"] = round(time.monotonic() - begin, 1)

    def evaluate(when: str, encoder: Path) -> dict[str, Any]:
        results = {}
        for name, specs in (("held_out", held_out), ("tatoeba", tatoeba)):
            file = scores / f"{when}.{name}.json"
            how = ("--model", encoder, "--pooling", SETTINGS["pooling"], "--json", file)
            call(f"{when} {name}", "ppa-fast evaluate retrieval", *how, "--pairs", *specs.values())
            results[name] = json.loads(file.read_text(encoding="utf-8"))
        return results

    # The English side is the same text for every language: once, or the vocabulary would be English above all.
    files = [text / f"train.en-{min(splits)}.en", *(text / f"train.en-{code}.{code}" for code in splits)]
    shape = (
        "--layers",
        options.layers,
        "--hidden",
        options.hidden,
        "--heads",
        max(1, options.hidden // 32),
        "--dropout",
        0,
    )
    vocabulary, longest = ("--vocab-size", options.vocab_size), ("--max-tokens", options.max_tokens)
    flags = [f"--{name}={value}" for name, value in (SETTINGS | {"steps": options.steps, "seed": options.seed}).items()]

    call("tokenizer", "ppa-fast tokenizer", "--out", tokenizer, *vocabulary, "--files", *files)
    call("init", "ppa-fast init", "--tokenizer", tokenizer, "--out", model, *shape, "--seed", options.seed)
    call("prepare", "ppa-fast prepare", "--tokenizer", tokenizer, "--out", store, *longest, "--pairs", *train.values())
    before = evaluate("before", model)
    launch = (ROOT / "ppa_fast" / "train.py", "--deepspeed_config", options.deepspeed_config)  # on any free port
    folders = ("--model", model, "--data", store, "--output", trained)
    flags += ["--eval-every", max(1, options.steps // EVALUATIONS), "--eval-pairs", *held_out.values()]
    call("train", "deepspeed --num_gpus 1 --master_port 0", *launch, *folders, *flags)
    # The last one: the best one would have been chosen by the rows that it is scored on.
    call("export", "ppa-fast export", trained, "--checkpoint", "latest", "--out", export)
    after = evaluate("after", export)
    call("report", "ppa-fast report", trained, "--out", report)

    call.seconds["total"] = round(time.monotonic() - begin, 1)
    used = {"settings": {**vars(options), **SETTINGS}, "commands": call.lines}
    result = {"before": before, "after": after, "seconds": call.seconds, **used}
    (out / "result.json").write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    for name, title in (("held_out", "Held-out rows"), ("tatoeba", "Tatoeba")):
        sizes = sorted(scores["n"] for scores in after[name]["pairs"].values())
        print(f"\n{title}, {sizes[0]} to {sizes[-1]} candidates a language\n{format_table(after[name], before[name])}")
    print(f"\n{call.seconds['total'] / 60:.1f} minutes in all; {out / 'result.json'}, {report}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry; returns the exit status, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description="The whole job on real parallel text: see the head of this file.")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder that holds nli/ and tatoeba/")
    parser.add_argument("--out", type=Path, default=Path("runs/real_text"), help="new folder (default %(default)s)")
    parser.add_argument("--deepspeed_config", type=Path, default=CONFIG, metavar="FILE", help="(default %(default)s)")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help="(default %(default)s)")
    try:
        run(parser.parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
