"""Training settings. The DeepSpeed file sets batch sizes, precision, ZeRO, offload, clipping and monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ppa_fast.errors import UserError
from ppa_fast.settings.options import BELOW_1, POSITIVE, SHARE, Check, Options, at_least, option

POOLINGS = ("cls", "mean")
"""Poolings of tokens to sentence vectors."""
CONTRASTS = {"moco": "momentum contrast (MoCo)", "symmetric": "InfoNCE in both directions"}
"""Sentence-level objectives and their display names."""
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "retrieval": {
        "contrast": "symmetric",
        "queue_size": 0,
        "projection_dim": 0,
        "tlm": False,
    },
}
"""Named sets of values that replace defaults; given values take precedence."""
MAX_TOKENS_LIMIT = 32_767  # list offsets are int32: ROWS_PER_BATCH of a store * MAX_TOKENS_LIMIT < 2^31
TOKENS = Check(lambda value: 1 <= value <= MAX_TOKENS_LIMIT, f"1 to {MAX_TOKENS_LIMIT}")
WIDTH = Check(lambda value: value in range(0, 4097, 8), "a multiple of 8 up to 4096")  # widths of ops.infonce


@dataclass(frozen=True)
class Settings(Options):
    """Settings of ``train``. "(paper)" marks values from the paper; the other defaults are ours.

    Raises UserError with the setting's name for an invalid value.
    """

    EXCLUSIVE: ClassVar = (("steps", "epochs"),)
    FROM_FILE: ClassVar = True
    UNDERSCORES: ClassVar = True
    _given: ClassVar[frozenset[str]]
    IGNORED: ClassVar = ("store", "stream_shard")  # the data section of a saved run; a setting of older versions

    model: str = option("", "base encoder: a Hugging Face name or folder (docs/encoders.md)")
    data: list[str] = option(
        [],
        "token stores of `ppa-fast prepare`; or text (en-de:train.en,train.de …), which is first prepared into "
        "RUN/store",
        metavar="DATA",
    )
    output: str = option("", "run folder")
    deepspeed_config: str = option("", "DeepSpeed JSON file: batch sizes, precision, ZeRO, clipping, monitor")
    recipe: str | None = option(
        None,
        "named set of defaults (default: retrieval for a sentence-transformers folder if you give none of the "
        "settings below, else paper); retrieval sets "
        + ", ".join(f"{name} {str(value).lower()}" for name, value in RECIPES["retrieval"].items())
        + "; its pooling is mean, unless the folder states another",
        choices=tuple(RECIPES),
    )
    seed: int = option(0, "seed of the sampling order, input shuffling, masks, dropout and new weights")

    max_tokens: int = option(126, "maximum tokens of a sentence, without special tokens, if --data is text", TOKENS)
    sampling_alpha: float = option(
        1.0, "sample language pairs in proportion to size^alpha: 1 keeps their shares, 0 samples all equally", SHARE
    )
    sampling_cap: int | None = option(None, "maximum samples from a language pair in an epoch", POSITIVE)
    max_upsampling: float | None = option(
        None, "maximum times that a sentence pair is sampled in an epoch, on average", at_least(1)
    )

    steps: int | None = option(None, "number of global steps of the run; give this or --epochs", POSITIVE)
    epochs: float | None = option(None, "passes over the pairs (default 1 without --steps)", POSITIVE)
    learning_rate: float = option(3e-5, "peak learning rate of AdamW", POSITIVE)
    weight_decay: float = option(0.01, "weight decay of AdamW; biases and LayerNorm have none", at_least(0))
    adam_beta1: float = option(0.9, "decay rate of AdamW's first moment", BELOW_1)
    adam_beta2: float = option(0.999, "decay rate of AdamW's second moment", BELOW_1)
    adam_epsilon: float = option(1e-8, "epsilon of AdamW, added to the root of the second moment", POSITIVE)
    warmup: float = option(0.06, "share of the steps in which the learning rate rises linearly", SHARE)
    schedule: str = option(
        "linear", "learning rate after the warm-up: linear decay to 0, or constant", choices=("linear", "constant")
    )

    tlm: bool = option(True, "word-level objective: translation language modelling (paper)")
    moco: bool = option(True, "sentence-level objective; --contrast selects which one")
    contrast: str = option(
        "moco",
        "moco: momentum contrast with a queue (paper); symmetric: InfoNCE in both directions over the pairs of a "
        "global step, with gradients through both sides (needs --queue-size 0)",
        choices=tuple(CONTRASTS),
    )
    input_shuffling: bool = option(True, "choose at random which side of a pair is the query (paper)")
    tlm_weight: float = option(1.0, "weight of the TLM loss", at_least(0))
    moco_weight: float = option(1.0, "weight of the sentence-level loss", at_least(0))
    mask_probability: float = option(0.15, "share of tokens selected for TLM (paper)", SHARE)
    pooling: str | None = option(
        None,
        "sentence vector: [CLS] or the mean over all tokens (default: the pooling of a sentence-transformers folder, "
        "else mean with recipe retrieval, else cls, as in the paper)",
        choices=POOLINGS,
    )
    contrast_layer: int | None = option(
        None,
        "layer of the sentence vector, in the contrast and in evaluation; TLM uses the last layer (default: the last)",
        at_least(1),
    )
    projection_dim: int = option(
        128, "width of the projected vectors, for the sentence-level objective only; 0: no projection", WIDTH
    )
    temperature: float = option(0.05, "InfoNCE temperature", POSITIVE)
    queue_size: int = option(32768, "number of keys in the queue", at_least(0))
    in_batch_negatives: bool = option(
        False, "add the keys of a step to the queue before its queries are scored, so that they are negatives too"
    )
    queue_warmup: str = option(
        "encode",
        "initial content of the queue: encode: keys of real sentences; random: random vectors",
        choices=("encode", "random"),
    )
    momentum: float = option(0.999, "momentum m of the momentum encoder", SHARE)
    momentum_warmup: float = option(0.0, "share of the steps in which the momentum rises from 0.9", SHARE)

    freeze_layers: int = option(0, "freeze the first N layers, or the last N if it is negative (-6: the last 6)")
    freeze_embeddings: bool | None = option(None, "freeze the embeddings (default: if --freeze-layers is more than 0)")
    anchor: float = option(0.0, "strength of the decoupled L2 decay towards the weights of the base model", at_least(0))
    activation_checkpointing: bool = option(
        False, "save memory: recompute the activations of each layer in the backward pass"
    )
    compile: bool = option(False, "compile the layers of the encoder with torch.compile")

    max_skipped: int = option(
        10, "stop after this number of consecutive steps with a non-finite loss or gradient", POSITIVE
    )
    log_every: int = option(10, "steps between two lines of metrics.jsonl", POSITIVE)
    eval_pairs: list[str] = option([], "pairs for retrieval during training: en-de:dev.en,dev.de …", metavar="SPEC")
    eval_every: int = option(
        500, "steps between evaluations of --eval-pairs; the last step is also evaluated", POSITIVE
    )
    save_every: int = option(500, "steps between checkpoints; the last step is also saved", POSITIVE)
    keep: int = option(2, "number of newest checkpoints to keep, besides the best one", POSITIVE)
    resume: str = option(
        "auto", "auto: resume the run in --output; never: fail if there is one", choices=("auto", "never")
    )

    def __new__(cls, *args: Any, **given: Any) -> Settings:
        """Records which settings are given; the recipe sets the others."""
        self = super().__new__(cls)
        self._set("_given", frozenset([*given, *(f.name for f in fields(cls)[: len(args)])]))
        return self

    def __post_init__(self) -> None:
        for name, value in RECIPES.get(self.recipe or "", {}).items():
            if name not in self._given:
                self._set(name, value)
        if isinstance(self.data, (str, Path)):  # a single value instead of a list
            self._set("data", [str(self.data)] if str(self.data) else [])
        super().__post_init__()
        if not ((self.tlm and self.tlm_weight) or (self.moco and self.moco_weight)):
            raise UserError("tlm and moco: found both disabled or with weight 0, expected at least one objective")

    def gives(self, name: str) -> bool:
        """Whether a setting was given, and is not a default."""
        return name in self._given

    def replaced(self, **changes: Any) -> Settings:
        """A copy with ``changes``. If ``changes`` has a recipe, it sets the settings that were not given."""
        return Settings(**{name: getattr(self, name) for name in self._given} | changes)

    @property
    def sentence_objective(self) -> str | None:
        """One of ``CONTRASTS``, or None if disabled."""
        return self.contrast if self.moco else None

    def frozen(self, layers: int) -> set[int]:
        """The parts of an encoder with ``layers`` layers that are not trained: 0 the embeddings, 1 … L the layers.

        Without TLM, the layers above ``contrast_layer`` are also frozen, because no objective uses them.
        """
        count, numbers = self.freeze_layers, range(1, layers + 1)
        parts = {*(numbers[:count] if count >= 0 else numbers[count:])}
        if self.freeze_embeddings or (self.freeze_embeddings is None and count > 0):
            parts.add(0)
        if self.contrast_layer and not self.tlm:
            parts.update(numbers[self.contrast_layer :])
        return parts

    def require(self, *names: str) -> None:
        """Raises UserError if any of these settings is missing."""
        for f in fields(self):
            if f.name in names and not getattr(self, f.name):
                raise UserError(f"{f.name}: not given, expected {f.metadata['help']} (--{f.name.replace('_', '-')})")


def objectives(settings: Mapping[str, Any]) -> str:
    """Returns the objectives of a saved run as text."""
    names = {"tlm": "translation language modelling (TLM)", "moco": CONTRASTS[settings.get("contrast", "moco")]}
    return " and ".join(text for name, text in names.items() if settings.get(name, True))
