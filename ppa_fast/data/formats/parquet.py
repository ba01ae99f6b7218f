"""Parquet files, and what they share with data sets: batches of rows in Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ppa_fast.data.compression import unpacked_name
from ppa_fast.data.source import Item, PairSource
from ppa_fast.errors import UserError, shortened

BATCH_ROWS = 1_000
BUFFER_BYTES = 1 << 20


def read(source: PairSource) -> Iterator[Item]:
    """One item for each row, read page by page.

    Raises:
        UserError: no Parquet, a damaged file, or columns that are not there.
    """
    path = source.paths[0]
    if unpacked_name(path) != path:
        raise UserError(f"{path}: Parquet is read from its end: expected it unpacked (its columns are packed anyway)")
    try:
        # Buffers, and no pre-buffer: Arrow would else hold a whole row group, 238 MB of a file of that size, not 5.
        file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        names = column_names(source, file.schema_arrow)
        # With threads Arrow reads whole row groups ahead, and a file may be one row group: 250 MB instead of 5.
        batches = file.iter_batches(BATCH_ROWS, columns=[".".join(name) for name in names], use_threads=False)
        yield from items(source, _metered(source, batches, file.metadata.num_rows), names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: broken Parquet file: {shortened(str(error))}") from error


def _metered(source: PairSource, batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        done += batch.num_rows
        source.meter.bytes = (source.bytes_total or 0) * done // rows
        yield batch


def column_names(source: PairSource, schema: pa.Schema) -> list[list[str]]:
    """Where the texts, and the score if asked for, lie: ``["en"]``, or ``["translation", "en"]`` in OPUS's data sets.

    Raises:
        UserError: a column that is not there; the message lists those that are.
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
    """One item for each row of the batches."""
    records = count(1)
    for batch in batches:
        columns = [_values(batch.column(name), rest) for name, *rest in names]
        for values in zip(*columns, strict=True):
            yield source.item(next(records), *values)


def _values(column: pa.Array | pa.ChunkedArray, rest: list[str]) -> list[object]:
    for name in rest:
        column = pc.struct_field(column, name)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b"not UTF-8"  # which is no string
