"""Fine-tuning for the classification of texts (SIB-200) and, in general, of sequences."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ppa_fast.data.examples import TextExample, read_classification
from ppa_fast.evaluation.classification import score_labels
from ppa_fast.evaluation.predict import predict_classes
from ppa_fast.finetune.task import Defaults, Task, first_rank


class SequenceClassification(Task):
    """One or two texts that the encoder reads as one sequence, and a class."""

    auto = AutoModelForSequenceClassification
    metric = "accuracy"
    scale = 100
    defaults = Defaults(max_tokens=128, learning_rate=2e-5, epochs=5)

    @staticmethod
    @abstractmethod
    def texts(example: Any) -> tuple[str, ...]:
        """The one or two texts."""

    def lengths(self, examples: Sequence[Any]) -> Tensor:
        """In bytes, which need no tokenizer and are nearer to tokens across scripts than characters."""
        sides = [[len(text.encode()) for text in self.texts(example)] for example in examples]
        return torch.tensor([[*lengths, 0][:2] for lengths in sides])

    def collate(self, items: list[tuple[Any, int]]) -> dict[str, Tensor]:
        batch = self.tokenizer(
            *map(list, zip(*(self.texts(example) for example, _ in items), strict=True)),
            truncation=True,
            max_length=self.max_tokens,
            padding=True,
            return_tensors="pt",
        )
        return {**batch, "labels": torch.tensor([self.labels.index(example.label) for example, _ in items])}

    def score(self, model: PreTrainedModel, examples: Sequence[Any], language: str) -> dict[str, float]:
        """``accuracy`` and ``macro_f1``, shares between 0 and 1."""
        texts: list[Any] = [sides if len(sides) > 1 else sides[0] for sides in map(self.texts, examples)]
        title = f"{language}: classifying" if first_rank() else None
        classes = predict_classes(model, self.tokenizer, texts, self.max_tokens, progress=title)
        scores = score_labels([example.label for example in examples], [self.labels[number] for number in classes])
        return {name: scores[name] for name in ("accuracy", "macro_f1")}


class Classify(SequenceClassification):
    """Texts with a class, any set of classes.

    A text has one side: a switched one is in English or in another language, as the coin says.
    """

    name = "classify"

    @staticmethod
    def read(path: Path, language: str, labels: Sequence[str] | None = None) -> tuple[list[Any], list[Any]]:
        return read_classification(path, labels)

    @staticmethod
    def labels_of(examples: Sequence[Any]) -> tuple[str, ...]:
        return tuple(sorted({example.label for example in examples}))

    @staticmethod
    def mix(first: TextExample, second: TextExample) -> TextExample:
        return first

    @staticmethod
    def record(example: TextExample) -> dict[str, Any]:
        return {"text": example.text, "label": example.label}

    @staticmethod
    def texts(example: TextExample) -> tuple[str, ...]:
        return (example.text,)
