"""Runs the complete job on real parallel text, from TSV files to an aligned encoder, with the public commands.

    python benchmarks/real_text.py DATA_DIR --out runs/real_text

It reads ``DATA_DIR/nli/multinli.<code>.tsv`` (a header, then premise, hypothesis, label; row i of every file is the
same example) and ``DATA_DIR/tatoeba/tatoeba.<l3>-eng.{<l3>,eng}``. It trains a small BERT from random weights on
English with each other language. Retrieval is scored before and after on held-out rows and on Tatoeba, by language. The
output folder has the text, the models, ``result.json`` and ``report.html``. It takes less than 30 minutes on 2 cores.
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
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import exit_status

from ppa_fast.data.store.wordpiece import train_wordpiece
from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.tasks.retrieval import format_table

ROOT = Path(os.path.relpath(Path(__file__).resolve().parent.parent))
CONFIG = ROOT / "ds_configs" / "demo_cpu.json"
# Tatoeba names the languages by ISO 639-3 codes.
ISO_639_3 = {"ar": "ara", "de": "deu", "es": "spa", "fr": "fra", "sw": "swh", "tr": "tur", "ur": "urd", "vi": "vie"}
ISO_639_3["zh"] = "cmn"
EVALUATIONS = 5  # during training, for the report
CANDIDATES = 1000  # maximum held-out pairs per language, as in Tatoeba
SIZES = {"rows": 11_000, "vocab-size": 20_000, "max-tokens": 48, "layers": 2, "hidden": 128, "steps": 1300, "seed": 0}
# For a small encoder from random weights; a pretrained one wants a lower learning rate.
SETTINGS = {"recipe": "retrieval", "pooling": "mean", "learning-rate": 3e-3}

Pair = tuple[str, str]


@dataclass(frozen=True)
class Split:
    """English with one language: training pairs, test pairs, and the numbers of omitted pairs."""

    train: list[Pair]
    held_out: list[Pair]
    repeated: int  # training pairs that are duplicates
    known: int  # held-out pairs with a sentence of a training row or of an earlier held-out pair


def find_data(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns the NLI file of each language, English included, and the Tatoeba set of each other language as a
    ``--pairs`` spec. Raises UserError for the first file that is missing or of an unknown language."""
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
    """Returns premise and hypothesis of each row; raises UserError with the line of a row that lacks one."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:], 2):
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 3 or not all(columns):
            raise UserError(f"{path}:{number}: found {line!r}, expected premise, hypothesis, label with tabs between")
        rows.append((columns[0], columns[1]))
    return rows


def split(english: Sequence[Pair], other: Sequence[Pair], rows: int, candidates: int = CANDIDATES) -> Split:
    r"""Makes bitext from row-parallel examples: premise with premise, hypothesis with hypothesis.

    The first ``rows`` rows are for training, identical pairs once. The test pairs are the first ``candidates`` pairs of
    the other rows whose two sentences occur neither in the training rows nor in an earlier test pair. So no test
    sentence is trained on, and each query has one correct answer.
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
    """Splits English with each other language; raises UserError for files of different lengths."""
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


def tokenizer_files(text: Path, codes: Collection[str]) -> list[Path]:
    """The training text of English and of ``codes``, written by :func:`write_pairs`.

    The English text is the same for every language. It is used once, or most of the vocabulary would be English.
    """
    return [text / f"train.en-{min(codes)}.en", *(text / f"train.en-{code}.{code}" for code in codes)]


def random_encoder(
    model: Path, files: Sequence[Path], vocab_size: int = SIZES["vocab-size"], hidden: int = SIZES["hidden"]
) -> None:
    """Writes the encoder with random weights in the folder ``model``, with a tokenizer of ``files`` beside it, unless
    the model exists."""
    if model.is_dir():
        return
    tokenizer = model.with_name("tokenizer")
    shutil.rmtree(tokenizer, ignore_errors=True)  # of a call that was interrupted
    train_wordpiece(files, tokenizer, vocab_size=vocab_size)
    shape = {"layers": SIZES["layers"], "hidden": hidden, "heads": max(1, hidden // 32), "dropout": 0.0}
    init_model(model, str(tokenizer), seed=0, **shape)


@dataclass
class Commands:
    """Runs commands one after another, and records them with their durations."""

    lines: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, step: str, command: str, *options: object) -> None:
        words = [*command.split(), *map(str, options)]
        self.lines.append(shlex.join(words))
        print(f"\n$ {self.lines[-1]}", flush=True)
        words[0] = str(
            Path(sys.executable).parent / words[0]
        )  # the program of this environment, even if it is not activated
        begin = time.monotonic()
        if status := subprocess.run(words, check=False).returncode:
            raise UserError(f"{step}: the command above ended with exit status {status}")
        self.seconds[step] = round(time.monotonic() - begin, 1)
        print(f"{step}: {self.seconds[step]} s", flush=True)


def run(options: argparse.Namespace) -> None:
    """Runs the complete job. Raises UserError for invalid input before any work, and for a failed command."""
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

    files = tokenizer_files(text, splits)
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
    launch = (ROOT / "ppa_fast" / "train.py", "--deepspeed_config", options.deepspeed_config)  # uses a free port
    folders = ("--model", model, "--data", store, "--output", trained)
    flags += ["--eval-every", max(1, options.steps // EVALUATIONS), "--eval-pairs", *held_out.values()]
    call("train", "deepspeed --num_gpus 1 --master_port 0", *launch, *folders, *flags)
    # The last checkpoint, because the best one was selected on the test rows.
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
    """Returns the exit status, 2 for invalid input."""
    parser = argparse.ArgumentParser(description="The whole job on real parallel text: see the head of this file.")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder that holds nli/ and tatoeba/")
    parser.add_argument("--out", type=Path, default=Path("runs/real_text"), help="new folder (default %(default)s)")
    parser.add_argument("--deepspeed_config", type=Path, default=CONFIG, metavar="FILE", help="(default %(default)s)")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help="(default %(default)s)")
    options = parser.parse_args(argv)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
