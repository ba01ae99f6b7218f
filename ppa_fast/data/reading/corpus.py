"""Parses ``--pairs`` arguments into sources and reads pairs from sources.

A source yields one item for each record of its text (a line, a row, a unit), in order: a :class:`Pair`, a
:class:`Drop` or a :class:`Reject`. To resume after n items, read the source again and skip the first n.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ppa_fast.data.reading.compression import ARCHIVES, unpacked_name
from ppa_fast.data.reading.formats import EXTENSIONS, READERS, dataset, moses
from ppa_fast.data.reading.languages import is_code, split_paths, standard_code
from ppa_fast.data.reading.lines import Reject
from ppa_fast.data.reading.source import AS_NAMED, Drop, Item, Pair, PairSource, ReadOptions, Source
from ppa_fast.errors import UserError

__all__ = [
    "AS_NAMED",
    "Drop",
    "Item",
    "Pair",
    "PairSource",
    "ReadOptions",
    "Reject",
    "Source",
    "parse_pairs",
    "read_eval_pairs",
    "read_pairs",
]

SPEC_FORMS = (
    "'en-de:train.en,train.de' (two line-parallel files), 'en-de:corpus.tsv' (by its extension: "
    f"{' '.join(EXTENSIONS)}) or 'en-de:{dataset.PREFIX}NAME' (a data set)"
)


def parse_pairs(spec: str, options: ReadOptions = AS_NAMED) -> PairSource:
    """Parses one ``--pairs`` argument.

    ``en-de:train.en,train.de``: two line-parallel files, or ``en-de:train`` for short. ``en-fr:corpus.tsv``: one file
    in the format of its extension or of ``options``. ``en-de:hf:NAME[,CONFIG][:SPLIT]``: a data set. Any file may be
    compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``).

    Raises:
        UserError: bad syntax, an unknown language code or format, the same language on both sides, or a file that
            cannot be read.
    """
    names, colon, files = spec.partition(":")
    codes = names.split("-")
    is_dataset = files.startswith(dataset.PREFIX) and len(files) > len(dataset.PREFIX)
    parts = [files] if is_dataset else split_paths(files, (1, 2))
    if not colon or len(codes) != 2 or len(parts) > 2 or not all(parts):
        hint = "; inside a language code write '_' for '-', as in zh_Hant-en" if len(codes) > 2 else ""
        raise UserError(f"pairs {spec}: expected {SPEC_FORMS}{hint}")
    for code in codes:
        if not is_code(code):
            raise UserError(
                f"pairs {spec}: unknown language code {code!r}, expected a BCP-47 code such as en or zh_Hant"
            )
    a, b = codes
    if standard_code(a) == standard_code(b):
        raise UserError(f"pairs {spec}: both sides are {standard_code(a)}, expected two different languages")
    if is_dataset:
        dataset.check_installed(f"pairs {spec}")
        return PairSource(a, b, [Path(files)], dataset.read, options)
    paths = [Path(part) for part in parts]
    if not all(path.exists() for path in paths):
        paths = _parallel_files(Path(files), codes) or paths
    for path in paths:
        _check_readable(path, spec)
    reader = moses.read if len(paths) == 2 else READERS[_format(paths[0], spec, options.format)]
    return PairSource(a, b, paths, reader, options)


def _parallel_files(prefix: Path, codes: list[str]) -> list[Path]:
    """Returns the files ``PREFIX.en`` and ``PREFIX.de`` (OPUS naming), compressed or not; [] if one is missing."""
    found = []
    for code in codes:
        names = (Path(f"{prefix}.{code}{extension}") for extension in ("", *ARCHIVES))
        found += [name for name in names if name.exists()][:1]
    return found if len(found) == len(codes) else []


def _format(path: Path, spec: str, name: str | None) -> str:
    if name is None:
        name = EXTENSIONS.get(unpacked_name(path).suffix.lower())
    known = list(READERS)
    if name is None:
        raise UserError(
            f"pairs {spec}: the extension of {path} is none of {' '.join(EXTENSIONS)}; "
            f"give two line-parallel files, or --format ({', '.join(known)})"
        )
    if name not in known:
        raise UserError(f"--format {name}: expected one of {', '.join(known)}")
    return name


def _check_readable(path: Path, spec: str) -> None:
    if not path.exists():
        raise UserError(f"pairs {spec}: {path}: no such file")
    if path.is_dir():
        raise UserError(
            f"pairs {spec}: {path} is a folder, not a regular file; to read a data set, give {dataset.PREFIX}{path}"
        )
    if not path.is_file():
        raise UserError(f"pairs {spec}: {path} is not a regular file; expected one, because resuming reads it again")
    if not os.access(path, os.R_OK):
        raise UserError(f"pairs {spec}: {path} cannot be read: permission denied")


def read_pairs(source: Source, reject: Callable[[Path, int, str], None]) -> Iterator[Pair]:
    """Yields the pairs of a source, in order; calls ``reject(file, line, reason)`` for every other record."""
    for item in source.read():
        if isinstance(item, Pair):
            yield item
        else:
            reject(item.path, item.record if isinstance(item, Drop) else item.line, item.reason)


def read_eval_pairs(spec: str) -> tuple[PairSource, list[str], list[str]]:
    """Reads an evaluation set into memory; returns the source, the texts of side a and the texts of side b.

    Raises:
        UserError: as :func:`parse_pairs` and :meth:`Source.read`; also for a set without pairs and for the first
            rejected record, because scores over different subsets cannot be compared.
    """
    source = parse_pairs(spec)
    pairs = []
    for item in source.read():
        if isinstance(item, Reject):
            raise UserError(f"{item}; an evaluation set must not have unusable records")
        if isinstance(item, Pair):
            pairs.append(item)
    if not pairs:
        raise UserError(f"pairs {spec}: found no pairs, expected at least one")
    return source, [pair.a for pair in pairs], [pair.b for pair in pairs]


def is_text(data: Sequence[str]) -> bool:
    """Whether ``data`` names text, such as ``en-de:train.en,train.de``, rather than stores.

    Raises:
        UserError: it names both text and stores.
    """
    texts = [value for value in data if re.match(r"[^/:]+-[^/:]+:.", value) and not Path(value).exists()]
    if texts and len(texts) < len(data):
        store = next(value for value in data if value not in texts)
        raise UserError(f"data: found the text {texts[0]} and the store {store}, expected either texts or stores")
    return bool(texts)
