"""What fine-tuning must know of a task: its data, its head, its batches, its score."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppa_fast.data.examples import NO_GOLD_LABEL, format_rejected
from ppa_fast.errors import UserError


@dataclass(frozen=True)
class Defaults:
    """Hyperparameters of a task: XTREME's (Hu et al., 2020; ``scripts/train_*.sh``) for mBERT and XLM-R base."""

    max_tokens: int
    learning_rate: float
    epochs: int
    batch: int = 32
    warmup_steps: int = 0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Task(ABC):
    """A task on examples of two sides (a text alone has one) that can each be in another language.

    ``labels`` are the classes in the order of the model's outputs; question answering has none.
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    labels: tuple[str, ...] = ()

    name: ClassVar[str]
    auto: ClassVar[Any]  # transformers' Auto class of the encoder with the task's head
    metric: ClassVar[str]  # of ``score``: what a model is selected by
    scale: ClassVar[int]  # from the unit of ``score`` to per cent
    defaults: ClassVar[Defaults]

    @staticmethod
    @abstractmethod
    def read(path: Path, language: str, labels: Sequence[str] | None = None) -> tuple[list[Any], list[Any]]:
        """The examples of a training file and its rejected rows; ``labels`` None are the task's own, or any."""

    @classmethod
    def read_scored(cls, path: Path, language: str, labels: Sequence[str] | None = None) -> tuple[list[Any], list[Any]]:
        """``read`` of an evaluation set."""
        return cls.read(path, language, labels)

    @staticmethod
    def labels_of(examples: Sequence[Any]) -> tuple[str, ...]:
        """The classes that a head needs for training examples, in the order of its outputs."""
        return ()

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
        """Of how many model inputs examples with sides of ``lengths`` [N, 2] consist: int64 [N]."""
        return torch.ones(len(lengths), dtype=torch.int64)

    @abstractmethod
    def collate(self, items: list[tuple[Any, int]]) -> dict[str, Tensor]:
        """The padded batch of (example, number of its piece): int64 [B, L] inputs, int64 [B] labels."""

    @abstractmethod
    def score(self, model: PreTrainedModel, examples: Sequence[Any], language: str) -> dict[str, float]:
        """The task's official scores of a model on examples in ``language``, in the unit of ``evaluate``."""

    def read_whole(self, path: Path, language: str) -> list[Any]:
        """The examples of an evaluation set, without those that have no gold label; any other bad row: UserError."""
        examples, rejected = self.read_scored(path, language, self.labels or None)
        if bad := [reject for reject in rejected if reject.reason != NO_GOLD_LABEL]:
            raise UserError(f"{format_rejected(bad)}\n(an evaluation set must have no bad row)")
        if not examples:
            raise UserError(f"{path}: no rows in {language}")
        return examples


def first_rank() -> bool:
    """Is this process the one that writes and speaks? Launchers number the ranks in RANK."""
    return os.environ.get("RANK", "0") == "0"
