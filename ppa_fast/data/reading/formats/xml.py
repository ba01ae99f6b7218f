"""Reads the units of XML files one by one, in constant memory, without access to other files or the network.

A file that declares entities is an error, because a few bytes can expand to gigabytes. HTML's entities, such as
``&nbsp;``, are characters, with or without a DTD. A character that XML forbids makes only its unit unusable.
"""

from __future__ import annotations

import codecs
import html.entities
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from lxml import etree

from ppa_fast.data.reading.compression import open_bytes
from ppa_fast.data.reading.source import BAD_CHARACTER_MARK, PairSource
from ppa_fast.errors import UserError, shortened

LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
BLOCK_BYTES = 64 * 1024
# A unit is held in memory as a tree until its end; the tree is about ten times as large as the XML.
MAX_UNIT_BYTES = 16 << 20
MAX_REFERENCE = 40  # bytes, from & to ;


def units(source: PairSource, root: str, names: Sequence[str]) -> Iterator[etree._Element]:
    """Yields the elements with these names, in any namespace; an element is freed before the next one is yielded.

    Raises:
        UserError: broken XML, a root other than ``root``, declared entities, or 16 MiB without the end of a unit.
    """
    path = source.paths[0]
    with open_bytes(path) as file:
        utf_8 = _is_utf_8(file.read(BLOCK_BYTES))
    parser = etree.XMLPullParser(
        encoding="utf-8" if utf_8 else None,  # also where the declaration names UTF-16
        events=("start", "end"),
        tag=[f"{{*}}{name}" for name in (root, *names)],
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    etree.clear_error_log()  # which lxml keeps for all files
    begun, since = False, 0
    try:
        with open_bytes(path, source.meter) as file:
            for block in _repaired(file) if utf_8 else iter(partial(file.read, BLOCK_BYTES), b""):
                parser.feed(block)
                since += len(block)
                for event, element in parser.read_events():
                    if not begun:
                        _check_root(path, element, root)
                        begun = True
                    elif event == "end" and etree.QName(element).localname in names:
                        since = 0
                        yield element
                        _free(element)
                if since > MAX_UNIT_BYTES:
                    raise UserError(
                        f"{path}: found {MAX_UNIT_BYTES >> 20} MiB of XML without the end of a <{names[0]}>, expected "
                        "smaller units"
                    )
            parser.close()
    except etree.XMLSyntaxError as error:
        line, text = error.lineno, error.msg
        if not line and len(error.error_log):  # libxml2 stopped earlier, without raising
            line, text = error.error_log[0].line, error.error_log[0].message
        where = f"{path}:{line}" if line else f"{path}"
        raise UserError(f"{where}: broken XML: {shortened(text.partition(', line ')[0])}") from error
    if not begun:
        raise UserError(f"{path}: expected XML with the root <{root}>")


_NAMED = {name.encode(): text for name, text in html.entities.html5.items() if name.endswith(";")}
_XML = (b"amp;", b"lt;", b"gt;", b"quot;", b"apos;")
_ALLOWED = ((0x9, 0xA), (0xD, 0xD), (0x20, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x10FFFF))  # Char of XML 1.0
_FORBIDDEN = f"&#{ord(BAD_CHARACTER_MARK)};".encode()
# A control character, a reference to one or to half of a character, or a named entity.
_SPECIAL = re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f]|&#(?:x([0-9a-fA-F]{1,8})|([0-9]{1,8}));|&(\w{2,31};)", re.ASCII)


def _replacement(found: re.Match[bytes]) -> bytes:
    if name := found[3]:
        if name in _XML or name not in _NAMED:
            return found[0]
        return "".join(f"&#{ord(character)};" for character in _NAMED[name]).encode()
    number = int(found[1], 16) if found[1] else int(found[2] or 0)
    return found[0] if any(low <= number <= high for low, high in _ALLOWED) else _FORBIDDEN


def _is_utf_8(start: bytes) -> bool:
    """Whether XML is in UTF-8: it has no other byte order mark, and its declaration names no other 8-bit encoding."""
    if not start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<") or b"\0" in start[:4]:
        return False
    declared = re.match(rb"\s*<\?xml[^>]*\sencoding\s*=\s*[\"']([\w.-]+)", start.removeprefix(codecs.BOM_UTF8))
    return not declared or declared[1].lower() in (b"utf-8", b"utf8", b"utf-16", b"us-ascii", b"ascii")


def _repaired(file: BinaryIO) -> Iterator[bytes]:
    """Yields the blocks of XML in UTF-8 with numeric references for HTML's entities, and with a mark for each character
    that XML forbids."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors=_MARK_ERRORS)
    rest, final = b"", False
    while not final:
        read = file.read(BLOCK_BYTES)
        final = not read
        block = rest + decoder.decode(read, final).encode()
        cut = len(block) if final else block.rfind(b"&", max(0, len(block) - MAX_REFERENCE))
        cut = len(block) if cut < 0 or b";" in block[cut:] else cut  # else the next block may complete the reference
        rest = block[cut:]
        if cut:  # the parser takes an empty block for an empty document
            yield _SPECIAL.sub(_replacement, block[:cut])


_MARK_ERRORS = "ppa_fast.mark"
codecs.register_error(_MARK_ERRORS, lambda error: (_FORBIDDEN.decode(), error.end))  # type: ignore[attr-defined]


def _check_root(path: Path, element: etree._Element, root: str) -> None:
    if element.getparent() is not None or etree.QName(element).localname != root:
        found = etree.QName(element.getroottree().getroot()).localname
        raise UserError(f"{path}: expected XML with the root <{root}>, found <{shortened(found)}>")
    declared = element.getroottree().docinfo.internalDTD
    if declared is not None and any(True for _ in declared.iterentities()):
        raise UserError(f"{path}: its DTD declares entities, which are never expanded; replace them with their text")


def _free(element: etree._Element) -> None:
    """Frees a unit and all elements before it, except its ancestors."""
    element.clear()
    for node in (element, *element.iterancestors()):
        parent = node.getparent()
        while parent is not None and parent[0] is not node:
            del parent[0]


def child(element: etree._Element, name: str) -> etree._Element | None:
    """Returns the first child with this name, in any namespace."""
    return next(element.iterchildren(f"{{*}}{name}"), None)


def text_of(element: etree._Element, inline: frozenset[str]) -> str:
    """Returns the text of an element, including child elements named in ``inline`` and excluding all others.

    A placeholder between two words becomes a space, because it may stand for a line break.
    """
    return _BETWEEN_WORDS.sub(" ", _marked_text(element, inline)).replace(_PLACEHOLDER, "")


PLACEHOLDERS = frozenset({"x", "ph", "ut"})  # of TMX and XLIFF; the others begin or end formatting
_PLACEHOLDER = "\0"  # which XML cannot hold
_BETWEEN_WORDS = re.compile(rf"(?<=[\w.,;:!?])(?:{_PLACEHOLDER})+(?=\w)")


def _marked_text(element: etree._Element, inline: frozenset[str]) -> str:
    parts = [element.text or ""]
    for node in element:
        if node.tag is etree.Entity:
            parts.append(node.text)  # unexpanded: &name;
        elif (name := etree.QName(node).localname) in inline:
            parts.append(_marked_text(node, inline))
        elif name in PLACEHOLDERS:
            parts.append(_PLACEHOLDER)
        parts.append(node.tail or "")
    return "".join(parts)
