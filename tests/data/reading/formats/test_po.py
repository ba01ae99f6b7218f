import pytest

from ppa_fast.data.reading.formats import po
from ppa_fast.errors import UserError
from tests.data.reading.formats.conftest import Read

HEAD = r"""# A licence.
#
msgid ""
msgstr ""
"Language: %s\n"
"Content-Type: text/plain; charset=%s\n"
"Plural-Forms: %s;\n"

"""
HEADER = HEAD % ("de", "UTF-8", "nplurals=2; plural=(n != 1)")


def test_entries_are_pairs(read: Read) -> None:
    text = r"""
#: main.c:12
#, c-format
msgctxt "menu"
msgid ""
"Say \"hello\"\n"
"twice"
msgstr "Sag zweimal \"Hallo\""

msgctxt "door"
msgid "Open"
msgstr "Offen"

# again, with another context
msgctxt "command"
msgid "Open"
msgstr "Öffnen"
msgid "no blank line before"
msgstr "keine Leerzeile davor"

msgid "line\tseparator \\n"
msgstr "Zeilen trenner"
"""
    assert read("t.po", HEADER + text) == [
        ('Say "hello"\ntwice', 'Sag zweimal "Hallo"'),
        ("Open", "Offen"),
        ("Open", "Öffnen"),
        ("no blank line before", "keine Leerzeile davor"),
        ("line\tseparator \\n", "Zeilen trenner"),
    ]


def test_unusable_entries_are_dropped(read: Read) -> None:
    text = """msgid "a"
msgstr ""

#, fuzzy, c-format
#| msgid "old"
msgid "b"
msgstr "B"

#~ msgid "c"
#~ msgstr ""
#~ "C"

#~ msgid "d"
#~ msgstr "D"
"""
    assert read("t.po", HEADER + text) == ["drop: untranslated", "drop: fuzzy", "drop: obsolete", "drop: obsolete"]


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        ("nplurals=2; plural=(n != 1)", [("file", "f0"), ("files", "f1")]),
        ("nplurals=1; plural=0", [("files", "f0")]),
        (
            "nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 ? 1 : 2)",
            [("file", "f0"), ("files", "f2")],
        ),
        ("nplurals=6; plural=(n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : 5)", [("file", "f1"), "drop: untranslated"]),
        ("nplurals=2; plural=__import__('os')", [("file", "f0"), ("files", "f1")]),
        ("nplurals=2; plural=n/0", [("file", "f0"), ("files", "f1")]),
        ("", [("file", "f0"), ("files", "f1")]),
    ],
)
def test_plural_entries_are_paired_or_dropped(read: Read, forms: str, expected: list[object]) -> None:
    entry = 'msgid "file"\nmsgid_plural "files"\n' + "".join(f'msgstr[{i}] "f{i}"\n' for i in range(3))
    assert read("t.po", HEAD % ("de", "UTF-8", forms) + entry) == expected


def test_the_header_determines_the_side_of_msgstr(read: Read) -> None:
    entry = 'msgid "one"\nmsgstr "eins"\n'
    assert read("t.po", HEADER + entry, "de-en") == [("eins", "one")]
    assert read("t.po", HEADER + entry, "en-de") == [("one", "eins")]
    assert read("t.po", entry, "de-en") == [("one", "eins")]  # no header contradicts it


def test_another_charset_is_an_error(read: Read) -> None:
    with pytest.raises(UserError, match=r"t\.po: found charset ISO-8859-15, expected UTF-8"):
        read("t.po", HEAD % ("de", "ISO-8859-15", ""))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (b'msgid "a\nmsgstr "b"\n', "broken entry"),
        (b'msgid a\nmsgstr "b"\n', "broken entry"),
        (b'msgid "a"\nmsgid "b"\nmsgstr "c"\n', "broken entry"),
        (b'msgstr "c"\n', "broken entry"),
        (b'msgid "a" b"\nmsgstr "c"\n', "broken entry"),
        (b"nonsense\n", "broken entry"),
        (b'msgid "\xff"\nmsgstr "c"\n', "not UTF-8"),
        (b'msgid "a"\nmsgstr "\0"\n', "NUL character"),
        (b'msgid "a"\nmsgstr "' + b"x" * 70_000 + b'"\n', "line over 64 KiB"),
        (b'msgid "a"\nmsgstr ""\n' + b'"' + b"x" * 1_000 + b'"\n', ""),
        (b'msgid "a"\nmsgstr ""\n' + (b'"' + b"x" * 1_000 + b'"\n') * 90, "text over 64 KiB"),
        (b'msgid "a"\nmsgstr ""\n' + (b'"' + b"x" * 1_000 + b'"\n') * 1_000, "text over 64 KiB"),
    ],
)
def test_a_bad_entry_does_not_affect_other_entries(read: Read, entry: bytes, reason: str) -> None:
    good = b'msgid "one"\nmsgstr "eins"\n'
    expected = f"reject: {reason}" if reason else ("a", "x" * 1_000)
    assert read("t.po", HEADER.encode() + good + b"\n" + entry + b"\n" + good) == [
        ("one", "eins"),
        expected,
        ("one", "eins"),
    ]


def test_many_entries_are_read_in_order(read: Read) -> None:
    count = 3 * po.BATCH_ENTRIES + 5
    entries = [f'msgid "one {i}"\nmsgstr "eins {i}"\n' for i in range(count)]
    expected = [(f"one {i}", f"eins {i}") for i in range(count)]
    assert read("t.po", HEADER + "\n".join(entries)) == expected
    assert read("t.po", HEADER + "".join(entries)) == expected
    assert read("t.po", "\n".join(HEADER + entry for entry in entries)) == expected  # as the output of cat *.po


@pytest.mark.parametrize(
    ("language", "pairs", "found"),
    [
        ("de", "en-de", ("one", "eins")),
        ("de_AT", "en-de", ("one", "eins")),
        ("en", "de-en", ("one", "eins")),
        ("en", "en-de", ("eins", "one")),
        ("fr", "en-de", "drop: other languages"),
        ("zh_TW", "en-zh", "drop: other languages"),
        ("", "en-de", ("one", "eins")),
        ("German", "en-de", ("one", "eins")),
    ],
)
def test_the_language_of_the_header_must_match(read: Read, language: str, pairs: str, found: object) -> None:
    header = f'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n"Language: {language}\\n"\n\n'
    assert read("t.po", header + 'msgid "one"\nmsgstr "eins"\n', pairs) == [found]
