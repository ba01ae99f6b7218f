"""Row-parallel text of many languages (``--multi``): a source for each pair of a pivot and another language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from ppa_fast.data.compression import Meter
from ppa_fast.data.examples import parse_files
from ppa_fast.data.languages import is_code, is_english, standard_code
from ppa_fast.data.lines import Reject, count_lines, decoded_lines
from ppa_fast.data.source import Drop, Item, Pair
from ppa_fast.errors import UserError


@dataclass(frozen=True)
class MultiSource:
    """The pairs of two languages of row-parallel files.

    Row i of every file is one sentence. All pairs of a row have one group, whatever their languages: that of the row's
    first pivot text. A row without text in ``a`` or ``b`` is a drop of this pair alone; a bad line is a reject.

    Attributes:
        a: the pivot.
        b: the other language.
        files: all files of the set, by language.
        pivots: the languages whose text may name the group: the pivots up to ``a``.
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
        """The files that are read: of the pivots, the last of which is ``a``, then of ``b``."""
        return [self.files[code] for code in (*self.pivots, self.b)]

    @property
    def bytes_total(self) -> int:
        """The size of the files that are read."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def bytes_read(self) -> int:
        """How much of ``bytes_total`` the latest :meth:`read` has read so far."""
        return self.meter.bytes

    def read(self) -> Iterator[Item]:
        """One item for each row, in order.

        Raises:
            UserError: files of unequal length, all of which it counts, or a broken file.
        """
        self.meter.bytes = 0
        for number, row in enumerate(zip_longest(*(decoded_lines(path, self.meter) for path in self.paths)), 1):
            if None in row:
                counts = ", ".join(f"{path} {count_lines(path):,}" for path in self.files.values())
                raise UserError(f"--multi: files of unequal length: {counts} lines; line i of all must be one sentence")
            yield self._item(number, row)

    def _item(self, number: int, row: tuple[tuple[str, str], ...]) -> Item:
        """A row's item; ``row`` has text, or the reason why there is none, of each of ``paths``."""
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
    """Reads a ``--multi`` argument, ``en:train.en de:train.de fr:train.fr``, and its ``--pivots``.

    Each pivot is paired with every other language, two pivots once. Without ``pivots`` it is English, or the first
    language where there is no English.

    Raises:
        UserError: bad syntax, an unknown language code, twice the same language, fewer than two languages, a pivot
            that is not among them, or no such file.
    """
    files = parse_files(specs, "--multi")
    if len(files) < 2:
        raise UserError(f"--multi {' '.join(specs)}: expected at least two languages, such as en:train.en de:train.de")
    spelled = {standard_code(code): code for code in files}
    for pivot in pivots:
        if not is_code(pivot) or standard_code(pivot) not in spelled:
            raise UserError(f"--pivots {pivot}: not a language of --multi, which has {', '.join(files)}")
    chosen = [spelled[standard_code(pivot)] for pivot in pivots] or [next(filter(is_english, files), next(iter(files)))]
    chosen = list(dict.fromkeys(chosen))
    return [
        MultiSource(pivot, other, files, tuple(chosen[: index + 1]))
        for index, pivot in enumerate(chosen)
        for other in files
        if other not in chosen[: index + 1]
    ]
