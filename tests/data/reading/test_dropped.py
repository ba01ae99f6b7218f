"""Dropped pairs: samples, counts, and the table at the end of prepare."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppa_fast.data.reading.dropped import SAMPLES, Samples, format_table
from ppa_fast.data.reading.source import Drop
from ppa_fast.data.store.prepare import prepare
from ppa_fast.data.store.store import Store
from ppa_fast.errors import UserError
from ppa_fast.settings import Filters


def drop(record: int, reason: str = "duplicate", a: str = "a", b: str = "b") -> Drop:
    return Drop(Path("t.en"), record, reason, a, b)


drops = st.lists(st.tuples(st.sampled_from(["en-de", "en-fr"]), st.integers(1, 10**6), st.sampled_from("xyz")))


@given(drops, st.randoms(use_true_random=False), st.integers(0, 100))
def test_order_and_interruption_do_not_change_the_samples(found: list, rng: random.Random, cut: int) -> None:
    whole, parts = Samples({}), Samples({})
    for name, record, reason in found:
        whole.add(name, drop(record, reason))
    for index, (name, record, reason) in enumerate(rng.sample(found, len(found))):
        if index == cut:
            parts = Samples(json.loads(json.dumps(parts.to_json())))
        parts.add(name, drop(record, reason))
    assert parts.to_json() == whole.to_json()
    for name, record, reason in found:
        samples = whole.to_json()[name][reason]
        assert len(samples) == SAMPLES or record in [sample["record"] for sample in samples]


def test_samples_are_limited_in_number_and_length(tmp_path: Path) -> None:
    samples = Samples({})
    for record in range(1, 10_001):
        samples.add("en-de", drop(record, a="ä" * 600, b="\t\n"))
    samples.add("en-de", drop(5, "identical sides", "x", "x"))
    samples.write(tmp_path)
    found = json.loads((tmp_path / "dropped.json").read_text(encoding="utf-8"))["en-de"]
    assert found["identical sides"] == [{"file": "t.en", "record": 5, "a": "x", "b": "x"}]
    records = [sample["record"] for sample in found["duplicate"]]
    assert len(records) == SAMPLES
    assert records == sorted(records)
    assert records[0] < 3000
    assert records[-1] > 7000
    assert (found["duplicate"][0]["a"], found["duplicate"][0]["b"]) == ("ä" * 500 + "…", "\t\n")
    again = Samples(Samples.read(tmp_path))
    again.write(tmp_path)
    assert json.loads((tmp_path / "dropped.json").read_text(encoding="utf-8"))["en-de"] == found


def test_without_dropped_pairs_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "dropped.json").write_text("what a prepare with other arguments left")
    Samples({}).write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert Samples.read(tmp_path) == {}


def test_file_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    samples = Samples({})
    samples.add("en-de", Drop(Path("t\udcff.en"), 1, "duplicate"))
    samples.write(tmp_path)
    assert "t\ufffd.en" in (tmp_path / "dropped.json").read_text(encoding="utf-8")


def test_the_table_lists_drops_by_reason() -> None:
    counts = {
        "en-de": {"pairs": 9120, "rejected": 3, "dropped": {"no score": 2, "duplicate": 1500}, "truncated": 12},
        "zh_Hant-en": {"pairs": 5, "rejected": 0, "dropped": {}, "truncated": 0},
    }
    assert format_table(counts).splitlines() == [
        "              kept  rejected  dropped  truncated",
        "en-de        9,120         3    1,502         12",
        "  duplicate                     1,500",
        "  no score                          2",
        "zh_Hant-en       5         0        0          0",
    ]


def test_prepare_counts_every_record_once(tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files in both forms: each record is kept, rejected or dropped, for any number of workers."""
    texts = {
        "en": ["one", "one", "", "four", "x", "six six six six", "seven", "\ufffd", "one"],
        "de": ["eins", "eins", "drei", "", "x", "sechs", "sieben", "acht", "eins"],
        "fr": ["un", "un", "", "quatre", "x", "six six", "sept", "huit", "uns"],
    }
    for code, lines in texts.items():
        (tmp_path / code).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "en").write_bytes((tmp_path / "en").read_bytes().replace("\ufffd".encode(), b"\xff"))
    multi = [[f"{code}:{tmp_path / code}" for code in texts]]
    filters = Filters(drop_identical=True, length_ratio=2.5)
    manifests = [
        prepare(
            [f"de-en:{tmp_path}/de,{tmp_path}/en"],
            str(tiny.tokenizer),
            tmp_path / f"store{workers}",
            max_rejected=0.5,
            multi=multi,
            pivots=["en", "de"],
            filters=filters,
            deduplicate=True,
            workers=workers,
        )
        for workers in (1, 2)
    ]
    assert manifests[0] == manifests[1]
    found = {
        name: (counts["pairs"], counts["rejected"], counts["dropped"])
        for name, counts in manifests[0]["language_pairs"].items()
    }
    ratio, same = "length ratio over 2.5", "identical sides"
    assert found == {
        # rows 1 and 7 are kept, 2 and 9 are duplicates, 3, 4 and 8 are bad, 5 and 6 are filtered
        "de-en": (2, 3, {"duplicate": 2, same: 1, ratio: 1}),
        # the same pairs with the sides exchanged, all seen before
        "en-de": (0, 1, {"duplicate": 6, "no de text": 1, "no en text": 1}),
        "en-fr": (5, 1, {"duplicate": 1, same: 1, "no en text": 1}),
        "de-fr": (5, 0, {"duplicate": 1, same: 1, "no de text": 1, "no fr text": 1}),
    }
    store = Store.open(tmp_path / "store1")
    groups = store.rows(np.arange(len(store))).groups.tolist()
    assert len(groups) == 12
    english_french, german_french = groups[2:7], groups[7:]
    assert german_french[0] == english_french[0]  # the three texts of row 1 are one sentence
    samples = json.loads((tmp_path / "store1/dropped.json").read_text(encoding="utf-8"))
    assert samples["en-fr"][same] == [{"file": f"{tmp_path}/en", "record": 5, "a": "x", "b": "x"}]
    printed = capsys.readouterr().out
    assert f"  {same}" in printed
    assert "dropped.json" in printed


def test_prepare_reports_why_no_pair_is_left(tiny, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a\ta\nb\tb\nno tab\n")
    message = "no usable pair in 3 records; rejected: 1 missing tab; dropped: 2 identical sides; see"
    with pytest.raises(UserError, match=message):
        prepare(
            [f"en-de:{tmp_path}/t.tsv"],
            str(tiny.tokenizer),
            tmp_path / "store",
            max_rejected=1,
            filters=Filters(drop_identical=True),
        )
    assert len(json.loads((tmp_path / "store/dropped.json").read_text())["en-de"]["identical sides"]) == 2


def test_pivots_need_row_parallel_files(tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pivots: found \['en'\] without multi, expected both"):
        prepare(tiny.pairs, str(tiny.tokenizer), tmp_path / "store", pivots=["en"])
