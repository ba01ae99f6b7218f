"""The WordPiece trainer: it treats text as mBERT does, and the saved tokenizer equals the original."""

import gzip
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ppa_fast.data.store.wordpiece import train_wordpiece
from ppa_fast.errors import UserError

TEXT = """Über den Wolken muss die Freiheit wohl grenzenlos sein.
ÉTÉ comme hiver, l'été à Paris; ÇA va?
我们在北京大学学习中文
Über den Fluss und in die Wälder, grenzenlos.
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_cased_text_keeps_case_accents_and_splits_cjk_after_a_round_trip(tmp_path: Path, text: Path) -> None:
    train_wordpiece([text], tmp_path / "tok", vocab_size=300)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tok")
    assert tokenizer.is_fast
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token_id == 0
    assert tokenizer.tokenize("Über") == ["Über"]
    assert tokenizer.decode(tokenizer("ÉTÉ été")["input_ids"]) == "[CLS] ÉTÉ été [SEP]"
    # CJK characters are separate words, with or without spaces between them.
    assert tokenizer.tokenize("北京大学") == list("北京大学")
    assert tokenizer("Ça va", "à Paris")["input_ids"].count(3) == 2


def test_a_second_round_trip_gives_equal_files(tmp_path: Path, text: Path) -> None:
    train_wordpiece([text], tmp_path / "tok", vocab_size=200)
    first = AutoTokenizer.from_pretrained(tmp_path / "tok")
    first.save_pretrained(tmp_path / "again")
    second = AutoTokenizer.from_pretrained(tmp_path / "again")
    probes = [*TEXT.splitlines(), "ÜBER ALLES été İstanbul  x\ty", "[MASK] weiß"]
    assert [first(p)["input_ids"] for p in probes] == [second(p)["input_ids"] for p in probes]


def test_lowercase_lowers_case_and_strips_accents(tmp_path: Path, text: Path) -> None:
    train_wordpiece([text], tmp_path / "tok", vocab_size=300, lowercase=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tok")
    assert tokenizer.tokenize("ÜBER über Uber") == ["uber"] * 3


def test_gzip_and_several_files_are_read(tmp_path: Path, text: Path) -> None:
    packed = tmp_path / "more.txt.gz"
    packed.write_bytes(gzip.compress("Ёлка ёлка\n".encode()))
    train_wordpiece([text, packed], tmp_path / "tok", vocab_size=300)
    assert "[UNK]" not in AutoTokenizer.from_pretrained(tmp_path / "tok").tokenize("Ёлка")


def test_invalid_input_is_an_error(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "tok"
    with pytest.raises(UserError, match=r"absent\.txt: no such file"):
        train_wordpiece([text, tmp_path / "absent.txt"], out)
    with pytest.raises(UserError, match=r"files: found \[\], expected at least one"):
        train_wordpiece([], out)
    blank = tmp_path / "blank.txt"
    blank.write_text("\n  \n\n")
    with pytest.raises(UserError, match=r"blank\.txt: found only blank lines, expected text"):
        train_wordpiece([blank], out)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt:2: not UTF-8"):
        train_wordpiece([latin], out)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(TEXT.encode())[:-20])
    with pytest.raises(UserError, match=r"broken\.gz: broken gzip file"):
        train_wordpiece([broken], out)
    with pytest.raises(UserError, match=r"vocab_size: found 5"):
        train_wordpiece([text], out, vocab_size=5)
    with pytest.raises(UserError, match=r"vocab_size: found 20, expected at least \d+ for the characters"):
        train_wordpiece([text], out, vocab_size=20)
    assert not out.exists()
    with pytest.raises(UserError, match="not an empty folder"):
        train_wordpiece([text], tmp_path)


def test_equal_text_gives_equal_bytes(tmp_path: Path) -> None:
    """Every token of this text is as frequent as another one, and fewer than half of the possible merges fit."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{a}{b}{c}" for a in "abcdefgh" for b in "klmnopq" for c in "rstuvwxyz"))
    made = []
    for name in "one", "two", "three":
        train_wordpiece([text], tmp_path / name, vocab_size=60)
        made.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert made[0] == made[1] == made[2]
