import tracemalloc
from pathlib import Path

import pytest

from ppa_fast.data.reading.corpus import parse_pairs
from ppa_fast.data.reading.formats import xml
from ppa_fast.errors import UserError
from tests.data.reading.formats.conftest import Read

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4"><header/><body>\n'
TAIL = "</body></tmx>\n"


def unit(*variants: tuple[str, str], inside: str = "") -> str:
    texts = "".join(f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in variants)
    return f"<tu>{inside}{texts}</tu>\n"


def test_texts_are_read_without_markup(read: Read) -> None:
    coded = 'Press <bpt i="1">&lt;b></bpt>here<ept i="1"/><ph/>, <hi>dear<hi> one</hi></hi> &amp; <!-- no -->you'
    assert read("t.tmx", HEAD + unit(("de", "Hier"), ("en", coded)) + TAIL) == [("Press here, dear one & you", "Hier")]
    older = unit(("EN", "a"), ("DE", "b")).replace("xml:lang", "lang")  # as in version 1.1
    assert read("t.tmx", HEAD + older + TAIL) == [("a", "b")]
    assert read(
        "t.tmx", (HEAD + unit(("en", "Ä"), ("de", "一")) + TAIL).replace("UTF-8", "UTF-16").encode("utf-16")
    ) == [("Ä", "一")]


def test_language_variants_match(read: Read) -> None:
    units = [
        unit(("en-US", "color"), ("en", "colour"), ("de-AT", "Jänner")),
        unit(("en-US", "color"), ("en-GB", "colour"), ("DE", "Farbe")),
        unit(("en", "no German"), ("fr", "non"), ("nonsense-code", "?")),
        unit(("en", " "), ("de", "leer")),
    ]
    text = HEAD + "".join(units) + TAIL
    assert read("t.tmx", text) == [("colour", "Jänner"), ("color", "Farbe"), "drop: untranslated", "drop: untranslated"]
    assert read("t.tmx", text, "en_GB-de")[1] == ("colour", "Farbe")


