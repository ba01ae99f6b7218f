"""Tables: TSV without quoting, and CSV with quoting.

By default a table has no header and two columns, the sides a and b. With ``--columns`` or ``--score-column`` its header
names the columns. If all names are numbers, they are positions from 1 and the table has no header, as OPUS tables with
three columns.
"""

from __future__ import annotations

import csv
import logging
from collections import deque
from collections.abc import Iterator

from ppa_fast.data.reading.lines import MAX_LINE_BYTES, decoded_lines
from ppa_fast.data.reading.source import EMPTY_SIDE, Item, Pair, PairSource, Reject
from ppa_fast.errors import UserError, shortened

log = logging.getLogger(__name__)

MISSING_COLUMN = {"\t": "missing tab", ",": "missing comma"}
MORE_COLUMNS = "more than two columns; see --columns"
WRONG_COLUMNS = "wrong number of columns"
BROKEN_QUOTES = "broken quotes"

Row = tuple[list[str], str]
"""The fields of a row and the reason to reject it or ""."""


def read_tsv(source: PairSource) -> Iterator[Item]:
    """Yields one item for each row of a TSV file; raises UserError if the header lacks a requested column."""
    rows = ((text.split("\t"), reason) for text, reason in decoded_lines(source.paths[0], source.meter))
    return _items(source, rows, "\t")


def read_csv(source: PairSource) -> Iterator[Item]:
    """As :func:`read_tsv`, for CSV: commas, double quotes, and line ends within quotes."""
    return _items(source, _csv_rows(decoded_lines(source.paths[0], source.meter)), ",")


def _items(source: PairSource, rows: Iterator[Row], separator: str) -> Iterator[Item]:
    path, options = source.paths[0], source.options
    if options.columns is None and options.score_column is None:
        pivot = source.pivot
        for record, (fields, reason) in enumerate(rows, 1):
            if record == 1 and [field.strip().lower() for field in fields] == [source.a.lower(), source.b.lower()]:
                log.warning(f"{path}:1: the row is {' and '.join(fields)}; if it is a header, give --columns")
            if reason or len(fields) != 2:
                few = MISSING_COLUMN[separator] if len(fields) < 2 else MORE_COLUMNS
                yield Reject(path, record, reason or few)
            elif (a := fields[0].strip()) and (b := fields[1].strip()):
                yield Pair(a, b, b if pivot else a)
            else:
                yield Reject(path, record, EMPTY_SIDE)
        return

    names = [*source.columns, *([options.score_column] if options.score_column is not None else [])]
    if all(name.isdecimal() for name in names):
        positions = [int(name) - 1 for name in names]
        width = None
    else:
        header, reason = next(rows, ([], "no header"))
        header = [name.strip() for name in header]
        if missing := [name for name in names if name not in header]:
            found = reason or f"found {shortened(', '.join(header))}"
            raise UserError(f"{path}:1: expected columns {', '.join(missing)} in the header, {found}; see --columns")
        positions = [header.index(name) for name in names]
        width = len(header)
    for record, (fields, reason) in enumerate(rows, 1):
        if not reason and (len(fields) != width if width else len(fields) <= max(positions)):
            reason = WRONG_COLUMNS
        yield Reject(path, record, reason) if reason else source.item(record, *(fields[at] for at in positions))


def _csv_rows(lines: Iterator[tuple[str, str]]) -> Iterator[Row]:
    """Yields the rows of a CSV file; broken quotes reject only the first line, and the next line starts a row."""
    again: deque[tuple[str, str]] = deque()
    while line := again.popleft() if again else next(lines, None):
        text, reason = line
        if reason or '"' not in text:
            yield [] if reason else text.split(","), reason
            continue
        taken = [line]

        def row(taken: list[tuple[str, str]] = taken) -> Iterator[str]:
            yield taken[0][0] + "\n"
            size = len(taken[0][0])
            while size <= MAX_LINE_BYTES and (more := again.popleft() if again else next(lines, None)):
                taken.append(more)
                size += len(more[0]) + 1
                if more[1]:
                    return
                yield more[0] + "\n"

        try:
            yield next(csv.reader(row(), strict=True)), ""
        except csv.Error:
            again.extendleft(reversed(taken[1:]))
            yield [], BROKEN_QUOTES
