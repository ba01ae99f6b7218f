import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

pytest.importorskip("babel", reason="Babel is not installed")
pytest.importorskip("num2words", reason="num2words is not installed")

from ppa_fast.errors import UserError
from ppa_fast.sample.corpus import Line, draw_lines, parse_template, render, slot_text, slots_of, write_sample
from ppa_fast.sample.text import LANGUAGES, POOLS, SENTENCES, TOPICS
from ppa_fast.tasks.classification import read_classification

TEMPLATES = [template for templates in TOPICS.values() for template in templates]
LATIN = ("de", "es", "fr", "tr")
# For each language, the first words of the Unicode names of its letters.
SCRIPTS = {
    **{code: {"LATIN"} for code in ("en", *LATIN)},
    "ru": {"CYRILLIC"},
    "ar": {"ARABIC"},
    "hi": {"DEVANAGARI"},
    "zh": {"CJK"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"},
    "ko": {"HANGUL"},
}


def read_lines(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert "\r" not in text
    return text.removesuffix("\n").split("\n")


def names(codes) -> set[str]:
    """The file names of a corpus in these languages."""
    return {f"{split}.{code}" for split in ("train", "dev") for code in codes} | {
        "topic.train.en.tsv",
        *(f"topic.test.{code}.tsv" for code in codes),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample") / "corpus"
    paths = write_sample(out, pairs=3000, seed=1, dev_pairs=250)
    return {name: read_lines(path) for name, path in paths.items()}


def every_value_in_every_form(code):
    """Returns (slot, form) → its text for each value of the pool."""
    used = {(slot, form) for template in TEMPLATES for _, slot, form in parse_template(code, template) if slot}
    return {
        (slot, form): [slot_text(code, slot, form, pick) for pick in range(len(POOLS[slot]))]
        for slot, form in sorted(used)
    }


def test_templates_topics_languages_and_scripts_are_numerous():
    assert len(TEMPLATES) == len(set(TEMPLATES)) >= 20
    assert len(TOPICS) >= 6
    assert len(set(LANGUAGES) - {"en"}) >= 9
    assert len(set().union(*(SCRIPTS[code] for code in LANGUAGES))) >= 4
    assert next(iter(LANGUAGES)) == "en"


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_language_has_every_template_with_the_same_slots(code):
    assert set(SENTENCES[code]) == set(TEMPLATES)
    for template in TEMPLATES:
        slots = [slot for _, slot, _ in parse_template(code, template) if slot]
        assert sorted(slots) == sorted(slots_of(template)), template
        assert len(slots) == len(set(slots)) >= 2, template


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_digits_and_no_letters_of_other_scripts(code):
    texts = [text for texts in every_value_in_every_form(code).values() for text in texts]
    sentences = [text for template in TEMPLATES for text, _, _ in parse_template(code, template)]
    for text in texts + sentences:
        for character in text:
            category = unicodedata.category(character)
            assert category[0] in "LMPZ", (
                character,
                text,
            )  # letters, marks, punctuation, spaces; no numbers or symbols
            if category[0] in "LM":
                assert unicodedata.name(character).split(" ")[0] in SCRIPTS[code], (character, text)
    for text in texts:
        assert text == " ".join(text.split())


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_value_has_a_different_text_in_every_form(code):
    for where, texts in every_value_in_every_form(code).items():
        assert len(set(texts)) == len(texts), where


@pytest.mark.parametrize("code", LATIN)
def test_slot_values_share_no_word_with_english(code):
    for slot in POOLS:
        for pick in range(len(POOLS[slot])):
            english, other = (set(slot_text(lang, slot, "", pick).casefold().split()) for lang in ("en", code))
            assert not english & other


@pytest.mark.parametrize(
    ("code", "template", "values", "expected"),
    [
        ("en", "storm", {"country": "EG", "date": (21, 3)}, "in Egypt on the twenty-first of March."),
        ("de", "storm", {"country": "EG", "date": (21, 3)}, "am einundzwanzigsten März in Ägypten"),
        ("de", "coat", {"country": "SE", "price": (25, "CZK")}, "aus Schweden und kostet nur fünfundzwanzig tschech"),
        ("fr", "train", {"country": "MX", "weekday": 1, "time": 9}, "pour le Mexique part mardi à neuf heures."),
        (
            "fr",
            "coat",
            {"country": "ET", "price": (80, "SEK")},
            "vient d’Éthiopie et ne coûte que quatre-vingts couron",
        ),
        (
            "ru",
            "flight",
            {"weekday": 1, "country": "DE", "duration": (4, "duration-year")},
            "Во вторник мы летим в Гер",
        ),
        (
            "ru",
            "flight",
            {"weekday": 2, "country": "PL", "duration": (4, "duration-year")},
            "В среду мы летим в Польшу",
        ),
        ("ru", "flight", {"weekday": 2, "country": "PL", "duration": (4, "duration-year")}, "на четыре года."),
        ("ru", "snow", {"month": 5, "country": "MX", "count": 17}, "В мае в горах Мексики выпало семнадцать"),
        ("tr", "match", {"country": "RU", "date": (25, 5), "time": 5}, "yirmi beş Mayıs tarihinde saat beşte oynuyor."),
        (
            "tr",
            "brother",
            {"country": "NO", "duration": (9, "duration-day"), "language": "pl"},
            "dokuz gündür Norveç’te",
        ),
        ("ar", "rain", {"country": "EG", "duration": (10, "duration-year")}, "عشر سنوات"),
        ("ar", "rain", {"country": "EG", "duration": (13, "duration-year")}, "ثلاث عشرة سنة"),
        ("ar", "rain", {"country": "EG", "duration": (25, "duration-day")}, "خمسة وعشرين يومًا"),
        ("ar", "storm", {"country": "EG", "date": (21, 3)}, "في الحادي والعشرين من مارس"),
        ("ar", "train", {"country": "EG", "weekday": 0, "time": 11}, "في الساعة الحادية عشرة"),
        ("zh", "storm", {"country": "EG", "date": (20, 10)}, "十月二十日埃及"),
        ("hi", "rain", {"country": "EG", "duration": (25, "duration-day")}, "पच्चीस दिन तक"),
        ("ja", "rain", {"country": "EG", "duration": (25, "duration-month")}, "二十五か月休みなく"),
        (
            "ko",
            "wedding",
            {"date": (20, 6), "count": 20, "country": "EG"},
            "유월 이십일 결혼식에는 이집트에서 손님 스무 명이",
        ),
    ],
)
def test_words_are_inflected_as_the_sentence_needs(code, template, values, expected):
    line = Line(template, tuple(POOLS[slot].index(values[slot]) for slot in slots_of(template)))
    assert expected in render(line, code)


def test_files_have_the_requested_number_of_distinct_lines(corpus):
    assert set(corpus) == names(LANGUAGES)
    for code in LANGUAGES:
        train, dev = corpus[f"train.{code}"], corpus[f"dev.{code}"]
        test = [row.split("\t")[1] for row in corpus[f"topic.test.{code}.tsv"][1:]]
        assert (len(train), len(dev), len(test)) == (3000, 250, 250)
        assert len({*train, *dev, *test}) == 3500, f"{code}: a line occurs twice or in two of train, dev and test"


def test_lines_of_all_languages_are_parallel(corpus):
    lines = draw_lines("train", 3000, 1)
    for at in range(0, 3000, 97):
        for code in LANGUAGES:
            assert corpus[f"train.{code}"][at] == render(lines[at], code)


def test_topic_files_are_read_completely_with_the_topics_of_their_lines(tmp_path):
    paths = write_sample(tmp_path / "out", 300, 2, ["de", "ko"], 40)
    test = draw_lines("test", 40, 2)
    files = {"topic.train.en.tsv": ("en", draw_lines("train", 300, 2))}
    files |= {f"topic.test.{code}.tsv": (code, test) for code in ("en", "de", "ko")}
    for name, (code, lines) in files.items():
        examples, rejected = read_classification(paths[name], tuple(TOPICS))
        assert not rejected
        assert [(e.label, e.text) for e in examples] == [(line.topic, render(line, code)) for line in lines]


def test_train_dev_and_test_share_no_combination_of_values_for_any_seeds():
    def contents(lines):
        return {frozenset(zip(slots_of(line.template), line.picks, strict=True)) for line in lines}

    train, dev, test = draw_lines("train", 20_000, 3), draw_lines("dev", 2_000, 4), draw_lines("test", 2_000, 4)
    assert len(set(train)) == 20_000
    for held_out, others in ((dev, train), (test, [*train, *dev])):
        assert not contents(others) & contents(held_out)
        # every single value that they use occurs in train
        assert set().union(*contents(held_out)) <= set().union(*contents(train))


def test_templates_and_topics_are_sampled_evenly():
    lines = draw_lines("train", 100 * len(TEMPLATES), 0)
    counts = {template: sum(line.template == template for line in lines) for template in TEMPLATES}
    assert set(counts.values()) == {100}
    assert [line.template for line in lines] != sorted(line.template for line in lines)
    assert all(line.template in TOPICS[line.topic] for line in lines)


def test_equal_seeds_give_equal_bytes_in_every_process(tmp_path):
    """The hash seed and the locales that Babel has loaded before do not matter."""
    script = """if True:
        import sys
        from ppa_fast.sample.corpus import write_sample
        write_sample(sys.argv[1], 300, 5, sys.argv[2].split(), dev_pairs=20)
    """
    for name, languages in (("1", " ".join(LANGUAGES)), ("2", "tr ko")):
        environment = {**os.environ, "PYTHONHASHSEED": name}
        subprocess.run([sys.executable, "-c", script, tmp_path / name, languages], check=True, env=environment)
    both = {path.name for path in (tmp_path / "2").iterdir()}
    assert both == names(("en", "ko", "tr"))
    for name in both:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_different_seeds_give_different_text(tmp_path):
    one, two = (write_sample(tmp_path / str(seed), 100, seed, ["de"], 20) for seed in (0, 1))
    for name in one:
        assert set(read_lines(one[name])) != set(read_lines(two[name]))


def test_lines_do_not_depend_on_the_selected_languages(tmp_path, corpus):
    paths = write_sample(tmp_path / "out", 3000, 1, ["zh", "de"], 250)
    assert set(paths) == names(("en", "de", "zh"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(paths)
    for name, path in paths.items():
        assert read_lines(path) == corpus[name]


def test_an_unknown_language_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"languages: found xx, yy, expected .*en, ar, de,.*zh"):
        write_sample(tmp_path / "out", 10, languages=["de", "yy", "xx"])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_not_changed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        write_sample(tmp_path, 10)
    with pytest.raises(UserError, match="not an empty folder"):
        write_sample(tmp_path / "mine.txt", 10)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("pairs", "dev_pairs"), [(0, 10), (-1, 10), (10, 0), (10**12, 10), (10, 10**12)])
def test_too_large_counts_are_an_error_before_any_file_is_written(tmp_path, pairs, dev_pairs):
    with pytest.raises(UserError, match=r"lines, expected 1 to [\d,]+$"):
        write_sample(tmp_path / "out", pairs, dev_pairs=dev_pairs)
    assert not (tmp_path / "out").exists()


def test_the_maximum_that_the_error_names_is_possible(monkeypatch):
    # Small pools, so that sampling must exhaust them.
    for slot in POOLS:
        monkeypatch.setitem(POOLS, slot, POOLS[slot][:6])
    with pytest.raises(UserError) as error:
        draw_lines("dev", 10**9, 0)
    maximum = int(str(error.value).split(" to ")[1].replace(",", ""))
    lines = draw_lines("dev", maximum, 0)
    assert len(set(lines)) == maximum
    with pytest.raises(UserError):
        draw_lines("dev", maximum + 1, 0)
