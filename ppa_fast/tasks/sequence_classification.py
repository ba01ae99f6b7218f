"""Classification of one or two texts: the base of natural language inference and text classification.

XNLI (Conneau et al., 2018) is scored by accuracy in 15 languages and their mean, SIB-200 (Adelani et al., 2024) by
accuracy and macro-F1. Both are shares between 0 and 1.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from ppa_fast.data.reading.lines import text_lines
from ppa_fast.errors import UserError
from ppa_fast.settings import LabelsSettings
from ppa_fast.tasks.reading import (
    NO_LANGUAGE,
    check_same,
    language_of,
    named_files,
    unexpected_label,
)
from ppa_fast.tasks.tables import format_scores, means
from ppa_fast.tasks.task import Defaults, Task

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

METRICS = ("accuracy", "macro_f1")


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of rows whose predicted label equals the gold label."""
    return fmean(g == p for g, p in zip(gold, predicted, strict=True))


def macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean over labels of F1 = 2 · correct / (gold + predicted), from the numbers of rows with the label.

    As in scikit-learn, includes all labels of either side, so that a label that is only predicted scores 0.
    """
    both = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    in_gold, in_predicted = Counter(gold), Counter(predicted)
    return fmean(2 * both[x] / (in_gold[x] + in_predicted[x]) for x in sorted({*in_gold, *in_predicted}))


def score_labels(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """``{"accuracy": share, "macro_f1": share, "n": rows}``; raises UserError for unequal or zero counts."""
    if len(gold) != len(predicted) or not gold:
        raise UserError(
            f"labels: found {len(predicted):,} predicted and {len(gold):,} gold, expected equal, non-zero counts"
        )
    return {"accuracy": accuracy(gold, predicted), "macro_f1": macro_f1(gold, predicted), "n": len(gold)}


class SequenceClassification(Task):
    """Classification of one or two texts, encoded as one sequence."""

    auto = "AutoModelForSequenceClassification"
    metrics = METRICS
    selection = "accuracy"
    scale = 100
    defaults = Defaults(max_tokens=128, learning_rate=2e-5, epochs=5)
    classes: ClassVar[tuple[str, ...]] = ()  # the classes of the task; empty: any
    aliases: ClassVar[Mapping[str, str]] = {}  # other names of the classes

    @staticmethod
    @abstractmethod
    def sides(example: Any) -> dict[str, str]:
        """The one or two texts of an example, by name."""

    @classmethod
    def labels_of(cls, examples: Sequence[Any]) -> tuple[str, ...]:
        return cls.classes or tuple(sorted({example.label for example in examples}))

    @classmethod
    def record(cls, example: Any) -> dict[str, Any]:
        return {**cls.sides(example), "label": example.label}

    @classmethod
    def inputs(cls, examples: Sequence[Any]) -> list[str | tuple[str, str]]:
        """The tokenizer's input for each example: a text or a pair of texts."""
        texts: Any = [tuple(cls.sides(example).values()) for example in examples]
        return [each if len(each) > 1 else each[0] for each in texts]

    def lengths(self, examples: Sequence[Any]) -> Tensor:
        """Lengths in bytes, which need no tokenizer and approximate tokens across scripts better than characters."""
        import torch

        sides = [[len(text.encode()) for text in self.sides(example).values()] for example in examples]
        return torch.tensor([[*lengths, 0][:2] for lengths in sides])

    def collate(self, items: list[tuple[Any, int]]) -> dict[str, Tensor]:
        examples = [example for example, _ in items]
        batch = self.tokenizer(
            self.inputs(examples), truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt"
        )
        labels = [self.labels.index(example.label) for example in examples]
        return {**batch, "labels": batch["input_ids"].new_tensor(labels)}

    def predict(self, model: PreTrainedModel, examples: Sequence[Any], progress: str | None) -> list[str]:
        """The label of each example."""
        from ppa_fast.tasks.prediction import predict_classes

        classes = predict_classes(model, self.tokenizer, self.inputs(examples), self.max_tokens, progress)
        return [self.labels[number] for number in classes]

    def score_predictions(self, examples: Sequence[Any], predictions: Any, language: str) -> dict[str, Any]:
        """``accuracy`` and ``macro_f1``, shares between 0 and 1."""
        return score_labels([example.label for example in examples], predictions)


