import errno
import gzip
import io
import itertools
import json
import os
import random
import resource
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
from ppa_fast.data.reading.corpus import parse_pairs
from ppa_fast.data.reading.groups import sentence_group
from ppa_fast.data.store import chunking
from ppa_fast.data.store import prepare as module
from ppa_fast.data.store.prepare import prepare
from ppa_fast.data.store.store import Store, StoreWriter
from ppa_fast.data.store.tokenize import TextTokenizer, load_tokenizer, tokenizer_fingerprint
from ppa_fast.errors import UserError
from ppa_fast.files import folder_lock
from ppa_fast.progress import Progress
from ppa_fast.settings import Filters

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß"
PIECES = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cased WordPiece tokenizer whose tokens are the letters."""
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


def test_prepare_writes_rows_and_manifest(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
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
        "en-de": {"pairs": 40, "truncated": 1, "rejected": 2, "dropped": {}},
        "fr-en": {"pairs": 2, "truncated": 0, "rejected": 0, "dropped": {}},
    }
    assert manifest["rejected"] == {"empty side": 1, "no tokens": 1}
    assert (manifest["longest_a"], manifest["longest_b"]) == (6, 8)
    assert [source["records"] for source in manifest["sources"]] == [40, 2, 2]
    assert store.language_pairs == ["en-de", "fr-en"]
    assert store.segments.tolist() == [[0, 0, 38], [1, 38, 40], [0, 40, 42]]
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
    assert [line.split() for line in printed.splitlines()[:3]] == [
        ["kept", "rejected", "dropped", "truncated"],
        ["en-de", "40", "2", "0", "1"],
        ["fr-en", "2", "0", "0", "0"],
    ]
    assert "rejected: 1 empty side, 1 no tokens; see" in printed
    assert "42 pairs in" in printed
    assert "pairs/s" in printed


def test_translations_of_one_sentence_share_a_group(tmp_path: Path, tokenizer: str) -> None:
    composed, decomposed = "schöne grüße", unicodedata.normalize("NFD", "schöne grüße")
    long = "wort " * 200
    (tmp_path / "en-de.tsv").write_text(f"hello\thallo\n{composed}\tx\n{long}a\tx\n{long}b\tx\n")
    (tmp_path / "fr-en.tsv").write_text(f"bonjour\t hello \nsalut\thello\ny\t{decomposed}\n")
    (tmp_path / "de-fr.tsv").write_text("hallo\tbonjour\nhello\thallo\nhallo\tsalut\n")
    specs = [f"{name}:{tmp_path / name}.tsv" for name in ("en-de", "fr-en", "de-fr")]
    prepare(specs, tokenizer, tmp_path / "store", max_tokens=10, max_unknown=1)
    groups = Store.open(tmp_path / "store").rows(np.arange(10)).groups.tolist()
    pivots = ["hello", composed, f"{long}a", f"{long}b", "hello", "hello", composed, "hallo", "hello", "hallo"]
    assert groups == [sentence_group(pivot) for pivot in pivots]
    assert (
        len(set(groups)) == 5
    )  # translations of one sentence share it; sentences that are equal only after truncation do not


def test_literal_special_tokens_stay_text(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "t.tsv").write_text("a [SEP] b\t[CLS]\n[MASK]\t[PAD]\n")
    prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store", max_unknown=1)
    rows = Store.open(tmp_path / "store").rows(np.arange(2))
    assert {0, 2, 3, 4}.isdisjoint([*rows.a_tokens, *rows.b_tokens])


def test_the_number_of_workers_does_not_change_a_byte(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_RECORDS", 37)
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 400)
    spec, pairs = write_corpus(tmp_path, 1000)
    text = (tmp_path / "t.en").read_text().splitlines()
    text[500], text[700] = "", "\u200b"
    (tmp_path / "t.en").write_text("\n".join(text))
    stores = {}
    for workers in (1, 2, 4):
        out = tmp_path / str(workers)
        prepare([spec], tokenizer, out, workers=workers)
        stores[workers] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert stores[1] == stores[2] == stores[4]
    assert sorted(stores[1]) == ["manifest.json", "rejected.tsv", *(f"rows-{i:05d}.arrow" for i in range(3))]
    assert stores[1]["rejected.tsv"].decode().splitlines() == [
        f"{tmp_path}/t.en:501: empty side",
        f"{tmp_path}/t.en:701: no tokens",
    ]
    store = Store.open(tmp_path / "4")
    assert store.starts.tolist() == [0, 407, 812, 998]  # shards end with a chunk
    kept = [pair for i, pair in enumerate(pairs) if i not in (500, 700)]
    encoder = TextTokenizer(load_tokenizer(tokenizer))
    assert [row(store, i) for i in (0, 499, 500, 997)] == [tuple(encoder(list(kept[i]))) for i in (0, 499, 500, 997)]


def test_chunks_are_bounded_by_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, pairs = write_corpus(tmp_path, 300)
    monkeypatch.setattr(chunking, "CHUNK_CHARACTERS", 1000)
    chunks = list(chunking.read_chunks([parse_pairs(spec)], ["en-de"], [0], 1))
    sizes = [sum(len(item.a) + len(item.b) for item in chunk.items) for chunk in chunks]
    assert all(1000 <= size < 1250 for size in sizes[:-1])
    assert [(item.a, item.b) for chunk in chunks for item in chunk.items] == pairs
    # The chunks are equal after the end of any chunk.
    assert list(chunking.read_chunks([parse_pairs(spec)], ["en-de"], [chunks[3].first - 1], 1)) == chunks[3:]


def test_filtered_pairs_are_dropped(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_RECORDS", 2)
    (tmp_path / "t.tsv").write_text("aaaa\tb\na\tb\nno tab\naaaaa\tc\nä\t\u200b\nc\td\n")
    specs = [f"en-de:{tmp_path}/t.tsv", f"fr-en:{tmp_path}/t.tsv"]
    manifest = prepare(specs, tokenizer, tmp_path / "store", max_rejected=1, filters=Filters(max_length=3), workers=1)
    assert manifest["language_pairs"] == {
        "en-de": {"pairs": 2, "truncated": 0, "rejected": 2, "dropped": {"over 3 characters": 2}},
        "fr-en": {"pairs": 2, "truncated": 0, "rejected": 2, "dropped": {"over 3 characters": 2}},
    }
    assert manifest["rejected"] == {"missing tab": 2, "no tokens": 2}
    store = Store.open(tmp_path / "store")
    assert [row(store, i) for i in range(4)] == [(ids("a"), ids("b")), (ids("c"), ids("d"))] * 2
    lines = (tmp_path / "store/rejected.tsv").read_text().splitlines()
    assert lines == [f"{tmp_path}/t.tsv:3: missing tab", f"{tmp_path}/t.tsv:5: no tokens"] * 2


def test_gz_equals_plain(tmp_path: Path, tokenizer: str) -> None:
    spec, _ = write_corpus(tmp_path, 50)
    for name in ("t.en", "t.de"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    plain = prepare([spec], tokenizer, tmp_path / "plain")
    zipped = prepare([f"en-de:{tmp_path}/t.en.gz,{tmp_path}/t.de.gz"], tokenizer, tmp_path / "zipped")
    assert plain["fingerprint"] == zipped["fingerprint"]


def test_progress_counts_the_bytes_of_the_files(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_RECORDS", 20)
    monkeypatch.setattr(module, "MEGABYTE", 1)
    seen = []
    monkeypatch.setattr(
        Progress, "__exit__", lambda self, *_: seen.append((self.what, self.done, self.total, self._note))
    )
    spec, _ = write_corpus(tmp_path, 50)
    prepare([spec, spec], tokenizer, tmp_path / "store", workers=1)
    size = 2 * sum((tmp_path / name).stat().st_size for name in ("t.en", "t.de"))
    assert seen[-1] == ("tokenizing", size, size, "100 pairs")


def test_several_sources_of_one_language_pair(tmp_path: Path, tokenizer: str) -> None:
    spec, _ = write_corpus(tmp_path, 20)
    assert prepare([spec, spec], tokenizer, tmp_path / "store")["language_pairs"]["en-de"]["pairs"] == 40


def test_invalid_arguments_are_an_error_before_any_work(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = write_corpus(tmp_path, 3)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")

    def work(*_: Any) -> int:
        raise AssertionError("work before all arguments were checked")

    monkeypatch.setattr(module, "StoreWriter", work)
    out = tmp_path / "store"
    for change, message in (
        ({"pairs": []}, "pairs and multi: found neither, expected at least one"),
        ({"pairs": [spec, spec.replace("en-de", "en-qq")]}, "unknown language code 'qq'"),
        ({"pairs": [spec, f"en-de:{tmp_path}/absent.tsv"]}, r"absent\.tsv: no such file"),
        ({"pairs": [f"en-de:{tmp_path}"]}, "not a regular file"),
        ({"tokenizer": str(tmp_path / "absent")}, "absent: no such folder"),
        ({"out": full}, r"full: not empty \(notes\.txt\)"),
        ({"out": tmp_path / "t.en"}, "exists and is not a folder"),
        ({"max_tokens": 0}, "max_tokens: found 0, expected 1 to"),
        ({"max_tokens": 40_000}, "max_tokens: found 40000, expected 1 to"),
        ({"workers": 0}, "workers: found 0, expected at least 1"),
        ({"max_rejected": -0.1}, "max_rejected: found -0.1, expected 0 to 1"),
        ({"max_rejected": 5}, "max_rejected: found 5.0, expected 0 to 1"),
        ({"max_rejected": float("nan")}, "max_rejected: found nan, expected a number"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(**{"pairs": [spec], "tokenizer": tokenizer, "out": out, **change})
        assert not out.exists()
    assert (full / "notes.txt").read_text() == "mine"


def test_a_broken_file_leaves_no_store(tmp_path: Path, tokenizer: str) -> None:
    good, _ = write_corpus(tmp_path, 30)
    (tmp_path / "broken.tsv.gz").write_bytes(gzip.compress(b"a\tb\n" * 1000)[:-10])
    (tmp_path / "short.de").write_text("x\n" * 29)
    with pytest.raises(UserError, match=r"t\.en has 30 lines, .*short\.de has 29"):
        prepare([good, f"en-de:{tmp_path}/t.en,{tmp_path}/short.de"], tokenizer, tmp_path / "store")
    with pytest.raises(UserError, match=r"broken\.tsv\.gz: broken gzip file"):
        prepare([good, f"en-de:{tmp_path}/broken.tsv.gz"], tokenizer, tmp_path / "store")
    with pytest.raises(UserError, match="unfinished"):
        Store.open(tmp_path / "store")


def test_sentences_of_unknown_tokens_are_rejected(
    tmp_path: Path, tokenizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokens are the letters a to z, so Amharic and emoji are unknown."""
    rows = ["ab\tba", "ab\tቤቱ አረንጓዴ ነው", "ab\tዳቦ", "🙂\tab", "ab c\tab ነው", "ab\tc 🙂 🙂"]
    (tmp_path / "t.tsv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    spec = f"en-am:{tmp_path}/t.tsv"
    manifest = prepare([spec], tokenizer, tmp_path / "store", max_rejected=1, workers=1)
    assert manifest["pairs"] == 2
    assert manifest["rejected"] == {"mostly unknown tokens in en": 1, "mostly unknown tokens in am": 3}
    rejected = (tmp_path / "store" / "rejected.tsv").read_text().splitlines()
    assert [line.split(":")[1] for line in rejected] == ["2", "3", "4", "6"]
    warnings = [message for message in caplog.messages if "does not cover" in message]
    assert [warning.split(":")[1] for warning in warnings] == ["2", "4"]  # one per language
    everything = prepare([spec], tokenizer, tmp_path / "all", max_unknown=1, workers=1)
    assert everything["pairs"] == 6


def test_too_many_rejected_records_are_an_error(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.tsv").write_text("a\tb\n" * 17 + "no tab\nno tab\na\t\n")
    out = tmp_path / "store"
    with pytest.raises(UserError) as error:
        prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, out, max_rejected=0.149)
    for part in ("3 of 20 records", "0.149", "1 empty side, 2 missing tab", str(out / "rejected.tsv")):
        assert part in str(error.value)
    assert len((out / "rejected.tsv").read_text().splitlines()) == 3
    with pytest.raises(UserError, match="unfinished"):
        Store.open(out)
    # A share equal to the maximum is allowed, and prepare resumes from the refused result.
    with monkeypatch.context() as patch:
        patch.setattr(TextTokenizer, "arrays", None)
        assert prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, out, max_rejected=0.15)["pairs"] == 17
    assert len((out / "rejected.tsv").read_text().splitlines()) == 3
    assert not (out / "journal.json").exists()


