"""Parallel text as people have it: ``--pairs`` arguments become sources, sources become pairs.

A source gives one item for each record of its text (a line, a row, a unit), in order: a :class:`Pair`, a
:class:`Drop` or a :class:`Reject`. Whoever reads a source again and skips the first n items is where it was.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from ppa_fast.data.compression import ARCHIVES, unpacked_name
from ppa_fast.data.formats import EXTENSIONS, READERS, dataset, moses
from ppa_fast.data.languages import is_code, standard_code
from ppa_fast.data.lines import Reject
from ppa_fast.data.source import AS_NAMED, Drop, Item, Pair, PairSource, ReadOptions, Source
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
    "count_pairs",
    "parse_pairs",
    "read_eval_pairs",
    "read_pairs",
    "sentence_group",
]

SPEC_FORMS = (
    "'en-de:train.en,train.de' (two line-parallel files), 'en-de:corpus.tsv' (by its extension: "
    f"{' '.join(EXTENSIONS)}) or 'en-de:{dataset.PREFIX}NAME' (a data set)"
)


def parse_pairs(spec: str, options: ReadOptions = AS_NAMED) -> PairSource:
    """Reads one ``--pairs`` argument.

    ``en-de:train.en,train.de``: two line-parallel files, of which ``en-de:train`` is short. ``en-fr:corpus.tsv``: one
    file in the format of its extension or of ``options``. ``en-de:hf:NAME[,CONFIG][:SPLIT]``: a data set. Any file may
    be packed (``.gz``, ``.bz2``, ``.xz``, ``.zst``).

    Raises:
        UserError: bad syntax, an unknown language code or format, twice the same language, or a file that cannot be
            read.
    """
    names, colon, files = spec.partition(":")
    codes = names.split("-")
    is_dataset = files.startswith(dataset.PREFIX) and len(files) > len(dataset.PREFIX)
    parts = [files] if is_dataset else files.split(",")
    if not colon or len(codes) != 2 or len(parts) > 2 or not all(parts):
        hint = "; inside a language code write '_' for '-', as in zh_Hant-en" if len(codes) > 2 else ""
        raise UserError(f"--pairs {spec}: expected {SPEC_FORMS}{hint}")
    for code in codes:
        if not is_code(code):
            raise UserError(
                f"--pairs {spec}: unknown language code {code!r}, expected a BCP-47 code such as en or zh_Hant"
            )
    a, b = codes
    if standard_code(a) == standard_code(b):
        raise UserError(f"--pairs {spec}: both sides are {standard_code(a)}, expected two different languages")
    if is_dataset:
        dataset.check_installed(f"--pairs {spec}")
        return PairSource(a, b, [Path(files)], dataset.read, options)
    paths = [Path(part) for part in parts]
    if len(paths) == 1 and not paths[0].exists():
        paths = _parallel_files(paths[0], codes) or paths
    for path in paths:
        _check_readable(path, spec)
    reader = moses.read if len(paths) == 2 else READERS[_format(paths[0], spec, options.format)]
    return PairSource(a, b, paths, reader, options)


def _parallel_files(prefix: Path, codes: list[str]) -> list[Path]:
    """The files ``PREFIX.en`` and ``PREFIX.de``, packed or not, as OPUS names them; nothing if one is not there."""
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
            f"--pairs {spec}: the extension of {path} is none of {' '.join(EXTENSIONS)}; "
            f"give two line-parallel files, or --format ({', '.join(known)})"
        )
    if name not in known:
        raise UserError(f"--format {name}: expected one of {', '.join(known)}")
    return name


def _check_readable(path: Path, spec: str) -> None:
    if not path.exists():
        raise UserError(f"--pairs {spec}: {path}: no such file")
    if path.is_dir():
        raise UserError(
            f"--pairs {spec}: {path} is a folder, not a regular file; a data set's is {dataset.PREFIX}{path}"
        )
    if not path.is_file():
        raise UserError(f"--pairs {spec}: {path} is not a regular file (it is read again where work goes on)")
    if not os.access(path, os.R_OK):
        raise UserError(f"--pairs {spec}: {path} cannot be read: permission denied")


def count_pairs(source: Source) -> int:
    """The number of records of a source, good and bad ones; raises what reading it raises."""
    return sum(1 for _ in source.read())


def read_pairs(source: Source, reject: Callable[[Path, int, str], None]) -> Iterator[Pair]:
    """The usable pairs of a source in order; ``reject(file, line, reason)`` is called for each other record."""
    for item in source.read():
        if isinstance(item, Pair):
            yield item
        else:
            reject(item.path, item.record if isinstance(item, Drop) else item.line, item.reason)


def read_eval_pairs(spec: str) -> tuple[PairSource, list[str], list[str]]:
    """An evaluation set in memory: the source, the texts of side a, the texts of side b.

    Raises:
        UserError: what :func:`parse_pairs` and reading raise; no lines; or any bad record, the first of which is named:
            a score over whatever was left could not be compared with another.
    """
    source = parse_pairs(spec)
    pairs = []
    for item in source.read():
        if isinstance(item, Reject):
            raise UserError(f"{item} (an evaluation set must have no bad line)")
        if isinstance(item, Pair):
            pairs.append(item)
    if not pairs:
        raise UserError(f"--pairs {spec}: no lines, nothing to evaluate")
    return source, [pair.a for pair in pairs], [pair.b for pair in pairs]


def sentence_group(text: str) -> int:
    """The group that a pivot text names: XXH3-64 of its NFC form, stripped, in UTF-8, as a signed 64-bit integer.

    Pairs of one group are translations of one sentence, whatever their languages.
    """
    digest = xxhash.xxh3_64_intdigest(unicodedata.normalize("NFC", text).strip().encode("utf-8"))
    return digest - (1 << 64) if digest >> 63 else digest
