"""The pages whose commands the tests execute, and the rules for their code blocks.

A fenced block is executed in a scratch folder with toy inputs (``scratch.py``), unless its info string changes that::

    ```sh          executed by bash, in the folder of the page, after the blocks before it
    ```sh fresh    executed in a folder of its own
    ```sh parse    only parsed, because it needs a GPU, a cluster, a network or much time
    ```python      executed in the same way; ``parse`` compiles it only

``make`` is always a dry run, because it runs the tests. Every shell block is also parsed: bash runs it with stand-ins
for the programs, which record their arguments, and the programs' own parsers (``parsing.py``) parse these. A flag that
does not exist is therefore found in seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("sh", "python")
WORDS = {"parse", "fresh"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its first line, its language, the other words of its info string, and its text."""

    where: str
    language: str
    words: frozenset[str]
    text: str


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fences(text: str, name: str) -> list[Block]:
    """Returns all fenced blocks of a page, in order."""
    found, inside = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            if inside is not None:
                inside[2].append(line)
        elif inside is None:
            inside = (number, line.removeprefix("```").split(), [])
        else:
            start, info, lines = inside
            language, words = (info[0], frozenset(info[1:])) if info else ("", frozenset())
            found.append(Block(f"{name}:{start}", language, words, "\n".join(lines) + "\n"))
            inside = None
    assert inside is None, f"{name}:{inside[0]}: a fence without its end"
    return found


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of commands and of Python code."""
    found = [block for block in fences(page.read_text(encoding="utf-8"), page.name) if block.language in LANGUAGES]
    for block in found:
        assert block.words <= WORDS, f"{block.where}: found {sorted(block.words)}, expected some of {sorted(WORDS)}"
    return found


def prose(page: Path) -> str:
    """Returns the text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
