"""The plan of an ablation: a YAML file, read and checked before anything runs. benchmarks/plans/ has two, explained."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ppa_fast import settings
from ppa_fast.data.corpus import parse_pairs
from ppa_fast.data.examples import parse_files
from ppa_fast.data.languages import is_code
from ppa_fast.errors import UserError
from ppa_fast.model import POOLINGS

ENGLISH = "en"


@dataclass(frozen=True)
class Row:
    """A row of the table: the objectives' settings of its alignment (None: the base model as it is).

    ``encoder`` is the row whose encoder it fine-tunes, its own or another's; ``switched``: with code-switching.
    """

    title: str
    objectives: Mapping[str, bool] | None
    encoder: str
    switched: bool = False


ROWS = {
    "none": Row("no alignment", None, "none"),
    "tlm": Row("TLM only", {"moco": False}, "tlm"),
    "moco": Row("MoCo only", {"tlm": False}, "moco"),
    "no-shuffling": Row("both, no input shuffling", {"input_shuffling": False}, "no-shuffling"),
    "ppa": Row("both (PPA)", {}, "ppa"),
    "switched": Row("code-switching only", None, "none", switched=True),
    "ppa-switched": Row("PPA + code-switching", {}, "ppa", switched=True),
}
"""The rows of the paper's ablation and, between them, what code-switching does without alignment."""

BASELINE = "none"
PAPER = tuple(row for row in ROWS if row != "switched")

KINDS: dict[type, str] = {str: "text", int: "a whole number", float: "a number"}

# Options of the public commands that a plan may give, by command.
Options = dict[str, Any]
TOKENIZER: dict[str, type] = {"vocab_size": int}
INIT: dict[str, type] = {"family": str, "layers": int, "hidden": int, "heads": int, "intermediate": int}
INIT |= {"max_positions": int, "dropout": float}
PRETRAIN: dict[str, type] = {"steps": int, "epochs": float, "batch": int, "learning_rate": float, "max_tokens": int}
PREPARE: dict[str, type] = {"max_tokens": int}
FINETUNE: dict[str, type] = {"epochs": int, "batch": int, "micro_batch": int, "learning_rate": float, "max_tokens": int}
FINETUNE |= {"max_rejected": float}
TASKS: dict[str, dict[str, type]] = {
    "retrieval": {"pooling": str, "layer": int},
    "nli": FINETUNE,
    "classify": FINETUNE,
    "qa": {**FINETUNE, "metric": str},
}
# The ablation's own: where things lie, and what differs between seeds and rows.
OWN_SETTINGS = ("model", "data", "output", "seed", "tlm", "moco", "input_shuffling", "resume")


@dataclass(frozen=True)
class Pretraining:
    """A base made here: text files and options of ``ppa-fast tokenizer``, ``init`` and ``pretrain``."""

    files: list[str]
    tokenizer: Options
    init: Options
    pretrain: Options


@dataclass(frozen=True)
class Alignment:
    """``pairs`` for ``ppa-fast prepare`` with its options, or a ready ``store``; the launcher's words; settings."""

    pairs: list[str]
    prepare: Options
    store: str | None
    launch: list[str]
    settings: Options


@dataclass(frozen=True)
class Evaluation:
    """What a row is scored on: ``pairs`` for retrieval, else files to fine-tune on and to score, as LANG:FILE."""

    name: str
    task: str
    pairs: list[str]
    train: list[str]
    dev: list[str]
    test: list[str]
    code_switch: float
    options: Options


@dataclass(frozen=True)
class Plan:
    """A plan that can run. ``base``: the name or folder of a model, or how it is made."""

    seeds: int
    rows: tuple[str, ...]
    base: str | Pretraining
    alignment: Alignment
    evaluations: tuple[Evaluation, ...]


