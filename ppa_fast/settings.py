"""Every setting of a training run, once. Command-line flags, the YAML file and ``RUN/settings.yaml`` are views of it.

What is not here belongs to the DeepSpeed file: batch sizes, precision, ZeRO, offload, gradient clipping, monitor.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from ppa_fast.errors import UserError
from ppa_fast.files import write_text
from ppa_fast.model import POOLINGS


def _setting(default: Any, text: str, choices: tuple[str, ...] = (), metavar: str = "") -> Any:
    metadata = {"help": text, "choices": choices, "metavar": metavar}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Settings:
    """Settings of ``train``. "(paper)" marks what the paper states; other defaults are ours.

    Raises UserError, naming the setting, for a value that cannot be used.
    """

    model: str = _setting("", "base encoder: a Hugging Face name or folder (BERT or XLM-R family, with its MLM head)")
    data: list[str] = _setting(  # noqa: RUF009
        [], "token stores made by `ppa-fast prepare`, or text: en-de:train.en,train.de …", metavar="DATA"
    )
    output: str = _setting("", "run folder")
    deepspeed_config: str = _setting("", "DeepSpeed JSON: batch sizes, precision, ZeRO, clipping, monitor")
    seed: int = _setting(0, "of the order, the coins, the masks, dropout and new weights")

    stream_shard: int = _setting(1_000_000, "lines that are shuffled together when --data is text")
    max_tokens: int = _setting(126, "of a sentence, special tokens not counted, when --data is text")
    sampling_alpha: float = _setting(1.0, "language pairs in proportion to size^alpha: 1 as they are, 0 all alike")
    sampling_cap: int | None = _setting(None, "at most so many draws of a language pair in an epoch")
    max_upsampling: float | None = _setting(None, "a pair is drawn at most so often in an epoch, on average")

    steps: int | None = _setting(None, "global steps of the whole run; give this or --epochs")
    epochs: float | None = _setting(None, "passes over the pairs; default 1 where --steps is not given")
    learning_rate: float = _setting(3e-5, "peak learning rate of AdamW")
    weight_decay: float = _setting(0.01, "of weights; none on biases and LayerNorm")
    adam_beta1: float = _setting(0.9, "AdamW: decay of the first moment")
    adam_beta2: float = _setting(0.999, "AdamW: decay of the second moment")
    adam_epsilon: float = _setting(1e-8, "AdamW: added to the root of the second moment")
    warmup: float = _setting(0.06, "share of the steps with linearly rising learning rate")
    schedule: str = _setting("linear", "after the warm-up: decay linearly to 0, or stay", ("linear", "constant"))

    tlm: bool = _setting(True, "word-level objective: translation language modelling (paper)")
    moco: bool = _setting(True, "sentence-level objective: momentum contrast (paper)")
    input_shuffling: bool = _setting(True, "a coin decides which side of a pair is the query (paper)")
    tlm_weight: float = _setting(1.0, "weight of the TLM loss")
    moco_weight: float = _setting(1.0, "weight of the MoCo loss")
    mask_probability: float = _setting(0.15, "share of tokens selected for TLM (paper)")
    pooling: str = _setting("cls", "sentence vector: [CLS] (paper) or the mean over all tokens", POOLINGS)
    projection_dim: int = _setting(128, "width of the projected vectors in the contrast, a multiple of 8 up to 1024")
    temperature: float = _setting(0.05, "InfoNCE temperature")
    queue_size: int = _setting(32768, "keys in the queue")
    queue_warmup: str = _setting("encode", "fill the queue with real keys or random vectors", ("encode", "random"))
    momentum: float = _setting(0.999, "of the key encoder")

    freeze_layers: int = _setting(0, "keep the embeddings and the first N layers as they are; 0: train all")
    anchor: float = _setting(0.0, "pull to the base model's weights, as weight decay pulls to 0 (L2, decoupled)")
    activation_checkpointing: bool = _setting(False, "compute a layer's activations again in backward: less memory")
    compile: bool = _setting(False, "torch.compile the encoder's layers")

    max_skipped: int = _setting(10, "stop after so many steps in a row that were not finite")
    log_every: int = _setting(10, "steps between lines of metrics.jsonl")
    eval_pairs: list[str] = _setting(  # noqa: RUF009
        [], "retrieval while training: en-de:dev.en,dev.de …", metavar="SPEC"
    )
    eval_every: int = _setting(500, "steps between evaluations (and one at the end), with --eval-pairs")
    save_every: int = _setting(500, "steps between checkpoints (and one at the end)")
    keep: int = _setting(2, "newest checkpoints kept; the best one is kept besides")
    resume: str = _setting("auto", "continue the run in the output folder, or refuse to", ("auto", "never"))

    def __post_init__(self) -> None:
        if isinstance(self.data, (str, Path)):  # one store may be written without a list
            self.data = [str(self.data)] if str(self.data) else []
        for f in dataclasses.fields(self):
            setattr(self, f.name, _coerce(f.name, getattr(self, f.name)))
            choices = f.metadata["choices"]
            if choices and getattr(self, f.name) not in choices:
                raise UserError(f"{f.name}: found {getattr(self, f.name)!r}, expected one of {', '.join(choices)}")
        counts = ["projection_dim", "queue_size", "max_skipped", "log_every", "eval_every", "save_every", "keep"]
        counts += ["stream_shard"]
        shares = ("mask_probability", "warmup", "momentum", "sampling_alpha")
        for name in ("learning_rate", "temperature", "adam_epsilon", *counts):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        narrow = self.projection_dim <= 1024 and self.projection_dim % 8 == 0  # what ops.infonce takes
        _require(narrow, "projection_dim", self.projection_dim, "a multiple of 8 up to 1024")
        for name in shares:
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("adam_beta1", "adam_beta2"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 or more and less than 1")
        for name in ("weight_decay", "tlm_weight", "moco_weight", "freeze_layers", "anchor"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(1 <= self.max_tokens <= 32_767, "max_tokens", self.max_tokens, "1 to 32767")
        for name in ("steps", "epochs", "sampling_cap"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, value, "more than 0")
        often = self.max_upsampling
        _require(often is None or often >= 1, "max_upsampling", often, "1 or more")
        if self.steps is not None and self.epochs is not None:
            raise UserError(f"steps and epochs: found both ({self.steps} and {self.epochs}), expected one of them")
        if not ((self.tlm and self.tlm_weight) or (self.moco and self.moco_weight)):
            raise UserError("tlm and moco: both objectives are off or weigh 0, nothing would be trained")

    def require(self, *names: str) -> None:
        """Raises UserError for those of these settings that were not given."""
        for name in names:
            if not getattr(self, name):
                raise UserError(f"{name}: not given, expected {_HELP[name]} (--{name.replace('_', '-')})")


_TYPES = get_type_hints(Settings)
_HELP = {f.name: f.metadata["help"] for f in dataclasses.fields(Settings)}


def _require(good: bool, name: str, found: object, expected: str) -> None:
    if not good:
        raise UserError(f"{name}: found {found}, expected {expected}")


def _coerce(name: str, value: Any) -> Any:
    """``value`` in the type of the setting; YAML reads 3e-5 as text and 1 as an integer."""
    wanted = _TYPES[name]
    optional = type(None) in get_args(wanted)
    kind = next((t for t in get_args(wanted) if t is not type(None)), wanted) if optional else wanted
    if value is None and optional:
        return None
    try:
        if kind in (int, float) and not isinstance(value, bool):
            number = float(value)
            if kind is float and math.isfinite(number):
                return number
            if kind is int and number == int(number):
                return int(value)
        elif kind is bool and isinstance(value, bool):
            return value
        elif kind is str and isinstance(value, (str, Path)):
            return str(value)
        elif kind == list[str] and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return list(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{name}: found {value!r}, expected {getattr(kind, '__name__', str(kind))}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file as a mapping; raises UserError for a file that is none and for unknown names."""
    try:
        with open(path, encoding="utf-8") as f:
            values = yaml.safe_load(f) or {}
    except OSError as error:
        raise UserError(f"settings: {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a date that does not exist
        raise UserError(f"settings: {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"settings: {path}: found {type(values).__name__}, expected a mapping of names to values")
    values.pop("store", None)  # RUN/settings.yaml also tells what the run read
    unknown = sorted(set(map(str, values)) - set(_TYPES))
    if unknown:
        raise UserError(f"settings: {path}: unknown names {', '.join(unknown)}; known are {', '.join(_TYPES)}")
    return values


def write_yaml(settings: Settings, path: str | Path, store: dict[str, Any]) -> None:
    """Writes the effective settings, and under ``store`` what the data was."""
    values = {**dataclasses.asdict(settings), "store": store}
    write_text(Path(path), yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag a setting (``--eval-every``, also spelled ``--eval_every``), and ``--settings FILE``."""
    parser.add_argument("--settings", metavar="FILE", help="YAML file of settings; flags win over it")
    for f in dataclasses.fields(Settings):
        dashed = f"--{f.name.replace('_', '-')}"
        flags = [dashed] if "_" not in f.name else [dashed, f"--{f.name}"]
        default = f.default if f.default is not dataclasses.MISSING else []
        text = f.metadata["help"].replace("%", "%%")
        if default not in ("", None, []):
            text += f" (default {str(default).lower() if isinstance(default, bool) else default})"
        options: dict[str, Any] = {"default": None, "help": text, "dest": f.name}
        if isinstance(f.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif default == []:
            options.update(nargs="+", action="extend", metavar=f.metadata["metavar"])
        elif f.metadata["choices"]:
            options["choices"] = f.metadata["choices"]
        else:
            options["metavar"] = f.name.upper()
        parser.add_argument(*flags, **options)


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """Defaults, then the YAML file, then the flags that were given."""
    values = read_yaml(arguments.settings) if arguments.settings else {}
    given = {name: getattr(arguments, name) for name in _TYPES if getattr(arguments, name, None) is not None}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in given and other not in given:
            values.pop(other, None)
    return Settings(**{**values, **given})
