"""gettext ``.po`` files: ``msgid`` and its translation ``msgstr``, entry by entry."""

from __future__ import annotations

import gettext
import re
from collections.abc import Iterator, Sequence
from itertools import islice

import polib

from ppa_fast.data.reading.languages import best_match, is_code
from ppa_fast.data.reading.lines import MAX_LINE_BYTES, decoded_lines
from ppa_fast.data.reading.source import FUZZY, LONG_TEXT, OBSOLETE, OTHER_LANGUAGES, Drop, Item, PairSource, Reject
from ppa_fast.errors import UserError, shortened

BROKEN_ENTRY = "broken entry"
# polib reads a line of any other form as an empty text or skips the entry.
LINE = re.compile(r'#.*|((msgctxt|msgid|msgid_plural|msgstr|msgstr\[\d\])\s+)?"([^"\\]|\\.)*"')
TRANSLATION = re.compile(r"(#~\s*)?msgstr")
NEXT_ENTRY = re.compile(r'#(?!~\s*("|msgstr))|msgctxt|msgid\s')
# polib also splits lines at these characters, so they become spaces.
SEPARATORS = str.maketrans(dict.fromkeys("\v\f\r\x1c\x1d\x1e\x85\u2028\u2029", " "))
MAX_ENTRY_CHARACTERS = 4 * MAX_LINE_BYTES
# polib needs 16 µs for an entry in a batch, and 145 µs for a single entry.
BATCH_ENTRIES = 256

Block = tuple[str, str]
"""The text of an entry, with the comments before it, and the reason to reject it or ""."""


def read(source: PairSource) -> Iterator[Item]:
    """Yields one item for each entry, two for an entry with a plural.

    Drops untranslated, fuzzy and obsolete entries, and all entries of a file whose header names another language.

    ``msgid`` is side a, unless the header's language is that of side a. In a plural entry, the form for 1 belongs to
    ``msgid`` and the form for 100 to ``msgid_plural``. The context (``msgctxt``) is not part of the text.

    Raises:
        UserError: the header's charset is not UTF-8.
    """
    path, record, plural_forms = source.paths[0], 0, (0, 1)
    swapped = foreign = False
    blocks = _blocks(source)
    while batch := list(islice(blocks, BATCH_ENTRIES)):
        for entry in _entries(batch):
            if isinstance(entry, dict):
                _check_charset(source, entry)
                language = entry.get("Language", "")
                matches = [best_match(code, [language]) for code in (source.a, source.b)]
                swapped, foreign = matches == [0, None], is_code(language) and matches == [None, None]
                plural_forms = _plural_forms(entry)
                continue
            if isinstance(entry, str):
                record += 1
                yield Reject(path, record, entry)
                continue
            for texts in _texts(entry, plural_forms):
                record += 1
                a, b = reversed(texts) if swapped else texts
                if entry.obsolete:
                    yield Drop(path, record, OBSOLETE, a, b)
                elif entry.fuzzy:
                    yield Drop(path, record, FUZZY, a, b)
                elif foreign:
                    yield Drop(path, record, OTHER_LANGUAGES, a, b)
                else:
                    yield source.translation(record, a, b)


def _blocks(source: PairSource) -> Iterator[Block]:
    lines: list[str] = []
    size, flaw, translated = 0, "", False
    for line, reason in decoded_lines(source.paths[0], source.meter):
        line = line.strip().translate(SEPARATORS)
        ends = (translated or flaw) and NEXT_ENTRY.match(line)
        if ends or not (line or reason):
            if lines or flaw:
                yield "\n".join(lines), flaw
            lines, size, flaw, translated = [], 0, "", False
        if line or reason:
            size += len(line)
            translated = translated or TRANSLATION.match(line) is not None
            flaw = flaw or reason or ("" if LINE.fullmatch(line) else BROKEN_ENTRY)
            flaw = flaw or (LONG_TEXT if size > MAX_ENTRY_CHARACTERS else "")
            if not flaw:
                lines.append(line)
    if lines or flaw:
        yield "\n".join(lines), flaw


def _entries(blocks: Sequence[Block]) -> Iterator[polib.POEntry | dict[str, str] | str]:
    """Yields an entry, a header or a reason to reject for each block; a block of comments yields nothing."""
    together = None if any(flaw for _, flaw in blocks) else _parsed("\n\n".join(text for text, _ in blocks))
    if together is not None and len(together) == len(blocks):
        yield from together
        return
    for text, flaw in blocks:
        parsed = None if flaw else _parsed(text)
        if parsed is None:
            yield flaw or BROKEN_ENTRY
        elif parsed.metadata:
            yield parsed.metadata
        else:
            yield from parsed


def _parsed(text: str) -> polib.POFile | None:
    try:
        return polib.pofile(text + "\n", encoding="utf-8")  # polib opens a text without a line end as a file name
    except (OSError, ValueError):
        return None


def _texts(entry: polib.POEntry, plural_forms: tuple[int, int]) -> list[tuple[str, str]]:
    if not entry.msgid_plural:
        return [(entry.msgid, entry.msgstr)]
    one, many = plural_forms
    texts = [(entry.msgid, entry.msgstr_plural.get(one, ""))] if one != many else []
    return [*texts, (entry.msgid_plural, entry.msgstr_plural.get(many, ""))]


def _plural_forms(header: dict[str, str]) -> tuple[int, int]:
    """Returns the indices of the plural forms for 1 and 100; those of English if the header has no rule."""
    rule = re.search(r"plural\s*=\s*([^;]+);?\s*$", header.get("Plural-Forms", ""))
    try:
        form = gettext.c2py(rule.group(1) if rule else "n != 1")
        return form(1), form(100)
    except (ValueError, ArithmeticError):
        return 0, 1


def _check_charset(source: PairSource, header: dict[str, str]) -> None:
    charset = re.search(r"charset=([\w.:-]+)", header.get("Content-Type", ""))
    if charset and charset.group(1).lower() not in ("utf-8", "utf8", "ascii", "us-ascii", "charset"):
        found = shortened(charset.group(1))
        raise UserError(f"{source.paths[0]}: found charset {found}, expected UTF-8; run msgconv --to-code=UTF-8")
