"""Alignment by ppa-fast and by sentence-transformers, side by side: retrieval over seconds, speed, memory.

    python benchmarks/peers.py DATA_DIR [--setting random] [--seeds 0 1 2] [--seconds 300] [--out runs/peers]

Every competitor trains the same weights on the same pairs with the same global batch, each in a process of its own on
one core. DATA_DIR is that of real_text.py. The settings "minilm" and "e5" start from real encoders: --model is the
folder of all-MiniLM-L6-v2 or multilingual-e5-small.

Seconds are processor seconds, so that other work on the machine counts little. The benchmark first measures the speed
of every competitor: that of sentence-transformers in fp32 and in bf16, of which it uses the faster. The speed gives the
number of steps that fill --seconds; the learning rate schedule ends there. The seconds of ppa-fast include making the
token store, which sentence-transformers does not need. The store has as many pairs as the run reads.

OUT/SETTING/seed-SEED.json has the results of a seed. A run whose result is in its file is not run again. The tables and
the picture use all of these files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measuring import commit, exit_status, processor
from peers_report import report
from real_text import find_data, random_encoder, split_all, tokenizer_files, write_pairs

from ppa_fast.data.reading.corpus import read_eval_pairs
from ppa_fast.data.store.prepare import prepare
from ppa_fast.errors import UserError
from ppa_fast.files import write_text
from ppa_fast.model.precision import has_bf16_instructions
from ppa_fast.model.sentence_transformer import SentenceModules

ROOT = Path(__file__).resolve().parent.parent
ROWS = 11_000
TOKENS = 48  # of a sentence, without special tokens
SPEED_STEPS = 16  # for the speed; the first quarter is not timed
PREPARED_STEPS = 128  # of the store that shows how long a pair takes


@dataclass(frozen=True)
class Setting:
    """``languages``: each with English; () for all. ``batch``: pairs of a step. ``theirs``, ``ours``: learning rates of
    sentence-transformers and of the recipe "retrieval"; --learning-rate tries others. ``paper``: settings of the recipe
    "paper".
    """

    languages: tuple[str, ...]
    batch: int
    theirs: float
    ours: float
    paper: dict[str, Any] = field(default_factory=dict)


SETTINGS = {
    "random": Setting((), 128, 3e-3, 3e-3, {"learning_rate": 1.5e-3, "queue_size": 1024, "momentum": 0.995}),
    "minilm": Setting(
        ("de", "fr", "es"), 64, 1e-4, 1e-4, {"learning_rate": 1e-4, "queue_size": 1024, "momentum": 0.99}
    ),
    "e5": Setting(("sw", "ur"), 64, 5e-5, 5e-5, {"learning_rate": 5e-5, "queue_size": 1024, "momentum": 0.99}),
}
# sentence-transformers: arguments of MultipleNegativesRankingLoss, with a cache of activations if "mini_batch_size" is
# among them. Ours: settings of training. "share": of the seconds, and the competitor whose speed it has.
SYMMETRIC = {"directions": ["query_to_doc", "doc_to_query"], "partition_mode": "per_direction"}
COMPETITORS: dict[str, dict[str, Any]] = {
    "MNRL": {"theirs": {}},
    "MNRL, symmetric": {"theirs": SYMMETRIC},
    "MNRL, symmetric, cached": {"theirs": {**SYMMETRIC, "mini_batch_size": 32}},
    "ours, retrieval": {"ours": {"recipe": "retrieval"}},
    "ours, retrieval, 0.6 of the seconds": {"ours": {"recipe": "retrieval"}, "share": (0.6, "ours, retrieval")},
    "ours, paper": {"ours": {"recipe": "paper"}},
}
CURVES = [name for name in COMPETITORS if "cached" not in name]  # the cache changes memory and speed, not the loss


@dataclass(frozen=True)
class Run:
    """What a process of peers_training.py is given: one competitor's run. ``points``: 0 measures speed alone."""

    name: str
    competitor: dict[str, Any]
    model: str
    train: dict[str, str]
    evaluations: dict[str, dict[str, str]]
    output: str
    batch: int
    learning_rate: float
    paper: dict[str, Any]
    seed: int
    steps: int
    points: int
    bf16: bool = False  # of theirs
    store: str = ""  # of ours
    prepared: float = 0.0  # processor seconds that making the store took


