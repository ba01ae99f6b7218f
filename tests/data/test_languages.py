import pytest

from ppa_fast.data.languages import best_match


@pytest.mark.parametrize(
    ("code", "found", "index"),
    [
        ("en", ["de", "en"], 1),
        ("en", ["en-US", "EN"], 1),
        ("en", ["de", "en-US", "en-GB"], 1),
        ("eng", ["en_GB"], 0),
        ("en_GB", ["en-US", "en-GB"], 1),
        ("en_GB", ["en-US"], 0),
        ("zh", ["zh-TW"], 0),
        ("zh_Hant", ["zh-CN", "zh-TW"], 1),
        ("zh_Hant", ["zh-CN"], None),
        ("zh_Hant", ["zh"], None),
        ("sr_Latn", ["sr"], None),
        ("en", ["", "no code", "*all*", "x-none"], None),
        ("en", [], None),
    ],
)
def test_best_match(code: str, found: list[str], index: int | None) -> None:
    assert best_match(code, found) == index
