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

from ppa_fast.data.store.store import ROWS_PER_BATCH, Store, StoreWriter, check_output, record_batch
from ppa_fast.data.store.tokenize import SpecialIds
from ppa_fast.errors import UserError
from ppa_fast.settings import MAX_TOKENS_LIMIT

DESCRIPTION = {
    "special_ids": {"cls": 2, "sep": 3, "mask": 4, "pad": 0},
    "vocab_size": 100,
    "max_tokens": 126,
    "language_pairs": {"en-de": {}},
}

Row = tuple[list[int], list[int], int]


def write(
    path: Path, rows: list[Row], cuts: list[int] | None = None, rows_per_batch: int = 4, shards: tuple[int, ...] = ()
) -> dict:
    """A store of ``rows``, passed to the writer in parts that end at ``cuts``; the parts ``shards`` end a shard."""
    bounds = [0, *sorted(cuts or []), len(rows)]
    with StoreWriter(path, rows_per_batch) as writer:
        for number, (begin, end) in enumerate(pairwise(bounds)):
            writer.add(batch(rows[begin:end]))
            if number in shards:
                writer.end_shard()
        return writer.finish(DESCRIPTION)


def batch(rows: list[Row], pair: int = 0) -> pa.RecordBatch:
    return record_batch([a for a, _, _ in rows], [b for _, b, _ in rows], [g for _, _, g in rows], pair)


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
def test_written_rows_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], rows_per_batch: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("store")
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=4))
    shards = data.draw(st.sets(st.integers(0, 3)))
    manifest = write(path, rows, cuts, rows_per_batch, tuple(shards))
    store = Store.open(path)
    groups = [batch.groups for batch in store.batches]
    assert store.starts.tolist() == [0, *np.cumsum(list(map(len, groups)))]
    assert max(np.diff(store.starts)) <= rows_per_batch
    assert np.concatenate(groups).tolist() == [group for _, _, group in rows]
    assert len(store) == manifest["pairs"] == len(rows)
    assert manifest["longest_a"] == max(len(a) for a, _, _ in rows)
    assert manifest["longest_b"] == max(len(b) for _, b, _ in rows)
    assert_rows(store, rows, list(range(len(rows))))
    assert_rows(store, rows, data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)))


def test_the_fingerprint_depends_on_the_content(tmp_path: Path) -> None:
    rows = some_rows(11)
    first = write(tmp_path / "0", rows)["fingerprint"]
    assert write(tmp_path / "1", rows, [1, 1, 7])["fingerprint"] == first
    assert (tmp_path / "0/rows-00000.arrow").read_bytes() == (tmp_path / "1/rows-00000.arrow").read_bytes()
    assert write(tmp_path / "2", rows, [4, 7], rows_per_batch=5, shards=(0, 1))["fingerprint"] == first
    assert Store.open(tmp_path / "2").fingerprint == first

    changed = [copy.deepcopy(rows) for _ in range(5)]
    changed[0][3], changed[0][4] = rows[4], rows[3]
    changed[1][10] = (rows[10][0], rows[10][1], rows[10][2] ^ 1)
    changed[2].pop()
    changed[3][0] = (rows[0][1], rows[0][0], rows[0][2])
    moved = rows[0][0] + rows[1][0]  # the same tokens, divided differently between the sides
    changed[4][0], changed[4][1] = (moved, *rows[0][1:]), ([], *rows[1][1:])
    prints = {write(tmp_path / f"changed{i}", each)["fingerprint"] for i, each in enumerate(changed)}
    assert len(prints | {first}) == 6


def test_rows_are_selected_by_index(tmp_path: Path) -> None:
    write(tmp_path, rows := some_rows(9))
    store = Store.open(tmp_path)
    assert_rows(store, rows, [8, 0, 8, 3, 4, 3])
    assert_rows(store, rows, [])
    for bad in ([9], [0, -1], [1 << 40]):
        with pytest.raises(IndexError, match="expected 0 to 8"):
            store.rows(np.array(bad))
        with pytest.raises(IndexError):
            store.lengths(np.array(bad))


def test_segments_are_runs_of_a_language_pair(tmp_path: Path) -> None:
    """Parts, batches and shards do not change the segments."""
    rows = some_rows(20)
    with StoreWriter(tmp_path, 3) as writer:
        for begin, end, pair in ((0, 2, 1), (2, 7, 1), (7, 8, 0), (8, 13, 1), (13, 20, 2)):
            writer.add(batch(rows[begin:end], pair))
            if begin in (2, 8):
                writer.end_shard()
        writer.add(batch([], 0))
        writer.finish({**DESCRIPTION, "language_pairs": {"en-de": {}, "en-fr": {}, "sw-en": {}}})
    store = Store.open(tmp_path)
    assert store.language_pairs == ["en-de", "en-fr", "sw-en"]
    assert store.segments.dtype == np.int64
    assert store.segments.tolist() == [[1, 0, 7], [0, 7, 8], [1, 8, 13], [2, 13, 20]]


