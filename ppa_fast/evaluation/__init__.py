"""Evaluation of encoders, by task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppa_fast.errors import UserError
from ppa_fast.evaluation.retrieval import evaluate_retrieval

TASKS: dict[str, Callable[..., dict[str, Any]]] = {"retrieval": evaluate_retrieval}


def evaluate(task: str = "retrieval", **options: Any) -> dict[str, Any]:
    """Runs an evaluation task with its options (see ``evaluate_retrieval``); raises UserError for an unknown task."""
    if task not in TASKS:
        raise UserError(f"task: found {task!r}, expected one of {', '.join(TASKS)}")
    return TASKS[task](**options)
