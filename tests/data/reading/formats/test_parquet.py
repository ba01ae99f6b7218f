from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ppa_fast.data.reading.corpus import ReadOptions, parse_pairs
from ppa_fast.data.reading.formats.parquet import BATCH_ROWS
from ppa_fast.errors import UserError
from tests.data.reading.formats.conftest import found


def test_columns_and_structs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    spec = f"en-de:{path}"
    pq.write_table(pa.table({"de": ["eins", None, "drei"], "n": [1.0, 2.0, None], "en": ["one", "two", " "]}), path)
    assert [found(item) for item in parse_pairs(spec).read()] == [("one", "eins")] + ["reject: empty side"] * 2
    first, *_ = parse_pairs(spec, ReadOptions(score_column="n")).read()
    assert found(first) == ("one", "eins", 1.0)
    with pytest.raises(UserError, match=r"t\.parquet: no column src, found de, n, en; see --columns"):
        list(parse_pairs(spec, ReadOptions(columns=("src", "de"))).read())
    first, *_ = parse_pairs(spec, ReadOptions(columns=("n", "de"))).read()
    assert found(first) == "reject: text is not a string"

    pq.write_table(pa.table({"translation": [{"de": "eins", "en": "one", "fr": "un"}, None], "id": [1, 2]}), path)
    assert [found(item) for item in parse_pairs(spec).read()] == [("one", "eins"), "reject: empty side"]


def test_row_groups_are_read_in_order_and_advance_the_position(tmp_path: Path) -> None:
    path, rows = tmp_path / "t.parquet", 2 * BATCH_ROWS + 500
    texts = [f"text {i}" for i in range(rows)]
    pq.write_table(pa.table({"en": texts, "de": texts}), path, row_group_size=700)
    source = parse_pairs(f"en-de:{path}")
    positions, read = [], []
    for item in source.read():
        positions.append(source.bytes_read)
        read.append(found(item))
    assert read == [(text, text) for text in texts]
    assert positions == sorted(positions)
    assert 0 < positions[0] < positions[-1] == source.bytes_total


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    path, rows = tmp_path / "t.parquet", 200_000
    texts = pa.array([f"{i:0100}" for i in range(rows)])
    pq.write_table(
        pa.table({"en": texts, "de": texts}), path, row_group_size=rows, compression="none", use_dictionary=False
    )
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() for _ in parse_pairs(f"en-de:{path}").read())
    assert most - before < 10 << 20 < path.stat().st_size


def test_invalid_utf8_rejects_only_its_row(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    bad = pa.array([b"one", b"\xff\xfe", b"three"]).view(pa.string())
    pq.write_table(pa.table({"en": bad, "de": ["eins", "zwei", "drei"]}), path)
    read = [found(item) for item in parse_pairs(f"en-de:{path}").read()]
    assert read == [("one", "eins"), "reject: not UTF-8", ("three", "drei")]


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    texts = [f"text {i}" for i in range(1_000)]
    pq.write_table(pa.table({"en": texts, "de": texts}), path, write_page_checksum=True)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-20], whole[20:], whole[:100] + b"x" * 50 + whole[150:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"t\.parquet: broken Parquet file"):
            list(parse_pairs(f"en-de:{path}").read())
    packed = tmp_path / "t.parquet.gz"
    packed.write_bytes(whole)
    with pytest.raises(UserError, match="found a compressed Parquet file, expected an uncompressed one"):
        list(parse_pairs(f"en-de:{packed}").read())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int8(), pa.binary())])
def test_utf8_in_binary_columns(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "t.parquet"
    texts = pa.array(["café".encode(), b"caf\xe9", None]).cast(kind)
    pq.write_table(pa.table({"en": texts, "de": ["eins", "zwei", "drei"]}), path)
    read = [found(item) for item in parse_pairs(f"en-de:{path}").read()]
    assert read == [("café", "eins"), "reject: not UTF-8", "reject: empty side"]