def read_labels(path: str | Path) -> list[str]:
    """One label per line of a file, without surrounding white space; raises UserError for an empty line."""
    labels = []
    for number, label in text_lines(path):
        if not label:
            raise UserError(f"{path}:{number}: found an empty line, expected a label")
        labels.append(label)
    return labels


def _read_predicted(task: type[SequenceClassification], path: Path, gold: Sequence[Any], count: int) -> list[str]:
    """The predicted labels of the scored rows, from a file with labels for these rows or for all ``count`` rows.

    Raises UserError for an unknown label if the task defines its classes; otherwise logs labels that never occur in the
    gold rows.
    """
    lines = read_labels(path)
    if len(lines) not in (len(gold), count):
        every = f", or {count:,}, one per row of the gold file" if count != len(gold) else ""
        raise UserError(f"{path}: found {len(lines):,} labels, expected {len(gold):,}, one per scored row{every}")
    places = [example.row for example in gold] if len(lines) == count else range(len(gold))
    predicted = []
    for place in places:
        label = task.aliases.get(lines[place], lines[place])
        if reason := unexpected_label(label, task.classes):
            raise UserError(f"{path}:{place + 1}: {reason}")
        predicted.append(label)
    if unknown := {*predicted} - {example.label for example in gold}:
        log.warning(f"{path}: labels that do not occur in the gold rows: {', '.join(sorted(unknown))}")
    return predicted


def _predict(
    task: type[SequenceClassification], model: str, examples: dict[str, list[Any]], max_tokens: int
) -> dict[str, list[str]]:
    """A fine-tuned model's predicted labels for the rows of each file."""
    from ppa_fast.tasks.prediction import load_finetuned

    classifier, tokenizer = load_finetuned(task.auto, model)
    labels = tuple(str(name) for _, name in sorted((classifier.config.id2label or {}).items()))
    if task.classes:
        labels = tuple(task.aliases.get(name.lower(), name.lower()) for name in labels)
    expected = {*(task.classes or (example.label for rows in examples.values() for example in rows))}
    if not expected <= {*labels}:
        raise UserError(
            f"{model}: id2label in config.json: found {', '.join(labels)}, expected {', '.join(sorted(expected))}"
        )
    loaded = task(tokenizer, max_tokens, labels)
    return {
        name: loaded.predict(classifier, rows, "classifying" if name == NO_LANGUAGE else f"{name}: classifying")
        for name, rows in examples.items()
    }


def evaluate_classes(task: type[SequenceClassification], settings: LabelsSettings) -> dict[str, Any]:
    """Accuracy and macro-F1 of predicted labels or a fine-tuned model; see ``nli.evaluate_nli``."""
    model = settings.model
    files = named_files(settings.gold, "--gold", NO_LANGUAGE)
    examples, counts = {}, {}
    for name, path in files.items():
        examples[name], counts[name] = task.read_evaluation_set(path, name)
    if model:
        predicted = _predict(task, model, examples, settings.max_tokens)
    else:
        answers = named_files(settings.predictions or [], "--predictions", next(iter(files)))
        check_same(files, answers)
        predicted = {name: _read_predicted(task, answers[name], examples[name], counts[name]) for name in files}

    by_language: dict[str, tuple[list[str], list[str]]] = {}
    for name, rows in examples.items():
        for example, label in zip(rows, predicted[name], strict=True):
            language = (language_of(example) or name) if name == NO_LANGUAGE else name
            of_gold, of_predicted = by_language.setdefault(language, ([], []))
            of_gold.append(example.label)
            of_predicted.append(label)
    scores = {language: score_labels(*both) for language, both in by_language.items()}
    result = {**means(scores, METRICS), "languages": scores}
    return {**result, "model": model} if model else result


def format_table(result: dict[str, Any]) -> str:
    """A text table in per cent: a row per language, and their mean."""
    return format_scores(result, METRICS, 100.0, "Accuracy and macro-F1 in %.")
