"""The reference pages agree with the code: docs/settings.md with the dataclasses, docs/errors.md with the messages."""

from __future__ import annotations

import ast
import re
import runpy
from functools import cache

import pytest

from ppa_fast.cli.status import EXIT_STATUSES
from ppa_fast.settings import Settings
from tests.docs.pages import ROOT

ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)` \| [A-Z]", ERRORS, re.MULTILINE)
VALUE = "\0"
"""Stands for a value in a message's text."""


def test_the_settings_page_is_generated_from_the_dataclasses() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "scripts" / "settings_page.py"))
    found = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert found == script["page"](), "docs/settings.md is not current: run python docs/scripts/settings_page.py"
    assert {"prepare", "train", "export"} <= script["commands"]().keys()
    train = found.partition("\n## train\n")[2]
    assert f"| `--queue-size` | integer, at least 0 | `{Settings.queue_size}` |" in train


@cache
def texts() -> list[str]:
    """Returns every text in the sources of the package, with ``VALUE`` in place of formatted values."""
    found = []
    for path in sorted((ROOT / "ppa_fast").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else VALUE for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def occurs(message: str) -> bool:
    """Whether a message, with values as ``<name>``, is (part of) a text in the sources."""
    pattern = re.compile(VALUE.join(map(re.escape, re.split(r"<[^>]+>", message))))
    return any(pattern.search(text) for text in texts())


@pytest.mark.parametrize("message", MESSAGES)
def test_an_error_on_the_page_is_in_the_sources(message: str) -> None:
    assert occurs(message)
    assert max(map(len, re.split(r"<[^>]+>", message))) >= 6, "expected a fixed part that tells the message"


def test_the_page_has_each_error_once() -> None:
    assert len(set(MESSAGES)) == len(MESSAGES) >= 20
    assert not occurs("<file>: found <n> bytes, expected <n> bytes")


def test_the_page_has_every_exit_status() -> None:
    statuses = re.findall(r"^  (\d+) ", EXIT_STATUSES, re.MULTILINE)
    assert re.findall(r"^\| (\d+) \|", ERRORS, re.MULTILINE) == statuses