def test_the_score_is_read_from_a_property(read: Read) -> None:
    prop = '<prop type="note">x</prop><prop type="score">{}</prop>'
    units = [unit(("en", "a"), ("de", "b"), inside=prop.format(score)) for score in ("0.25", "", "high")]
    assert read("t.tmx", HEAD + "".join(units) + unit(("en", "c"), ("de", "d")) + TAIL, score_column="score") == [
        ("a", "b", 0.25),
        ("a", "b"),
        "reject: score is not a number",
        ("c", "d"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", " broken XML: no element found"),
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
def test_a_broken_file_is_an_error(read: Read, content: str, message: str) -> None:
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
def test_declared_entities_are_an_error(read: Read, declared: str) -> None:
    text = f"<!DOCTYPE tmx [{declared}]><tmx><body>{unit(('en', '&i;' * 1_000), ('de', 'b'))}</body></tmx>"
    for bomb in (text, text.replace("<tu>", '<tu id="&i;">')):
        # libxml2 itself refuses the worst of them, within the first block of the file.
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
    with pytest.raises(UserError, match="1 MiB of XML without the end of a <tu>, expected smaller units"):
        list(parse_pairs(f"en-de:{path}").read())
    tracemalloc.stop()


def test_a_placeholder_between_words_becomes_a_space(read: Read) -> None:
    text = (
        HEAD
        + unit(("en", 'See<ph x="1">&lt;br/></ph>page 5<ut>{\\par}</ut>.'), ("de", "<ph/>Siehe <ph/>Seite<ph/>"))
        + TAIL
    )
    assert read("t.tmx", text) == [("See page 5.", "Siehe Seite")]


def test_regions_and_macrolanguages_match(read: Read) -> None:
    units = [
        unit(("en", "a dog"), ("zh-Hans", "一只狗"), ("zh-Hant", "一隻狗")),
        unit(("en", "tea"), ("zh-CN", "茶叶")),
        unit(("en", "house"), ("nb-NO", "hus")),
    ]
    text = HEAD + "".join(units) + TAIL
    drop = "drop: untranslated"
    assert read("t.tmx", text, "en-zh_TW") == [("a dog", "一隻狗"), drop, drop]
    assert read("t.tmx", text, "en-zh_SG") == [("a dog", "一只狗"), ("tea", "茶叶"), drop]
    assert read("t.tmx", text, "en-no") == [drop, drop, ("house", "hus")]


def test_a_language_that_the_file_lacks_is_an_error(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    text = HEAD + unit(("en", "a"), ("zh-CN", "b")) + unit(("en", "c"), ("de", "d")) + TAIL
    assert read("t.tmx", text, "en-zh_TW") == ["drop: untranslated"] * 2
    assert caplog.messages[-1].endswith("t.tmx: no text in zh_TW; the file has de, en, zh-CN")
    caplog.clear()
    assert read("t.tmx", text, "en-de")[1] == ("c", "d")
    assert not caplog.records


BARE = '<?xml version="1.0" encoding="UTF-8"?>\n<tmx version="1.4"><header/><body>\n'


@pytest.mark.parametrize("head", [HEAD, BARE, BARE.replace("UTF-8", "UTF-16"), BARE.split("\n", 1)[1], "\ufeff" + BARE])
def test_entities_of_html_are_characters(read: Read, head: str) -> None:
    """With and without a DTD, in UTF-8 whatever the declaration says; also cut by the end of a block."""
    text = head + unit(("en", "The house&nbsp;is &lt;green&gt;&hellip;"), ("de", "Das Haus&nbsp;ist grün.")) + TAIL
    assert read("t.tmx", text) == [("The house\u00a0is <green>…", "Das Haus\u00a0ist grün.")]
    xml.BLOCK_BYTES, before = 7, xml.BLOCK_BYTES
    try:
        assert read("t.tmx", text) == [("The house\u00a0is <green>…", "Das Haus\u00a0ist grün.")]
    finally:
        xml.BLOCK_BYTES = before


@pytest.mark.parametrize(
    "bad", [b"&#x1F;", b"&#31;", b"&#0;", b"&#xD800;", b"&#xFFFF;", b"&#x110000;", b"\x1f", b"\x00", b"\xff", b"\xc3"]
)
def test_a_character_that_xml_forbids_loses_its_unit_only(read: Read, bad: bytes) -> None:
    units = [
        unit(("en", "one"), ("de", "eins")),
        unit(("en", "tw@o"), ("de", "zwei")),
        unit(("en", "3"), ("de", "drei")),
    ]
    for head in (HEAD, BARE):
        content = (head + "".join(units) + TAIL).encode().replace(b"@", bad)
        assert read("t.tmx", content) == [("one", "eins"), "reject: invalid character", ("3", "drei")]


def test_a_file_in_another_encoding(read: Read) -> None:
    text = HEAD.replace("UTF-8", "ISO-8859-1") + unit(("en", "house"), ("de", "Häuser")) + TAIL
    assert read("t.tmx", text.encode("latin-1")) == [("house", "Häuser")]


def test_an_unknown_entity_is_named_with_its_line(read: Read) -> None:
    with pytest.raises(UserError, match=r"t\.tmx:3: broken XML: Entity 'unknown' not defined"):
        read("t.tmx", BARE + unit(("en", "&unknown;"), ("de", "b")) + TAIL)


def test_text_without_a_segment(read: Read) -> None:
    text = BARE + '<tu><tuv lang="en-US">This is a sample</tuv><tuv lang="de"><note>x</note>Ein Satz</tuv></tu>' + TAIL
    assert read("t.tmx", text) == [("This is a sample", "Ein Satz")]
    empty = BARE + unit(("en", ""), ("de", "Ein Satz")) + TAIL
    assert read("t.tmx", empty) == ["drop: untranslated"]
