import langcodes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppa_fast.data.reading.languages import best_match, split_paths, standard_code


@pytest.mark.parametrize(
    ("code", "found", "index"),
    [
        ("en", ["de", "en"], 1),
        ("en", ["en-US", "EN"], 1),
        ("en", ["de", "en-US", "en-GB"], 1),
        ("eng", ["en_GB"], 0),
        ("en_GB", ["en-US", "en-GB"], 1),
        ("en_GB", ["en-US"], 0),
        ("zh", ["zh-TW", "zh-SG"], 1),
        ("zh", ["zh-TW"], None),
        ("zh_TW", ["zh-Hans", "zh-Hant"], 1),
        ("zh_TW", ["zh-CN"], None),
        ("zh_HK", ["zh-TW", "zh-Hant-HK"], 1),
        ("zh_HK", ["zh-CN", "zh-TW"], 1),
        ("zh_CN", ["zh-TW", "zh"], 1),
        ("zh", ["cmn"], 0),
        ("zh", ["yue"], None),
        ("no", ["nn", "nb-NO"], 1),
        ("nb", ["no"], 0),
        ("ms", ["zsm"], 0),
        ("et", ["ekk"], 0),
        ("lv", ["lvs"], 0),
        ("ar", ["arb"], 0),
        ("he", ["iw"], 0),
        ("id", ["in"], 0),
        ("sr_Latn", ["sr", "sh"], 1),
        ("tl", ["fil"], 0),
        ("pt_BR", ["pt-PT", "pt-BR"], 1),
        ("es_MX", ["es"], 0),
        ("uz_Cyrl", ["uz"], None),
        ("zh_Hant", ["zh-CN", "zh-TW"], 1),
        ("zh_Hant", ["zh-CN"], None),
        ("zh_Hant", ["zh"], None),
        ("sr_Latn", ["sr"], None),
        ("en", ["", "no code", "*all*", "x-none"], None),
        ("en", [], None),
    ],
)
def test_best_match_finds_the_closest_code(code: str, found: list[str], index: int | None) -> None:
    assert best_match(code, found) == index


CODES = st.builds(
    lambda *parts: "-".join(filter(None, parts)),
    st.sampled_from(["en", "zh", "cmn", "no", "nb", "nn", "sr", "sh", "ms", "zsm", "pt", "uz", "arb", "pa"]),
    st.sampled_from(["", "Latn", "Hans", "Hant", "Cyrl", "Arab"]),
    st.sampled_from(["", "US", "GB", "TW", "CN", "HK", "BR", "NO", "PK"]),
)


@given(CODES, CODES)
def test_a_match_is_symmetric_and_never_crosses_scripts(one: str, other: str) -> None:
    assert best_match(one, [other]) == best_match(other, [one])
    scripts = [langcodes.get(code).maximize().script for code in (one, other)]
    if scripts[0] != scripts[1]:
        assert best_match(one, [other]) is None


@given(CODES, st.lists(CODES, max_size=4))
def test_the_most_specific_code_is_chosen(code: str, others: list[str]) -> None:
    assert best_match(code, [*others, code]) == next(
        i for i, other in enumerate([*others, code]) if standard_code(other) == standard_code(code)
    )


@given(CODES, st.lists(CODES, max_size=4), st.randoms())
def test_the_region_wins_and_the_order_of_the_others_does_not_matter(code, others, random) -> None:
    """The best match has the language and the script, and the region if any match has it."""

    def likely(tag: str) -> tuple[str | None, str | None, str | None]:
        found = langcodes.get(langcodes.standardize_tag(tag, macro=True)).maximize()
        return "no" if found.language == "nb" else found.language, found.script, found.territory

    index = best_match(code, others)
    matching = [other for other in others if likely(other)[:2] == likely(code)[:2]]
    assert (index is None) == (not matching)
    if index is not None:
        exact = [other for other in matching if standard_code(other) == standard_code(code)]
        region = [other for other in matching if likely(other) == likely(code)]
        assert others[index] == (exact or region or matching)[0]
        shuffled = random.sample(others, len(others))
        assert likely(shuffled[best_match(code, shuffled)])[:2] == likely(code)[:2]


def test_paths_may_contain_commas(tmp_path) -> None:
    files = [tmp_path / name for name in ("a,1", "b", "c,2,3")]
    for file in files:
        file.touch()
    names = [str(file) for file in files]
    assert split_paths(",".join(names), (3,)) == names
    assert split_paths(",".join(names[:2]), (3, 2)) == names[:2]
    assert split_paths("absent,a,b", (3, 2)) == ["absent", "a", "b"]
    assert split_paths(names[0], (1, 2)) == [names[0]]
