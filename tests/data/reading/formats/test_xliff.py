import pytest

from ppa_fast.errors import UserError
from tests.data.reading.formats.conftest import Read

XLIFF_1 = """<?xml version="1.0"?>
<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
 <file source-language="en-US" target-language="de" original="x"><body><group>
  <trans-unit id="1"><source>One <g id="1">two</g><x id="2"/> <bpt id="3">{b}</bpt>three</source>
   <target state="final">Eins <g id="1">zwei</g> drei</target><alt-trans><target>nein</target></alt-trans></trans-unit>
  <trans-unit id="2"><source>four</source><target/></trans-unit>
  <trans-unit id="3"><source>five</source></trans-unit>
  <trans-unit id="4"><source>six</source><target state="needs-review-translation">sex</target></trans-unit>
  <trans-unit id="5"><source>seven</source><target state="new">seven</target></trans-unit>
 </group></body></file>
 <file source-language="en" target-language="fr"><body>
  <trans-unit id="1"><source>eight</source><target>huit</target></trans-unit></body></file>
</xliff>"""

XLIFF_2 = """<xliff version="2.1" srcLang="en" trgLang="de" xmlns="urn:oasis:names:tc:xliff:document:2.0"><file id="f">
 <unit id="1"><originalData><data id="d">&lt;b&gt;</data></originalData>
  <segment><source>One <pc id="1">two</pc><ph id="2"/></source><target>Eins <mrk id="3">zwei</mrk></target></segment>
  <ignorable><source> </source></ignorable>
  <segment state="initial"><source>three</source></segment></unit></file></xliff>"""


def test_version_1_is_read(read: Read) -> None:
    assert read("t.xlf", XLIFF_1) == [
        ("One two three", "Eins zwei drei"),
        "drop: untranslated",
        "drop: untranslated",
        "drop: fuzzy",
        "drop: fuzzy",
        "drop: other languages",
    ]


def test_the_source_can_be_either_side(read: Read) -> None:
    assert read("t.xliff", XLIFF_1, "fr-en")[4:] == ["drop: other languages", ("huit", "eight")]
    assert read("t.xliff", XLIFF_2, "de-en") == [("Eins zwei", "One two"), "drop: untranslated"]


def test_version_2_is_read(read: Read) -> None:
    assert read("t.xlf", XLIFF_2) == [("One two", "Eins zwei"), "drop: untranslated"]


def test_units_of_a_file_without_languages_are_dropped(read: Read) -> None:
    assert read("t.xlf", XLIFF_2.replace('trgLang="de"', "")) == ["drop: other languages"] * 2
    with pytest.raises(UserError, match="expected XML with the root <xliff>"):
        read("t.xlf", "<tmx/>")


def test_an_unfinished_state_of_version_2_is_dropped(read: Read) -> None:
    text = XLIFF_2.replace(
        '<segment state="initial"><source>three</source>', "<segment{}><source>x</source><target>y</target>"
    )
    for state, expected in (("initial", "drop: fuzzy"), ("translated", ("x", "y")), ("final", ("x", "y"))):
        assert read("t.xlf", text.format(f' state="{state}"'))[1] == expected
    assert read("t.xlf", text.format(""))[1] == ("x", "y")


def test_a_placeholder_between_words_becomes_a_space(read: Read) -> None:
    line = "<source>One line@two@!</source><target>Eine Zeile.@zwei @ @.</target>"
    text = XLIFF_1.replace("<source>four</source><target/>", line)
    for placeholder in ('<x id="1" ctype="lb"/>', '<ph id="1"/>', '<x id="1"/><x id="2"/>'):
        assert read("t.xlf", text.replace("@", placeholder))[1] == ("One line two!", "Eine Zeile. zwei  .")
    assert read("t.xlf", text.replace("@", '<bpt id="1">b</bpt>'))[1][0] == "One linetwo!"


def test_languages_can_be_on_the_elements(read: Read) -> None:
    text = """<xliff version="1.2"><file original="a" source-language="en"><body><trans-unit id="1">
      <source xml:lang="en">One.</source><target xml:lang="de">Eins.</target></trans-unit></body></file></xliff>"""
    assert read("t.xlf", text) == [("One.", "Eins.")]
    assert read("t.xlf", text, "de-en") == [("Eins.", "One.")]
    assert read("t.xlf", text, "en-fr") == ["drop: other languages"]


def test_a_character_that_xml_forbids_loses_its_unit_only(read: Read) -> None:
    text = XLIFF_1.replace("<source>four</source><target/>", "<source>four&nbsp;&#x1F;</source><target>vier</target>")
    assert read("t.xlf", text)[1] == "reject: invalid character"
    assert read("t.xlf", text.replace("&#x1F;", ""))[1] == ("four", "vier")


@pytest.mark.parametrize("extension", ["sdlxliff", "mqxliff", "mxliff"])
def test_extensions_of_translation_tools(read: Read, extension: str) -> None:
    assert read(f"t.{extension}", XLIFF_1) == read("t.xlf", XLIFF_1)