def test_a_full_disk_while_rejected_records_are_written_names_their_file(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "t.tsv").write_text("a\tb\n" * 17 + "no tab\n")
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", lambda descriptor: None)
        patch.setattr(Full, "fileno", lambda self: 0)
        patch.setattr(module, "_rejected_file", lambda path, size: Full())
        with pytest.raises(UserError, match=rf"^{tmp_path}/store/rejected.tsv: cannot be written: no space is left"):
            prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store", max_rejected=0.5)
    assert prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store", max_rejected=0.5)["pairs"] == 17


def test_closing_the_file_of_rejected_records_on_a_full_disk_names_it(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with module._rejected_file(tmp_path / "rejected.tsv", 0) as file:
            file.write(b"x" * 100)  # into the buffer
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(UserError, match=rf"^{tmp_path}/rejected.tsv: cannot be written: File too large"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_high_share_of_rejected_records_gives_an_early_warning(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_RECORDS", 10)
    monkeypatch.setattr(module, "WARN_FROM", 30)
    (tmp_path / "t.tsv").write_text("a\tb\n" * 38 + "no tab\n" * 2 + "a\tb\n" * 40)
    prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store", max_rejected=0.04)
    warning = "2 of 40 records are unusable, more than --max-rejected 0.04 allows; see"
    assert [line for line in caplog.messages if line.startswith(warning)]
    caplog.clear()
    (tmp_path / "t.tsv").write_text("no tab\n" + "a\tb\n" * 29)  # too few for a warning
    prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store1", max_rejected=0.04)
    assert not caplog.records


def test_a_fraction_of_the_records_is_prepared(tmp_path: Path, tokenizer: str) -> None:
    """It is a subset in the same order, about as large as asked for; unusable records are a share of what is chosen."""
    spec, pairs = write_corpus(tmp_path, 2_000)
    manifest = prepare([spec], tokenizer, tmp_path / "store", fraction=0.25, max_tokens=200)
    assert manifest["sources"][0]["records"] == 2_000
    assert 440 <= manifest["pairs"] <= 560  # 3 standard deviations
    store, everything = Store.open(tmp_path / "store"), iter((ids(a), ids(b)) for a, b in pairs)
    assert all(
        row(store, index) in everything for index in range(manifest["pairs"])
    )  # in order: the iterator is used up
    (tmp_path / "t.tsv").write_text(("a\tb\n" * 9 + "no tab\n") * 100)
    with pytest.raises(UserError, match=r"of 200 records are unusable, more than --max-rejected 0\.04 allows"):
        prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "bad", fraction=0.2, max_rejected=0.04)


@pytest.mark.parametrize("first", [0, 1, 37])
def test_the_fraction_does_not_depend_on_where_reading_resumes(first: int) -> None:
    chosen = list(chunking.sampled(iter(range(100)), "en-de", 0, 0.3))
    assert list(chunking.sampled(iter(range(first, 100)), "en-de", first, 0.3)) == chosen[first:]
    assert chosen != list(chunking.sampled(iter(range(100)), "en-fr", 0, 0.3))


def test_text_without_a_usable_pair_is_an_error(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "t.tsv").write_text("")
    with pytest.raises(UserError, match=r"found no records in .*t\.tsv, expected at least one pair"):
        prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store", max_rejected=1)
    (tmp_path / "t.tsv").write_text("no tab\n\n")
    with pytest.raises(UserError, match="no usable pair in 2 records; rejected: 2 missing tab; dropped: none"):
        prepare([f"en-de:{tmp_path}/t.tsv"], tokenizer, tmp_path / "store", max_rejected=1)
    with pytest.raises(UserError, match="unfinished"):
        Store.open(tmp_path / "store")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a complete store, without the journal that a kill after the manifest leaves."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "journal.json"}


def test_a_failed_prepare_leaves_no_store_and_resumes(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_RECORDS", 10)
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 30)
    spec, _ = write_corpus(tmp_path, 100)
    out, add, calls = tmp_path / "store", StoreWriter.add, itertools.count()

    def fail_midway(self: StoreWriter, rows: Any) -> None:
        add(self, rows)
        if next(calls) == 4:
            raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "add", fail_midway)
        with pytest.raises(OSError, match="no space left"):
            prepare([spec], tokenizer, out, workers=1)
    with pytest.raises(UserError, match="unfinished store, run prepare again"):
        Store.open(out)
    caplog.clear()
    assert prepare([spec], tokenizer, out, workers=1)["pairs"] == 100
    assert "resuming an unfinished prepare after 30 records" in caplog.text
    assert prepare([spec], tokenizer, tmp_path / "whole", workers=1)["pairs"] == 100
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="a finished store"):
        prepare([spec], tokenizer, out)


