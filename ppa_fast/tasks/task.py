"""The interface of a fine-tuning task: its data, head, batches and scores."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ppa_fast.errors import UserError
from ppa_fast.tasks.reading import NO_LANGUAGE, check_evaluation_set, rows_of

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Defaults:
    """Default hyperparameters, from XTREME (Hu et al., 2020; ``scripts/train_*.sh``) for mBERT and XLM-R base."""

    max_tokens: int
    learning_rate: float
    epochs: int
    batch: int = 32
    warmup_steps: int = 0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Task(ABC):
    """A task whose examples have two sides, each in any language. Examples of a single text have one side.

    ``labels``: the classes in the order of the model's outputs; empty for question answering.
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    labels: tuple[str, ...] = ()

    name: ClassVar[str]
    auto: ClassVar[str]  # transformers' Auto class for the task
    metrics: ClassVar[tuple[str, ...]]  # metrics of ``score``
    selection: ClassVar[str]  # metric for model selection
    scale: ClassVar[int]  # factor from ``score`` to per cent
    defaults: ClassVar[Defaults]

    @staticmethod
    @abstractmethod
    def read(path: Path, labels: Sequence[str] = ()) -> tuple[list[Any], list[Any]]:
        """The examples and the rejected rows of a training file. Empty ``labels``: the task's classes, or any."""

    @classmethod
    def read_scored(cls, path: Path, labels: Sequence[str] = ()) -> tuple[list[Any], list[Any]]:
        """Like ``read``, for an evaluation set."""
        return cls.read(path, labels)

    @classmethod
    def labels_of(cls, examples: Sequence[Any]) -> tuple[str, ...]:
        """The classes of training examples, in the order of the head's outputs."""
        return ()

    @classmethod
    def for_labels(cls, labels: Sequence[str]) -> type[Task]:
        """The class for these labels, which may choose the metrics."""
        return cls

    @staticmethod
    @abstractmethod
    def mix(first: Any, second: Any) -> Any:
        """The example with the first side of one translation and the second side of another."""

    @staticmethod
    @abstractmethod
    def record(example: Any) -> dict[str, Any]:
        """The example as a JSON object."""

    @abstractmethod
    def lengths(self, examples: Sequence[Any]) -> Tensor:
        """The lengths of both sides, int64 [N, 2], in the unit of ``pieces``."""

    def pieces(self, lengths: Tensor) -> Tensor:
        """The number of model inputs of each example with sides of ``lengths`` [N, 2]: int64 [N]."""
        return lengths.new_ones(len(lengths))

    @abstractmethod
    def collate(self, items: list[tuple[Any, int]]) -> dict[str, Tensor]:
        """The padded batch for items (example, index of the input within it).

        Inputs are int64 [B, L], labels int64 [B] or [B, L].
        """

    @abstractmethod
    def predict(self, model: PreTrainedModel, examples: Sequence[Any], progress: str | None) -> Any:
        """The model's predictions, as input for ``score_predictions``. ``progress``: the title of a progress bar."""

    @abstractmethod
    def score_predictions(self, examples: Sequence[Any], predictions: Any, language: str) -> dict[str, Any]:
        """The scores of predictions for examples in ``language``, including the task's ``metrics``."""

    def score(self, model: PreTrainedModel, examples: Sequence[Any], language: str) -> dict[str, float]:
        """The task's ``metrics`` of a model on examples in ``language``, in the same unit as the evaluation."""
        progress = f"{language}: predicting" if first_rank() else None
        scores = self.score_predictions(examples, self.predict(model, examples, progress), language)
        return {metric: scores[metric] for metric in self.metrics}

    @classmethod
    def read_evaluation_set(cls, path: Path, language: str, labels: Sequence[str] = ()) -> tuple[list[Any], int]:
        """The examples to score, and the number of rows of the file.

        Examples are the rows with a gold label. In a file with a language column, only rows in ``language`` are used
        ("und": all rows). Raises UserError for other unusable rows, and if there are no rows to score.
        """
        examples, rejected = cls.read_scored(path, labels)
        check_evaluation_set(rejected)
        if rejected and first_rank():
            log.info(f"{path}: {len(rejected):,} rows without a gold label are not scored")
        scored = examples if language == NO_LANGUAGE else rows_of(examples, language)
        if not scored:
            raise UserError(f"{path}: found no rows to score in language {language}, expected at least one")
        return scored, len(examples) + len(rejected)


def first_rank() -> bool:
    """Whether this process is rank 0 (by RANK), which writes files and logs."""
    return os.environ.get("RANK", "0") == "0"
