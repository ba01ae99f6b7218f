"""The built-in sample corpus: parallel text without a download.

A line is a template and a value for each of its slots (:mod:`ppa_fast.data.sample_text`); every language renders the
same lines, so its text does not depend on which other languages are asked for. Train, dev and test are disjoint by
construction and for all seeds: of all combinations of slot values every twentieth belongs to dev and another twentieth
to test (``HELD_OUT``), whatever the template. A single value (a country, a number) occurs in all, a combination in one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any, NamedTuple

from babel import Locale
from babel.dates import get_day_names, get_month_names
from babel.numbers import get_currency_name
from babel.units import format_unit

from ppa_fast.data.sample_text import LANGUAGES, POOLS, TOPICS, Language
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder
from ppa_fast.progress import Progress

MODULUS = 20
HELD_OUT = {0: "dev", 10: "test"}  # the sum of a combination's indices modulo MODULUS → its split; the others: train


class Line(NamedTuple):
    """The content of one line in all languages: a template and, slot by slot, an index into ``POOLS[slot]``."""

    template: str
    picks: tuple[int, ...]

    @property
    def topic(self) -> str:
        """The topic (a key of ``TOPICS``) that the line is about."""
        return _TOPIC_OF[self.template]


_TOPIC_OF = {template: topic for topic, templates in TOPICS.items() for template in templates}


@cache
def parse_template(language: str, template: str) -> tuple[tuple[str, str, str], ...]:
    """The template's sentence in ``language`` as (text before, slot or "", form or "") in reading order."""
    parts = Formatter().parse(LANGUAGES[language].templates[template])
    return tuple((text, slot or "", form or "") for text, slot, form, _ in parts)


@cache
def slots_of(template: str) -> tuple[str, ...]:
    """The template's slots in the order of its English sentence, the order of :attr:`Line.picks`."""
    return tuple(slot for _, slot, _ in parse_template("en", template) if slot)


# --- drawing ---------------------------------------------------------------------------------------------------------


def _split_of(total: int) -> str:
    """The split of the combinations whose indices add up to ``total``."""
    return HELD_OUT.get(total % MODULUS, "train")


def _capacity(template: str, split: str) -> int:
    """How many distinct lines of ``template`` there are in ``split``."""
    residues = Counter({0: 1})  # combinations so far by the sum of their indices modulo MODULUS
    for slot in slots_of(template):
        longer: Counter[int] = Counter()
        for index in range(len(POOLS[slot])):
            for residue, count in residues.items():
                longer[(residue + index) % MODULUS] += count
        residues = longer
    return sum(count for residue, count in residues.items() if _split_of(residue) == split)


def draw_lines(split: str, count: int, seed: int) -> list[Line]:
    """Draws ``count`` distinct lines of ``split`` (train, dev or test), evenly from all templates, in random order.

    The same arguments give the same lines on every platform. Raises :class:`UserError` when there are not so many.
    """
    capacity = {template: _capacity(template, split) for template in sorted(_TOPIC_OF)}
    if not 1 <= count <= sum(capacity.values()):
        raise UserError(
            f"{count:,} {split} lines asked for: the sample corpus can give 1 to {sum(capacity.values()):,}"
        )

    random = Random(f"{split} {seed}")  # a string is hashed by SHA-512, whatever PYTHONHASHSEED
    lines: list[Line] = []
    # Smallest capacity first: what a small template cannot give is spread over those after it.
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
    """The sentence of ``line`` in ``language``, a key of ``LANGUAGES``."""
    picks = dict(zip(slots_of(line.template), line.picks, strict=True))
    text = "".join(
        before + (slot_text(language, slot, form, picks[slot]) if slot else "")
        for before, slot, form in parse_template(language, line.template)
    )
    return text[0].upper() + text[1:]


@cache
def slot_text(code: str, slot: str, form: str, pick: int) -> str:
    """The text of value number ``pick`` of ``POOLS[slot]`` in language ``code``, in a ``form`` that it knows or ""."""
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
    """The month's name as dates use it (Russian: the genitive); Japanese and Korean count months, in digits in CLDR.

    Babel's stand-alone names are no alternative: they are aliases, and for some locales they change with the locales
    that the process has used before.
    """
    name = language.names.get(f"month {month}") or get_month_names("wide", "format", locale)[month]
    return re.sub(r"\d+", lambda digits: language.number(int(digits[0]), ""), name)


def _unit(n: int, unit: str, locale: Locale) -> str:
    """The unit's name as it stands after ``n``. CLDR leaves a long name out where the short one is no abbreviation."""
    for length in ("long", "short"):
        text = format_unit(n, unit, length, locale=locale, numbering_system="latn")
        if unit not in text:  # Babel's sign that it has no pattern
            return text.removeprefix(str(n)).strip()
    raise LookupError(f"CLDR has no name of {unit} in {locale}")


# --- writing ---------------------------------------------------------------------------------------------------------


def write_sample(
    out: str | Path, pairs: int, seed: int = 0, languages: Sequence[str] | None = None, dev_pairs: int = 250
) -> dict[str, Path]:
    """Writes the sample corpus into the folder ``out``: parallel text, and the classification of lines by topic.

    English and each of ``languages`` (all that are built in by default) get the line-parallel files train.<language>
    with ``pairs`` lines and dev.<language> with ``dev_pairs``, one sentence a line. ``topic.train.en.tsv`` is train.en
    with topics, for zero-shot transfer; ``topic.test.<language>.tsv`` has ``dev_pairs`` other lines, row-parallel, that
    are in no other file. Their columns are ``category`` and ``text``, as ``read_classification`` takes them. All is
    UTF-8; equal seeds give equal bytes. Returns the paths by file name.

    Raises :class:`UserError` for an unknown language, for counts that are below 1 or above what the templates can
    give, and where ``out`` is a file or a folder that is not empty.
    """
    out = Path(out)
    unknown = sorted(set(languages or ()) - set(LANGUAGES))
    if unknown:
        raise UserError(f"languages {', '.join(unknown)}: the sample corpus has {', '.join(LANGUAGES)} only")
    check_new_folder(out)
    train, dev, test = (draw_lines(*what, seed) for what in (("train", pairs), ("dev", dev_pairs), ("test", dev_pairs)))

    chosen = [code for code in LANGUAGES if code == "en" or languages is None or code in languages]
    files = {f"{split}.{code}": (lines, code) for split, lines in (("train", train), ("dev", dev)) for code in chosen}
    files["topic.train.en.tsv"] = (train, "en")
    files |= {f"topic.test.{code}.tsv": (test, code) for code in chosen}

    out.mkdir(parents=True, exist_ok=True)
    with Progress("sample", total=sum(len(lines) for lines, _ in files.values()), unit="lines") as progress:
        for name, (lines, code) in files.items():
            with (out / name).open("w", encoding="utf-8", newline="\n") as file:
                if name.startswith("topic."):
                    file.write("category\ttext\n")
                    file.writelines(f"{line.topic}\t{render(line, code)}\n" for line in lines)
                else:
                    file.writelines(f"{render(line, code)}\n" for line in lines)
            progress.update(len(lines))
    return {name: out / name for name in files}
