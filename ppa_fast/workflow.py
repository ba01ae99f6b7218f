"""``ppa-fast align``: from parallel text to an aligned encoder, by the functions of the other commands.

Each stage leaves its result in the output folder and is skipped if the result exists, so that the same command resumes.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch

from ppa_fast.data.reading.corpus import parse_pairs, read_eval_pairs
from ppa_fast.data.reading.held_out import hold_out
from ppa_fast.data.store.prepare import prepare
from ppa_fast.data.store.store import MANIFEST, read_manifest
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder, folder_lock, remove_folder, write_json
from ppa_fast.model.encoder import lacks_lm_head, load_config, max_sequence
from ppa_fast.model.sentence_transformer import SentenceModules, is_sentence_encoder
from ppa_fast.reporting.run import read_run
from ppa_fast.settings import AlignSettings, Filters, LaunchSettings, Settings, read_yaml, takes, to_flags
from ppa_fast.tasks.embedder import Embedder
from ppa_fast.training.checkpoint import Checkpoints, read_state
from ppa_fast.training.config import PRECISIONS, DeepSpeedConfig, read_config, uses_cuda
from ppa_fast.training.export import export
from ppa_fast.training.launch import PACKAGE, launch, place
from ppa_fast.training.measure import measure
from ppa_fast.training.preflight import bf16_products, fitting_momentum, fitting_queue

log = logging.getLogger(__name__)

CHOICES = "align.json"  # in the output folder: what was asked for and what was chosen
WEIGHTS = "model.safetensors"  # the file of the export that is moved last

PAIRS_SEEN = 250_000  # pairs that a run reads, with repetitions; a larger text is read once
MOST_PASSES = 10
STEPS_OF_A_PASS = 16  # a pass has at least this many steps; a small text gets a smaller batch
CPU_MICRO_BATCH, LARGE_MEMORY = 64, 16 << 30  # pairs of a micro-batch on a CPU with at least this many bytes
FEW_STEPS, SMALL_BATCH = 200, 64  # with --minutes: fewer steps get a smaller batch, down to this many pairs a rank
LOWEST_MOMENTUM = 0.9  # of the momentum encoder in a short run; with a lower one the contrast collapses
EVALUATIONS = 4  # during training; one more takes place before training


@dataclass(frozen=True)
class Aligned:
    """The result of :func:`align`.

    Attributes:
        folder: the aligned encoder.
        before, after: retrieval of translations before training and by the aligned encoder: ``{"mean": share, "pairs":
            {"en-de": {"a_to_b": share, "b_to_a": share, "n": sentences, …}}, …}``, see ``retrieval.summarise``.
        run: the run folder. report: the HTML page, which is written if the extra ``report`` is installed.
    """

    folder: Path
    before: dict[str, Any]
    after: dict[str, Any]
    run: Path
    report: Path

    @cached_property
    def encoder(self) -> Embedder:
        """The aligned encoder, loaded on first use: ``encoder.encode(texts)`` gives unit vectors fp32 [N, H]."""
        return Embedder(str(self.folder))


@takes(AlignSettings)
def align(settings: AlignSettings) -> Aligned:
    """Aligns an encoder with parallel text: holds out an evaluation set, prepares, trains, exports and reports.

    The folder ``out`` then has the aligned encoder, as :func:`ppa_fast.export` writes it, ``report.html``, and the
    folders ``dev`` (held-out pairs), ``store`` (token store) and ``run`` (training run). ``align.json`` records what
    was chosen. If the call was interrupted, the same call resumes with these choices. The weights are then equal bit
    for bit.

    The arguments are the fields of :class:`AlignSettings`.

    Raises:
        UserError: an invalid argument, an ``out`` of other arguments, an error of a stage, or training that failed.
        KeyboardInterrupt: a signal stopped training, which has saved.
    """
    folder = Path(settings.out)
    with folder_lock(folder, "another align"):
        choices = _opened(settings, folder)
        if "dev" not in choices:
            choices["dev"] = _held_out(settings, folder)
            write_json(folder / CHOICES, choices)
        if "train" not in choices:
            choices |= _chosen(settings, folder, choices["dev"])
            write_json(folder / CHOICES, choices)
        _train(choices["train"])
        if not (folder / WEIGHTS).exists():
            _export(folder)
        page, found = folder / "report.html", read_run(folder / "run").before_after()
        if not page.exists():
            _report(folder, page)
        if found is None:
            raise UserError(f"{folder / 'run'}: found no evaluations before and after training, expected both")
        return Aligned(folder, *found, folder / "run", page)


def _opened(settings: AlignSettings, folder: Path) -> dict[str, Any]:
    """The choices in a folder, or those of a new one; raises UserError if it belongs to other arguments."""
    file = folder / CHOICES
    asked = json.loads(json.dumps({**vars(settings), "out": None}, default=str))
    if not file.exists():
        check_new_folder(folder)
        for spec in settings.pairs:
            parse_pairs(spec)
        load_config(settings.model)
        write_json(file, {"asked": asked})
    choices: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    # An argument may change until a stage has used it.
    used = asked if "train" in choices else ("model", "pairs", "dev") if "dev" in choices else ()
    for name in used:
        if asked[name] != (then := choices["asked"][name]):
            raise UserError(f"{name}: found {asked[name]}, but {folder} was made with {then}; expected another --out")
    return {**choices, "asked": asked}


def _held_out(settings: AlignSettings, folder: Path) -> list[str]:
    """The evaluation sets: the given ones, or held-out pairs."""
    if settings.dev:
        for spec in settings.dev:
            read_eval_pairs(spec)
        return settings.dev
    (folder / "dev").mkdir(exist_ok=True)
    found = hold_out(settings.pairs, folder / "dev")
    counts = ", ".join(f"{name} {count:,}" for name, (_, count) in found.items())
    log.info(f"held out for evaluation: {counts} pairs in {folder / 'dev'}; training shares no sentence with them")
    return [spec for spec, _ in found.values()]


def _chosen(settings: AlignSettings, folder: Path, dev: list[str]) -> dict[str, Any]:
    """Prepares the store, measures the speed and chooses the settings of ``train``."""
    given = _given(settings)
    epochs = given.pop("epochs", None)
    recipe, why = _recipe(settings.model) if "recipe" not in given else (given["recipe"], "as given")
    store, run, config_file = (folder / name for name in ("store", "run", "deepspeed.json"))
    train: dict[str, Any] = {"model": settings.model, "data": [str(store)], "output": str(run), "recipe": recipe}
    train |= {"eval_pairs": dev, **given, "deepspeed_config": str(config_file)}

    max_tokens = given.get("max_tokens", _max_tokens(settings.model, Settings(**train).tlm))
    if not (store / MANIFEST).exists():
        prepare(settings.pairs, settings.model, store, max_tokens, filters=Filters(exclude=tuple(dev)))
    pairs = read_manifest(store)["pairs"]
    ranks, config = _config(given.get("deepspeed_config"), pairs, run)
    batch = config["train_batch_size"]
    if Settings(**train).sentence_objective == "moco":
        train = {"queue_size": min(Settings(**train).queue_size, fitting_queue(pairs, batch)), **train}

    log.info("measuring the speed of training steps")
    micro_batch, pairs_per_s = measure(Settings(**train), config, ranks)
    pairs_per_s *= ranks
    seen = epochs * pairs if epochs else min(max(pairs, PAIRS_SEEN), MOST_PASSES * pairs)
    steps = math.ceil(seen / batch)
    if settings.minutes:
        possible = 60 * settings.minutes * pairs_per_s  # pairs
        while "deepspeed_config" not in given and possible < FEW_STEPS * batch and batch >= 2 * SMALL_BATCH * ranks:
            batch //= 2
        steps = max(1, min(math.ceil(seen / batch), int(possible / batch)))
        micro_batch = min(micro_batch, batch // ranks)
    config |= {"train_batch_size": batch, "train_micro_batch_size_per_gpu": micro_batch}
    write_json(config_file, config)
    train = {"steps": steps, **train}
    steps = train["steps"]
    if Settings(**train).sentence_objective == "moco":
        train = {"momentum": min(Settings(**train).momentum, max(LOWEST_MOMENTUM, fitting_momentum(steps))), **train}
    often = math.ceil(steps / EVALUATIONS)
    train = {"eval_every": often, "save_every": often, "keep": 1, **train}

    prepared = {"pairs": settings.pairs, "tokenizer": settings.model, "out": str(store), "max_tokens": max_tokens}
    commands = _commands({**prepared, "exclude": dev}, train)
    chosen = {
        "recipe": recipe,
        "reason": why,
        "precision": _precision(read_config(config_file, ranks, run), Settings(**train)),
    }
    chosen |= {"batch": batch, "micro_batch": micro_batch, "ranks": ranks, "pairs_per_s": round(pairs_per_s, 1)}
    _tell(chosen, train, commands, pairs)
    log.info(f"all choices are in {folder / CHOICES}")
    return {"chosen": chosen, "train": train, "commands": commands}


def _given(settings: AlignSettings) -> dict[str, Any]:
    """The settings of ``train`` that the user gives: those of the file, replaced by the options of ``align``."""
    given = read_yaml(Settings, settings.train_settings) if settings.train_settings else {}
    options = {name: getattr(settings, name) for name in ("recipe", "pooling", "steps")}
    given |= {name: value for name, value in options.items() if value is not None}
    if settings.minutes:
        given.pop("steps", None)
    return given


def _tell(chosen: dict[str, Any], train: dict[str, Any], commands: list[str], pairs: int) -> None:
    """Logs the choices, an estimate of the time of training, and the separate commands."""
    steps, batch, pairs_per_s = train["steps"], chosen["batch"], chosen["pairs_per_s"]
    log.info(
        f"chosen: recipe {chosen['recipe']} ({chosen['reason']}); {chosen['precision']}; {steps:,} steps of {batch} "
        f"pairs in micro-batches of {chosen['micro_batch']}, {steps * batch / pairs:.1f} passes over {pairs:,} pairs"
    )
    log.info(
        f"estimate: training takes {_duration(steps * batch / pairs_per_s)} at {pairs_per_s:,.0f} pairs/s; "
        f"{1 + math.ceil(steps / train['eval_every'])} evaluations take additional time"
    )
    log.info("\n  ".join(["these separate commands do the same:", *commands]))


def _commands(prepared: dict[str, Any], train: dict[str, Any]) -> list[str]:
    """The separate commands that do the same, from the options of ``prepare`` and ``train``."""
    run = train["output"]
    words = [
        ["prepare", *to_flags(prepared)],
        ["train", *to_flags(train)],
        ["export", run, "--out", f"{run}-export"],
        ["report", run],
    ]
    return [shlex.join(["ppa-fast", *each]) for each in words]


def _recipe(model: str) -> tuple[str, str]:
    """The recipe for a model, and the reason."""
    if is_sentence_encoder(model):
        return "retrieval", "the model is a sentence encoder"
    if lacks_lm_head(model):
        return "retrieval", "the model has no MLM head"
    return "paper", "the model has an MLM head"


def _precision(config: DeepSpeedConfig, train: Settings) -> str:
    """The precision that training will have, for the log."""
    named = next((name for name, dtype in PRECISIONS.items() if dtype == config.dtype), "fp32")
    return f"{named} with bf16 products" if bf16_products(train, config, load_config(train.model)) else named


def _max_tokens(model: str, tlm: bool) -> int:
    """The maximum tokens of a sentence, at most the default: TLM needs room for two sentences and three specials."""
    positions = max_sequence(load_config(model))
    length = min(positions, SentenceModules.of(model).max_seq_length or positions)
    return min(Settings.max_tokens, length - 2, (positions - 3) // 2 if tlm else positions)


def _config(given: str | None, pairs: int, run: Path) -> tuple[int, dict[str, Any]]:
    """The number of ranks on this machine, and the DeepSpeed configuration: that of a given file, or that of
    ds_configs/ with a global batch that suits the number of pairs, and fp32 if the GPU has no bf16."""
    placement = place(LaunchSettings())
    ranks = placement.ranks
    if given:
        config = read_config(given, ranks, run).values
        config.pop("gradient_accumulation_steps")  # it follows from the micro-batch, which may be reduced
        return ranks, config
    config = json.loads((PACKAGE / "ds_configs" / placement.config).read_text(encoding="utf-8"))
    config.pop("tensorboard", None)
    if uses_cuda() and not torch.cuda.is_bf16_supported(including_emulation=False):
        config = {name: value for name, value in config.items() if name not in ("bf16", "data_types")}
    wanted = min(config["train_batch_size"], pairs // STEPS_OF_A_PASS)
    of_rank = 2 ** int(math.log2(max(2, wanted // ranks)))
    most = config["train_micro_batch_size_per_gpu"]
    if not uses_cuda() and psutil.virtual_memory().total >= LARGE_MEMORY:
        most = CPU_MICRO_BATCH
    micro_batch = min(most, of_rank // 2)
    return ranks, {**config, "train_batch_size": of_rank * ranks, "train_micro_batch_size_per_gpu": micro_batch}


def _train(train: dict[str, Any]) -> None:
    """Trains to the last step, from the latest checkpoint; raises KeyboardInterrupt if a signal stopped training."""
    settings = Settings(**train)
    if _done(settings):
        return
    status = launch(settings, to_flags(train), LaunchSettings())
    if status:
        raise UserError(
            f"training failed with exit status {status}; the lines above have the reason. If memory ran out, lower "
            f"train_micro_batch_size_per_gpu in {settings.deepspeed_config}. The same command resumes"
        )
    if not _done(settings):
        log.info("training was stopped and has saved; the same command resumes")
        raise KeyboardInterrupt


def _report(folder: Path, page: Path) -> None:
    """Writes the report of the run, if the extra ``report`` is installed."""
    try:
        from ppa_fast.reporting.page import report
    except UserError as error:
        log.warning(f"{page} is not written: {error}. Then run the same command again")
    else:
        report([folder / "run"], page, model=folder)


def _done(settings: Settings) -> bool:
    latest = Checkpoints(settings.output).named("latest")
    return latest is not None and read_state(latest)["step"] >= (settings.steps or 0)


def _export(folder: Path) -> None:
    """Exports to a temporary folder, then moves the files to ``folder``, which has other files; ``WEIGHTS`` last."""
    temporary = folder / ".export"
    remove_folder(temporary)
    export(folder / "run", temporary)
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == WEIGHTS):
        remove_folder(folder / path.name)
        path.rename(folder / path.name)
    temporary.rmdir()


def _duration(seconds: float) -> str:
    return f"about {seconds / 60:,.0f} minutes" if seconds >= 90 else f"about {seconds:,.0f} s"
