"""Row-parallel files of several languages."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from ppa_fast.data.reading.lines import NOT_UTF8, Reject
from ppa_fast.data.reading.row_parallel import parse_multi
from ppa_fast.data.reading.source import Drop, Pair
from ppa_fast.errors import UserError

Files = Callable[..., list[str]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    def write(**texts: str | bytes) -> list[str]:
        """Writes the text of each language; returns ``LANG:FILE`` for each."""
        specs = []
        for code, text in texts.items():
            path = tmp_path / f"t.{code}"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            specs.append(f"{code}:{path}")
        return specs

    return write


def test_a_pivot_is_paired_with_every_other_language(files: Files, tmp_path: Path) -> None:
    specs = files(de="eins\nzwei\n", en="one\n two \n", fr="un\ndeux\n")
    sources = parse_multi(specs)
    assert [source.name for source in sources] == ["en-de", "en-fr"]
    assert sources[1].paths == [tmp_path / "t.en", tmp_path / "t.fr"]
    assert list(sources[1].read()) == [Pair("one", "un", "one"), Pair("two", "deux", "two")]
    assert [source.name for source in parse_multi(specs[:1] + specs[2:])] == [
        "de-fr"
    ]  # without English: the first language


def test_two_pivots_are_paired_once_and_a_row_has_one_group(files: Files) -> None:
    specs = files(en="one\ntwo\n\n", de="eins\n\ndrei\n", fr="un\ndeux\ntrois\n", zh="一\n二\n三\n")
    sources = parse_multi(specs, ["en", "deu", "en"])
    assert [source.name for source in sources] == ["en-de", "en-fr", "en-zh", "de-fr", "de-zh"]
    pivots: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for source in sources:
        for row, item in enumerate(source.read()):
            if isinstance(item, Pair):
                pivots[row].add(item.pivot)
    assert pivots == {
        0: {"one"},
        1: {"two"},
        2: {"drei"},
    }  # without English the text of the next pivot determines the group


def test_a_missing_text_drops_only_the_pairs_of_its_language(files: Files, tmp_path: Path) -> None:
    specs = files(en="one\ntwo\n \nfour\n", de="eins\n\ndrei\nvier\n", fr="un\ndeux\n\nquatre\n")
    german, french = (list(source.read()) for source in parse_multi(specs))
    en = tmp_path / "t.en"
    assert german[1:] == [
        Drop(en, 2, "no de text", "two", ""),
        Drop(en, 3, "no en text", "", "drei"),
        Pair("four", "vier", "four"),
    ]
    assert french[1:3] == [Pair("two", "deux", "two"), Drop(en, 3, "no en text", "", "")]


def test_a_bad_line_is_rejected_for_its_file(files: Files, tmp_path: Path) -> None:
    specs = files(en=b"one\n\xff\nthree\n\xff\n", de=b"eins\nzwei\n\xff\nvier\n", fr="un\ndeux\ntrois\nquatre\n")
    german, _, between = (list(source.read()) for source in parse_multi(specs, ["en", "de"]))
    assert german[1:3] == [Reject(tmp_path / "t.en", 2, NOT_UTF8), Reject(tmp_path / "t.de", 3, NOT_UTF8)]
    assert between == [
        Pair("eins", "un", "one"),
        Pair("zwei", "deux", "zwei"),
        Reject(tmp_path / "t.de", 3, NOT_UTF8),
        Pair("vier", "quatre", "vier"),
    ]


@pytest.mark.parametrize("short", ["en", "fr"])
def test_files_of_unequal_lengths_are_an_error_with_all_counts(files: Files, short: str) -> None:
    texts = {code: "x\n" * (2 if code == short else 3) for code in ("en", "de", "fr")}
    with pytest.raises(UserError, match="--multi: files of unequal length") as error:
        list(chain.from_iterable(source.read() for source in parse_multi(files(**texts))))
    for code, text in texts.items():
        assert f"t.{code} {text.count('x')}" in str(error.value)


def test_invalid_arguments_are_an_error(files: Files) -> None:
    specs = files(en="one\n", de="eins\n")
    for chosen, pivots, message in (
        (specs[:1], [], "--multi .*: expected at least two languages"),
        ([*specs, specs[0].replace("en:", "eng:")], [], "--multi eng:.*given twice"),
        ([*specs, "fr:absent"], [], "--multi fr:absent: absent: no such file"),
        ([*specs, "plain"], [], "--multi plain: expected LANG:FILE"),
        (specs, ["fr"], "--pivots fr: expected a language of --multi: en, de"),
        (specs, ["no code"], "--pivots no code: expected a language of --multi"),
    ):
        with pytest.raises(UserError, match=message):
            parse_multi(chosen, pivots)
