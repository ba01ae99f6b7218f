"""Options of ``finetune``, ``evaluate`` and ``pretrain``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ppa_fast.settings.options import POSITIVE, PROBABILITY, REQUIRED, SHARE, SOME, Options, at_least, option
from ppa_fast.settings.prepare import PAIRS_HELP
from ppa_fast.settings.train import POOLINGS

FINETUNING_TASKS = ("nli", "qa", "classify", "tagging")
FINETUNING_RECIPES = ("zero-shot", "translate-train", "translate-train-all")
"""Languages of the training rows: English, one other language, or all."""
QA_METRICS = ("mlqa", "squad")
METRIC_HELP = (
    "metric of question answering: mlqa removes articles and segments words by language; squad applies the rules of "
    "SQuAD 1.1 to every language, as XQuAD does"
)
LANGUAGE_FILES = "LANG:FILE"
ENCODER = "name or folder of a Hugging Face encoder"
REJECTED = "maximum share of unusable training rows"


@dataclass(frozen=True)
class FinetuneSettings(Options):
    """Options of ``finetune``. None selects the task's default, as in XTREME."""

    task: str = option(REQUIRED, "task", choices=FINETUNING_TASKS, positional=True)
    model: str = option(REQUIRED, ENCODER)
    train: list[str] = option(
        REQUIRED, "row-parallel files, one for each language, plain or .gz", SOME, metavar=LANGUAGE_FILES
    )
    out: str | Path = option(REQUIRED, "new folder, or the folder of the same interrupted command to resume")
    dev: list[str] = option(
        [],
        "files to select the epoch with the best mean score (zero-shot: only English files; default: the last epoch)",
        metavar=LANGUAGE_FILES,
    )
    test: list[str] = option([], "files to score", metavar=LANGUAGE_FILES)
    recipe: str = option(
        "zero-shot", "languages of the training rows: English, --language, or all", choices=FINETUNING_RECIPES
    )
    language: str | None = option(None, "training language of translate-train", metavar="LANG")
    code_switch: float = option(
        0.0,
        "share of examples with one side in English and the other side in another language of --train",
        SHARE,
        metavar="P",
    )
    dump_switched: str | Path | None = option(
        None, "file that receives the code-switched training sets as JSON lines", metavar="FILE"
    )
    seeds: int = option(1, "number of seeds to run", at_least(1), metavar="N")
    first_seed: int = option(0, "run seeds S to S + N - 1", at_least(0), metavar="S")
    max_tokens: int | None = option(
        None, "maximum tokens of a sequence, with special tokens (default 128; qa 384)", at_least(16), metavar="N"
    )
    learning_rate: float | None = option(None, "peak learning rate (default 2e-5; qa 3e-5)", POSITIVE, metavar="LR")
    epochs: int | None = option(
        None, "passes over the training set (default 5; qa 3; tagging 10)", at_least(1), metavar="N"
    )
    batch: int | None = option(None, "examples per step, over all ranks (default 32)", at_least(1), metavar="N")
    micro_batch: int | None = option(
        None, "examples per forward pass of a rank (default: batch / ranks)", at_least(1), metavar="N"
    )
    max_rejected: float = option(0.05, REJECTED, SHARE, metavar="SHARE")
    metric: str = option("mlqa", METRIC_HELP, choices=QA_METRICS)
    deepspeed: str | Path | None = option(
        None, 'DeepSpeed file with "auto" values, such as ds_configs/finetune.json', metavar="FILE"
    )


@dataclass(frozen=True)
class PretrainSettings(Options):
    """Options of ``pretrain``."""

    EXCLUSIVE: ClassVar = (("steps", "epochs"),)

    model: str = option(REQUIRED, "name or folder of a masked language model, such as the output of ppa-fast init")
    files: list[str | Path] = option(REQUIRED, "UTF-8 text, plain or .gz .bz2 .xz .zst", SOME, metavar="FILE")
    out: str | Path = option(REQUIRED, "new folder, or the folder of the same interrupted command to resume")
    steps: int | None = option(None, "number of steps; give this or --epochs", POSITIVE, metavar="N")
    epochs: float | None = option(None, "passes over the text (default 1 without --steps)", POSITIVE, metavar="X")
    batch: int = option(64, "lines per step", POSITIVE, metavar="N")
    learning_rate: float = option(5e-4, "peak learning rate", POSITIVE, metavar="X")
    max_tokens: int = option(126, "maximum tokens of a line, without special tokens", POSITIVE, metavar="N")
    seed: int = option(0, "seed of the order, the masks and dropout", at_least(0))
    max_rejected: float = option(0.05, "maximum share of unusable lines", SHARE, metavar="SHARE")


