"""Filters of translation pairs. All are off by default. They drop valid text that the user does not want.

Lengths are in characters; a Chinese, Japanese or Korean character counts as three. Words cannot be counted in languages
without white space (NTREX: 0.07 Chinese and 0.23 Thai words for an English word), and bytes cannot be compared across
alphabets (2.7 Hindi or Thai bytes for an English byte). With this length, the median ratio to the English sentence is
0.9 to 1.2 in NTREX's 14 languages, and 99 of 100 pairs have a ratio below 1.93 in every language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import langcodes

from ppa_fast.data.reading.corpus import parse_pairs, read_pairs
from ppa_fast.data.reading.groups import sentence_group
from ppa_fast.data.reading.languages import base_language
from ppa_fast.data.reading.source import Pair, Source
from ppa_fast.errors import UserError
from ppa_fast.settings import Filters

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

WIDE = re.compile("[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uff60\U00020000-\U0003fffd]")
WIDE_LENGTH = 3
NO_SCORE = "no score"
IDENTICAL = "identical sides"
EXCLUDED = "sentence of an excluded set"

# A side is in another language if that language is more than this many times as likely as the declared one. On NTREX
# and Tatoeba this keeps at least 99.2 % of the correct lines in each of 15 languages (comparing only the most likely
# language: 89 to 100 %). For each declared language, it drops at least 97.0 % of the lines in any of the 14 others (the
# minimum is between Bulgarian and Russian; 99.6 % without those two), and 99.0 % of the English lines.
OTHER_TIMES = 10
NO_LANGUAGE = "zxx"  # the identifier's label of text without language, such as numbers and names
LABELS = {"nb": "no", "fil": "tl"}  # language code → the identifier's label, where they differ


def check_languages(filters: Filters, sources: Iterable[Source]) -> None:
    """Raises UserError if ``filters.language_id`` is on and the identifier does not know a source's language."""
    if filters.language_id:
        for source in sources:
            for code in (source.a, source.b):
                _label(code)


def check_score(filters: Filters, pair: Pair) -> str:
    """Returns the reason to drop a pair because of its score, or ""."""
    if filters.min_score is None:
        return ""
    if pair.score is None:
        return NO_SCORE
    return "" if pair.score >= filters.min_score else f"score under {filters.min_score:g}"


def check_pair(filters: Filters, pair: Pair, source: Source) -> str:
    """Returns the reason to drop a pair of ``source``, or ""; cheap filters run first."""
    if reason := check_score(filters, pair):
        return reason
    if filters.length_ratio is not None or filters.min_length is not None or filters.max_length is not None:
        shorter, longer = sorted((length(pair.a), length(pair.b)))
        if filters.min_length is not None and shorter < filters.min_length:
            return f"under {filters.min_length} characters"
        if filters.max_length is not None and longer > filters.max_length:
            return f"over {filters.max_length} characters"
        if filters.length_ratio is not None and longer > filters.length_ratio * shorter:
            return f"length ratio over {filters.length_ratio:g}"
    if filters.exclude:
        sentences = _sentences(filters.exclude)
        if sentence_group(pair.a) in sentences or sentence_group(pair.b) in sentences:
            return EXCLUDED
    if filters.drop_identical and (pair.a == pair.b or _case_folded(pair.a) == _case_folded(pair.b)):
        return IDENTICAL
    for expression in filters.keep_match:
        if not (re.search(expression, pair.a) and re.search(expression, pair.b)):
            return f"without match of {expression}"
    for expression in filters.drop_match:
        if re.search(expression, pair.a) or re.search(expression, pair.b):
            return f"match of {expression}"
    if filters.language_id:
        for code, text in ((source.a, pair.a), (source.b, pair.b)):
            if _is_other_language(text, code):
                return f"not identified as {code}"
    return ""


def length(text: str) -> int:
    """Returns the length of a text in characters; a Chinese, Japanese or Korean character counts as three."""
    return len(text) if text.isascii() else len(text) + (WIDE_LENGTH - 1) * len(WIDE.findall(text))


def excluded_files(filters: Filters) -> list[Path]:
    """The files of the excluded sets; raises UserError as :func:`parse_pairs`."""
    _sentences.cache_clear()  # the files may have changed since an earlier call
    return [path for spec in filters.exclude for path in parse_pairs(spec).paths]


@cache
def _sentences(specs: tuple[str, ...]) -> frozenset[int]:
    """The sentences of both sides of evaluation sets, by :func:`sentence_group`."""
    pairs = (pair for spec in specs for pair in read_pairs(parse_pairs(spec), lambda *_: None))
    return frozenset(sentence_group(text) for pair in pairs for text in (pair.a, pair.b))


def _case_folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _label(code: str) -> str:
    """Returns the identifier's label for a code: of the language or of its macrolanguage (``zh`` for ``cmn``)."""
    language, labels = base_language(code), _identifier().labels
    macro = langcodes.standardize_tag(language, macro=True)
    for label in (language, macro, LABELS.get(language, "")):
        if label in labels:
            return label
    raise UserError(
        f"--language-id: found the language {code}, expected one of the {len(labels)} that py3langid knows; "
        "prepare its pairs without --language-id"
    )


def _is_other_language(text: str, code: str) -> bool:
    label = _label(code)
    best, probability = _identifier().classify(text)
    return best not in (label, NO_LANGUAGE) and probability > OTHER_TIMES * dict(_identifier().rank(text))[label]
