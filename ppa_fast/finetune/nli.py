"""Fine-tuning for natural language inference (XNLI)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppa_fast.data.examples import NLI_LABELS, NliExample, read_nli, rows_of
from ppa_fast.finetune.classify import SequenceClassification


class Nli(SequenceClassification):
    """Premise and hypothesis, read as one sequence and put into one of three classes."""

    name = "nli"

    @staticmethod
    def read(path: Path, language: str, labels: Sequence[str] | None = None) -> tuple[list[Any], list[Any]]:
        """XNLI's files hold 15 languages: the rows of ``language`` are read where a column names it."""
        examples, rejected = read_nli(path, labels or NLI_LABELS)
        return rows_of(examples, language), rejected

    @staticmethod
    def labels_of(examples: Sequence[Any]) -> tuple[str, ...]:
        return NLI_LABELS

    @staticmethod
    def mix(first: NliExample, second: NliExample) -> NliExample:
        return replace(first, hypothesis=second.hypothesis)

    @staticmethod
    def record(example: NliExample) -> dict[str, Any]:
        return {"premise": example.premise, "hypothesis": example.hypothesis, "label": example.label}

    @staticmethod
    def texts(example: NliExample) -> tuple[str, ...]:
        return example.premise, example.hypothesis
