"""Two line-parallel files: line i of one translates line i of the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from ppa_fast.data.reading.lines import Reject, decoded_lines
from ppa_fast.data.reading.source import EMPTY_SIDE, Item, Pair, PairSource
from ppa_fast.errors import UserError

ENDED = ("", "ended")


def read(source: PairSource) -> Iterator[Item]:
    """Yields one item for each line.

    Raises:
        UserError: the files have unequal lengths; the message gives both counts.
    """
    path_a, path_b = source.paths
    lines_a, lines_b = (decoded_lines(path, source.meter) for path in source.paths)
    pivot = source.pivot
    for number, (line_a, line_b) in enumerate(zip_longest(lines_a, lines_b, fillvalue=ENDED), 1):
        a, b = line_a[0].strip(), line_b[0].strip()
        if a and b:
            yield Pair(a, b, b if pivot else a)
        elif line_a is ENDED or line_b is ENDED:
            more = sum(1 for _ in (lines_a if line_b is ENDED else lines_b))
            counts = [number - 1 if line is ENDED else number + more for line in (line_a, line_b)]
            raise UserError(
                f"{source.name}: files of unequal length: {path_a} has {counts[0]:,} lines, "
                f"{path_b} has {counts[1]:,}; line i of one must translate line i of the other"
            )
        elif not a:
            yield Reject(path_a, number, line_a[1] or EMPTY_SIDE)
        else:
            yield Reject(path_b, number, line_b[1] or EMPTY_SIDE)