GOLD_HELP = "one file, or one for each language (en:FILE de:FILE), plain or .gz"
PREDICTED_LABELS = "one file for each gold file, given in the same form, with one label per line for each gold row"
SHARES_HELP = "file that receives accuracy and macro_f1, overall and by language, as shares from 0 to 1"
POOLING_HELP = "pooling of the sentence vector (default: the pooling of a sentence-transformers folder, else mean)"
LAYER_HELP = "layer of the vectors; 0 is the embeddings (default: the contrast layer of an exported run, else the last)"


@dataclass(frozen=True)
class RetrievalSettings(Options):
    """Options of ``evaluate retrieval``."""

    model: str = option(REQUIRED, ENCODER)
    pairs: list[str] = option(REQUIRED, PAIRS_HELP, SOME, metavar="SPEC")
    pooling: str | None = option(None, POOLING_HELP, choices=POOLINGS)
    layer: int | None = option(None, LAYER_HELP, metavar="N")
    json: str | Path | None = option(None, "file that receives the scores as shares from 0 to 1", metavar="FILE")


@dataclass(frozen=True)
class AnswersSettings(Options):
    """Options of ``evaluate qa``."""

    ONE_OF: ClassVar = (("predictions", "model"),)

    gold: list[str] = option(
        REQUIRED,
        "SQuAD 1.1 JSON: one file, or one for each language (en:FILE zh:FILE; zh-en:FILE has Chinese contexts with "
        "English questions; MLQA file names need no language)",
        SOME,
        metavar="FILE",
    )
    predictions: list[str] | None = option(
        None, 'JSON {"question id": "answer"}: one file for each gold file, given in the same form', metavar="FILE"
    )
    model: str | None = option(
        None, "name or folder of a fine-tuned model (AutoModelForQuestionAnswering) that predicts the answers"
    )
    language: str | None = option(None, "language of the contexts and answers of a single gold file", metavar="LANG")
    metric: str = option("mlqa", METRIC_HELP, choices=QA_METRICS)
    json: str | Path | None = option(
        None, "file that receives exact_match and f1, overall and by language, in per cent", metavar="FILE"
    )


@dataclass(frozen=True)
class LabelsSettings(Options):
    """Options of ``evaluate nli`` and ``evaluate classify``."""

    ONE_OF: ClassVar = (("predictions", "model"),)

    gold: list[str] = option(
        REQUIRED,
        "nli: TSV with a header or JSON lines (XNLI, MultiNLI); classify: TSV with the columns text and category or "
        f"label (SIB-200), or JSON lines; {GOLD_HELP}; a column 'language' splits an nli file by language",
        SOME,
        metavar="FILE",
    )
    predictions: list[str] | None = option(None, PREDICTED_LABELS, metavar="FILE")
    model: str | None = option(
        None, "name or folder of a fine-tuned model (AutoModelForSequenceClassification) that predicts the labels"
    )
    max_tokens: int = option(
        128, "maximum tokens of an example for --model, with special tokens", at_least(16), metavar="N"
    )
    json: str | Path | None = option(None, SHARES_HELP, metavar="FILE")


@dataclass(frozen=True)
class TagsSettings(Options):
    """Options of ``evaluate tagging``."""

    ONE_OF: ClassVar = (("predictions", "model"),)

    gold: list[str] = option(
        REQUIRED,
        "CoNLL, PAN-X, CoNLL-U (Universal Dependencies) or TSV: a line for each word with its tag, and an empty line "
        f"after each sentence; {GOLD_HELP}",
        SOME,
        metavar="FILE",
    )
    predictions: list[str] | None = option(
        None,
        "one file for each gold file, given in the same form, with the sentences and words of the gold file; lines "
        "may also have only the tag",
        metavar="FILE",
    )
    model: str | None = option(
        None, "name or folder of a fine-tuned model (AutoModelForTokenClassification) that predicts the tags"
    )
    max_tokens: int = option(
        128,
        "maximum tokens of a window for --model, with special tokens; a longer sentence is split into windows",
        at_least(16),
        metavar="N",
    )
    json: str | Path | None = option(
        None,
        "file that receives accuracy, or f1, precision and recall of entities, overall and by language, as shares from "
        "0 to 1",
        metavar="FILE",
    )


