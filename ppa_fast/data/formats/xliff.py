"""XLIFF 1.2 (``trans-unit``) and 2 (``segment``): a source text and its translation."""

from __future__ import annotations

from collections.abc import Iterator

from lxml import etree

from ppa_fast.data.formats.xml import child, text_of, units
from ppa_fast.data.languages import best_match
from ppa_fast.data.source import FUZZY, OTHER_LANGUAGES, Drop, Item, PairSource

# What these hold is text: grouping and marking. Others stand for codes of another format.
INLINE = frozenset({"g", "mrk", "pc"})


def read(source: PairSource) -> Iterator[Item]:
    """One item for each unit. Drops: without translation, for other languages, or (1.2) in a state that needs work."""
    for record, unit in enumerate(units(source, "xliff", ["trans-unit", "segment"]), 1):
        texts = [child(unit, "source"), child(unit, "target")]
        text, translation = (None if node is None else text_of(node, INLINE) for node in texts)
        languages = _languages(unit)
        sides = [best_match(code, languages) for code in (source.a, source.b)]
        a, b = (translation, text) if sides == [1, 0] else (text, translation)
        if sides not in ([0, 1], [1, 0]):
            yield Drop(source.paths[0], record, OTHER_LANGUAGES, a or "", b or "")
        elif translation and _needs_work(texts[1]):
            yield Drop(source.paths[0], record, FUZZY, a or "", b or "")
        else:
            yield source.translation(record, a, b)


def _languages(unit: etree._Element) -> list[str]:
    """The codes of source and target, which an ancestor names: ``file`` in 1.2, the root in 2."""
    for node in unit.iterancestors():
        for names in (("source-language", "target-language"), ("srcLang", "trgLang")):
            if names[0] in node.attrib:
                return [node.get(name, "") for name in names]
    return ["", ""]


def _needs_work(target: etree._Element | None) -> bool:
    state = "" if target is None else target.get("state", "")
    return state == "new" or state.startswith("needs-")