def interrupted(spec: str, tokenizer: str, out: Path, **arguments: Any) -> None:
    """A prepare that stops after its first shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_rejected_error", None)
        with pytest.raises(TypeError):
            prepare([spec], tokenizer, out, **arguments)


def test_different_arguments_restart_prepare(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_RECORDS", 10)
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 30)
    monkeypatch.setattr(module, "WARN_FROM", 50)
    spec, pairs = write_corpus(tmp_path, 60)
    clean = [a for a, b in pairs if "a" not in a + b]
    for changed, arguments, first, longest in (
        ("max_tokens", {"max_tokens": 5}, ids(pairs[0][0])[:5], 5),
        ("filters", {"filters": Filters(drop_match=("a",))}, ids(clean[0]), max(len(ids(a)) for a in clean)),
        ("files", {}, ids(pairs[0][0][::-1]), max(len(ids(a)) for a, _ in pairs)),
    ):
        out = tmp_path / changed
        interrupted(spec, tokenizer, out, workers=1)
        if changed == "files":  # of the same size
            (tmp_path / "t.en").write_text("".join(f"{a[::-1]}\n" for a, _ in pairs))
        caplog.clear()
        manifest = prepare([spec], tokenizer, out, workers=1, **arguments)
        assert f"found an unfinished prepare with different arguments ({changed}), starting over" in caplog.text
        assert row(Store.open(out), 0)[0] == first
        assert manifest["longest_a"] == longest


def test_append_adds_rows(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_RECORDS", 10)
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 30)
    first, _ = write_corpus(tmp_path, 50)
    (tmp_path / "t.tsv").write_text("un\tone\nno tab\n" + "deux\ttwo\n" * 40)
    second = [f"fr-en:{tmp_path}/t.tsv", f"en-de:{tmp_path}/t.tsv"]
    whole = prepare([first, *second], tokenizer, tmp_path / "whole", workers=1)
    before = prepare([first], tokenizer, tmp_path / "store", workers=1)
    old = contents(tmp_path / "store")
    appended = prepare(second, tokenizer, tmp_path / "store", workers=1, append=True)

    assert {**appended, "shards": whole["shards"]} == whole  # the fingerprint depends on the rows, not on the shards
    assert appended["fingerprint"] != before["fingerprint"]
    new = contents(tmp_path / "store")
    assert {name: new[name] for name in old if name.startswith("rows")} == {
        name: content for name, content in old.items() if name.startswith("rows")
    }
    assert new["rejected.tsv"] == (tmp_path / "whole/rejected.tsv").read_bytes()
    stores = [Store.open(tmp_path / name) for name in ("whole", "store")]
    assert [row(stores[0], i) for i in range(132)] == [row(stores[1], i) for i in range(132)]
    assert stores[0].segments.tolist() == stores[1].segments.tolist() == [[0, 0, 50], [1, 50, 91], [0, 91, 132]]


def test_append_to_an_incompatible_store_is_an_error(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = write_corpus(tmp_path, 20)
    with pytest.raises(UserError, match="absent: no such store"):
        prepare([spec], tokenizer, tmp_path / "absent", append=True)
    store = tmp_path / "store"
    prepare([spec], tokenizer, store)
    with pytest.raises(UserError, match=r"expected the same, found .* and 99"):
        prepare([spec], tokenizer, store, max_tokens=99, append=True)
    backend = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    BertTokenizerFast(tokenizer_object=backend, do_lower_case=True).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"was made with tokenizer .* expected the same, found .*other"):
        prepare([spec], str(tmp_path / "other"), store, append=True)
    intact = contents(store)

    (tmp_path / "bad.tsv").write_text("no tab\n")
    with pytest.raises(UserError, match="1 of 1 records"):
        prepare([f"en-de:{tmp_path}/bad.tsv"], tokenizer, store, append=True)
    assert Store.open(store).manifest == json.loads(intact["manifest.json"])  # a failed append changes no row

    rows = bytearray(intact["rows-00000.arrow"])
    rows[len(rows) // 2] ^= 1
    (store / "rows-00000.arrow").write_bytes(rows)
    with pytest.raises(UserError, match="store is damaged: its rows do not match its fingerprint"):
        prepare([spec], tokenizer, store, append=True)


def test_only_one_prepare_runs_in_a_folder(tmp_path: Path, tokenizer: str) -> None:
    """This also holds if the other prepare started before the store existed. The refused one leaves no folder."""
    spec, _ = write_corpus(tmp_path, 5)
    store = tmp_path / "store"
    store.mkdir()
    with folder_lock(store, "the test"), pytest.raises(UserError, match="store: in use by another prepare"):
        prepare([spec], tokenizer, store)
    assert prepare([spec], tokenizer, store)["pairs"] == 5
    with pytest.raises(UserError, match="absent"):
        prepare([spec], str(tmp_path / "absent"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


# Kills. A driver forks a child for each kill, so that the imports run once. The child kills itself before the n-th of
# the calls that change the folder.
DRIVER = """
import json, os, signal, sys
from pathlib import Path
import ppa_fast.data.store.prepare as module
from ppa_fast.data.store import chunking
from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.data.store.store import StoreWriter

