"""Several stores as one data set: rows in the given order, pair ids by store, language pairs merged by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppa_fast.data.loading import packing
from ppa_fast.data.loading.batching import micro_batches
from ppa_fast.data.loading.packing import ReferencePacker, Sizes, native_packer
from ppa_fast.data.store.concat import ConcatDataset
from ppa_fast.data.store.prepare import prepare
from ppa_fast.data.store.store import Store, StoreWriter, record_batch
from ppa_fast.errors import UserError

VOCAB = 50
DRAWS = {"seed": 4, "mask_probability": 0.3, "input_shuffling": True}

native = pytest.mark.skipif(bool(packing.WHY_NOT_NATIVE), reason=packing.WHY_NOT_NATIVE)


def write_store(path: Path, runs: list[tuple[str, int]], rows_per_batch: int, tokenizer: str = "x") -> Store:
    """A store of random rows with these numbers of rows per language pair; groups identify the row."""
    rng = np.random.default_rng(len(runs) + rows_per_batch)
    names = list(dict.fromkeys(name for name, _ in runs))
    with StoreWriter(path, rows_per_batch) as writer:
        for name, count in runs:
            a, b = ([rng.integers(0, VOCAB, n).tolist() for n in rng.integers(1, 9, count)] for _ in range(2))
            writer.add(record_batch(a, b, list(range(writer.pairs, writer.pairs + count)), names.index(name)))
        writer.finish(
            {
                "tokenizer": {"name": tokenizer, "fingerprint": tokenizer},
                "special_ids": {"cls": 2, "sep": 3, "mask": 4, "pad": 0},
                "vocab_size": VOCAB,
                "max_tokens": 8 + rows_per_batch,
                "language_pairs": {name: {} for name in names},
            }
        )
    return Store.open(path)


@pytest.fixture
def stores(tmp_path):
    """13 + 1 + 7 rows in batches of 4, 5 and 3."""
    write_store(tmp_path / "0", [("en-de", 6), ("en-fr", 7)], 4)
    write_store(tmp_path / "1", [("sw-en", 1)], 5)
    write_store(tmp_path / "2", [("en-fr", 2), ("en-hi", 4), ("en-fr", 1)], 3)
    return ConcatDataset.open([tmp_path / name for name in "012"])


def test_rows_are_concatenated_in_order(stores):
    assert len(stores) == 21
    assert stores.starts.tolist() == [0, 4, 8, 12, 13, 14, 17, 20, 21]
    every = stores.rows(np.arange(21))
    assert every.pair_ids.tolist() == [*range(13), 1 << 40, *range(2 << 40, (2 << 40) + 7)]
    single = [store.rows(np.arange(len(store))) for store in stores.stores]
    for name in ("a_tokens", "b_tokens", "groups"):
        assert getattr(every, name).tolist() == np.concatenate([getattr(rows, name) for rows in single]).tolist()
    some = np.array([20, 3, 13, 3, 14])
    assert stores.rows(some).pair_ids.tolist() == stores.pair_ids(some).tolist() == every.pair_ids[some].tolist()
    assert stores.rows(some).groups.tolist() == every.groups[some].tolist()
    with pytest.raises(IndexError, match="rows: found 4 to 21, expected 0 to 20"):
        stores.rows(np.array([4, 21]))


def test_language_pairs_are_merged_by_name(stores):
    assert stores.language_pairs == ["en-de", "en-fr", "sw-en", "en-hi"]
    assert stores.segments.tolist() == [
        [0, 0, 6], [1, 6, 13], [2, 13, 14], [1, 14, 16], [3, 16, 20], [1, 20, 21],
    ]  # fmt: skip
    assert stores.counts == {"en-de": 6, "en-fr": 10, "sw-en": 1, "en-hi": 4}


def test_limits_are_the_maximum_over_the_stores(stores):
    assert stores.longest == tuple(max(s.longest[side] for s in stores.stores) for side in (0, 1))
    assert stores.max_tokens == 13


def test_a_single_store_is_unchanged(tmp_path, stores):
    one, alone = Store.open(tmp_path / "2"), ConcatDataset.open([tmp_path / "2"])
    assert (alone.fingerprint, alone.language_pairs, alone.counts) == (
        one.fingerprint,
        one.language_pairs,
        {"en-fr": 3, "en-hi": 4},
    )
    rows = np.array([6, 2, 2, 0])
    assert alone.pair_ids(rows).tolist() == rows.tolist()
    expected = micro_batches(ReferencePacker(one, **DRAWS), rows, rows, 2)
    for mine, theirs in zip(micro_batches(ReferencePacker(alone, **DRAWS), rows, rows, 2), expected, strict=True):
        assert mine.buffer.tolist() == theirs.buffer.tolist()


def test_the_fingerprint_depends_on_the_stores_and_their_order(tmp_path, stores):
    orders = ["012", "021", "01", "0", "1"]
    prints = [ConcatDataset.open([tmp_path / name for name in order]).fingerprint for order in orders]
    assert prints[0] == stores.fingerprint
    assert len(set(prints)) == len(orders)


@native
def test_both_packers_give_equal_results(stores):
    rows = np.random.default_rng(0).integers(0, len(stores), 64)
    epochs = np.arange(64) % 3
    packers = ReferencePacker(stores, **DRAWS), native_packer(stores, **DRAWS, threads=2)
    steps = [packer.step(rows, epochs, 5) for packer in packers]
    for number in range(5):
        assert tuple(steps[0].sizes(number)) == steps[1].sizes(number)
        buffers = [np.empty(Sizes(*step.sizes(number)).bytes, np.uint8) for step in steps]
        for step, buffer in zip(steps, buffers, strict=True):
            step.fill(number, buffer)
        assert buffers[0].tobytes() == buffers[1].tobytes()


@pytest.mark.parametrize("kind", ["reference", pytest.param("native", marks=native)])
def test_damage_names_the_store_and_its_row(tmp_path, kind):
    for name in "01":
        write_store(tmp_path / name, [("en-de", 9)], 4)
    file = tmp_path / "1/rows-00000.arrow"
    batch = Store.open(file.parent).batches[1]
    content = bytearray(file.read_bytes())
    at = content.index(batch.a.tobytes()) + 4 * int(batch.a_offsets[2])
    content[at : at + 4] = np.int32(VOCAB).tobytes()
    file.write_bytes(content)
    stores = ConcatDataset.open([tmp_path / "0", tmp_path / "1"])
    packer = native_packer(stores, **DRAWS, threads=1) if kind == "native" else ReferencePacker(stores, **DRAWS)
    rows = np.array([3, 15])
    with pytest.raises(ValueError, match=f"{tmp_path}/1: row 6, side a: token id {VOCAB}, expected 0 to {VOCAB - 1}"):
        list(micro_batches(packer, rows, rows, 1))


def test_pairs_of_the_same_row_differ_by_their_store(tmp_path):
    """Two copies of a store have different pair ids, and therefore different coins and masks."""
    for name in "01":
        write_store(tmp_path / name, [("en-de", 64)], 7)
    packer, rows = ReferencePacker(ConcatDataset.open([tmp_path / "0", tmp_path / "1"]), **DRAWS), np.arange(64)
    (first,), (second,) = (list(micro_batches(packer, each, rows * 0, 1)) for each in (rows, rows + 64))
    assert first.a_tokens.tolist() == second.a_tokens.tolist()
    assert first.layout.masked_offsets.tolist() != second.layout.masked_offsets.tolist()


def test_incompatible_stores_are_an_error(tmp_path, tiny):
    write_store(tmp_path / "0", [("en-de", 2)], 4, "one")
    write_store(tmp_path / "1", [("en-de", 2)], 4, "other")
    with pytest.raises(UserError, match=r"data: \S+/0 was prepared with the tokenizer one, \S+/1 with other"):
        ConcatDataset.open([tmp_path / "0", tmp_path / "1"])
    with pytest.raises(UserError, match=r"data: \S+/0 is given twice"):
        ConcatDataset.open([tmp_path / "0", f"{tmp_path}/1/../0"])
    with pytest.raises(UserError, match="absent: no such store"):
        ConcatDataset.open([tmp_path / "0", tmp_path / "absent"])
    prepare(tiny.pairs[:1], str(tiny.tokenizer), tmp_path / "prepared", max_tokens=30)
    assert len(ConcatDataset.open([tiny.store, tmp_path / "prepared"])) == 450
