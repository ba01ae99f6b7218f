import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizerFast

from ppa_fast import __version__
from ppa_fast.data import prepare as module
from ppa_fast.data.corpus import sentence_group
from ppa_fast.data.encode import TextEncoder, load_tokenizer, tokenizer_fingerprint
from ppa_fast.data.prepare import prepare
from ppa_fast.data.store import Store, StoreWriter
from ppa_fast.errors import UserError

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß"
PIECES = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cased WordPiece tokenizer whose pieces are the letters."""
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizerFast(tokenizer_object=backend, do_lower_case=False).save_pretrained(folder)
    return str(folder)


def ids(text: str) -> list[int]:
    return [PIECES.index(("##" if i else "") + letter) for word in text.split() for i, letter in enumerate(word)]


def row(store: Store, index: int) -> tuple[list[int], list[int]]:
    rows = store.rows(np.array([index]))
    return rows.a_tokens.tolist(), rows.b_tokens.tolist()


def write_corpus(folder: Path, lines: int, seed: int = 0) -> tuple[str, list[tuple[str, str]]]:
    rng = random.Random(seed)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(1, 9))) for _ in range(500)]
    sentence = lambda: " ".join(rng.choices(words, k=rng.randint(1, 12)))  # noqa: E731
    pairs = [(sentence(), sentence()) for _ in range(lines)]
    for name, side in (("t.en", 0), ("t.de", 1)):
        (folder / name).write_text("".join(f"{pair[side]}\n" for pair in pairs))
    return f"en-de:{folder / 't.en'},{folder / 't.de'}", pairs


def test_rows_and_manifest(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.en").write_text("one two\nthree\n\nfive\nsix\n" + "seven\n" * 35)
    (tmp_path / "t.de").write_text("eins zwei\ndrei\nvier\n\u200b\nsechs sechs\n" + "sieben\n" * 35)
    (tmp_path / "t.tsv").write_text("un\tone two\ntrois\t three \n")
    specs = [f"en-de:{tmp_path}/t.en,{tmp_path}/t.de", f"fr-en:{tmp_path}/t.tsv", f"en-de:{tmp_path}/t.tsv"]
    manifest = prepare(specs, tokenizer, tmp_path / "store", max_tokens=8, workers=1)

    store = Store.open(tmp_path / "store")
    assert store.manifest == manifest
    assert len(store) == manifest["pairs"] == 42
    sentences = [("one two", "eins zwei"), ("three", "drei"), ("six", "sechs sechs"), *[("seven", "sieben")] * 35]
    sentences += [("un", "one two"), ("trois", "three")] * 2
    assert [row(store, i) for i in range(42)] == [(ids(a)[:8], ids(b)[:8]) for a, b in sentences]

    loaded = load_tokenizer(tokenizer)
    assert manifest["package_version"] == __version__
    assert manifest["tokenizer"] == {"name": tokenizer, "fingerprint": tokenizer_fingerprint(loaded)}
    assert manifest["special_ids"] == {"cls": 2, "sep": 3, "mask": 4, "pad": 0}
    assert (manifest["vocab_size"], manifest["max_tokens"]) == (len(PIECES), 8)
    assert manifest["language_pairs"] == {
        "en-de": {"pairs": 40, "truncated": 1, "rejected": 2},
        "fr-en": {"pairs": 2, "truncated": 0, "rejected": 0},
    }
    assert manifest["rejected"] == {"empty side": 1, "no tokens": 1}
    assert (manifest["longest_a"], manifest["longest_b"]) == (6, 8)
    assert [source["lines"] for source in manifest["sources"]] == [40, 2, 2]
    assert (tmp_path / "store/rejected.tsv").read_text() == (
        f"{tmp_path}/t.en:3: empty side\n{tmp_path}/t.de:4: no tokens\n"
    )
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "manifest.json",
        "rejected.tsv",
        "rows-00000.arrow",
    ]
    column = pa.ipc.open_file(str(tmp_path / "store/rows-00000.arrow")).read_all()["pair"]
    assert column.to_pylist() == [0] * 38 + [1] * 2 + [0] * 2

    printed = capsys.readouterr().out
    assert "en-de: 40 pairs, 2 lines rejected, 1 sentences truncated to 8 tokens" in printed
    assert "rejected: 1 empty side, 1 no tokens; see" in printed
    assert "42 pairs in" in printed
    assert "pairs/s" in printed


def test_groups(tmp_path: Path, tokenizer: str) -> None:
    composed, decomposed = "schöne grüße", unicodedata.normalize("NFD", "schöne grüße")
    long = "wort " * 200
    (tmp_path / "en-de.tsv").write_text(f"hello\thallo\n{composed}\tx\n{long}a\tx\n{long}b\tx\n")
    (tmp_path / "fr-en.tsv").write_text(f"bonjour\t hello \nsalut\thello\ny\t{decomposed}\n")
    (tmp_path / "de-fr.tsv").write_text("hallo\tbonjour\nhello\thallo\nhallo\tsalut\n")
    specs = [f"{name}:{tmp_path / name}.tsv" for name in ("en-de", "fr-en", "de-fr")]
    prepare(specs, tokenizer, tmp_path / "store", max_tokens=10)
    groups = Store.open(tmp_path / "store").rows(np.arange(10)).groups.tolist()
    pivots = ["hello", composed, f"{long}a", f"{long}b", "hello", "hello", composed, "hallo", "hello", "hallo"]
    assert groups == [sentence_group(pivot) for pivot in pivots]
    assert len(set(groups)) == 5  # translations of one sentence share it; what truncation made equal does not


def test_literal_specials_in_the_text(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "t.tsv").write_text("a [SEP] b\t[CLS]\n[MASK]\t[PAD]\n")
    prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store")
    rows = Store.open(tmp_path / "store").rows(np.arange(2))
    assert {0, 2, 3, 4}.isdisjoint([*rows.a_tokens, *rows.b_tokens])


def test_workers_do_not_change_a_byte(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_LINES", 37)
    spec, pairs = write_corpus(tmp_path, 1000)
    text = (tmp_path / "t.en").read_text().splitlines()
    text[500], text[700] = "", "\u200b"
    (tmp_path / "t.en").write_text("\n".join(text))
    stores = {}
    for workers in (1, 3):
        out = tmp_path / str(workers)
        prepare([spec], tokenizer, out, workers=workers)
        stores[workers] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert stores[1] == stores[3]
    assert stores[1]["rejected.tsv"].decode().splitlines() == [
        f"{tmp_path}/t.en:501: empty side",
        f"{tmp_path}/t.en:701: no tokens",
    ]
    store = Store.open(tmp_path / "3")
    kept = [pair for i, pair in enumerate(pairs) if i not in (500, 700)]
    encoder = TextEncoder(load_tokenizer(tokenizer))
    assert [row(store, i) for i in (0, 499, 500, 997)] == [tuple(encoder(list(kept[i]))) for i in (0, 499, 500, 997)]


def test_chunks_are_bounded_by_text(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _ = write_corpus(tmp_path, 300)
    sizes = []
    encode = module._encode
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 1000)
    monkeypatch.setattr(
        module, "_encode", lambda chunk, encoder: sizes.append(len(chunk.lines)) or encode(chunk, encoder)
    )
    assert prepare([spec], tokenizer, tmp_path / "store")["pairs"] == 300
    assert max(sizes) < 100
    assert sum(sizes) == 300


def test_few_chunks_are_read_ahead(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_LINES", 10)
    spec, _ = write_corpus(tmp_path, 1000)
    read, ahead = itertools.count(1), []
    chunks, add = module._chunks, StoreWriter.add
    position = {"read": 0, "written": 0}

    def counted(*arguments: Any) -> Any:
        for chunk in chunks(*arguments):
            position["read"] = next(read)
            yield chunk

    def counted_add(self: StoreWriter, rows: Any) -> None:
        position["written"] += 1
        ahead.append(position["read"] - position["written"])
        add(self, rows)

    monkeypatch.setattr(module, "_chunks", counted)
    monkeypatch.setattr(StoreWriter, "add", counted_add)
    prepare([spec], tokenizer, tmp_path / "store", workers=2)
    assert len(ahead) == 100
    assert max(ahead) <= 4


def test_gz_equals_plain(tmp_path: Path, tokenizer: str) -> None:
    spec, _ = write_corpus(tmp_path, 50)
    for name in ("t.en", "t.de"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    plain = prepare([spec], tokenizer, tmp_path / "plain")
    zipped = prepare([f"en-de:{tmp_path}/t.en.gz,{tmp_path}/t.de.gz"], tokenizer, tmp_path / "zipped")
    assert plain["fingerprint"] == zipped["fingerprint"]


def test_several_sources_of_one_language_pair(tmp_path: Path, tokenizer: str) -> None:
    spec, _ = write_corpus(tmp_path, 20)
    assert prepare([spec, spec], tokenizer, tmp_path / "store")["language_pairs"]["en-de"]["pairs"] == 40


def test_bad_arguments_are_said_before_any_work(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = write_corpus(tmp_path, 3)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")

    def work(*_: Any) -> int:
        raise AssertionError("work before all arguments were checked")

    monkeypatch.setattr(module, "count_pairs", work)
    out = tmp_path / "store"
    for change, message in (
        ({"pairs": []}, "--pairs: none given"),
        ({"pairs": [spec, spec.replace("en-de", "en-qq")]}, "unknown language code 'qq'"),
        ({"pairs": [spec, f"en-de:{tmp_path}/absent.tsv"]}, r"absent\.tsv: no such file"),
        ({"pairs": [f"en-de:{tmp_path}"]}, "not a regular file"),
        ({"tokenizer": str(tmp_path / "absent")}, "absent: no such folder"),
        ({"out": full}, r"full: not empty \(notes\.txt\)"),
        ({"out": tmp_path / "t.en"}, "exists and is not a folder"),
        ({"max_tokens": 0}, "--max-tokens 0: expected 1 to"),
        ({"max_tokens": 40_000}, "--max-tokens 40000: expected 1 to"),
        ({"workers": 0}, "--workers 0"),
        ({"max_rejected": -0.1}, "--max-rejected -0.1: expected a share"),
        ({"max_rejected": 5}, "--max-rejected 5: expected a share"),
        ({"max_rejected": float("nan")}, "--max-rejected nan: expected a share"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(**{"pairs": [spec], "tokenizer": tokenizer, "out": out, **change})
        assert not out.exists()
    assert (full / "notes.txt").read_text() == "mine"


def test_unequal_lengths_and_broken_files_are_said_before_encoding(tmp_path: Path, tokenizer: str) -> None:
    good, _ = write_corpus(tmp_path, 30)
    (tmp_path / "short.de").write_text("x\n" * 29)
    (tmp_path / "broken.tsv.gz").write_bytes(gzip.compress(b"a\tb\n" * 1000)[:-10])
    with pytest.raises(UserError, match=r"t\.en has 30 lines, .*short\.de has 29"):
        prepare([good, f"en-de:{tmp_path}/t.en,{tmp_path}/short.de"], tokenizer, tmp_path / "store")
    with pytest.raises(UserError, match=r"broken\.tsv\.gz: broken gzip file"):
        prepare([good, f"en-de:{tmp_path}/broken.tsv.gz"], tokenizer, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_too_many_rejected(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "t.tsv").write_text("a\tb\n" * 17 + "no tab\nno tab\na\t\n")
    out = tmp_path / "store"
    with pytest.raises(UserError) as error:
        prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, out, max_rejected=0.149)
    for part in ("3 of 20 lines", "0.149", "1 empty side, 2 missing tab", str(out / "rejected.tsv")):
        assert part in str(error.value)
    assert [path.name for path in out.iterdir()] == ["rejected.tsv"]
    assert len((out / "rejected.tsv").read_text().splitlines()) == 3
    # Exactly the share that is allowed is allowed, and what the refusal left is started over.
    assert prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, out, max_rejected=0.15)["pairs"] == 17


def test_too_many_rejected_stops_early(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_LINES", 10)
    (tmp_path / "t.tsv").write_text("no tab\n" * 1000)
    with pytest.raises(UserError, match=r"60 of 60 lines read \(1,000 in all\)"):
        prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store")


def test_no_usable_pair(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "t.tsv").write_text("")
    with pytest.raises(UserError, match=r"no usable pair, no lines in .*t\.tsv"):
        prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store", max_rejected=1)
    assert not (tmp_path / "store").exists()
    (tmp_path / "t.tsv").write_text("no tab\n\n")
    with pytest.raises(UserError, match="no usable pair in 2 lines: 2 missing tab"):
        prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store", max_rejected=1)
    with pytest.raises(UserError, match="unfinished"):
        Store.open(tmp_path / "store")


def test_text_that_changes_under_way(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _ = write_corpus(tmp_path, 30)
    monkeypatch.setattr(module, "count_pairs", lambda source: 31)
    with pytest.raises(UserError, match="31 lines were counted, then 30 read"):
        prepare([spec], tokenizer, tmp_path / "store")


def test_a_failure_midway_leaves_no_store(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "CHUNK_LINES", 10)
    spec, _ = write_corpus(tmp_path, 100)
    out, add, calls = tmp_path / "store", StoreWriter.add, itertools.count()

    def fail_midway(self: StoreWriter, rows: Any) -> None:
        add(self, rows)
        if next(calls) == 4:
            raise OSError("no space left on device")

    for before in (None, "true"):  # a setting of the process that encoding borrows
        with monkeypatch.context() as patch:
            patch.setattr(StoreWriter, "add", fail_midway)
            patch.delenv("TOKENIZERS_PARALLELISM", raising=False)
            if before:
                patch.setenv("TOKENIZERS_PARALLELISM", before)
            calls = itertools.count()
            with pytest.raises(OSError, match="no space left"):
                prepare([spec], tokenizer, out)
            assert os.environ.get("TOKENIZERS_PARALLELISM") == before
    with pytest.raises(UserError, match="unfinished store, run prepare again"):
        Store.open(out)
    capsys.readouterr()
    assert prepare([spec], tokenizer, out)["pairs"] == 100
    assert "unfinished prepare, started over" in capsys.readouterr().out
    assert len(Store.open(out)) == 100
    with pytest.raises(UserError, match="a finished store"):
        prepare([spec], tokenizer, out)


def test_a_kill_before_the_manifest_leaves_no_store(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moments: the rows have their name, the manifest does not."""
    spec, _ = write_corpus(tmp_path, 20)
    rename = Path.rename

    def killed(source: Path, target: Path) -> None:
        if target.name == "manifest.json":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare([spec], tokenizer, tmp_path / "store")
    found = {path.name for path in (tmp_path / "store").iterdir()}
    assert found == {"rows-00000.arrow", ".manifest.json.tmp", "rejected.tsv"}
    with pytest.raises(UserError, match="unfinished"):
        Store.open(tmp_path / "store")

    (tmp_path / "bad.tsv").write_text("no tab\n")
    with pytest.raises(UserError, match="--max-rejected"):
        prepare([f"en-de:{tmp_path}/bad.tsv"], tokenizer, tmp_path / "store")
    assert not list((tmp_path / "store").glob("rows-*"))
    assert prepare([spec], tokenizer, tmp_path / "store")["pairs"] == 20