def test_a_writer_continues_after_complete_shards(tmp_path: Path) -> None:
    """The result equals that of one writer for all rows."""
    rows = some_rows(23)
    whole = write(tmp_path / "whole", rows, [9, 14], shards=(0, 1))
    write(tmp_path / "parts", rows, [9, 14, 20], shards=(0, 1, 2))
    for keep, begin in ((3, 20), (2, 14), (1, 9), (0, 0)):
        with StoreWriter(tmp_path / "parts", 4, keep) as writer:
            assert (writer.pairs, writer.shard_rows) == (begin, 0)
            for end in (9, 14, 23):
                writer.add(batch(rows[begin:end]))
                begin = max(begin, end)
                if end < 23:
                    writer.end_shard()
            assert {**writer.finish(DESCRIPTION), "shards": 3} == whole
        assert_rows(Store.open(tmp_path / "parts"), rows, list(range(23)))
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "parts")]
    assert files[0] == files[1]

    (tmp_path / "whole/rows-00001.arrow").unlink()
    with pytest.raises(UserError, match=r"rows-00001\.arrow: damaged or truncated"):
        StoreWriter(tmp_path / "whole", 4, 2)


def test_a_shard_outside_the_manifest_is_ignored(tmp_path: Path) -> None:
    """A killed append leaves such a shard."""
    write(tmp_path, rows := some_rows(9))
    (tmp_path / "rows-00001.arrow").write_bytes((tmp_path / "rows-00000.arrow").read_bytes())
    assert_rows(Store.open(tmp_path), rows, list(range(9)))


def test_many_shards_leave_no_files_open(tmp_path: Path) -> None:
    write(tmp_path, rows := some_rows(60), list(range(1, 60)), shards=tuple(range(60)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    store = Store.open(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert_rows(store, rows, list(range(60)))


def test_a_pickled_store_opens_its_files_again(tmp_path: Path) -> None:
    write(tmp_path, rows := some_rows(9))
    data = pickle.dumps(Store.open(tmp_path))
    assert len(data) < 500
    assert_rows(pickle.loads(data), rows, [5, 1])


def test_the_description_is_read_from_the_manifest(tmp_path: Path) -> None:
    write(tmp_path, some_rows(2))
    store = Store.open(tmp_path)
    assert store.special == SpecialIds(cls=2, sep=3, mask=4, pad=0, vocab_size=100)
    assert store.max_tokens == 126
    assert store.manifest["format_version"] == 2


def test_a_full_batch_of_the_longest_rows_fits_int32_offsets() -> None:
    assert ROWS_PER_BATCH * MAX_TOKENS_LIMIT < 2**31 <= ROWS_PER_BATCH * (MAX_TOKENS_LIMIT + 1)


def test_a_writer_without_finish_leaves_no_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, 4) as writer:
        writer.add(record_batch([[1]] * 9, [[2]] * 9, [0] * 9, 0))
        writer.end_shard()
        writer.add(record_batch([[1]] * 9, [[2]] * 9, [0] * 9, 0))
        assert (tmp_path / "rows-00001.arrow.partial").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["rows-00000.arrow"]
    with pytest.raises(UserError, match="unfinished store, run prepare again"):
        Store.open(tmp_path)
    assert check_output(tmp_path)


def test_check_output_refuses_stores_and_foreign_files(tmp_path: Path) -> None:
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


def test_an_invalid_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such store"):
        Store.open(tmp_path / "absent")
    with pytest.raises(UserError, match="not a store"):
        Store.open(tmp_path)
    (tmp_path / "rows-00000.arrow.partial").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match="unfinished store, run prepare again"):
        Store.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 1', '"x"', "null", "\\xff"])
def test_an_invalid_manifest_is_an_error(tmp_path: Path, content: str) -> None:
    write(tmp_path, some_rows(3))
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        Store.open(tmp_path)


def test_a_manifest_that_does_not_match_the_rows_is_an_error(tmp_path: Path) -> None:
    manifest = write(tmp_path, some_rows(3))
    for change, message in (
        ({"format_version": 1}, "found store format 1, expected 2; run prepare again"),
        ({"pairs": 4}, r"found 3 rows, expected 4 according to manifest\.json"),
        ({"shards": 2}, r"rows-00001\.arrow: damaged or truncated"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=message):
            Store.open(tmp_path)
    del manifest["fingerprint"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="lacks fingerprint"):
        Store.open(tmp_path)


def test_damaged_rows_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, some_rows(50))
    whole = (tmp_path / "rows-00000.arrow").read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 20, len(whole) - 1):
        (tmp_path / "rows-00000.arrow").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"rows-00000\.arrow: damaged or truncated"):
            Store.open(tmp_path)
    (tmp_path / "rows-00000.arrow").unlink()
    with pytest.raises(UserError, match=r"rows-00000\.arrow: damaged or truncated"):
        Store.open(tmp_path)

    table = pa.table({"a": [1]})
    with pa.OSFile(str(tmp_path / "rows-00000.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match="expected the columns a, b, group, pair"):
        Store.open(tmp_path)


def test_rows_are_views_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, some_rows(9))
    before = pa.total_allocated_bytes()
    store = Store.open(tmp_path)
    assert pa.total_allocated_bytes() - before < 10_000
    assert not store.batches[0].a.flags.owndata
