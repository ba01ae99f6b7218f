"""What the pages name is there: the files and headings that they link to, and the flags in their text."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from ppa_fast import cli, settings
from tests.docs.pages import ROOT, pages, prose

OTHERS = [ROOT / "ds_configs" / "README.md", *sorted((ROOT / "benchmarks").rglob("README.md"))]
BY_NAME = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in [*pages(), *OTHERS]]
FOREIGN = {"--no-deps", "--no-build-isolation", "--signal", "--hostfile", "--num_gpus", "--quick", "--full", "--json"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(link)
        elif anchor:
            file = target / "README.md" if target.is_dir() else target
            if anchor not in anchors(file):
                broken.append(link)
    return broken


@pytest.mark.parametrize("page", BY_NAME)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# Head line, one\n\n[a](b.md) [b](#head-line-one) [c](#two) [d](a.md#x) [e](https://x.org)\n")
    assert broken_links(page) == ["b.md", "#two", "a.md#x"]


def flags(parser: argparse.ArgumentParser) -> set[str]:
    """All option strings of a parser and of those below it."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(flags, action.choices.values()))
    return found


@pytest.mark.parametrize("page", BY_NAME[: len(pages())])
def test_flags_in_the_text_exist(page: Path) -> None:
    training = argparse.ArgumentParser()
    settings.add_arguments(training)
    known = flags(cli.build_parser()) | flags(training) | FOREIGN
    named = {span.split()[0].partition("=")[0] for span in re.findall(r"`(--[^`]+)`", prose(page))}
    assert sorted(named - known) == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "README.md" or f"]({page.name})" in index
