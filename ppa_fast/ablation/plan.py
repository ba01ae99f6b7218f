"""The plan of an ablation: a YAML file, checked before anything runs. See the examples in benchmarks/plans/."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ppa_fast.data.reading.corpus import parse_pairs
from ppa_fast.data.reading.languages import is_code, parse_files
from ppa_fast.errors import UserError
from ppa_fast.model.sentence_transformer import stated_pooling
from ppa_fast.settings import (
    POOLINGS,
    RECIPES,
    FinetuneSettings,
    InitSettings,
    Options,
    PrepareSettings,
    PretrainSettings,
    RetrievalSettings,
    Settings,
    TokenizerSettings,
)

ENGLISH = "en"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    ``objectives``: the settings of its alignment, which replace those of the plan (None: the base model, not aligned);
    ``encoder``: the row whose encoder it fine-tunes, possibly itself; ``switched``: whether it fine-tunes with
    code-switching.
    """

    title: str
    objectives: Mapping[str, Any] | None
    encoder: str
    switched: bool = False


SYMMETRIC = {name: value for name, value in RECIPES["retrieval"].items() if name != "tlm"}
ROWS = {
    "none": Row("no alignment", None, "none"),
    "tlm": Row("TLM only", {"moco": False}, "tlm"),
    "moco": Row("MoCo only", {"tlm": False}, "moco"),
    "no-shuffling": Row("both, no input shuffling", {"input_shuffling": False}, "no-shuffling"),
    "ppa": Row("both (PPA)", {}, "ppa"),
    "switched": Row("code-switching only", None, "none", switched=True),
    "ppa-switched": Row("PPA + code-switching", {}, "ppa", switched=True),
    "symmetric": Row("TLM + symmetric contrast", SYMMETRIC, "symmetric"),
    "retrieval": Row("symmetric contrast only", {**SYMMETRIC, "tlm": False}, "retrieval"),
}
"""The rows of the paper's ablation, code-switching without alignment ("switched"), and the contrast of the recipe
"retrieval" with and without TLM."""

BASELINE = "none"
PAPER = tuple(row for row in ROWS if row not in ("switched", "symmetric", "retrieval"))

KINDS: dict[type, str] = {str: "text", int: "a whole number", float: "a number"}

# Options of the public commands that a plan may set, by command.
Values = dict[str, Any]
PRETRAIN = ("steps", "epochs", "batch", "learning_rate", "max_tokens")
FINETUNE = ("epochs", "batch", "micro_batch", "learning_rate", "max_tokens", "max_rejected")
TASKS = {"retrieval": ("pooling", "layer"), **dict.fromkeys(("nli", "classify", "tagging"), FINETUNE)}
TASKS |= {"qa": (*FINETUNE, "metric")}
TOKENIZER = ("vocab_size",)
PREPARE = ("max_tokens",)
# Options set by the ablation itself: paths, and what differs between seeds and rows.
OWN_INIT = {"out": "model", "tokenizer": "tokenizer", "seed": 0}
INIT = tuple(f.name for f in fields(InitSettings) if f.name not in OWN_INIT)
OWN_SETTINGS = ("model", "data", "output", "seed", "tlm", "moco", "input_shuffling", "resume")


@dataclass(frozen=True)
class Pretraining:
    """A base model to pretrain: text files and options of ``ppa-fast tokenizer``, ``init`` and ``pretrain``."""

    files: list[str]
    tokenizer: Values
    init: Values
    pretrain: Values


