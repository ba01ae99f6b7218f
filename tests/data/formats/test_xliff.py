import pytest

from ppa_fast.errors import UserError
from tests.data.formats.conftest import Read

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


def test_version_1(read: Read) -> None:
    assert read("t.xlf", XLIFF_1) == [
        ("One two three", "Eins zwei drei"),
        "drop: untranslated",
        "drop: untranslated",
        "drop: fuzzy",
        "drop: fuzzy",
        "drop: other languages",
    ]


def test_the_source_may_be_either_side(read: Read) -> None:
    assert read("t.xliff", XLIFF_1, "fr-en")[4:] == ["drop: other languages", ("huit", "eight")]
    assert read("t.xliff", XLIFF_2, "de-en") == [("Eins zwei", "One two"), "drop: untranslated"]


def test_version_2(read: Read) -> None:
    assert read("t.xlf", XLIFF_2) == [("One two", "Eins zwei"), "drop: untranslated"]


def test_without_languages_nothing_is_taken_for_them(read: Read) -> None:
    assert read("t.xlf", XLIFF_2.replace('trgLang="de"', "")) == ["drop: other languages"] * 2
    with pytest.raises(UserError, match="expected XML with the root <xliff>"):
        read("t.xlf", "<tmx/>")
