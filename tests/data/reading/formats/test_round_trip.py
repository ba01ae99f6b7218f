"""The readers read files that other libraries wrote."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import polib
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from ppa_fast.data.reading.corpus import parse_pairs
from tests.data.reading.formats.conftest import found

Texts = list[tuple[str, str]]


def write_csv(path: Path, texts: Texts) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(texts)


def write_jsonl(path: Path, texts: Texts) -> None:
    path.write_text("".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in texts))


def write_tmx(path: Path, texts: Texts) -> None:
    root = etree.Element("tmx")
    body = etree.SubElement(root, "body")
    for pair in texts:
        unit = etree.SubElement(body, "tu")
        for code, text in zip(("en-GB", "de"), pair, strict=True):
            variant = etree.SubElement(unit, "tuv", {"{http://www.w3.org/XML/1998/namespace}lang": code})
            etree.SubElement(variant, "seg").text = text
    etree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def write_xliff(path: Path, texts: Texts) -> None:
    namespace = "{urn:oasis:names:tc:xliff:document:2.0}"
    root = etree.Element(f"{namespace}xliff", {"srcLang": "en", "trgLang": "de"})
    file = etree.SubElement(root, f"{namespace}file")
    for pair in texts:
        segment = etree.SubElement(etree.SubElement(file, f"{namespace}unit"), f"{namespace}segment")
        for name, text in zip(("source", "target"), pair, strict=True):
            etree.SubElement(segment, namespace + name).text = text
    etree.ElementTree(root).write(path, encoding="utf-16")


def write_po(path: Path, texts: Texts) -> None:
    file = polib.POFile(wrapwidth=40)
    file.metadata = {"Content-Type": "text/plain; charset=UTF-8", "Language": "de"}
    file.extend(polib.POEntry(msgid=a, msgstr=b, occurrences=[("x.c", "1")]) for a, b in texts)
    file.save(path)


def write_parquet(path: Path, texts: Texts) -> None:
    pq.write_table(pa.table({"en": [a for a, _ in texts], "de": [b for _, b in texts]}), path, row_group_size=2)


WRITERS: dict[str, Callable[[Path, Texts], None]] = {
    "t.csv": write_csv,
    "t.jsonl": write_jsonl,
    "t.tmx": write_tmx,
    "t.xlf": write_xliff,
    "t.po": write_po,
    "t.parquet": write_parquet,
}
LETTERS = st.characters(
    exclude_categories=["Cs", "Cc"], include_characters="\n\t\"'\\,<>&#", exclude_characters="\ufffe\uffff"
)
TEXT = st.text(LETTERS, max_size=60).map(str.strip).filter(bool)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_texts_are_unchanged_after_a_round_trip(name: str, tmp_path: Path, texts: Texts) -> None:
    path = tmp_path / name
    WRITERS[name](path, texts)
    if name == "t.po":
        texts = [tuple(text.replace("\u2028", " ").replace("\u2029", " ").strip() for text in pair) for pair in texts]
    assert [found(item) for item in parse_pairs(f"en-de:{path}").read()] == texts
