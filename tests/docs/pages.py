"""The pages whose commands are executed, and the rule by which.

A fenced block is executed unless its info string says otherwise, in a scratch folder with toy inputs (``scratch.py``):

    ```sh              by bash, in the page's folder, after the blocks before it
    ```sh fresh        the same in a folder of its own
    ```sh parse        not executed, since it needs a GPU, a cluster, a network or much time; parsed
    ```python …        likewise; ``parse`` compiles

``make`` is always a dry run: the tests are run by it.

Every shell block, executed or not, is also parsed: bash runs it with stand-ins for the programs, which note their
arguments, and those go through the programs' own parsers (``parsing.py``). So a flag that does not exist is found in
seconds.
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
    """A fenced block: where it begins, its language, the other words of its info string, its text."""

    where: str
    language: str
    words: frozenset[str]
    text: str


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fences(text: str, name: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
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
    """The blocks of commands and of Python code."""
    found = [block for block in fences(page.read_text(encoding="utf-8"), page.name) if block.language in LANGUAGES]
    for block in found:
        assert block.words <= WORDS, f"{block.where}: found {sorted(block.words)}, expected some of {sorted(WORDS)}"
    return found


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
