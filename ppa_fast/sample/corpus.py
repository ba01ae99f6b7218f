"""The built-in sample corpus: parallel text without a download.

A line is a template with a value for each slot (:mod:`ppa_fast.sample.text`). Every language renders the same lines, so
the text of a language does not depend on the other selected languages. Train, dev and test are disjoint for all seeds:
every twentieth combination of slot values belongs to dev and another twentieth to test (``HELD_OUT``), in all
templates. A single value (a country, a number) occurs in all splits; a combination occurs in one.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any, NamedTuple

from ppa_fast.errors import UserError, needs_extra
from ppa_fast.files import check_new_folder, write_errors
from ppa_fast.progress import Progress
from ppa_fast.sample.text import LANGUAGES, POOLS, SENTENCES, TOPICS, Language
from ppa_fast.settings import SampleSettings, takes

with needs_extra("sample"):
    from babel import Locale
    from babel.dates import get_day_names, get_month_names
    from babel.numbers import get_currency_name
    from babel.units import format_unit

MODULUS = 20
HELD_OUT = {0: "dev", 10: "test"}  # sum of a combination's indices modulo MODULUS → split; all other sums: train


class Line(NamedTuple):
    """The content of one line in all languages: a template and, for each slot, an index into ``POOLS[slot]``."""

    template: str
    picks: tuple[int, ...]

    @property
    def topic(self) -> str:
        """The topic of the line, a key of ``TOPICS``."""
        return _TOPIC_OF[self.template]


_TOPIC_OF = {template: topic for topic, templates in TOPICS.items() for template in templates}


@cache
def parse_template(language: str, template: str) -> tuple[tuple[str, str, str], ...]:
    """Parses a template's sentence in ``language`` into (text before, slot or "", form or ""), in reading order."""
    parts = Formatter().parse(SENTENCES[language][template])
    return tuple((text, slot or "", form or "") for text, slot, form, _ in parts)


@cache
def slots_of(template: str) -> tuple[str, ...]:
    """Returns the template's slots in the order of its English sentence, which is the order of :attr:`Line.picks`."""
    return tuple(slot for _, slot, _ in parse_template("en", template) if slot)


# --- drawing ---------------------------------------------------------------------------------------------------------


def _split_of(total: int) -> str:
    """Returns the split of the combinations whose indices sum to ``total``."""
    return HELD_OUT.get(total % MODULUS, "train")


def _capacity(template: str, split: str) -> int:
    """Returns the number of distinct lines of ``template`` in ``split``."""
    residues = Counter({0: 1})  # sum of the indices modulo MODULUS → number of combinations so far
    for slot in slots_of(template):
        longer: Counter[int] = Counter()
        for index in range(len(POOLS[slot])):
            for residue, count in residues.items():
                longer[(residue + index) % MODULUS] += count
        residues = longer
    return sum(count for residue, count in residues.items() if _split_of(residue) == split)