def make(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The text and the sentence-transformers folder of a setting in ``folder``, once."""
    made = folder / "made.json"
    if made.is_file():
        return dict(json.loads(made.read_text(encoding="utf-8")))
    setting, text, model = SETTINGS[options.setting], folder / "text", folder / "model"
    text.mkdir(parents=True, exist_ok=True)
    nli, tatoeba = find_data(options.data)
    languages = setting.languages or tuple(sorted(set(nli) - {"en"}))
    splits = split_all({code: nli[code] for code in ("en", *languages)}, options.rows)
    train = {code: write_pairs(text, "train", code, split.train) for code, split in splits.items()}
    held_out = {code: write_pairs(text, "held_out", code, split.held_out) for code, split in splits.items()}
    base = options.model or folder / "base"
    if options.model is None:
        random_encoder(base, tokenizer_files(text, languages), options.vocab_size, options.hidden)
    _sentence_encoder(base, model)
    content = {
        "model": str(model),
        "train": train,
        "evaluations": {"held_out": held_out, "tatoeba": {code: tatoeba[code] for code in languages}},
    }
    write_text(made, json.dumps(content, indent=1))
    return content


def make_store(made: dict[str, Any], folder: Path, pairs: int) -> dict[str, Any]:
    """A store of about ``pairs`` random pairs in ``folder``, once: its path and the processor seconds that it took."""
    store, file = folder / f"store-{pairs}", folder / f"store-{pairs}.json"
    if not file.is_file():
        specs = list(made["train"].values())
        records = sum(len(read_eval_pairs(spec)[1]) for spec in specs)
        begin = _processor_seconds()
        prepare(specs, made["model"], store, max_tokens=TOKENS, workers=1, fraction=min(1.0, pairs / records))
        content = {"store": str(store), "prepared": _processor_seconds() - begin}
        write_text(file, json.dumps(content, indent=1))
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _processor_seconds() -> float:
    """Of this process and its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _sentence_encoder(base: Path, folder: Path) -> None:
    """Copies a model folder and states mean pooling and the length, so that both sides read the same."""
    folder.mkdir(exist_ok=True)
    for file in base.iterdir():
        if file.suffix in {".json", ".safetensors", ".txt", ".model"}:
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    SentenceModules.of(str(base)).write(folder, config["hidden_size"], "mean", TOKENS + 2)


def run_all(runs: Sequence[Run], at_once: int) -> Iterator[dict[str, Any]]:
    """Yields the results of the runs, in order; ``at_once`` processes at a time, each on a core of its own.

    Raises UserError for the first run that failed, when no process is left.
    """
    cores = sorted(os.sched_getaffinity(0))[:at_once]
    for first in range(0, len(runs), at_once):
        group = list(zip(runs[first : first + at_once], cores, strict=False))
        print(
            f"{time.strftime('%H:%M')}  {'  |  '.join(f'{run.name}: {run.steps} steps' for run, _ in group)}",
            flush=True,
        )
        processes = [_start(run, core) for run, core in group]
        statuses = [process.wait() for process in processes]
        for (run, _), status in zip(group, statuses, strict=True):
            if status:
                raise UserError(f"{run.name}: exit status {status}; see {run.output}/log.txt")
            result = json.loads((Path(run.output) / "result.json").read_text(encoding="utf-8"))
            yield result | {"device": processor(), "commit": commit(ROOT)}


def _start(run: Run, core: int) -> subprocess.Popen[bytes]:
    output = Path(run.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "run.json").write_text(json.dumps(asdict(run)), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("peers_training.py")), str(output / "run.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with (output / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )


def measure(options: argparse.Namespace) -> None:
    """Runs what is missing, then writes the tables and the picture; raises UserError for a run that failed."""
    setting, folder = SETTINGS[options.setting], options.out / options.setting
    made, batch = make(options, folder), options.batch or SETTINGS[options.setting].batch

    def planned(name: str, seed: int, steps: int, points: int, bf16: bool = False) -> Run:
        competitor = COMPETITORS[name]
        rate = setting.theirs if "theirs" in competitor else setting.ours
        output = folder / "runs" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-{steps}{'-bf16' * bf16}"
        return Run(
            name,
            competitor,
            **made,
            **(make_store(made, folder, steps * batch) if "ours" in competitor else {}),
            output=str(output),
            batch=batch,
            learning_rate=options.learning_rate or rate,
            paper=setting.paper,
            seed=seed,
            steps=steps,
            points=points,
            bf16=bf16,
        )

    names = options.only or list(COMPETITORS)
    speed_file = folder / "speed.json"
    speed = json.loads(speed_file.read_text(encoding="utf-8")) if speed_file.is_file() else {}
    timed = dict.fromkeys(COMPETITORS[name].get("share", (1, name))[1] for name in names)
    untimed = [name for name in timed if name not in speed]
    for name in untimed:  # ours chooses the precision of its products itself
        bf16 = "theirs" in COMPETITORS[name] and has_bf16_instructions()
        runs = [planned(name, 0, SPEED_STEPS, 0, choice) for choice in (False, True)[: 1 + bf16]]
        found = run_all(runs, options.at_once)
        speed[name] = max(found, key=lambda result: float(result["pairs_per_s"]))
        write_text(speed_file, json.dumps(speed, indent=1))
    sample = PREPARED_STEPS * batch
    preparing = make_store(made, folder, sample)["prepared"] / sample  # seconds of a pair
    curves = [name for name in names if name in CURVES]
    for seed in options.seeds:
        file = folder / f"seed-{seed}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        todo = [name for name in curves if name not in known]
        runs = []
        for name in todo:
            share, same = COMPETITORS[name].get("share", (1, name))
            pair = 1 / speed[same]["pairs_per_s"] + ("ours" in COMPETITORS[name]) * preparing
            steps = int(share * options.steps) if options.steps else int(share * options.seconds / pair / batch)
            runs.append(planned(name, seed, max(options.points, steps), options.points, speed[same].get("bf16", False)))
        for result in run_all(runs, options.at_once):
            known[result["name"]] = result
            write_text(file, json.dumps(known, indent=1))
    report(folder, options.setting)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry; returns the exit status, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description="ppa-fast and sentence-transformers: see the head of this file.")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder that holds nli/ and tatoeba/")
    parser.add_argument("--setting", choices=SETTINGS, default="random")
    parser.add_argument("--model", type=Path, help="folder of the encoder, for the settings minilm and e5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=300, help="processor seconds of each competitor (default 300)")
    parser.add_argument("--steps", type=int, help="training steps of every competitor, in place of --seconds")
    parser.add_argument("--only", nargs="+", choices=COMPETITORS, help="competitors (default all)")
    parser.add_argument("--learning-rate", type=float, help='learning rate of every competitor except "ours, paper"')
    parser.add_argument("--points", type=int, default=5, help="evaluations of a run (default %(default)s)")
    parser.add_argument("--at-once", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of training text (default %(default)s)")
    parser.add_argument("--batch", type=int, help="pairs per step (default: as in the setting)")
    parser.add_argument("--hidden", type=int, default=128, help="width of the random encoder (default %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=20_000, help="of the random encoder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), help="(default %(default)s)")
    options = parser.parse_args(argv)
    if (options.model is None) != (options.setting == "random"):
        parser.error(f"--model: the setting {options.setting} {'needs none' if options.model else 'needs a folder'}")
    return exit_status(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
