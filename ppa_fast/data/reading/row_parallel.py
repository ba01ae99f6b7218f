"""Row-parallel text in several languages (``--multi``): one source for each pair of a pivot and another language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from ppa_fast.data.reading.compression import Meter
from ppa_fast.data.reading.languages import is_code, is_english, parse_files, standard_code
from ppa_fast.data.reading.lines import Reject, count_lines, decoded_lines
from ppa_fast.data.reading.source import Drop, Item, Pair
from ppa_fast.errors import UserError


@dataclass(frozen=True)
class MultiSource:
    """The pairs of two languages of row-parallel files.

    Row i of all files translates the same sentence. All pairs of a row have the same group: the group of the row's
    first pivot text. A row without text in ``a`` or ``b`` is a drop of this language pair only. An invalid line is a
    reject.

    Attributes:
        a: the pivot.
        b: the other language.
        files: all files of the set, by language.
        pivots: the pivots up to ``a``; the first of their texts that is not empty determines the group.
    """

    a: str
    b: str
    files: dict[str, Path]
    pivots: tuple[str, ...]
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The language pair, as in ``en-de``."""
        return f"{self.a}-{self.b}"

    @property
    def paths(self) -> list[Path]:
        """The files to read: those of the pivots, which end with ``a``, then that of ``b``."""
        return [self.files[code] for code in (*self.pivots, self.b)]

    @property
    def bytes_total(self) -> int:
        """The size of the files to read, in bytes."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def bytes_read(self) -> int:
        """The bytes that the latest :meth:`read` has read so far."""
        return self.meter.bytes

    def read(self) -> Iterator[Item]:
        """Yields one item for each row, in order.

        Raises:
            UserError: files of unequal length (the message gives all line counts), or a broken file.
        """
        self.meter.bytes = 0
        for number, row in enumerate(zip_longest(*(decoded_lines(path, self.meter) for path in self.paths)), 1):
            if None in row:
                counts = ", ".join(f"{path} {count_lines(path):,}" for path in self.files.values())
                raise UserError(
                    f"--multi: files of unequal length: {counts} lines; "
                    "line i of every file must translate the same sentence"
                )
            yield self._item(number, row)

    def _item(self, number: int, row: tuple[tuple[str, str], ...]) -> Item:
        """Returns the item of a row; ``row`` has a text or a reason to reject it for each of ``paths``."""
        path_a, path_b = self.files[self.a], self.files[self.b]
        for path, (_, reason) in ((path_a, row[-2]), (path_b, row[-1])):
            if reason:
                return Reject(path, number, reason)
        *pivots, b = (text.strip() for text, _ in row)
        a = pivots[-1]
        if not a or not b:
            return Drop(path_a, number, f"no {self.b if a else self.a} text", a, b)
        return Pair(a, b, next(filter(None, pivots)))


def parse_multi(specs: Sequence[str], pivots: Sequence[str] = ()) -> list[MultiSource]:
    """Parses a ``--multi`` argument, ``en:train.en de:train.de fr:train.fr``, and its ``--pivots``.

    Each pivot is paired with every other language; two pivots are paired once. The default pivot is English, or the
    first language if English is missing.

    Raises:
        UserError: bad syntax, an unknown language code, a repeated language, fewer than two languages, a pivot that is
            not among the languages, or a missing file.
    """
    files = parse_files(specs, "--multi")
    if len(files) < 2:
        raise UserError(f"--multi {' '.join(specs)}: expected at least two languages, such as en:train.en de:train.de")
    spelled = {standard_code(code): code for code in files}
    for pivot in pivots:
        if not is_code(pivot) or standard_code(pivot) not in spelled:
            raise UserError(f"--pivots {pivot}: expected a language of --multi: {', '.join(files)}")
    chosen = [spelled[standard_code(pivot)] for pivot in pivots] or [next(filter(is_english, files), next(iter(files)))]
    chosen = list(dict.fromkeys(chosen))
    return [
        MultiSource(pivot, other, files, tuple(chosen[: index + 1]))
        for index, pivot in enumerate(chosen)
        for other in files
        if other not in chosen[: index + 1]
    ]
