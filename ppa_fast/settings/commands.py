"""Options of ``align``, ``sample``, ``tokenizer``, ``init``, ``export``, ``report``, ``ablate`` and the launch of
``train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ppa_fast.errors import UserError
from ppa_fast.settings.options import BELOW_1, POSITIVE, REQUIRED, SOME, Check, Options, at_least, option
from ppa_fast.settings.prepare import PAIRS_HELP
from ppa_fast.settings.train import POOLINGS, RECIPES

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZE = Check(lambda value: value > len(SPECIALS), f"more than the {len(SPECIALS)} special tokens")
POSITIONS = Check(lambda value: value >= 3, "at least 3 (two special tokens and a token)")


@dataclass(frozen=True)
class AlignSettings(Options):
    """Options of ``align``."""

    EXCLUSIVE: ClassVar = (("steps", "minutes"),)

    model: str = option(REQUIRED, "encoder: a Hugging Face name or folder (docs/encoders.md)", positional=True)
    pairs: list[str] = option(REQUIRED, PAIRS_HELP, SOME, metavar="SPEC")
    out: str | Path = option(REQUIRED, "folder of the aligned encoder; the same command resumes there")
    dev: list[str] | None = option(
        None,
        "evaluation sets, en-de:dev.en,dev.de … (default: up to 1,000 pairs of each language pair are held out)",
        metavar="SPEC",
    )
    recipe: str | None = option(
        None,
        "recipe of `train` (default: retrieval for a sentence-transformers folder or a model without MLM head, else "
        "paper)",
        choices=tuple(RECIPES),
    )
    pooling: str | None = option(
        None, "pooling of the sentence vector (default: that of the folder, else that of the recipe)", choices=POOLINGS
    )
    steps: int | None = option(None, "global steps (default: by the size of the text)", POSITIVE, metavar="N")
    minutes: float | None = option(
        None,
        "train at most N minutes; the number of steps follows from the measured speed",
        POSITIVE,
        metavar="N",
    )
    train_settings: str | Path | None = option(
        None, "YAML file of settings of `train` that replace the chosen ones", metavar="FILE"
    )


@dataclass(frozen=True)
class SampleSettings(Options):
    """Options of ``sample``."""

    out: str | Path = option(REQUIRED, "new folder for the files train.LANG, dev.LANG and topic.*.LANG.tsv")
    pairs: int = option(REQUIRED, "number of lines of each train file", metavar="N")
    seed: int = option(0, "seed; equal seeds give equal files")
    languages: list[str] | None = option(None, "languages besides English (default: all)", metavar="LANG")
    dev_pairs: int = option(250, "number of lines of each dev and test file", metavar="N")


@dataclass(frozen=True)
class TokenizerSettings(Options):
    """Options of ``tokenizer``."""

    files: list[str | Path] = option(REQUIRED, "UTF-8 text, plain or .gz .bz2 .xz .zst", SOME, metavar="FILE")
    out: str | Path = option(REQUIRED, "new folder")
    vocab_size: int = option(8000, "size of the vocabulary, with special tokens", SIZE, metavar="N")
    lowercase: bool = option(False, "convert text to lower case and strip accents (uncased)")


@dataclass(frozen=True)
class InitSettings(Options):
    """Options of ``init``."""

    out: str | Path = option(REQUIRED, "new folder")
    tokenizer: str = option(REQUIRED, "name or folder of a tokenizer")
    family: str = option("bert", "architecture", choices=("bert", "xlm-roberta"))
    layers: int = option(4, "number of layers", at_least(1), metavar="N")
    hidden: int = option(256, "width of the hidden states", at_least(1), metavar="N")
    heads: int = option(4, "attention heads in each layer", at_least(1), metavar="N")
    intermediate: int | None = option(
        None, "width of the feed-forward layer (default 4 × hidden)", at_least(1), metavar="N"
    )
    max_positions: int = option(512, "maximum tokens of a sequence, with special tokens", POSITIONS, metavar="N")
    dropout: float = option(0.1, "dropout probability of hidden states and attention", BELOW_1)
    seed: int = option(0, "seed; equal seeds give equal weights", metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads:
            raise UserError(f"heads: found {self.heads}, expected a divisor of hidden, {self.hidden}")


@dataclass(frozen=True)
class ExportSettings(Options):
    """Options of ``export``."""

    run: str | Path = option(REQUIRED, "run folder", positional=True)
    out: str | Path = option(REQUIRED, "new folder")
    checkpoint: str | None = option(
        None, "checkpoint to export: best, latest or step-… (default: best if it exists, else latest)", metavar="NAME"
    )
    layers: int | None = option(
        None, "keep only the first N layers of the encoder, without MLM head (default: all)", at_least(1), metavar="N"
    )


@dataclass(frozen=True)
class LaunchSettings(Options):
    """Options for launching the ranks of ``train``."""

    EXCLUSIVE: ClassVar = (("num_gpus", "hostfile"),)
    UNDERSCORES: ClassVar = True

    num_gpus: int | None = option(
        None, "number of ranks (default: one for each GPU; one on the CPU)", at_least(1), metavar="N"
    )
    hostfile: str | Path | None = option(None, "file of the nodes, with lines such as 'node1 slots=8'", metavar="FILE")
    dry_run: bool = option(False, "print the command without running it")


@dataclass(frozen=True)
class ReportSettings(Options):
    """Options of ``report``."""

    folders: list[str | Path] = option(REQUIRED, "run folder", positional=True, metavar="RUN")
    out: str | Path | None = option(None, "HTML file (default: report.html in the first run folder)", metavar="FILE")
    pairs: list[str] | None = option(
        None,
        "evaluation pairs for the vectors, en-de:dev.en,dev.de … (default: those of the run)",
        metavar="SPEC",
    )
    model: str | Path | None = option(None, "exported encoder; the page then shows how to load it", metavar="DIR")
    watch: bool = option(False, "rewrite the page while training runs")


@dataclass(frozen=True)
class AblateSettings(Options):
    """Options of ``ablate``."""

    plan: str | Path = option(REQUIRED, "YAML file, see benchmarks/plans/", positional=True)
    out: str | Path = option(REQUIRED, "output folder; the same command resumes an interrupted ablation")
    seeds: int | None = option(None, "number of seeds, from 0 (default: as in the plan)", at_least(1), metavar="N")
    only: list[str] | None = option(None, "rows to run (default: all rows of the plan)", metavar="ROW")
    jobs: int = option(1, "number of stages to run in parallel", at_least(1), metavar="N")
    dry_run: bool = option(False, "check the plan and print the commands without running them")
