"""AER computed by hand in every file format, its properties, and the errors of malformed files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_fast import cli
from ppa_fast.errors import UserError
from ppa_fast.tasks import evaluate
from ppa_fast.tasks.word_alignment import (
    Link,
    evaluate_alignment,
    format_pharaoh,
    format_scores,
    read_alignment,
    read_words,
    score_links,
)

# Three sentences. S: 0-0 2-1 | 0-0 1-1 |; P besides: 1-1 2-2 | 1-2 |. The third has no gold link.
GOLD = "0-0 1p1 2p2 2-1\n1p2 0-0 1-1\n\n"
GOLD_FROM_1 = "1-1 2p2 3p3 3-2\n2p3 1-1 2-2\n\n"
NUMBERED = "1 0 0 S\n1 1 1 P\n1 2 2 P 0.3\n1 2 1\n\n2 1 2 0.5 P\n2 0 0 0.9\n2 1 1 S 1\n3 4 4 P\n"
NUMBERED_FROM_1 = "0001 1 1\n0001 2 2 P\n0001 3 3 P\n0001 3 2 S\n0002 2 3 P\n0002 1 1 S\n0002 2 2\n0003 5 5 P\n"
NUMBERED_SENTENCES_FROM_0 = "1 0 0\n0 0 0\n0 1 1 P\n0 2 2 P\n0 2 1\n1 1 2 P\n1 1 1\n2 4 4 P\n"
# In P: 0-0 1-1 2-1, 0-0 1-2: 5 of 8; in S: 0-0 2-1, 0-0: 3 of 4.
LINKS = "0-0 1-1 2-1 0-1\n0-0 1-2 2-2 0-0\n3-3\n"
SCORES = {"aer": 1 - (5 + 3) / (8 + 4), "precision": 5 / 8, "recall": 3 / 4}


def write(folder: Path, **files: str) -> dict[str, str]:
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: str(folder / name) for name in files}


@pytest.mark.parametrize(
    ("gold", "one_indexed", "possible"),
    [
        (GOLD, False, 7),
        (GOLD_FROM_1, True, 7),
        (NUMBERED, False, 8),
        (NUMBERED_FROM_1, True, 8),
        (NUMBERED_SENTENCES_FROM_0, False, 8),
    ],
    ids=["pharaoh", "pharaoh from 1", "numbered", "numbered from 1", "sentences from 0"],
)
def test_scores_equal_hand_computed_values(tmp_path: Path, gold: str, one_indexed: bool, possible: int) -> None:
    files = write(tmp_path, gold=gold, links=LINKS)
    result = evaluate("align", **files, one_indexed=one_indexed)
    assert {name: result.pop(name) for name in SCORES} == pytest.approx(SCORES)
    assert result == {"sentences": 3, "links": 8, "sure": 4, "possible": possible}


def test_numbered_links_and_links_from_1_are_read(tmp_path: Path) -> None:
    numbered = "1 1 1\n1 2 2\n1 3 2 0.7\n1 1 2 P\n2 1 1 S\n2 2 3\n2 3 3\n2 1 1\n3 4 4\n"
    from_1 = "1-1 2-2 3p2 1-2\n1-1 2-3 3-3 1p1\n4-4\n"
    for links in (numbered, from_1):
        result = evaluate_alignment(**write(tmp_path, gold=GOLD, links=links), links_one_indexed=True)
        assert {name: result[name] for name in SCORES} == pytest.approx(SCORES)


def test_a_link_that_is_sure_and_possible_is_sure_and_counts_once(tmp_path: Path) -> None:
    files = write(tmp_path, gold="0p0 0-0 0-0 1p1 1p1\n", links="0-0 0-0 5-5\n")
    result = evaluate_alignment(**files)
    assert (result["sure"], result["possible"], result["links"]) == (1, 2, 2)
    assert result["aer"] == pytest.approx(1 - (1 + 1) / (2 + 1))


def test_scores_are_sums_over_the_corpus_not_means_of_sentences() -> None:
    sure = {(0, 0, 0), (1, 0, 0), (1, 1, 1), (1, 2, 2)}
    links = {(0, 9, 9), (1, 0, 0), (1, 1, 1), (1, 2, 2)}
    assert score_links(links, sure, sure)["aer"] == pytest.approx(0.25)  # the mean over the sentences is 0.5


def test_scores_without_links_or_gold_links() -> None:
    gold = {(0, 0, 0)}
    assert score_links(set(), gold, gold) == {"aer": 1.0, "precision": 0.0, "recall": 0.0}
    assert score_links(gold, set(), gold) == {"aer": 0.0, "precision": 1.0, "recall": 0.0}
    with pytest.raises(UserError, match="neither links nor sure gold links"):
        score_links(set(), set(), gold)


LINK_SETS = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30)


@given(LINK_SETS, LINK_SETS, st.permutations(range(4)), st.permutations(range(6)))
def test_scores_are_bounded_and_invariant(
    sure: set[Link], links: set[Link], sentences: list[int], words: list[int]
) -> None:
    possible = sure | {(s, j, i) for s, i, j in sure}
    assert score_links(sure, sure, possible) == {"aer": 0, "precision": 1, "recall": 1}
    scores = score_links(links, sure, possible)
    assert all(0 <= share <= 1 for share in scores.values())
    renamed = [{(sentences[s], words[i], words[j]) for s, i, j in each} for each in (links, sure, possible)]
    assert score_links(*renamed) == scores
    assert score_links(*({(s, j, i) for s, i, j in each} for each in (links, sure, possible))) == scores
    # Without possible links AER is 1 − F1.
    plain = score_links(links, sure, sure)
    total = plain["precision"] + plain["recall"]
    f1 = 2 * plain["precision"] * plain["recall"] / total if total else 0
    assert plain["aer"] == pytest.approx(1 - f1)


@settings(deadline=None)  # the test writes files
@given(LINK_SETS)
def test_written_links_are_read_back(tmp_path_factory: pytest.TempPathFactory, links: set[Link]) -> None:
    file = tmp_path_factory.getbasetemp() / "links"
    file.write_text(format_pharaoh(links, 5))
    read = read_alignment(file)
    assert (read.sure, read.possible, read.sentences) == (links, links, 5)


@pytest.mark.parametrize(
    ("text", "one_indexed", "message"),
    [
        ("0-0\n0-0 1:1\n", False, r"bad:2: found '0-0 1:1', expected links 'i-j'"),
        ("0-0 1-\n", False, "bad:1: found"),
        ("0-0 -1-2\n", False, "bad:1: found"),
        ("0-0-0.5\n", False, "bad:1: found"),
        ("1 2 3\n1 2\n", False, "bad:2: found '1 2'"),
        ("1 2 3 X\n", False, "bad:1: found"),
        ("1 2 3 S 0.5 P 7\n", False, "bad:1: found"),
        ("1 2 3\n0-0\n", False, "bad:2: found '0-0'"),
        ("1-1\n1-1 0-2\n", True, "bad:2: found position 0, expected positions from 1"),
        ("1 3 0\n", True, "bad:1: found position 0"),
    ],
)
def test_malformed_files_are_an_error(tmp_path: Path, text: str, one_indexed: bool, message: str) -> None:
    files = write(tmp_path, bad=text)
    with pytest.raises(UserError, match=message):
        read_alignment(files["bad"], one_indexed)


def test_a_binary_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"0-0\n\xff\xfe\n")
    with pytest.raises(UserError, match="bad:2: not UTF-8"):
        read_alignment(tmp_path / "bad")


@pytest.mark.parametrize(
    ("gold", "links", "message"),
    [
        ("0-0\n1-1\n", "0-0\n", r"links: found 1 sentences, expected 2 as in .*gold$"),
        ("0-0\n", "0-0\n1-1\n", r"links: found 2 sentences, expected 1 as in .*gold$"),
        ("1 0 0\n2 0 0\n", "0-0\n", r"links: found 1 sentences, expected 2 as in .*gold$"),
        ("0-0\n", "1 0 0\n2 0 0\n", r"links: found 2 sentences, expected 1 as in .*gold$"),
    ],
)
def test_unequal_numbers_of_sentences_are_an_error(tmp_path: Path, gold: str, links: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_alignment(**write(tmp_path, gold=gold, links=links))


def test_numbered_links_need_not_reach_the_last_sentence(tmp_path: Path) -> None:
    result = evaluate_alignment(**write(tmp_path, gold="0-0\n0-0\n1-1\n", links="1 0 0\n2 0 0\n"))
    assert (result["sentences"], result["recall"]) == (3, pytest.approx(2 / 3))


def test_a_file_that_may_count_from_1_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluate_alignment(**write(tmp_path, gold="1-1 2-2\n", links="0-0 1-1\n"))
    assert "gold: found no position 0; if positions are numbered from 1, pass --one-indexed" in caplog.text
    caplog.clear()
    evaluate_alignment(**write(tmp_path, gold="1-1 2-2\n", links="0-0 1-1\n"), one_indexed=True)
    assert not caplog.records
    assert evaluate_alignment(**write(tmp_path, gold="0-0\n", links="\n"))["aer"] == 1.0
    assert not caplog.records  # a file without links gives no warning


def test_words_are_split_at_white_space(tmp_path: Path) -> None:
    files = write(tmp_path, a="das  ist gut\nja .\n", b="this is good\tindeed\nyes .\n", short="x\n", gap="x\n \n")
    assert read_words(f"{files['a']},{files['b']}") == [
        (["das", "ist", "gut"], ["this", "is", "good", "indeed"]),
        (["ja", "."], ["yes", "."]),
    ]
    with pytest.raises(UserError, match=r"a has 2 lines, .*short has 1"):
        read_words(f"{files['a']},{files['short']}")
    with pytest.raises(UserError, match="gap:2: empty side"):
        read_words(f"{files['a']},{files['gap']}")
    with pytest.raises(UserError, match=r"a:1: found 'das  ist gut', expected .*; or give two files, SRC,TGT"):
        read_words(files["a"])


def test_contradictory_arguments_are_an_error(tmp_path: Path) -> None:
    files = write(tmp_path, gold=GOLD, links=LINKS)
    for options, message in (
        ({}, "links and model: found neither, expected one of them"),
        ({"model": "m"}, "model: found m without pairs, expected both"),
        ({"links": files["links"], "model": "m", "pairs": "a,b"}, r"links and model: found both \(.* and m\)"),
        ({"links": files["links"], "pairs": "a,b"}, "pairs: found a,b without model, expected both"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_alignment(files["gold"], **options)
    with pytest.raises(UserError, match=r"links_out: found .* without model, expected both"):
        evaluate_alignment(**files, links_out=tmp_path / "out")


def test_the_command_scores_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, gold=GOLD_FROM_1, links=LINKS)
    command = ["evaluate", "align", "--gold", "gold", "--links", "links", "--one-indexed", "--json", "scores.json"]
    assert cli.main(command) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {name: scores[name] for name in SCORES} == pytest.approx(SCORES)
    out = capsys.readouterr().out
    assert "AER 33.33  P 62.50  R 75.00" in out
    assert "8 links against 4 sure and 3 only possible gold links in 3 sentences" in out
    assert cli.main([*command[:5], "absent"]) == 2
    assert "absent" in capsys.readouterr().err


def test_truncated_pairs_give_a_warning() -> None:
    result = {**SCORES, "links": 1, "sure": 1, "possible": 1, "sentences": 2}
    assert "longer" not in format_scores(result)
    assert "1 pairs exceed the model's limit" in format_scores({**result, "truncated": 1})


def test_files_are_scored_without_torch(tmp_path: Path) -> None:
    files = write(tmp_path, gold=GOLD, links=LINKS)
    code = f"import sys; from ppa_fast.tasks import evaluate; evaluate('align', **{files})"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numbered_gold_can_end_before_the_last_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gold").write_text("1 0 0\n2 0 0\n")
    (tmp_path / "links").write_text("0-0\n0-0\n0-0\n")
    result = evaluate_alignment(tmp_path / "gold", tmp_path / "links")
    assert result["precision"] == pytest.approx(2 / 3)  # the links of the third sentence are wrong
    assert "links has 3 sentences" in caplog.text


@pytest.mark.parametrize(
    ("gold", "one_indexed", "line", "found"),
    [
        ("0-0 9-9 50-2\n0-0\n1-1\n", False, 1, "source word 9 of sentence 1, which has 3 words; expected 0 to 2"),
        ("0-0\n0p1\n0-0\n", False, 2, "target word 1 of sentence 2, which has 1 words; expected 0 to 0"),
        ("1-1 4-1\n1-1\n1-1\n", True, 1, "source word 4 of sentence 1, which has 3 words; expected 1 to 3"),
        ("1 0 0\n2 0 0\n3 1 2 P\n", False, 3, "target word 2 of sentence 3, which has 2 words; expected 0 to 1"),
    ],
)
def test_a_gold_link_to_a_word_that_is_not_there(
    tmp_path: Path, gold: str, one_indexed: bool, line: int, found: str
) -> None:
    files = write(tmp_path, gold=gold, de="das Haus ist\nrot\nein Hund\n", en="the house is\nred\na dog\n")
    with pytest.raises(UserError, match=rf"^{files['gold']}:{line}: found a link to {found}"):
        evaluate_alignment(
            gold=files["gold"], model="absent", pairs=f"{files['de']},{files['en']}", one_indexed=one_indexed
        )


def test_only_spaces_and_tabs_separate_words(tmp_path: Path) -> None:
    """The tools that make gold links split at these, so that every other white space is part of a word."""
    french = "il y a 10\u00a0000 personnes \n\u202f10\u202f000\tpersonnes\n\u3000\n"
    files = write(tmp_path, fr=french, en="there are 10,000 inhabitants\n10,000  inhabitants\r\nx\n")
    assert [a for a, _ in read_words(f"{files['fr']},{files['en']}")] == [
        ["il", "y", "a", "10\u00a0000", "personnes"],
        ["\u202f10\u202f000", "personnes"],
        ["\u3000"],
    ]
    assert [b for _, b in read_words(f"{files['fr']},{files['en']}")][1] == ["10,000", "inhabitants"]


def test_a_side_without_words_and_unequal_files_are_errors(tmp_path: Path) -> None:
    files = write(tmp_path, de="das Haus\n \t\n", en="the house\nred\n", short="the house\n")
    with pytest.raises(UserError, match=rf"^{files['de']}:2: empty side; expected words in every line"):
        read_words(f"{files['de']},{files['en']}")
    with pytest.raises(UserError, match=r"short has 1 lines, .*en has 2; expected equal numbers"):
        read_words(f"{files['short']},{files['en']}")


def test_a_single_file_has_both_sides(tmp_path: Path) -> None:
    files = write(tmp_path, text="das Haus  ||| the house\r\nrot ||| red \n", bad="a ||| b\na b\n", empty="a ||| \n")
    assert read_words(files["text"]) == [(["das", "Haus"], ["the", "house"]), (["rot"], ["red"])]
    with pytest.raises(UserError, match=rf"^{files['bad']}:2: found 'a b', expected 'source \|\|\| target'"):
        read_words(files["bad"])
    with pytest.raises(UserError, match=rf"^{files['empty']}:1: empty side"):
        read_words(files["empty"])


def test_capital_letters_mark_sure_and_possible_links(tmp_path: Path) -> None:
    (tmp_path / "gold").write_text("0S0 1P2\n")
    found = read_alignment(tmp_path / "gold")
    assert (found.sure, found.possible) == ({(0, 0, 0)}, {(0, 0, 0), (0, 1, 2)})