@dataclass(frozen=True)
class Alignment:
    """``pairs`` and options for ``ppa-fast prepare``, or an existing ``store``; the launch command; the settings."""

    pairs: list[str]
    prepare: Values
    store: str | None
    launch: list[str]
    settings: Values


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a row: ``pairs`` for retrieval, else files for fine-tuning and scoring, as LANG:FILE."""

    name: str
    task: str
    pairs: list[str]
    train: list[str]
    dev: list[str]
    test: list[str]
    code_switch: float
    options: Values


@dataclass(frozen=True)
class Plan:
    """A valid plan. ``base``: the name or folder of a model, or the options to pretrain one."""

    seeds: int
    rows: tuple[str, ...]
    base: str | Pretraining
    alignment: Alignment
    evaluations: tuple[Evaluation, ...]


class _Block:
    """A mapping in the file. Errors name the key by its path, such as ``evaluations.topic.train``."""

    def __init__(self, place: str, values: Any, known: Sequence[str]) -> None:
        self.place = place
        if not isinstance(values, dict):
            raise UserError(f"{place}: found {values!r}, expected a mapping of names to values")
        self.values: dict[str, Any] = values
        if unknown := [str(name) for name in values if name not in known]:
            raise UserError(f"{self.at(unknown[0])}: unknown key, expected one of {', '.join(known)}")

    def at(self, name: str) -> str:
        return f"{self.place}.{name}" if not self.place.endswith(": ") else f"{self.place}{name}"

    def bad(self, name: str, expected: str) -> UserError:
        return UserError(f"{self.at(name)}: found {self.values.get(name)!r}, expected {expected}")

    def get(self, name: str, kind: type, default: object = None) -> Any:
        """The value, converted to float for ``kind`` float, because YAML reads 3e-5 as text and 1 as an integer.

        Raises UserError for a missing value or another type.
        """
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

    def of_command(self, name: str, cls: type[Options], known: Sequence[str], **own: Any) -> Values:
        """The options under ``name``, checked by their class. ``known``: allowed options; ``own``: required ones."""
        return self.block(name, known).options(cls, known, **own)

    def options(self, cls: type[Options], known: Sequence[str], **own: Any) -> Values:
        """The options of this block that are ``known``; see :meth:`of_command`."""
        given = {name: value for name, value in self.values.items() if name in known}
        try:
            checked = cls(**own, **given)
        except UserError as error:
            raise UserError(f"{self.place}.{error}") from error
        return {name: getattr(checked, name) for name in given}

    def texts(self, name: str) -> list[str]:
        """The value as a list of texts; it may be a single text."""
        value = self.values.get(name)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
            raise self.bad(name, "text or a list of texts")
        return values

    def block(self, name: str, known: Sequence[str]) -> _Block:
        return _Block(self.at(name), self.values.get(name, {}), known)

    def languages(self, default: list[str] | None = None) -> list[str]:
        """The codes under ``languages`` without English, which is always included."""
        if default is not None and "languages" not in self.values:
            return default
        codes = self.texts("languages")
        for code in codes:
            if not is_code(code):
                raise UserError(f"{self.at('languages')}: found {code!r}, expected BCP-47 codes such as de or zh_Hant")
        return [code for code in dict.fromkeys(codes) if code != ENGLISH]

    def pairs(self, name: str, languages: list[str]) -> list[str]:
        """Validated ``--pairs`` arguments; a text with ``{}`` is expanded to one per language."""
        specs = [spec for text in self.texts(name) for spec in _expand(text, languages)]
        for spec in specs:
            try:
                parse_pairs(spec)
            except UserError as error:
                raise UserError(f"{self.at(name)}: {error}") from error
        return specs

    def files(self, name: str, languages: list[str]) -> list[str]:
        """Validated ``LANG:FILE`` arguments, one per language; ``{}`` in FILE is replaced by the language."""
        text = self.get(name, str)
        specs = [f"{code}:{text.replace('{}', code)}" for code in languages]
        parse_files(specs, f"{self.at(name)}:")
        return specs


def _expand(text: str, languages: list[str]) -> list[str]:
    return [text.replace("{}", code) for code in languages] if "{}" in text else [text]


def _base(block: _Block, languages: list[str]) -> str | Pretraining:
    if "model" in block.values:
        if others := sorted(set(block.values) - {"model"}):
            raise UserError(f"{block.at(others[0])}: found together with model, expected only one of them")
        model: str = block.get("model", str)
        return model
    files = [path for text in block.texts("files") for path in _expand(text, [ENGLISH, *languages])]
    for path in files:
        if not Path(path).is_file():
            raise UserError(f"{block.at('files')}: {path}: no such file")
    return Pretraining(
        files,
        tokenizer=block.of_command("tokenizer", TokenizerSettings, TOKENIZER, files=files, out="tokenizer"),
        init=block.of_command("init", InitSettings, INIT, **OWN_INIT),
        pretrain=block.of_command("pretrain", PretrainSettings, PRETRAIN, model="init", files=files, out="base"),
    )


def _alignment(block: _Block, languages: list[str]) -> Alignment:
    if ("pairs" in block.values) == ("store" in block.values):
        found = "both pairs and store" if "pairs" in block.values else "neither"
        raise UserError(
            f"{block.at('pairs')}: found {found}, expected either pairs or store (a folder made by ppa-fast prepare)"
        )
    names = [f.name for f in fields(Settings) if f.name not in OWN_SETTINGS]
    given = block.block("settings", names).values
    for row in ROWS.values():
        try:
            Settings(**{**given, **(row.objectives or {})}).require("deepspeed_config")
        except UserError as error:
            raise UserError(f"{block.at('settings')}: {error}") from error
    config = Path(given["deepspeed_config"])
    if not config.is_file():
        raise UserError(f"{block.at('settings')}: deepspeed_config: {config}: no such file")
    store = block.get("store", str) if "store" in block.values else None
    return Alignment(
        pairs=block.pairs("pairs", languages) if store is None else [],
        prepare=block.of_command(
            "prepare", PrepareSettings, PREPARE, pairs=["pairs"], tokenizer="tokenizer", out="store"
        ),
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
    if task == "retrieval":
        options = block.options(RetrievalSettings, TASKS[task], model="model", pairs=["pairs"])
        options.setdefault("pooling", pooling)  # explicit, because a base model states no pooling
        return Evaluation(name, task, block.pairs("pairs", languages), [], [], [], 0.0, options)
    options = block.options(FinetuneSettings, TASKS[task], task=task, model="model", train=["train"], out="out")
    code_switch = block.get("code_switch", float, 0.5)
    if not 0 < code_switch <= 1:
        raise block.bad("code_switch", "a share above 0 and at most 1")
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
    """Reads and checks a plan; raises UserError, naming the file and the key, if it is invalid.

    Checks keys, types, the existence of files and the training settings. It does not load models or parse data files;
    the commands check these.
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
    stated = stated_pooling(base) if isinstance(base, str) else None
    pooling = Settings(**alignment.settings).pooling or stated or POOLINGS[0]
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
    """Raises UserError for a row that is not in ``ROWS`` or is repeated."""
    for row in rows:
        if row not in ROWS or rows.count(row) > 1:
            raise UserError(f"{place}: found {row!r}, expected distinct rows out of {', '.join(ROWS)}")
