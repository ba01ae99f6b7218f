"""Filters of translation pairs, each off by default: what they drop is sound text that is not wanted.

Lengths are in characters, of which a Chinese, Japanese or Korean one counts as three. White-space words are no measure
where there is no white space (NTREX, against English: 0.07 words a word in Chinese, 0.23 in Thai), bytes none across
alphabets (2.7 a byte in Hindi and Thai). In characters so counted, a sentence of NTREX's 14 languages is 0.9 to 1.2
times as long as its English one in the median, and 99 of 100 pairs have a ratio below 1.93 in every language.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import langcodes

from ppa_fast.data.languages import base_language
from ppa_fast.data.source import Pair, Source
from ppa_fast.errors import UserError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

WIDE = re.compile("[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uff60\U00020000-\U0003fffd]")
WIDE_LENGTH = 3
NO_SCORE = "no score"
IDENTICAL = "identical sides"

# A side is in another language if that is so many times as likely as its own. Of good lines of NTREX and Tatoeba this
# keeps 99.2 % or more in each of 15 languages (the likeliest alone: 89 to 100 %); of lines in one of the 14 other
# languages it drops 97.0 % or more (Bulgarian and Russian; 99.6 % without those two), of English ones 99.0 %.
OTHER_TIMES = 10
NO_LANGUAGE = "zxx"  # the identifier's label of text without language; numbers and names may stand in any
LABELS = {"nb": "no", "fil": "tl"}  # codes whose label is spelled otherwise


@dataclass(frozen=True)
class Filters:
    """Which pairs are dropped; the fields are the options of ``ppa-fast prepare``. Picklable.

    Attributes:
        length_ratio: pairs whose longer side is over so many times as long as the shorter one.
        min_length: pairs with a side below so many characters.
        max_length: pairs with a side over so many characters.
        drop_identical: pairs of two equal sides, whatever their case and Unicode composition.
        keep_match: regular expressions of ``re``; pairs with a side in which one of them is not found.
        drop_match: pairs with a side in which one of them is found.
        min_score: pairs whose score in the corpus is lower, or that have none.
        language_id: pairs with a side that py3langid takes for another language; too short to tell is no reason.

    Raises:
        UserError: a value out of its range, a regular expression with an error, or no py3langid.
    """

    length_ratio: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    drop_identical: bool = False
    keep_match: tuple[str, ...] = ()
    drop_match: tuple[str, ...] = ()
    min_score: float | None = None
    language_id: bool = False

    def __post_init__(self) -> None:
        if self.length_ratio is not None and not (math.isfinite(self.length_ratio) and self.length_ratio >= 1):
            raise UserError(f"--length-ratio {self.length_ratio}: expected a number of at least 1, such as 3")
        for flag, value in (("--min-length", self.min_length), ("--max-length", self.max_length)):
            if value is not None and value < 1:
                raise UserError(f"{flag} {value}: expected at least 1 character")
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise UserError(
                f"--min-length {self.min_length} is over --max-length {self.max_length}: nothing would stay"
            )
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise UserError(f"--min-score {self.min_score}: expected a number")
        for flag, expressions in (("--keep-match", self.keep_match), ("--drop-match", self.drop_match)):
            for expression in expressions:
                try:
                    re.compile(expression)
                except re.error as error:
                    at = "" if error.pos is None else f" at character {error.pos + 1}"
                    raise UserError(f"{flag} {expression!r}: no regular expression: {error.msg}{at}") from error
        if self.language_id:
            _identifier()

    def check_languages(self, sources: Iterable[Source]) -> None:
        """Raises UserError where ``language_id`` is on and a source's language cannot be identified."""
        if self.language_id:
            for source in sources:
                for code in (source.a, source.b):
                    _label(code)

    def check_score(self, pair: Pair) -> str:
        """Why the score of a pair drops it, or ""."""
        if self.min_score is None:
            return ""
        if pair.score is None:
            return NO_SCORE
        return "" if pair.score >= self.min_score else f"score under {self.min_score:g}"

    def check(self, pair: Pair, source: Source) -> str:
        """Why a pair of ``source`` is dropped, the cheapest reason first, or ""."""
        if reason := self.check_score(pair):
            return reason
        if self.length_ratio is not None or self.min_length is not None or self.max_length is not None:
            shorter, longer = sorted((length(pair.a), length(pair.b)))
            if self.min_length is not None and shorter < self.min_length:
                return f"under {self.min_length} characters"
            if self.max_length is not None and longer > self.max_length:
                return f"over {self.max_length} characters"
            if self.length_ratio is not None and longer > self.length_ratio * shorter:
                return f"length ratio over {self.length_ratio:g}"
        if self.drop_identical and (pair.a == pair.b or _folded(pair.a) == _folded(pair.b)):
            return IDENTICAL
        for expression in self.keep_match:
            if not (re.search(expression, pair.a) and re.search(expression, pair.b)):
                return f"without match of {expression}"
        for expression in self.drop_match:
            if re.search(expression, pair.a) or re.search(expression, pair.b):
                return f"match of {expression}"
        if self.language_id:
            for code, text in ((source.a, pair.a), (source.b, pair.b)):
                if _is_other_language(text, code):
                    return f"not identified as {code}"
        return ""


def length(text: str) -> int:
    """The characters of a text; a Chinese, Japanese or Korean one counts as three."""
    return len(text) if text.isascii() else len(text) + (WIDE_LENGTH - 1) * len(WIDE.findall(text))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


@cache
def _identifier() -> LanguageIdentifier:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError("--language-id: needs the package py3langid: pip install 'ppa-fast[langid]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _label(code: str) -> str:
    """The identifier's label of a language code: the language's own or its macrolanguage's (``zh`` of ``cmn``)."""
    language, labels = base_language(code), _identifier().labels
    macro = langcodes.standardize_tag(language, macro=True)
    for label in (language, macro, LABELS.get(language, "")):
        if label in labels:
            return label
    raise UserError(
        f"--language-id: {code} is not among the {len(labels)} languages that py3langid knows; "
        "prepare its pairs without --language-id"
    )


def _is_other_language(text: str, code: str) -> bool:
    label = _label(code)
    best, probability = _identifier().classify(text)
    return best not in (label, NO_LANGUAGE) and probability > OTHER_TIMES * dict(_identifier().rank(text))[label]
