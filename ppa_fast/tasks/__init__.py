"""Tasks: one module per task reads its files, collates, trains and scores; other modules hold shared code."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ppa_fast.errors import UserError

TASKS = {
    "retrieval": ("retrieval", "evaluate_retrieval"),
    "qa": ("question_answering", "evaluate_qa"),
    "nli": ("nli", "evaluate_nli"),
    "classify": ("classification", "evaluate_classification"),
    "tagging": ("tagging", "evaluate_tagging"),
    "align": ("word_alignment", "evaluate_alignment"),
    "mine": ("mining", "evaluate_mining"),
    "suite": ("suite", "evaluate_suite"),
}
"""Task → its module and function. They are imported on first use, so that scoring files does not load torch."""


def evaluate(task: str = "retrieval", **options: Any) -> dict[str, Any]:
    """Runs an evaluation task with the options of its function in ``TASKS``; raises UserError for an unknown task."""
    if task not in TASKS:
        raise UserError(f"task: found {task!r}, expected one of {', '.join(TASKS)}")
    module, function = TASKS[task]
    result: dict[str, Any] = getattr(import_module(f"{__name__}.{module}"), function)(**options)
    return result
