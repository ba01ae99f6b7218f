"""Units of XML files one by one: memory does not grow with the file, and nothing outside it is ever read.

Entities are not expanded; a file that declares some is refused, as a few bytes of them can stand for gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lxml import etree

from ppa_fast.data.compression import open_bytes
from ppa_fast.data.source import PairSource
from ppa_fast.errors import UserError, shortened

BLOCK_BYTES = 64 * 1024
# XML without the end of a unit is kept in memory as a tree, about ten times as large.
MAX_UNIT_BYTES = 16 << 20


def units(source: PairSource, root: str, names: Sequence[str]) -> Iterator[etree._Element]:
    """The elements of these names, whatever their namespace, each of which is gone when the next comes.

    Raises:
        UserError: broken XML, another root than ``root``, declared entities, or 16 MiB without the end of a unit.
    """
    path = source.paths[0]
    parser = etree.XMLPullParser(
        events=("start", "end"),
        tag=[f"{{*}}{name}" for name in (root, *names)],
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    begun, since = False, 0
    try:
        with open_bytes(path, source.meter) as file:
            while block := file.read(BLOCK_BYTES):
                parser.feed(block)
                since += len(block)
                for event, element in parser.read_events():
                    if not begun:
                        _check_root(path, element, root)
                        begun = True
                    elif event == "end" and etree.QName(element).localname in names:
                        since = 0
                        yield element
                        _forget(element)
                if since > MAX_UNIT_BYTES:
                    raise UserError(f"{path}: {MAX_UNIT_BYTES >> 20} MiB of XML without the end of a <{names[0]}>")
            parser.close()
    except etree.XMLSyntaxError as error:
        message = shortened(error.msg.partition(", line ")[0])
        raise UserError(f"{path}:{error.lineno}: broken XML: {message}") from error
    if not begun:
        raise UserError(f"{path}: expected XML with the root <{root}>")


def _check_root(path: Path, element: etree._Element, root: str) -> None:
    if element.getparent() is not None or etree.QName(element).localname != root:
        found = etree.QName(element.getroottree().getroot()).localname
        raise UserError(f"{path}: expected XML with the root <{root}>, found <{shortened(found)}>")
    declared = element.getroottree().docinfo.internalDTD
    if declared is not None and any(True for _ in declared.iterentities()):
        raise UserError(f"{path}: its DTD declares entities, which are never expanded; replace them by their text")


def _forget(element: etree._Element) -> None:
    """Frees a unit and all that came before it, but for its ancestors."""
    element.clear()
    for node in (element, *element.iterancestors()):
        parent = node.getparent()
        while parent is not None and parent[0] is not node:
            del parent[0]


def child(element: etree._Element, name: str) -> etree._Element | None:
    """The first child of that name, whatever its namespace."""
    return next(element.iterchildren(f"{{*}}{name}"), None)


def text_of(element: etree._Element, inline: frozenset[str]) -> str:
    """The text of an element and of those within whose names are in ``inline``; what others hold is markup, no text."""
    parts = [element.text or ""]
    for node in element:
        if node.tag is etree.Entity:
            parts.append(node.text)  # as it is written: &name;
        elif etree.QName(node).localname in inline:
            parts.append(text_of(node, inline))
        parts.append(node.tail or "")
    return "".join(parts)
