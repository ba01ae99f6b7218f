"""A decorator that turns a function into an evaluation with options and a result file."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ppa_fast.files import output_file, write_json
from ppa_fast.settings import takes

P = ParamSpec("P")
S = TypeVar("S")


def evaluation(cls: Callable[P, S]) -> Callable[[Callable[[S], dict[str, Any]]], Callable[P, dict[str, Any]]]:
    """Like ``takes``, and writes the result to the file of the option ``json``, if given.

    Raises UserError, before the evaluation, if that file cannot be written.
    """

    def decorate(function: Callable[[S], dict[str, Any]]) -> Callable[P, dict[str, Any]]:
        @wraps(function)
        def run(settings: Any) -> dict[str, Any]:
            file = None if settings.json is None else output_file(settings.json, "--json")
            result = function(settings)
            if file:
                write_json(file, result)
            return result

        return takes(cls)(run)

    return decorate
