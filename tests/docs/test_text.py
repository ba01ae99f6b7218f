"""The pages refer to existing files, headings and flags."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import pytest

from ppa_fast import cli
from ppa_fast.settings import Settings, add_arguments
from tests.docs.pages import ROOT, pages, prose

OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "ds_configs" / "README.md"]
OTHERS += sorted((ROOT / "benchmarks").rglob("README.md"))
BY_NAME = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in [*pages(), *OTHERS]]
FOREIGN = {"--no-deps", "--no-build-isolation", "--signal", "--quick", "--full", "--json"}
FOREIGN |= {"--hostfile", "--num_gpus", "--master_port"}  # of the deepspeed launcher


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    found: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found[re.sub(r"[^\w\- ]", "", text).replace(" ", "-")] += 1
    return {name if i == 0 else f"{name}-{i}" for name, count in found.items() for i in range(count)}


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
def test_links_have_existing_targets(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    links = "[a](b.md) [b](#head-line-one) [c](#two) [d](a.md#x) [e](https://x.org) [f](#one) [g](#one-1) [h](#one-2)"
    page.write_text(f"# Head line, one\n\n{links}\n\n## One\n\n## One\n")
    assert broken_links(page) == ["b.md", "#two", "a.md#x", "#one-2"]


def flags(parser: argparse.ArgumentParser) -> set[str]:
    """Returns all option strings of a parser and of its subparsers."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(flags, action.choices.values()))
    return found


@pytest.mark.parametrize("page", BY_NAME[: len(pages())])
def test_flags_in_the_text_exist(page: Path) -> None:
    training = argparse.ArgumentParser()
    add_arguments(training, Settings)
    known = flags(cli.build_parser()) | flags(training) | FOREIGN
    named = {span.split()[0].partition("=")[0] for span in re.findall(r"`(--[^`]+)`", prose(page))}
    assert sorted(named - known) == []


def test_every_page_is_in_the_index_and_in_the_navigation() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f": docs/{page.name}\n" in navigation
        assert page.name == "README.md" or f"]({page.name})" in index


@pytest.mark.parametrize("page", BY_NAME)
def test_a_page_begins_with_its_purpose(page: Path) -> None:
    title, paragraph = prose(page).split("\n\n")[:2]
    assert title.startswith("# ")
    assert re.fullmatch(r"[A-Za-z][^|#]*\.", paragraph.strip()), f"found {paragraph!r}, expected a sentence"