arguments, kills = json.loads(sys.argv[1]), json.loads(sys.argv[2])
chunking.CHUNK_RECORDS, module.ROWS_PER_SHARD = 10, 30
load_tokenizer(arguments["tokenizer"])

def count(owner, name, left):
    original = getattr(owner, name)
    def counted(*positional, **named):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*positional, **named)
    setattr(owner, name, counted)

finished = set()
for kill, out in kills:
    if out in finished or (Path(out, "manifest.json").exists() and "append" not in arguments):
        continue
    child = os.fork()
    if child == 0:
        left = [kill]
        for owner, name in ((StoreWriter, "add"), (os, "fsync"), (Path, "rename"), (Path, "unlink"), (Path, "open")):
            count(owner, name, left)
        module.prepare(**arguments, out=out, workers=1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(status, flush=True)
    if status == 0:
        finished.add(out)
"""


def run_killed(arguments: dict[str, Any], kills: list[tuple[int, Path]]) -> int:
    """Runs prepare for each (n, out), killed before the n-th call (0: not killed), unless ``out`` is complete. Returns
    the number of kills."""
    values = json.dumps(arguments), json.dumps([(kill, str(out)) for kill, out in kills])
    done = subprocess.run([sys.executable, "-c", DRIVER, *values], capture_output=True, text=True, check=False)
    statuses = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert done.returncode == 0, done.stderr
    assert set(statuses) <= {0, signal.SIGKILL}, done.stderr
    return statuses.count(signal.SIGKILL)


@pytest.fixture
def three_shards(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a prepare with three shards and some bad records; tmp_path / "whole" is the expected store."""
    monkeypatch.setattr(chunking, "CHUNK_RECORDS", 10)
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 30)
    spec, _ = write_corpus(tmp_path, 45)
    (tmp_path / "t.tsv").write_text("un\tone\nno tab\n\u200b\tx\n" + "deux\ttwo\n" * 30)
    arguments = {"pairs": [f"fr-en:{tmp_path}/t.tsv", spec], "tokenizer": tokenizer}
    assert prepare(**arguments, out=tmp_path / "whole", workers=1)["shards"] == 3
    return arguments


