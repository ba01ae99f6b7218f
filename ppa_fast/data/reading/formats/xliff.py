"""XLIFF 1.2 (``trans-unit``) and 2 (``segment``): a source text and its translation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lxml import etree

from ppa_fast.data.reading.formats.xml import LANGUAGE, child, text_of, units
from ppa_fast.data.reading.languages import best_match
from ppa_fast.data.reading.source import FUZZY, OTHER_LANGUAGES, Drop, Item, PairSource

# These elements group and mark text. All others contain codes of another format.
INLINE = frozenset({"g", "mrk", "pc"})


def read(source: PairSource) -> Iterator[Item]:
    """Yields one item for each unit.

    Drops untranslated units, units in other languages, and units whose state says that they need work.
    """
    for record, unit in enumerate(units(source, "xliff", ["trans-unit", "segment"]), 1):
        texts = [child(unit, "source"), child(unit, "target")]
        text, translation = (None if node is None else text_of(node, INLINE) for node in texts)
        languages = _languages(unit, texts)
        sides = [best_match(code, languages) for code in (source.a, source.b)]
        a, b = (translation, text) if sides == [1, 0] else (text, translation)
        if sides not in ([0, 1], [1, 0]):
            yield Drop(source.paths[0], record, OTHER_LANGUAGES, a or "", b or "")
        elif translation and (unit.get("state") == "initial" or _needs_work(texts[1])):
            yield Drop(source.paths[0], record, FUZZY, a or "", b or "")
        else:
            yield source.translation(record, a, b)


def _languages(unit: etree._Element, texts: Sequence[etree._Element | None]) -> list[str]:
    """Returns the language codes of source and target, else those of an ancestor (``file`` in 1.2, the root in 2)."""
    own = ["" if text is None else text.get(LANGUAGE, "") for text in texts]
    for node in unit.iterancestors():
        for names in (("source-language", "target-language"), ("srcLang", "trgLang")):
            if names[0] in node.attrib:
                return [code or node.get(name, "") for code, name in zip(own, names, strict=True)]
    return own


def _needs_work(target: etree._Element | None) -> bool:
    state = "" if target is None else target.get("state", "")
    return state == "new" or state.startswith("needs-")