@dataclass(frozen=True)
class AlignmentSettings(Options):
    """Options of ``evaluate align``."""

    ONE_OF: ClassVar = (("links", "model"),)
    NEEDS: ClassVar = {"model": "pairs", "pairs": "model", "links_out": "model"}

    gold: str | Path = option(
        REQUIRED,
        "gold links in one of two formats. Pharaoh: one line per sentence with 'i-j' or 'iSj' (sure) and 'ipj' or "
        "'iPj' (possible). "
        "Shared task of 2003: one line per link, 'sentence i j [S|P]'; sentences are numbered from 1, or from 0 if "
        "the file has a sentence 0",
        metavar="FILE",
    )
    links: str | Path | None = option(None, "links to score, in either format", metavar="FILE")
    one_indexed: bool = option(False, "words are numbered from 1 in the gold file (default: from 0)")
    links_one_indexed: bool = option(
        False,
        "words are numbered from 1 in --links (default: from 0, as aligners write them; independent of --one-indexed)",
    )
    model: str | None = option(None, f"{ENCODER} that links the words of --pairs")
    pairs: str | None = option(
        None,
        "line-parallel files of words separated by spaces, or one file of 'source ||| target' lines",
        metavar="SRC,TGT",
    )
    layer: int | None = option(
        None,
        "layer of the vectors; 0 is the embeddings (default: the contrast layer of an exported run, else two thirds of "
        "the layers, 8 of 12)",
        metavar="N",
    )
    method: str = option(
        "mutual",
        "mutual: mutual nearest neighbours by cosine (SimAlign); softmax: probability above --threshold in both "
        "directions (awesome-align)",
        choices=("mutual", "softmax"),
    )
    threshold: float = option(0.001, "threshold of --method softmax, as in awesome-align", PROBABILITY, metavar="P")
    links_out: str | Path | None = option(
        None, "file that receives the links of the model, one line per sentence, 'i-j' from 0", metavar="FILE"
    )
    json: str | Path | None = option(
        None, "file that receives aer, precision and recall as shares from 0 to 1", metavar="FILE"
    )


@dataclass(frozen=True)
class MiningSettings(Options):
    """Options of ``evaluate mine``."""

    ONE_OF: ClassVar = (("model", "predictions"),)
    NEEDS: ClassVar = {
        "model": "dev",
        "dev": "model",
        "test": "model",
        "gold": "predictions",
        "predictions": "gold",
        "mined_out": "model",
    }

    model: str | None = option(None, f"{ENCODER} that mines --dev and --test")
    dev: str | None = option(
        None,
        "development set, on which the margin threshold is tuned: two files of id<TAB>text and one of id<TAB>id",
        metavar="SRC,TGT,GOLD",
    )
    test: str | None = option(
        None, "test set to mine with that threshold (default: only --dev)", metavar="SRC,TGT[,GOLD]"
    )
    gold: str | Path | None = option(None, "gold pairs, id<TAB>id, for --predictions", metavar="FILE")
    predictions: str | Path | None = option(None, "mined pairs to score against --gold, id<TAB>id", metavar="FILE")
    pooling: str | None = option(None, POOLING_HELP, choices=POOLINGS)
    layer: int | None = option(None, LAYER_HELP, metavar="N")
    mined_out: str | Path | None = option(
        None, "file that receives the mined pairs of the test set, id<TAB>id<TAB>margin", metavar="FILE"
    )
    json: str | Path | None = option(
        None, "file that receives precision, recall and f1 as shares from 0 to 1", metavar="FILE"
    )


@dataclass(frozen=True)
class SuiteSettings(Options):
    """Options of ``evaluate suite``."""

    model: list[str] = option(
        REQUIRED,
        "names or folders of models, such as a model before and after training; the table has a column for each",
        SOME,
    )
    data: str | Path = option(
        REQUIRED,
        "folder to search, with its subfolders, for evaluation sets with their published file names",
        metavar="DIR",
    )
    out: str | Path = option(
        "runs/suite",
        "folder of the scores; scores that are already there are not computed again",
        metavar="DIR",
    )
    languages: list[str] = option([], "languages to score besides the pivot (default: all of the data)", metavar="LANG")
    pivot: str = option("en", "language that retrieval and mining pair with each other language", metavar="LANG")
    pooling: str | None = option(None, POOLING_HELP, choices=POOLINGS)
    layer: int | None = option(
        None,
        "layer of the sentence vectors; 0 is the embeddings (default: the contrast layer of an exported run, else the "
        "last)",
        metavar="N",
    )
