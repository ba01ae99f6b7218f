import copy
import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_fast.data.encode import SpecialIds
from ppa_fast.data.store import MAX_TOKENS_LIMIT, ROWS_PER_BATCH, Store, StoreWriter, check_output, record_batch
from ppa_fast.errors import UserError

DESCRIPTION = {
    "special_ids": {"cls": 2, "sep": 3, "mask": 4, "pad": 0},
    "vocab_size": 100,
    "max_tokens": 126,
    "language_pairs": {"en-de": {}},
}

Row = tuple[list[int], list[int], int]


def write(path: Path, rows: list[Row], cuts: list[int] | None = None, rows_per_batch: int = 4) -> dict:
    """A store of ``rows``, handed to the writer in parts that end at ``cuts``."""
    bounds = [0, *sorted(cuts or []), len(rows)]
    with StoreWriter(path, rows_per_batch) as writer:
        for begin, end in pairwise(bounds):
            part = rows[begin:end]
            writer.add(record_batch([a for a, _, _ in part], [b for _, b, _ in part], [g for _, _, g in part], 0))
        return writer.finish(DESCRIPTION)


def some_rows(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    ids = lambda: rng.integers(5, 100, rng.integers(1, 9)).tolist()  # noqa: E731
    return [(ids(), ids(), int(rng.integers(-(1 << 63), 1 << 63))) for _ in range(count)]


def assert_rows(store: Store, rows: list[Row], indices: list[int]) -> None:
    found = store.rows(np.array(indices, np.int64))
    for tokens, offsets, side in ((found.a_tokens, found.a_offsets, 0), (found.b_tokens, found.b_offsets, 1)):
        assert (tokens.dtype, offsets.dtype) == (np.int32, np.int64)
        assert offsets.tolist() == [0, *np.cumsum([len(rows[i][side]) for i in indices])]
        assert tokens.tolist() == [token for i in indices for token in rows[i][side]]
    assert found.pair_ids.dtype == found.groups.dtype == np.int64
    assert found.pair_ids.tolist() == store.pair_ids(np.array(indices, np.int64)).tolist() == indices
    assert found.groups.tolist() == [rows[i][2] for i in indices]
    lengths = store.lengths(np.array(indices, np.int64))
    assert [each.dtype for each in lengths] == [np.int32, np.int32]
    assert [each.tolist() for each in lengths] == [[len(rows[i][side]) for i in indices] for side in (0, 1)]


side = st.lists(st.integers(0, 2**31 - 1), max_size=5)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(side, side, st.integers(-(1 << 63), (1 << 63) - 1)), min_size=1, max_size=12),
    rows_per_batch=st.integers(1, 7),
    data=st.data(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], rows_per_batch: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("store")
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=4))
    manifest = write(path, rows, cuts, rows_per_batch)
    store = Store.open(path)
    assert len(store) == manifest["pairs"] == len(rows)
    assert manifest["longest_a"] == max(len(a) for a, _, _ in rows)
    assert manifest["longest_b"] == max(len(b) for _, b, _ in rows)
    assert_rows(store, rows, list(range(len(rows))))
    assert_rows(store, rows, data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)))


def test_fingerprint_names_the_content(tmp_path: Path) -> None:
    rows = some_rows(11)
    first = write(tmp_path / "0", rows)["fingerprint"]
    assert write(tmp_path / "1", rows, [1, 1, 7])["fingerprint"] == first
    assert (tmp_path / "0/rows.arrow").read_bytes() == (tmp_path / "1/rows.arrow").read_bytes()
    assert write(tmp_path / "2", rows, rows_per_batch=5)["fingerprint"] == first
    assert Store.open(tmp_path / "2").fingerprint == first

    changed = [copy.deepcopy(rows) for _ in range(5)]
    changed[0][3], changed[0][4] = rows[4], rows[3]
    changed[1][10] = (rows[10][0], rows[10][1], rows[10][2] ^ 1)
    changed[2].pop()
    changed[3][0] = (rows[0][1], rows[0][0], rows[0][2])
    moved = rows[0][0] + rows[1][0]  # the same tokens in a row, cut elsewhere
    changed[4][0], changed[4][1] = (moved, *rows[0][1:]), ([], *rows[1][1:])
    prints = {write(tmp_path / f"changed{i}", each)["fingerprint"] for i, each in enumerate(changed)}
    assert len(prints | {first}) == 6


