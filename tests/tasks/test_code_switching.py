"""The coins of code-switching: against words computed with plain integers, and their statistics."""

from __future__ import annotations

import math

import pytest
import torch

from ppa_fast.errors import UserError
from ppa_fast.tasks.code_switching import Mixture, coins, english_of, mixture_of

CODES = ("en", "ar", "de", "zh")


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in plain integers, after the definition in its paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def expected(seed: int, epoch: int, id_: int, share: float, own: str) -> tuple[str, str]:
    """The languages of both sides, as the method defines them."""
    w0, w1, w2, _ = philox([0, 2, id_ & 0xFFFFFFFF, id_ >> 32], [seed & 0xFFFFFFFF, epoch])
    if not w0 < math.floor(share * 2**32):
        return own, own
    others = sorted(CODES[1:])
    sides = [others[(w2 * len(others)) >> 32]] * 2
    sides[w1 >> 31] = "en"
    return sides[0], sides[1]


def names(mix: Mixture, sides: torch.Tensor) -> list[tuple[str, str]]:
    return [(mix.codes[first], mix.codes[second]) for first, second in sides.tolist()]


def test_the_plain_philox_gives_the_published_answer() -> None:
    assert philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]) == [
        *(0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    ]


@pytest.mark.parametrize(("seed", "epoch", "share"), [(0, 0, 0.5), (1, 4, 0.25), (2**32 + 7, 1, 0.9)])
def test_sides_equal_the_definition(seed: int, epoch: int, share: float) -> None:
    rows = torch.tensor([0, 1, 2, 3, 17, 392_701, 2**31, 2**32 + 5, *range(100, 200)])
    mix = Mixture(CODES, ("en",), share)
    assert names(mix, mix.sides(seed, epoch, rows)) == [
        expected(seed, epoch, row, share, "en") for row in rows.tolist()
    ]


def test_copies_of_translate_train_all_switch_independently() -> None:
    rows = torch.arange(50)
    mix = mixture_of("translate-train-all", ["zh", "de", "en", "ar"], share=0.5)
    assert mix.codes == mix.own == CODES
    assert names(mix, mix.sides(3, 2, rows)) == [
        expected(3, 2, (copy << 40) + row, 0.5, own) for copy, own in enumerate(CODES) for row in range(50)
    ]


def test_the_english_copy_equals_that_of_zero_shot() -> None:
    rows = torch.arange(50)
    everything = mixture_of("translate-train-all", list(CODES), share=0.5).sides(0, 0, rows)
    assert torch.equal(everything[:50], mixture_of("zero-shot", list(CODES), share=0.5).sides(0, 0, rows))


@pytest.mark.parametrize(
    ("recipe", "language", "own"),
    [("zero-shot", None, ["en"]), ("translate-train", "de", ["de"]), ("translate-train-all", None, [*CODES])],
)
def test_without_switching_rows_keep_their_language(recipe: str, language: str | None, own: list[str]) -> None:
    mix = mixture_of(recipe, list(CODES), language)
    assert names(mix, mix.sides(0, 0, torch.arange(3))) == [(code, code) for code in own for _ in range(3)]


def test_full_switching_has_english_on_one_side() -> None:
    mix = mixture_of("translate-train", list(CODES), "de", share=1.0)
    for first, second in names(mix, mix.sides(0, 0, torch.arange(2000))):
        assert (first == "en") != (second == "en")


def test_coins_are_fair_and_differ_between_epochs_and_seeds() -> None:
    """The limit is five standard deviations of the binomial distribution. The coins are fixed, so the result is too."""
    n, share, languages = 40_000, 0.3, 3
    draws = [coins(seed, epoch, torch.arange(n), share, languages) for seed in (0, 1) for epoch in (0, 1)]
    for switched, side, language in draws:
        events = [(switched, share), (side == 1, 0.5), *((language == i, 1 / languages) for i in range(languages))]
        for event, probability in events:
            assert abs(event.sum().item() - n * probability) < 5 * math.sqrt(n * probability * (1 - probability))
        both = (switched & (side == 1) & (language == 2)).sum().item()  # the three coins are independent
        assert abs(both - n * share / 6) < 5 * math.sqrt(n * share / 6)
    for i, (first, _, _) in enumerate(draws):
        for second, _, _ in draws[:i]:
            agree = share**2 + (1 - share) ** 2
            assert abs((first == second).sum().item() - n * agree) < 5 * math.sqrt(n * agree * (1 - agree))


def test_a_row_does_not_depend_on_other_rows() -> None:
    mix = Mixture(CODES, ("en",), 0.5)
    rows = torch.arange(1000)
    assert torch.equal(mix.sides(0, 0, rows)[400:500], mix.sides(0, 0, rows[400:500]))


def test_english_is_found_by_any_spelling() -> None:
    assert english_of(["de", "eng"]) == "eng"
    assert english_of(["de", "en_GB"]) == "en_GB"
    assert english_of(["de", "fr"]) is None


@pytest.mark.parametrize(
    ("recipe", "languages", "language", "share", "message"),
    [
        ("zero-shot", ["de", "fr"], None, 0.0, "expected English too, which --recipe zero-shot needs"),
        ("translate-train", ["de", "fr"], "de", 0.5, "expected English too, which --code-switch 0.5 needs"),
        ("zero-shot", ["en"], None, 0.5, "found only en, expected another language for --code-switch 0.5"),
        ("zero-shot", ["en", "de"], "de", 0.0, "--language: found de, expected none, because --recipe is zero-shot"),
        (
            "translate-train-all",
            ["en", "de"],
            "de",
            0.0,
            "--language: found de, expected none, because --recipe is tra",
        ),
        ("translate-train", ["en", "de"], None, 0.0, "--language: not given, expected the training language"),
        ("translate-train", ["en", "de"], "fr", 0.0, "--language: found fr, expected a language of --train: en, de"),
    ],
)
def test_an_invalid_recipe_is_named(
    recipe: str, languages: list[str], language: str | None, share: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        mixture_of(recipe, languages, language, share)