def test_a_repeatedly_killed_prepare_completes(tmp_path: Path, three_shards: dict[str, Any]) -> None:
    """Each attempt allows more calls, so that one completes: all shards need about 34 calls, the first needs 20."""
    kills = [(kill, tmp_path / "store") for kill in (11, 17, 19, 21, 23, 25, 27, 0)]
    assert run_killed(three_shards, kills) >= 3
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_killed_prepare_keeps_seen_pairs_and_samples(tmp_path: Path, three_shards: dict[str, Any]) -> None:
    """Pairs that were seen before the kill are known after it, and so are the samples of dropped pairs."""
    text = (tmp_path / "t.en").read_text().splitlines()
    lines = [f"{a}\t{b}\n" for a, b in zip(text, (tmp_path / "t.de").read_text().splitlines(), strict=True)]
    (tmp_path / "again.tsv").write_text("".join(lines) + "neu\tnew\n" * 20)
    arguments = {**three_shards, "pairs": [*three_shards["pairs"], f"en-de:{tmp_path}/again.tsv"], "deduplicate": True}
    manifest = prepare(**arguments, out=tmp_path / "unique", workers=1)
    dropped = {name: counts["dropped"] for name, counts in manifest["language_pairs"].items()}
    assert dropped == {"en-de": {"duplicate": 64}, "fr-en": {"duplicate": 29}}
    assert run_killed(arguments, [(kill, tmp_path / "store") for kill in (26, 25, 30, 0)]) >= 2
    assert contents(tmp_path / "store") == contents(tmp_path / "unique")


