"""Sentence-level code-switching (Pan et al., "Multilingual BERT Post-Pretraining Alignment", NAACL 2021).

An example has sides: premise and hypothesis, question and context. In a switched example one side is in English and the
other in another language; whole sides are switched, never words. The rest of the examples are in one language.

Which examples, sides and languages is a pure function of (seed, epoch, example): counter-based coins of stream 2, so
that a seed names the data set, whatever the batches, workers and ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppa_fast.data.languages import is_english
from ppa_fast.errors import UserError
from ppa_fast.ops.philox import pair_words, threshold

STREAM_SWITCH = 2

RECIPES = ("zero-shot", "translate-train", "translate-train-all")


def coins(seed: int, epoch: int, ids: Tensor, share: float, languages: int) -> tuple[Tensor, Tensor, Tensor]:
    """The coins of examples in an epoch, from words w0, w1, w2 of (position 0, stream 2) of their ids.

    Args:
        ids: int64 [N].
        share: the probability P that an example is switched.
        languages: L, how many there are besides English.

    Returns:
        ``switched`` bool [N], w0 < T(P); ``side`` int64 [N], w1 >> 31, the number of the side that is in English;
        ``language`` int64 [N], (w2 · L) >> 32, the other side's place among the sorted codes of the others.
    """
    zero = torch.zeros_like(ids)
    w0, w1, w2, _ = pair_words(seed, zero + epoch, ids, STREAM_SWITCH, zero)
    return w0 < threshold(share), w1 >> 31, (w2 * languages) >> 32


def english_of(languages: list[str]) -> str | None:
    """The code that stands for English (``en``, ``eng``, ``en_GB``), None where there is none."""
    return next((code for code in languages if is_english(code)), None)


@dataclass(frozen=True)
class Mixture:
    """In which languages the rows of a data set are read.

    ``codes`` are the languages, English first (where it is there) and then the others sorted. ``own`` names the
    languages that the rows are read in where they are not switched, a copy of the data set for each: English
    (zero-shot), one language (translate-train) or all of them (translate-train-all). A share ``share`` of the examples
    of each copy is switched between English and one of ``codes[1:]``.
    """

    codes: tuple[str, ...]
    own: tuple[str, ...]
    share: float

    def sides(self, seed: int, epoch: int, rows: Tensor) -> Tensor:
        """The languages of both sides of every example in an epoch: int8 [copies · N, 2], places in ``codes``.

        ``rows`` int64 [N] are the rows' numbers in their files. Example k · N + i is row i of copy k; its coins are
        those of the id ``(k << 40) + rows[i]``, so that copies switch independently and the English copy of
        translate-train-all is switched as zero-shot's is.
        """
        copies = []
        for number, language in enumerate(self.own):
            own = torch.full((len(rows), 2), self.codes.index(language), dtype=torch.int8)
            if self.share:
                ids = (number << 40) + rows
                switched, side, place = coins(seed, epoch, ids, self.share, len(self.codes) - 1)
                mixed = (place + 1).unsqueeze(1).repeat(1, 2).scatter(1, side.unsqueeze(1), 0)
                own = torch.where(switched.unsqueeze(1), mixed.to(torch.int8), own)
            copies.append(own)
        return torch.cat(copies)


def mixture(recipe: str, languages: list[str], language: str | None = None, share: float = 0.0) -> Mixture:
    """The mixture of a recipe of ``RECIPES`` over the languages of ``--train``.

    Args:
        language: translate-train's, one of ``languages``.
        share: of ``--code-switch``, 0 … 1.

    Raises UserError for a recipe, language or share that is not there, for zero-shot or switching without English, and
    for switching without another language.
    """
    if recipe not in RECIPES:
        raise UserError(f"--recipe {recipe}: expected one of {', '.join(RECIPES)}")
    if not 0 <= share <= 1:
        raise UserError(f"--code-switch {share}: expected a share between 0 and 1")
    english = english_of(languages)
    if english is None and (recipe == "zero-shot" or share):
        what = f"--code-switch {share}" if share else "--recipe zero-shot"
        raise UserError(f"--train: found {', '.join(languages)}, expected English as well, which {what} reads")
    codes = (*([english] if english else []), *sorted(code for code in languages if code != english))
    if share and len(codes) < 2:
        raise UserError(f"--train: found {codes[0]} alone; --code-switch {share} needs another language")
    if (language is not None) != (recipe == "translate-train"):
        raise UserError(f"--language: found {language}; it goes with --recipe translate-train, and with no other")
    if language is not None and language not in codes:
        raise UserError(f"--language {language}: expected one of --train: {', '.join(codes)}")
    if recipe == "zero-shot":
        assert english is not None
        return Mixture(codes, (english,), share)
    return Mixture(codes, codes if language is None else (language,), share)
