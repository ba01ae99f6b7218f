"""The text of the sample corpus: templates by topic, slot values, and one :class:`Language` for each language.

The sentences are in ``sentences.tsv``, with one row for each template and one column for each language. To add a
language, add its column, with the slots of the English sentences, and its entry in ``LANGUAGES``: a function that
spells numbers, and the case forms that its sentences use. The slot values keep the grammar simple (see the pools
below). Their names differ between English and every other language in Latin script, so that an untrained encoder cannot
find translations by shared spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ppa_fast.errors import needs_extra

with needs_extra("sample"):
    from num2words import num2words


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _read_sentences() -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, str]]]:
    topics: dict[str, list[str]] = {}
    lines = Path(__file__).with_name("sentences.tsv").read_text(encoding="utf-8").splitlines()
    _, _, *codes = lines[0].split("\t")
    sentences: dict[str, dict[str, str]] = {code: {} for code in codes}
    for line in lines[1:]:
        topic, template, *columns = line.split("\t")
        topics.setdefault(topic, []).append(template)
        for code, sentence in zip(codes, columns, strict=True):
            sentences[code][template] = sentence
    return {topic: tuple(templates) for topic, templates in topics.items()}, sentences


TOPICS, SENTENCES = _read_sentences()
"""Topic → template names, and language code → template → sentence with slots ``{slot}`` or ``{slot:form}``."""

# Counts never end in 1, 2 or 6 (except 16), and are at least 13 unless a CLDR unit follows. Then one noun form fits all
# counts in every language (genitive plural in Russian, accusative singular in Arabic, no gender of "one" or "two" in
# Spanish or French), and French "six" cannot match English "six".
COUNTS = tuple(n for n in range(13, 100) if n <= 20 or n % 10 in (0, 5, 7, 8, 9))
AMOUNTS = (3, 4, 5, 7, 8, 9, 10, *COUNTS)
DAYS = tuple(n for n in range(3, 29) if n % 10 != 6 or n == 16)
MONTHS = (1, 2, 3, 5, 6, 7, 10, 12)  # the others have the same spelling in English and German
CURRENCIES = _words("CZK DKK EGP GBP INR NOK RUB SEK")
TIME_UNITS = _words("duration-day duration-week duration-month duration-year")

POOLS: dict[str, tuple] = {
    # Countries without an article in German that follow the regular case rules below.
    "country": _words(
        "AZ BE BR CM CZ DE DK DZ EG ES ET FI GR HR HU IE IS IT JO KG KH LT LV MA MX NO PL RO RU SE SI SY TJ TN UZ"
    ),
    # Languages whose Russian name is a regular adjective.
    "language": _words(
        "ar bg cs da de el es et fa fi fr hr hu hy is it ja ka ko lt lv mn pl pt ro ru sl sq sr sv tr uk vi zh"
    ),
    "weekday": tuple(range(7)),  # Monday is 0
    "month": MONTHS,
    "date": tuple((day, month) for month in MONTHS for day in DAYS),
    "time": (5, 7, 8, 9, 10, 11),  # full hours
    "count": COUNTS,
    "price": tuple((n, currency) for currency in CURRENCIES for n in COUNTS),
    "duration": tuple((n, unit) for unit in TIME_UNITS for n in AMOUNTS if n <= 30),
    "distance": tuple((n, "length-kilometer") for n in AMOUNTS),
    "weight": tuple((n, "mass-kilogram") for n in AMOUNTS),
}
"""Slot → values: a code, a number, or (number, code). The order determines the text of a seed."""


@dataclass(frozen=True)
class Language:
    """The rules to render the corpus in one language.

    ``number(n, form)``: n in words, 3 ≤ n < 100; ``form`` is "day" in dates, else the form in a template or ``before``.
    ``date``: the format of a date, with ``{day}`` and ``{month}``.
    ``forms``: form → function that inflects the plain text of a slot (usually a nominative).
    ``names``: code (for a unit, "unit/plural category") → name to use in place of an unsuitable CLDR name.
    ``before``: unit or currency → form of the number before it.
    ``spaced``: whether spaces separate words.
    """

    number: Callable[[int, str], str]
    date: str = "{day} {month}"
    forms: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    spaced: bool = True


# --- English ---------------------------------------------------------------------------------------------------------


def _english_number(n: int, form: str) -> str:
    return num2words(n, lang="en", to="ordinal" if form == "day" else "cardinal")


ENGLISH = Language(
    number=_english_number,
    date="the {day} of {month}",
)


# --- German ----------------------------------------------------------------------------------------------------------


def _german_number(n: int, form: str) -> str:
    return num2words(n, lang="de", to="ordinal") + "n" if form == "day" else num2words(n, lang="de")


GERMAN = Language(
    number=_german_number,
    names={  # CLDR capitalizes the adjective
        "CZK": "tschechische Kronen",
        "DKK": "dänische Kronen",
        "EGP": "ägyptische Pfund",
        "GBP": "britische Pfund",
        "INR": "indische Rupien",
        "NOK": "norwegische Kronen",
        "RUB": "russische Rubel",
        "SEK": "schwedische Kronen",
    },
)


# --- Spanish ---------------------------------------------------------------------------------------------------------

SPANISH = Language(
    number=lambda n, form: num2words(n, lang="es"),
    date="{day} de {month}",
)


# --- French ----------------------------------------------------------------------------------------------------------


def _french_elides(name: str) -> bool:
    return name[0].lower() in "aeiouéî"


def _french_feminine(country: str) -> bool:
    return country.endswith("e") and country not in ("Mexique", "Cambodge")


def _french_in(country: str) -> str:
    return ("en " if _french_elides(country) or _french_feminine(country) else "au ") + country


def _french_from(country: str) -> str:
    if _french_elides(country):
        return "d’" + country
    return ("de " if _french_feminine(country) else "du ") + country


def _french_the(name: str) -> str:
    """Adds the article: countries by gender; languages (in lower case) are masculine."""
    if _french_elides(name):
        return "l’" + name
    return ("la " if name[0].isupper() and _french_feminine(name) else "le ") + name


FRENCH = Language(
    number=lambda n, form: num2words(n, lang="fr"),
    forms={
        "in": _french_in,
        "from": _french_from,
        "the": _french_the,
        "of": lambda language: ("d’" if _french_elides(language) else "de ") + language,
    },
)


# --- Russian ---------------------------------------------------------------------------------------------------------


def _russian_number(n: int, form: str) -> str:
    if form == "day":
        return num2words(n, lang="ru", to="ordinal", case="genitive", gender="n")
    return num2words(n, lang="ru")


def _russian_accusative(noun: str) -> str:
    return {"а": noun[:-1] + "у", "я": noun[:-1] + "ю"}.get(noun[-1], noun)


def _russian_genitive(noun: str) -> str:
    if noun == "Египет":
        return "Египта"
    if noun[-1] in "ая":
        return noun[:-1] + ("ы" if noun[-1] == "а" and noun[-2] not in "гкхжшчщ" else "и")
    return noun if noun[-1] == "о" else noun + "а"


def _russian_prepositional(noun: str) -> str:
    """Returns the prepositional of a country, or of a month that is given in the genitive."""
    if noun == "Египет":
        return "Египте"
    if noun.endswith("ия"):
        return noun[:-1] + "и"
    if noun[-1] == "о":
        return noun
    return (noun[:-1] if noun[-1] in "аяйь" else noun) + "е"


def _russian_on(weekday: str) -> str:
    return ("во " if weekday.startswith("вт") else "в ") + _russian_accusative(weekday)


RUSSIAN = Language(
    number=_russian_number,
    forms={
        "to": _russian_accusative,
        "of": _russian_genitive,
        "in": _russian_prepositional,
        "on": _russian_on,
        "stem": lambda adjective: adjective.removesuffix("ий"),
    },
    names={"mass-kilogram/many": "килограммов"},
)


# --- Chinese ---------------------------------------------------------------------------------------------------------


def _chinese_number(n: int, form: str) -> str:
    tens, units = divmod(n, 10)
    digits = ("", *"一二三四五六七八九")
    return (digits[tens] if tens > 1 else "") + ("十" if tens else "") + digits[units]


CHINESE = Language(
    number=_chinese_number,
    date="{month}{day}日",
    names={"mass-kilogram/other": "公斤"},
    spaced=False,
)


# --- Arabic ----------------------------------------------------------------------------------------------------------

# Index 0 is "the twentieth"; index 1 has the form used in compounds.
_ARABIC_ORDINALS = _words("العشرين الحادي الثاني الثالث الرابع الخامس السادس السابع الثامن التاسع العاشر")


def _arabic_number(n: int, form: str) -> str:
    """Returns the oblique case: "" for masculine and "feminine" for feminine nouns; "day" and "hour" are ordinals."""
    if form in ("day", "hour"):
        ending = "ة" if form == "hour" else ""
        if n <= 10:
            return _ARABIC_ORDINALS[n] + ending
        unit = _ARABIC_ORDINALS[n % 10]
        if n < 20:
            return f"{unit}{ending} عشر{ending}"
        return unit if n == 20 else f"{unit} و{_ARABIC_ORDINALS[0]}"
    text = num2words(n, lang="ar").replace(" و ", " و").replace("ون", "ين")
    if form == "feminine":  # units take the ending of the opposite gender; the ten in 13 to 19 agrees with the noun
        units, *rest = text.split(" ")
        text = " ".join([units.removesuffix("ة"), *(word + "ة" if word == "عشر" else word for word in rest)])
    return text


ARABIC = Language(
    number=_arabic_number,
    date="{day} من {month}",
    before=dict.fromkeys(_words("duration-year CZK DKK INR NOK SEK"), "feminine"),
    names={  # where CLDR lacks the accusative or the plural, or is wrong
        "GBP": "جنيهًا إسترلينيًا",
        "INR": "روبية هندية",
        "RUB": "روبلًا روسيًا",
        "duration-week/many": "أسبوعًا",
        "mass-kilogram/few": "كيلوغرامات",
        "mass-kilogram/many": "كيلوغرامًا",
        "sl": "السلوفينية",
    },
)


# --- Hindi -----------------------------------------------------------------------------------------------------------

_HINDI_NUMBERS = _words(
    "शून्य एक दो तीन चार पाँच छह सात आठ नौ "
    "दस ग्यारह बारह तेरह चौदह पंद्रह सोलह सत्रह अठारह उन्नीस "
    "बीस इक्कीस बाईस तेईस चौबीस पच्चीस छब्बीस सत्ताईस अट्ठाईस उनतीस "
    "तीस इकतीस बत्तीस तैंतीस चौंतीस पैंतीस छत्तीस सैंतीस अड़तीस उनतालीस "
    "चालीस इकतालीस बयालीस तैंतालीस चौवालीस पैंतालीस छियालीस सैंतालीस अड़तालीस उनचास "
    "पचास इक्यावन बावन तिरपन चौवन पचपन छप्पन सत्तावन अट्ठावन उनसठ "
    "साठ इकसठ बासठ तिरसठ चौंसठ पैंसठ छियासठ सड़सठ अड़सठ उनहत्तर "
    "सत्तर इकहत्तर बहत्तर तिहत्तर चौहत्तर पचहत्तर छिहत्तर सतहत्तर अठहत्तर उनासी "
    "अस्सी इक्यासी बयासी तिरासी चौरासी पचासी छियासी सत्तासी अट्ठासी नवासी "
    "नब्बे इक्यानवे बानवे तिरानवे चौरानवे पचानवे छियानवे सत्तानवे अट्ठानवे निन्यानवे"
)

HINDI = Language(
    number=lambda n, form: _HINDI_NUMBERS[n],
    names={"CZK": "चेक कोरुना", "EGP": "मिस्री पाउंड", "SEK": "स्वीडिश क्रोना"},
)


# --- Turkish ---------------------------------------------------------------------------------------------------------


def _turkish_vowel(word: str) -> tuple[bool, bool]:
    """Returns whether the last vowel of ``word`` is front and whether it is rounded, which determine suffixes."""
    vowel = next(letter for letter in reversed(word) if letter in "aeıioöuü")
    return vowel in "eiöü", vowel in "oöuü"


def _turkish_case(word: str, case: str) -> str:
    front, _ = _turkish_vowel(word)
    vowel = "e" if front else "a"
    if case == "dative":
        return ("y" if word[-1] in "aeıioöuü" else "") + vowel
    return ("t" if word[-1] in "fstkçşhp" else "d") + vowel + ("n" if case == "ablative" else "")


def _turkish_since(duration: str) -> str:
    front, rounded = _turkish_vowel(duration)
    return f"{duration}d{('ıu', 'iü')[front][rounded]}r"


def _turkish_number(n: int, form: str) -> str:
    words = " ".join(num2words(part, lang="tr") for part in (n // 10 * 10, n % 10) if part)
    return words + _turkish_case(words, "locative") if form == "at" else words


TURKISH = Language(
    number=_turkish_number,
    forms={
        "to": lambda name: f"{name}’{_turkish_case(name, 'dative')}",
        "at": lambda name: f"{name}’{_turkish_case(name, 'locative')}",
        "from": lambda name: f"{name}’{_turkish_case(name, 'ablative')}",
        "since": _turkish_since,
    },
)


# --- Japanese --------------------------------------------------------------------------------------------------------

JAPANESE = Language(
    number=lambda n, form: num2words(n, lang="ja"),
    date="{month}{day}日",
    spaced=False,
)


# --- Korean ----------------------------------------------------------------------------------------------------------

_KOREAN_TENS = ("", *_words("열 스물 서른 마흔 쉰 예순 일흔 여든 아흔"))
_KOREAN_UNITS = ("", *_words("한 두 세 네 다섯 여섯 일곱 여덟 아홉"))


def _korean_number(n: int, form: str) -> str:
    """Returns the Sino-Korean number; for form "native", the native number used before counters and hours."""
    if form != "native":
        return num2words(n, lang="ko")
    return "스무" if n == 20 else _KOREAN_TENS[n // 10] + _KOREAN_UNITS[n % 10]


KOREAN = Language(
    number=_korean_number,
    date="{month} {day}일",
    names={"month 6": "유월", "month 10": "시월"},
)


LANGUAGES: dict[str, Language] = {
    "en": ENGLISH,
    "ar": ARABIC,
    "de": GERMAN,
    "es": SPANISH,
    "fr": FRENCH,
    "hi": HINDI,
    "ja": JAPANESE,
    "ko": KOREAN,
    "ru": RUSSIAN,
    "tr": TURKISH,
    "zh": CHINESE,
}
"""Language code (also a Babel locale) → language."""