@pytest.mark.slow
def test_a_kill_at_any_call_is_resumed(tmp_path: Path, three_shards: dict[str, Any]) -> None:
    outs = {number: tmp_path / str(number) for number in range(1, 60, 3)}  # every third call, to save time
    killed = run_killed(three_shards, [(kill, out) for number, out in outs.items() for kill in (number, 0)])
    assert 15 < killed < len(outs)  # the last attempts complete before the call
    for out in outs.values():
        assert contents(out) == contents(tmp_path / "whole")


def test_a_killed_append_leaves_the_store_unchanged(
    tmp_path: Path, tokenizer: str, three_shards: dict[str, Any]
) -> None:
    """The store changes only when the append completes."""
    (tmp_path / "first.tsv").write_text("eins\tone\n" * 20)
    spec = f"de-en:{tmp_path}/first.tsv"
    for name in ("expected", "store"):
        before = prepare([spec], tokenizer, tmp_path / name)
    whole = prepare(**three_shards, out=tmp_path / "expected", append=True, workers=1)
    arguments = {**three_shards, "append": True}
    assert run_killed(arguments, [(30, tmp_path / "store")]) == 1
    assert (tmp_path / "store/journal.json").exists()
    assert Store.open(tmp_path / "store").manifest == before
    assert len(Store.open(tmp_path / "store")) == 20
    assert run_killed(arguments, [(kill, tmp_path / "store") for kill in (20, 12, 50, 0)]) >= 2
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")
    assert Store.open(tmp_path / "store").manifest == whole


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
def test_real_text_is_prepared(tmp_path: Path, tokenizer: str) -> None:
    text = Path(os.environ["PPA_FAST_TEST_DATA"]) / "ntrex"
    specs = [
        f"en-{code}:{text}/newstest2019-src.eng.txt,{text}/newstest2019-ref.{name}.txt"
        for code, name in (("de", "deu"), ("zh", "zho-CN"))
    ]
    # The tokens are letters of the Latin alphabet, so Chinese is unknown to this tokenizer.
    manifest = prepare(specs, tokenizer, tmp_path / "store", max_unknown=1)
    assert {name: counts["pairs"] for name, counts in manifest["language_pairs"].items()} == {
        "en-de": 1997,
        "en-zh": 1997,
    }
    store = Store.open(tmp_path / "store")
    groups = store.rows(np.arange(len(store))).groups
    assert (groups[:1997] == groups[1997:]).all()
    assert json.loads((tmp_path / "store/manifest.json").read_text()) == manifest