@pytest.mark.slow
def test_sigkill(tmp_path: Path, tokenizer: str) -> None:
    spec, _ = write_corpus(tmp_path, 100_000)
    out = tmp_path / "store"
    code = f"from ppa_fast.data.prepare import prepare; prepare({[spec]!r}, {tokenizer!r}, {str(out)!r}, workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        while not (out / "rows-00000.arrow.partial").exists() and process.poll() is None:
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
    finally:
        assert process.wait() == -signal.SIGKILL
    assert {path.name for path in out.iterdir()} == {"rows-00000.arrow.partial", "rejected.tsv"}
    with pytest.raises(UserError, match="unfinished"):
        Store.open(out)

    (tmp_path / "t.en").write_text("a\n")
    (tmp_path / "t.de").write_text("b\n")
    assert prepare([spec], tokenizer, out)["pairs"] == 1
    assert {path.name for path in out.iterdir()} == {"rows-00000.arrow", "rejected.tsv", "manifest.json"}


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
def test_real_text(tmp_path: Path, tokenizer: str) -> None:
    text = Path(os.environ["PPA_FAST_TEST_DATA"]) / "ntrex"
    specs = [
        f"en-{code}:{text}/newstest2019-src.eng.txt,{text}/newstest2019-ref.{name}.txt"
        for code, name in (("de", "deu"), ("zh", "zho-CN"))
    ]
    manifest = prepare(specs, tokenizer, tmp_path / "store")
    assert {name: counts["pairs"] for name, counts in manifest["language_pairs"].items()} == {
        "en-de": 1997,
        "en-zh": 1997,
    }
    store = Store.open(tmp_path / "store")
    groups = store.rows(np.arange(len(store))).groups
    assert (groups[:1997] == groups[1997:]).all()
    assert json.loads((tmp_path / "store/manifest.json").read_text()) == manifest
