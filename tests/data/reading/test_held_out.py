from pathlib import Path

import pytest

from ppa_fast.data.reading import held_out
from ppa_fast.data.reading.corpus import read_eval_pairs
from ppa_fast.data.reading.held_out import hold_out
from ppa_fast.errors import UserError


def write(folder: Path, code: str, english: list[str], other: list[str]) -> str:
    for name, lines in ((f"{code}.en", english), (f"{code}.{code}", other)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"en-{code}:{folder}/{code}.en,{folder}/{code}.{code}"


def test_a_tenth_is_held_out_and_the_same_english_sentences_in_every_language(tmp_path):
    english = [f"sentence {i}" for i in range(50)]
    specs = [
        write(tmp_path, "de", english, [f"Satz {i}" for i in range(50)]),
        write(tmp_path, "fr", english[::-1], [f"phrase {i}" for i in range(50)][::-1]),
    ]
    (tmp_path / "dev").mkdir()
    found = hold_out(specs, tmp_path / "dev")
    assert {name: count for name, (_, count) in found.items()} == {"en-de": 5, "en-fr": 5}
    (_, en, de), (_, same, fr) = (read_eval_pairs(spec) for spec, _ in found.values())
    assert en == same
    numbers = [line.split()[-1] for line in en]
    assert len(set(numbers)) == 5
    assert (de, fr) == ([f"Satz {n}" for n in numbers], [f"phrase {n}" for n in numbers])
    assert hold_out(specs, tmp_path / "dev") == found


def test_no_sentence_occurs_twice_and_several_texts_of_a_pair_are_one(tmp_path):
    first = write(tmp_path, "de", [f"one {i}" for i in range(40)], ["gleich"] * 40)
    (tmp_path / "more").mkdir()
    more = write(tmp_path / "more", "de", ["one 1"] * 30 + [f"two {i}" for i in range(30)], [str(i) for i in range(60)])
    (spec, count) = hold_out([first, more], tmp_path)["en-de"]
    _, en, de = read_eval_pairs(spec)
    assert count == len(en) == len(set(en)) == len(set(de)) == 10


def test_memory_is_bounded_and_does_not_change_the_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "MOST_PAIRS", 6)
    spec = write(tmp_path, "de", [f"one {i}" for i in range(500)], [f"eins {i}" for i in range(500)])
    whole = [held_out.sentence_group(f"one {i}") for i in range(500)]
    expected = [f"one {whole.index(group)}" for group in sorted(whole)[:6]]
    assert read_eval_pairs(hold_out([spec], tmp_path)["en-de"][0])[1] == expected


def test_too_small_a_text_is_an_error(tmp_path):
    spec = write(tmp_path, "de", ["a", "b"] * 9, ["c", "d"] * 9)
    with pytest.raises(UserError, match=r"pairs: en-de: found 18 pairs, too few to hold out 2 of them"):
        hold_out([spec], tmp_path)
