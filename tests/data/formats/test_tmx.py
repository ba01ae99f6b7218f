import tracemalloc
from pathlib import Path

import pytest

from ppa_fast.data.corpus import parse_pairs
from ppa_fast.data.formats import xml
from ppa_fast.errors import UserError
from tests.data.formats.conftest import Read

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4"><header/><body>\n'
TAIL = "</body></tmx>\n"


def unit(*variants: tuple[str, str], inside: str = "") -> str:
    texts = "".join(f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in variants)
    return f"<tu>{inside}{texts}</tu>\n"


def test_texts_and_markup(read: Read) -> None:
    coded = 'Press <bpt i="1">&lt;b></bpt>here<ept i="1"/><ph/>, <hi>dear<hi> one</hi></hi> &amp; <!-- no -->you'
    assert read("t.tmx", HEAD + unit(("de", "Hier"), ("en", coded)) + TAIL) == [("Press here, dear one & you", "Hier")]
    older = unit(("EN", "a"), ("DE", "b")).replace("xml:lang", "lang")  # as in version 1.1
    assert read("t.tmx", HEAD + older + TAIL) == [("a", "b")]
    assert read(
        "t.tmx", (HEAD + unit(("en", "Ä"), ("de", "一")) + TAIL).replace("UTF-8", "UTF-16").encode("utf-16")
    ) == [("Ä", "一")]


def test_language_variants(read: Read) -> None:
    units = [
        unit(("en-US", "color"), ("en", "colour"), ("de-AT", "Jänner")),
        unit(("en-US", "color"), ("en-GB", "colour"), ("DE", "Farbe")),
        unit(("en", "no German"), ("fr", "non"), ("nonsense-code", "?")),
        unit(("en", " "), ("de", "leer")),
    ]
    text = HEAD + "".join(units) + TAIL
    assert read("t.tmx", text) == [("colour", "Jänner"), ("color", "Farbe"), "drop: untranslated", "drop: untranslated"]
    assert read("t.tmx", text, "en_GB-de")[1] == ("colour", "Farbe")


def test_score(read: Read) -> None:
    prop = '<prop type="note">x</prop><prop type="score">{}</prop>'
    units = [unit(("en", "a"), ("de", "b"), inside=prop.format(score)) for score in ("0.25", "", "high")]
    assert read("t.tmx", HEAD + "".join(units) + unit(("en", "c"), ("de", "d")) + TAIL, score_column="score") == [
        ("a", "b", 0.25),
        ("a", "b"),
        "reject: score is no number",
        ("c", "d"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0: broken XML: no element found"),
        ("hello", "1: broken XML: Start tag expected"),
        (HEAD + unit(("en", "a")), "5: broken XML: Premature end"),
        (HEAD + "<tu><seg></tu>" + TAIL, "4: broken XML: Opening and ending tag mismatch"),
        (HEAD + "</" + "x" * 9_000 + ">" + TAIL, "4: broken XML: Opening and ending tag mismatch: .{,300}…$"),
        (HEAD + unit(("en", "&unknown;")).replace("<tu>", "<tu") + TAIL, "4: broken XML"),
        (HEAD + "<a>" * 1_000 + "</a>" * 1_000 + TAIL, "4: broken XML: Excessive depth"),
        ("<html/>", " expected XML with the root <tmx>"),
        ("<html><tu/></html>", " expected XML with the root <tmx>, found <html>"),
    ],
)
def test_broken_files(read: Read, content: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"t\.tmx:{message}"):
        read("t.tmx", content)


@pytest.mark.parametrize(
    "declared",
    [
        '<!ENTITY a "ha">'
        + "".join(f'<!ENTITY {y} "{f"&{x};" * 10}">' for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
        f'<!ENTITY i "{"x" * 100_000}">',
        '<!ENTITY i SYSTEM "file:///etc/hostname">',
        '<!ENTITY % i SYSTEM "http://localhost/x.dtd"> %i;',
    ],
)
def test_declared_entities_are_refused(read: Read, declared: str) -> None:
    text = f"<!DOCTYPE tmx [{declared}]><tmx><body>{unit(('en', '&i;' * 1_000), ('de', 'b'))}</body></tmx>"
    for bomb in (text, text.replace("<tu>", '<tu id="&i;">')):
        # libxml2 itself stops at the worst of them, within the block in which the file begins.
        with pytest.raises(UserError, match=r"its DTD declares entities, which are never expanded|broken XML: .*entit"):
            read("t.tmx", bomb)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.tmx"
    one = unit(("en", "a" * 200), ("de", "b" * 200))
    path.write_text(HEAD + one * 20_000 + TAIL)
    kept = []
    for element in xml.units(parse_pairs(f"en-de:{path}"), "tmx", ["tu"]):
        kept.append(len(element.getparent()))
    assert (len(kept), max(kept)) == (20_000, max(kept))
    assert max(kept) < 2 * xml.BLOCK_BYTES / len(one)

    monkeypatch.setattr(xml, "MAX_UNIT_BYTES", 1 << 20)
    path.write_text(HEAD + "<note>x</note>" * 200_000 + TAIL)
    tracemalloc.start()
    with pytest.raises(UserError, match="1 MiB of XML without the end of a <tu>"):
        list(parse_pairs(f"en-de:{path}").read())
    tracemalloc.stop()