class _Block:
    """A mapping of the file; its errors name the key by its path, such as ``evaluations.topic.train``."""

    def __init__(self, place: str, values: Any, known: Sequence[str]) -> None:
        self.place = place
        if not isinstance(values, dict):
            raise UserError(f"{place}: found {values!r}, expected a mapping of names to values")
        self.values: dict[str, Any] = values
        if unknown := [str(name) for name in values if name not in known]:
            raise UserError(f"{self.at(unknown[0])}: unknown; known here are {', '.join(known)}")

    def at(self, name: str) -> str:
        return f"{self.place}.{name}" if not self.place.endswith(": ") else f"{self.place}{name}"

    def bad(self, name: str, expected: str) -> UserError:
        return UserError(f"{self.at(name)}: found {self.values.get(name)!r}, expected {expected}")

    def get(self, name: str, kind: type, default: object = None) -> Any:
        """The value, of ``kind``; YAML reads 3e-5 as text and 1 as an integer. Raises UserError where it is none."""
        value = self.values.get(name, default)
        if value is None and name not in self.values:
            raise UserError(f"{self.at(name)}: not given, expected {KINDS[kind]}")
        try:
            if kind is float and not isinstance(value, bool):
                return float(value)
        except (TypeError, ValueError):
            pass
        if kind is not float and type(value) is kind:
            return value
        raise self.bad(name, KINDS[kind])

    def options(self, known: Mapping[str, type]) -> Options:
        return {name: self.get(name, kind) for name, kind in known.items() if name in self.values}

    def texts(self, name: str) -> list[str]:
        """One text, or a list of texts."""
        value = self.values.get(name)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
            raise self.bad(name, "text or a list of texts")
        return values

    def block(self, name: str, known: Sequence[str]) -> _Block:
        return _Block(self.at(name), self.values.get(name, {}), known)

    def languages(self, default: list[str] | None = None) -> list[str]:
        """The codes under ``languages``, English left out (it is always there)."""
        if default is not None and "languages" not in self.values:
            return default
        codes = self.texts("languages")
        for code in codes:
            if not is_code(code):
                raise UserError(f"{self.at('languages')}: found {code!r}, expected BCP-47 codes such as de or zh_Hant")
        return [code for code in dict.fromkeys(codes) if code != ENGLISH]

    def pairs(self, name: str, languages: list[str]) -> list[str]:
        """``--pairs`` arguments, checked; one for each language where the text has ``{}``."""
        specs = [spec for text in self.texts(name) for spec in _expand(text, languages)]
        for spec in specs:
            try:
                parse_pairs(spec)
            except UserError as error:
                raise UserError(f"{self.at(name)}: {error}") from error
        return specs

    def files(self, name: str, languages: list[str]) -> list[str]:
        """``LANG:FILE`` arguments, checked: one for each language, in place of ``{}`` or in one file for all."""
        text = self.get(name, str)
        specs = [f"{code}:{text.replace('{}', code)}" for code in languages]
        parse_files(specs, f"{self.at(name)}:")
        return specs


def _expand(text: str, languages: list[str]) -> list[str]:
    return [text.replace("{}", code) for code in languages] if "{}" in text else [text]


def _base(block: _Block, languages: list[str]) -> str | Pretraining:
    if "model" in block.values:
        if others := sorted(set(block.values) - {"model"}):
            raise UserError(f"{block.at(others[0])}: beside model; expected a ready model or text to make one of")
        model: str = block.get("model", str)
        return model
    files = [path for text in block.texts("files") for path in _expand(text, [ENGLISH, *languages])]
    for path in files:
        if not Path(path).is_file():
            raise UserError(f"{block.at('files')}: {path}: no such file")
    parts = [
        block.block(name, [*known]).options(known)
        for name, known in (("tokenizer", TOKENIZER), ("init", INIT), ("pretrain", PRETRAIN))
    ]
    return Pretraining(files, *parts)