def draw_lines(split: str, count: int, seed: int) -> list[Line]:
    """Draws ``count`` distinct lines of ``split`` (train, dev or test), evenly from all templates, in random order.

    Equal arguments give equal lines on every platform. Raises :class:`UserError` if ``split`` has fewer lines.
    """
    capacity = {template: _capacity(template, split) for template in sorted(_TOPIC_OF)}
    if not 1 <= count <= sum(capacity.values()):
        raise UserError(f"{split}: found {count:,} lines, expected 1 to {sum(capacity.values()):,}")

    random = Random(f"{split} {seed}")  # strings are hashed by SHA-512, independent of PYTHONHASHSEED
    lines: list[Line] = []
    # Smallest capacity first: the lines that a small template lacks are spread over the templates after it.
    for done, template in enumerate(sorted(capacity, key=lambda name: (capacity[name], name))):
        share = min(capacity[template], (count - len(lines)) // (len(capacity) - done))
        sizes = [len(POOLS[slot]) for slot in slots_of(template)]
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < share:
            picks = tuple(random.randrange(size) for size in sizes)
            if _split_of(sum(picks)) == split:
                drawn[picks] = None
        lines += (Line(template, picks) for picks in drawn)
    random.shuffle(lines)
    return lines


# --- rendering -------------------------------------------------------------------------------------------------------


def render(line: Line, language: str) -> str:
    """Renders ``line`` in ``language``, a key of ``LANGUAGES``."""
    picks = dict(zip(slots_of(line.template), line.picks, strict=True))
    text = "".join(
        before + (slot_text(language, slot, form, picks[slot]) if slot else "")
        for before, slot, form in parse_template(language, line.template)
    )
    return text[0].upper() + text[1:]


@cache
def slot_text(code: str, slot: str, form: str, pick: int) -> str:
    """Returns the text of ``POOLS[slot][pick]`` in language ``code``; ``form`` is one of its forms or ""."""
    language, value = LANGUAGES[code], POOLS[slot][pick]
    if slot in ("count", "time"):
        return language.number(value, form)
    text = _plain_text(language, Locale.parse(code), slot, value)
    if form:
        text = language.forms[form](text)
    return text if language.spaced else text.replace(" ", "")


def _plain_text(language: Language, locale: Locale, slot: str, value: Any) -> str:
    if slot == "country":
        return language.names.get(value) or locale.territories[value]
    if slot == "language":
        return language.names.get(value) or locale.languages[value]
    if slot == "weekday":
        return get_day_names("wide", "format", locale)[value]
    if slot == "month":
        return _month(language, locale, value)
    if slot == "date":
        day, month = value
        return language.date.format(day=language.number(day, "day"), month=_month(language, locale, month))
    n, code = value
    if slot == "price":
        name = language.names.get(code) or get_currency_name(code, count=n, locale=locale)
    else:
        name = language.names.get(f"{code}/{locale.plural_form(n)}") or _unit(n, code, locale)
    return f"{language.number(n, language.before.get(code, ''))} {name}"


def _month(language: Language, locale: Locale, month: int) -> str:
    """Returns the month's name as used in dates (Russian: genitive); CLDR's Japanese and Korean names have digits.

    Babel's stand-alone names are not reliable: for some locales, these aliases depend on the locales that the process
    used before.
    """
    name = language.names.get(f"month {month}") or get_month_names("wide", "format", locale)[month]
    return re.sub(r"\d+", lambda digits: language.number(int(digits[0]), ""), name)


def _unit(n: int, unit: str, locale: Locale) -> str:
    """Returns the unit's name after ``n``. CLDR has no long name if the short name is not an abbreviation."""
    for length in ("long", "short"):
        text = format_unit(n, unit, length, locale=locale, numbering_system="latn")
        if unit not in text:  # Babel returns the unit's code if it has no pattern
            return text.removeprefix(str(n)).strip()
    raise LookupError(f"CLDR has no name of {unit} in {locale}")


# --- writing ---------------------------------------------------------------------------------------------------------


@takes(SampleSettings)
def write_sample(settings: SampleSettings) -> dict[str, Path]:
    """Writes the sample corpus into the folder ``out``: parallel text and a topic classification set.

    The arguments are the fields of :class:`SampleSettings`.

    For English and each of ``languages`` (default: all), it writes the line-parallel files train.<language> with
    ``pairs`` lines and dev.<language> with ``dev_pairs`` lines, one sentence a line. ``topic.train.en.tsv`` has the
    lines of train.en with topics, for zero-shot transfer. ``topic.test.<language>.tsv`` has ``dev_pairs`` row-parallel
    lines that occur in no other file. The columns are ``category`` and ``text``. All files are UTF-8; equal seeds give
    equal bytes. Returns the paths by file name.

    Raises :class:`UserError` for an unknown language, for a count that is below 1 or above the number of lines of the
    templates, and if ``out`` is not a new or empty folder.
    """
    out, languages, seed = Path(settings.out), settings.languages, settings.seed
    unknown = sorted(set(languages or ()) - set(LANGUAGES))
    if unknown:
        raise UserError(f"languages: found {', '.join(unknown)}, expected some of {', '.join(LANGUAGES)}")
    check_new_folder(out)
    sizes = {"train": settings.pairs, "dev": settings.dev_pairs, "test": settings.dev_pairs}
    train, dev, test = (draw_lines(split, size, seed) for split, size in sizes.items())

    chosen = [code for code in LANGUAGES if code == "en" or languages is None or code in languages]
    files = {f"{split}.{code}": (lines, code) for split, lines in (("train", train), ("dev", dev)) for code in chosen}
    files["topic.train.en.tsv"] = (train, "en")
    files |= {f"topic.test.{code}.tsv": (test, code) for code in chosen}

    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with Progress("sample", total=sum(len(lines) for lines, _ in files.values()), unit="lines") as progress:
        for name, (lines, code) in files.items():
            path = out / name
            with write_errors(path), path.open("w", encoding="utf-8", newline="\n") as file:
                if name.startswith("topic."):
                    file.write("category\ttext\n")
                    file.writelines(f"{line.topic}\t{render(line, code)}\n" for line in lines)
                else:
                    file.writelines(f"{render(line, code)}\n" for line in lines)
            progress.update(len(lines))
    return {name: out / name for name in files}
