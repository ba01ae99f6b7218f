"""Parquet files, and the reading of Arrow batches that they share with data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ppa_fast.data.reading.compression import unpacked_name
from ppa_fast.data.reading.source import Item, PairSource
from ppa_fast.errors import UserError, shortened

BATCH_ROWS = 1_000
BUFFER_BYTES = 1 << 20


def read(source: PairSource) -> Iterator[Item]:
    """Yields one item for each row; reads the file page by page.

    Raises:
        UserError: the file is not Parquet, is damaged, or lacks a column.
    """
    path = source.paths[0]
    if unpacked_name(path) != path:
        raise UserError(f"{path}: found a compressed Parquet file, expected an uncompressed one; decompress it first")
    try:
        # Without these two options Arrow holds a complete row group: 238 MB instead of 5 MB for a file of that size.
        file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        names = column_names(source, file.schema_arrow)
        # With threads Arrow reads complete row groups ahead: 250 MB instead of 5 MB for a file with one row group.
        batches = file.iter_batches(BATCH_ROWS, columns=[".".join(name) for name in names], use_threads=False)
        yield from items(source, _with_progress(source, batches, file.metadata.num_rows), names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: broken Parquet file: {shortened(str(error))}") from error


def _with_progress(source: PairSource, batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        done += batch.num_rows
        source.meter.bytes = (source.bytes_total or 0) * done // rows
        yield batch


def column_names(source: PairSource, schema: pa.Schema) -> list[list[str]]:
    """Returns the paths of the text columns and of the score column, if set.

    A path is ``["en"]``, or ``["translation", "en"]`` in OPUS data sets.

    Raises:
        UserError: a column is missing; the message lists the existing ones.
    """
    nested = schema.field("translation").type if "translation" in schema.names else None
    inner = [field.name for field in nested] if nested is not None and pa.types.is_struct(nested) else []
    score = source.options.score_column
    names = [
        ["translation", name] if name not in schema.names and name in inner else [name]
        for name in (*source.columns, *([] if score is None else [score]))
    ]
    if missing := [name for name, *rest in names if name not in schema.names]:
        found = ", ".join([*schema.names, *(f"translation.{name}" for name in inner)])
        raise UserError(f"{source.paths[0]}: no column {', '.join(missing)}, found {shortened(found)}; see --columns")
    return names


def items(
    source: PairSource, batches: Iterable[pa.RecordBatch | pa.Table], names: Sequence[list[str]]
) -> Iterator[Item]:
    """Yields one item for each row of the batches."""
    records = count(1)
    for batch in batches:
        columns = [_values(batch.column(name), rest) for name, *rest in names]
        for values in zip(*columns, strict=True):
            yield source.item(next(records), *values)


def _values(column: pa.Array | pa.ChunkedArray, rest: list[str]) -> list[object]:
    for name in rest:
        column = pc.struct_field(column, name)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar) for scalar in column]
    return [_decoded(value) if isinstance(value, bytes) else value for value in values]


def _value(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"\xff"


def _decoded(value: bytes) -> str | bytes:
    """The text of a binary column; bytes that are not UTF-8, which PairSource.item rejects, are unchanged."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
