"""BCP-47 language codes, written with ``_`` or ``-``, and arguments that name files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path

import langcodes

from ppa_fast.errors import UserError


@lru_cache
def is_code(code: str) -> bool:
    """Whether a text is a BCP-47 language code such as ``en`` or ``zh_Hant``; ``_`` may replace ``-``."""
    return langcodes.tag_is_valid(code.replace("_", "-"))


@lru_cache
def standard_code(code: str) -> str:
    """Returns a valid code in BCP-47's letter case and shortest form (``en`` for ``eng``), with ``_`` for ``-``."""
    return langcodes.standardize_tag(code.replace("_", "-")).replace("-", "_")


def base_language(code: str) -> str:
    """Returns the language of a valid code without script and country: ``zh`` for ``zh_Hant``, ``en`` for ``eng``."""
    return standard_code(code).split("_")[0]


def is_english(code: str) -> bool:
    """Whether a valid code denotes English: ``en``, ``eng``, ``en_GB``."""
    return base_language(code) == "en"


def best_match(code: str, found: Sequence[str]) -> int | None:
    """Returns the index of the code in ``found`` that best matches ``code``, or None.

    A match has the same language and script. A region implies a script (``zh_TW`` is traditional Chinese), and an
    individual language counts as its macrolanguage (``cmn`` as ``zh``, ``nb`` as ``no``). An equal code is the best
    match, then a code of the same region, then the first code.
    """
    ranks = [
        (standard_code(other) != standard_code(code), _subtags(other) != _subtags(code), index)
        for index, other in enumerate(found)
        if is_code(other) and _subtags(other)[:2] == _subtags(code)[:2]
    ]
    return min(ranks)[-1] if ranks else None


@lru_cache
def _subtags(code: str) -> tuple[str | None, str | None, str | None]:
    """Language, script and region of a valid code; CLDR's likely subtags where the code has none."""
    tag = langcodes.get(langcodes.standardize_tag(code.replace("_", "-"), macro=True)).maximize()
    return "no" if tag.language == "nb" else tag.language, tag.script, tag.territory


def split_paths(text: str, counts: Sequence[int]) -> list[str]:
    """Splits ``A,B`` into one of the ``counts`` of paths, all of which exist; a path may contain commas.

    If no such paths exist, it splits at every comma.
    """
    pieces = text.split(",")
    for count in counts:
        for cuts in combinations(range(1, len(pieces)), count - 1):
            bounds = pairwise([0, *cuts, len(pieces)])
            paths = [",".join(pieces[start:end]) for start, end in bounds]
            if all(path and Path(path).exists() for path in paths):
                return paths
    return pieces


def parse_files(specs: Sequence[str], flag: str) -> dict[str, Path]:
    """Parses arguments such as ``en:FILE de:FILE`` into files by language.

    Raises UserError, naming ``flag``, for bad syntax, a missing file, or a language given twice.
    """
    files: dict[str, Path] = {}
    for spec in specs:
        language, colon, name = spec.partition(":")
        if not colon or not name or not is_code(language):
            raise UserError(f"{flag} {spec}: expected LANG:FILE with a BCP-47 code, such as en:train.tsv")
        if not Path(name).is_file():
            raise UserError(f"{flag} {spec}: {name}: no such file")
        if standard_code(language) in map(standard_code, files):
            raise UserError(f"{flag} {spec}: {language} is given twice; expected each language once")
        files[language] = Path(name)
    return files