def _alignment(block: _Block, languages: list[str]) -> Alignment:
    if ("pairs" in block.values) == ("store" in block.values):
        raise UserError(f"{block.at('pairs')}: expected either pairs or store, a folder of ppa-fast prepare")
    names = [f.name for f in fields(settings.Settings) if f.name not in OWN_SETTINGS]
    given = block.block("settings", names).values
    for row in ROWS.values():
        try:
            settings.Settings(**{**given, **(row.objectives or {})}).require("deepspeed_config")
        except UserError as error:
            raise UserError(f"{block.at('settings')}: {error}") from error
    config = Path(given["deepspeed_config"])
    if not config.is_file():
        raise UserError(f"{block.at('settings')}: deepspeed_config: {config}: no such file")
    store = block.get("store", str) if "store" in block.values else None
    return Alignment(
        pairs=block.pairs("pairs", languages) if store is None else [],
        prepare=block.block("prepare", [*PREPARE]).options(PREPARE),
        store=store,
        launch=shlex.split(block.get("launch", str, "python")),
        settings=given,
    )


def _evaluation(name: str, place: str, values: Any, languages: list[str], pooling: str) -> Evaluation:
    task = values.get("task") if isinstance(values, dict) else None
    if task not in TASKS:
        raise UserError(f"{place}.task: found {task!r}, expected one of {', '.join(TASKS)}")
    own = ("pairs",) if task == "retrieval" else ("train", "dev", "test", "code_switch")
    block = _Block(place, values, ["task", "languages", *own, *TASKS[task]])
    languages = block.languages(languages)
    options = block.options(TASKS[task])
    if task == "retrieval":
        # Always said: a base states no pooling, an aligned encoder states its own.
        options.setdefault("pooling", pooling)
        if options["pooling"] not in POOLINGS:
            raise block.bad("pooling", f"one of {', '.join(POOLINGS)}")
        return Evaluation(name, task, block.pairs("pairs", languages), [], [], [], 0.0, options)
    code_switch = block.get("code_switch", float, 0.5)
    if not 0 < code_switch <= 1:
        raise block.bad("code_switch", "a share of more than 0 and at most 1")
    codes = [ENGLISH, *languages]
    return Evaluation(
        name,
        task,
        pairs=[],
        train=block.files("train", codes),
        dev=block.files("dev", [ENGLISH]) if "dev" in block.values else [],
        test=block.files("test", codes),
        code_switch=code_switch,
        options=options,
    )


def read_plan(path: str | Path) -> Plan:
    """Reads and checks a plan; raises UserError, naming the file and the key, for what cannot be used.

    Checked are all keys, types, files and training settings; not what only the commands can tell (does the model load,
    does every line have its tab).
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    top = _Block(f"{path}: ", values, ("seeds", "rows", "languages", "base", "alignment", "evaluations"))
    seeds = top.get("seeds", int, 3)
    if seeds < 1:
        raise top.bad("seeds", "at least 1")
    languages = top.languages()
    rows = tuple(top.texts("rows")) if "rows" in top.values else PAPER
    check_rows(rows, top.at("rows"))
    base = _base(top.block("base", ("model", "files", "tokenizer", "init", "pretrain")), languages)
    alignment = _alignment(top.block("alignment", ("pairs", "store", "prepare", "launch", "settings")), languages)
    pooling = settings.Settings(**alignment.settings).pooling
    named = top.values.get("evaluations")
    if not isinstance(named, dict) or not named:
        raise top.bad("evaluations", "a mapping of names to evaluations")
    evaluations = []
    for name, value in named.items():
        if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"{top.at('evaluations')}: found {name!r}, expected a name of letters, digits, - and _")
        evaluations.append(_evaluation(name, f"{top.at('evaluations')}.{name}", value, languages, pooling))
    return Plan(seeds, rows, base, alignment, tuple(evaluations))


def check_rows(rows: Sequence[str], place: str) -> None:
    """Raises UserError for a row that is not one of ``ROWS``, or that is given twice."""
    for row in rows:
        if row not in ROWS or rows.count(row) > 1:
            raise UserError(f"{place}: found {row!r}, expected, each once, some of {', '.join(ROWS)}")