def test_indices(tmp_path: Path) -> None:
    write(tmp_path, rows := some_rows(9))
    store = Store.open(tmp_path)
    assert_rows(store, rows, [8, 0, 8, 3, 4, 3])
    assert_rows(store, rows, [])
    for bad in ([9], [0, -1], [1 << 40]):
        with pytest.raises(IndexError, match="of a store of 9 rows"):
            store.rows(np.array(bad))
        with pytest.raises(IndexError):
            store.lengths(np.array(bad))


def test_pickle_opens_anew(tmp_path: Path) -> None:
    write(tmp_path, rows := some_rows(9))
    data = pickle.dumps(Store.open(tmp_path))
    assert len(data) < 500
    assert_rows(pickle.loads(data), rows, [5, 1])


def test_description(tmp_path: Path) -> None:
    write(tmp_path, some_rows(2))
    store = Store.open(tmp_path)
    assert store.special == SpecialIds(cls=2, sep=3, mask=4, pad=0, vocab_size=100)
    assert store.max_tokens == 126
    assert store.manifest["format_version"] == 1


def test_a_full_batch_of_the_longest_rows_fits_int32_offsets() -> None:
    assert ROWS_PER_BATCH * MAX_TOKENS_LIMIT < 2**31 <= ROWS_PER_BATCH * (MAX_TOKENS_LIMIT + 1)


def test_left_without_finish(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", 4) as writer:
        writer.add(record_batch([[1]] * 9, [[2]] * 9, [0] * 9, 0))
        writer.reject("t.tsv:1: empty side")
        assert (tmp_path / "s/rows.arrow.partial").exists()
    assert [each.name for each in (tmp_path / "s").iterdir()] == ["rejected.tsv"]
    assert (tmp_path / "s/rejected.tsv").read_text() == "t.tsv:1: empty side\n"
    with pytest.raises(UserError, match="unfinished store, run prepare again"):
        Store.open(tmp_path / "s")
    assert check_output(tmp_path / "s")


def test_check_output(tmp_path: Path) -> None:
    assert not check_output(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert not check_output(tmp_path / "empty")

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        check_output(tmp_path / "file")

    write(tmp_path / "store", some_rows(3))
    with pytest.raises(UserError, match="a finished store"):
        check_output(tmp_path / "store")
    (tmp_path / "store/manifest.json").unlink()
    assert check_output(tmp_path / "store")
    (tmp_path / "store/thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"not empty \(thesis\.tex\)"):
        check_output(tmp_path / "store")


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such store"):
        Store.open(tmp_path / "absent")
    with pytest.raises(UserError, match="not a store"):
        Store.open(tmp_path)
    (tmp_path / "rows.arrow.partial").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match="unfinished store, run prepare again"):
        Store.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 1', '"x"', "null", "\\xff"])
def test_bad_manifest(tmp_path: Path, content: str) -> None:
    write(tmp_path, some_rows(3))
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        Store.open(tmp_path)


def test_manifest_of_another_kind(tmp_path: Path) -> None:
    manifest = write(tmp_path, some_rows(3))
    for change, message in (
        ({"format_version": 2}, "store format 2, this version reads 1"),
        ({"pairs": 4}, r"3 rows, but manifest\.json says 4"),
        ({"rows_per_batch": 2}, "record batches are not of 2 rows"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=message):
            Store.open(tmp_path)
    del manifest["fingerprint"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="lacks fingerprint"):
        Store.open(tmp_path)


def test_damaged_rows(tmp_path: Path) -> None:
    write(tmp_path, some_rows(50))
    whole = (tmp_path / "rows.arrow").read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 20, len(whole) - 1):
        (tmp_path / "rows.arrow").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"rows\.arrow: damaged or truncated"):
            Store.open(tmp_path)
    (tmp_path / "rows.arrow").unlink()
    with pytest.raises(UserError, match=r"rows\.arrow: damaged or truncated"):
        Store.open(tmp_path)

    table = pa.table({"a": [1]})
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match="expected the columns a, b, group, pair"):
        Store.open(tmp_path)


def test_rows_are_views_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, some_rows(9))
    before = pa.total_allocated_bytes()
    store = Store.open(tmp_path)
    assert pa.total_allocated_bytes() - before < 10_000
    assert not store._batches[0].a.values.flags.owndata
