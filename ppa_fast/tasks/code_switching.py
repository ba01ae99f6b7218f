"""Sentence-level code-switching (Pan et al., "Multilingual BERT Post-Pretraining Alignment", NAACL 2021).

An example has two sides, such as premise and hypothesis, or question and context. In a switched example one side is in
English and the other in another language. Only complete sides are switched, never single words. All other examples are
in one language.

The choice of examples, sides and languages is a pure function of (seed, epoch, example), drawn from the counter-based
stream 2. A seed therefore determines the data set, independent of batches, workers and ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ppa_fast.data.reading.languages import is_english
from ppa_fast.errors import UserError
from ppa_fast.files import write_errors
from ppa_fast.ops.philox import pair_words, threshold
from ppa_fast.tasks.parallel import ParallelExamples
from ppa_fast.tasks.task import Task

STREAM_SWITCH = 2


def coins(seed: int, epoch: int, ids: Tensor, share: float, languages: int) -> tuple[Tensor, Tensor, Tensor]:
    """The random choices for examples in an epoch, from words w0, w1, w2 of (position 0, stream 2) of their ids.

    Args:
        ids: int64 [N].
        share: the probability P that an example is switched.
        languages: L, the number of languages besides English.

    Returns:
        ``switched`` bool [N], w0 < T(P); ``side`` int64 [N], w1 >> 31, the index of the English side; ``language``
        int64 [N], (w2 · L) >> 32, the index of the other side's language in the sorted codes without English.
    """
    zero = torch.zeros_like(ids)
    w0, w1, w2, _ = pair_words(seed, zero + epoch, ids, STREAM_SWITCH, zero)
    return w0 < threshold(share), w1 >> 31, (w2 * languages) >> 32


def english_of(languages: list[str]) -> str | None:
    """The code of English in a list (``en``, ``eng`` or ``en_GB``); None if there is none."""
    return next((code for code in languages if is_english(code)), None)


@dataclass(frozen=True)
class Mixture:
    """The languages of a training set.

    ``codes``: all languages, English first (if present), then the others sorted. ``own``: the languages of unswitched
    examples, with one copy of the data set per language: English (zero-shot), one language (translate-train) or all
    (translate-train-all). ``share``: the probability that an example of a copy is switched between English and one of
    ``codes[1:]``.
    """

    codes: tuple[str, ...]
    own: tuple[str, ...]
    share: float

    def sides(self, seed: int, epoch: int, rows: Tensor) -> Tensor:
        """The languages of both sides of every example in an epoch: int8 [copies · N, 2], indices into ``codes``.

        ``rows``: int64 [N], the row numbers in the files. Example k · N + i is row i of copy k. Its random
        choices depend on the id ``(k << 40) + rows[i]``. Copies are therefore switched independently, and the English
        copy of translate-train-all is switched like that of zero-shot.
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


def mixture_of(recipe: str, languages: list[str], language: str | None = None, share: float = 0.0) -> Mixture:
    """The mixture for a recipe (see ``FinetuneSettings``) over the languages of ``--train``.

    Args:
        language: the language of translate-train, one of ``languages``; None for other recipes.
        share: the probability of switching (``--code-switch``), 0 to 1.

    Raises UserError for a language without training data, for zero-shot or switching without English, and for switching
    without another language.
    """
    english = english_of(languages)
    if english is None and (recipe == "zero-shot" or share):
        what = f"--code-switch {share}" if share else "--recipe zero-shot"
        raise UserError(f"--train: found {', '.join(languages)}, expected English too, which {what} needs")
    codes = (*([english] if english else []), *sorted(code for code in languages if code != english))
    if share and len(codes) < 2:
        raise UserError(f"--train: found only {codes[0]}, expected another language for --code-switch {share}")
    if language is None and recipe == "translate-train":
        raise UserError("--language: not given, expected the training language of --recipe translate-train")
    if language is not None and recipe != "translate-train":
        raise UserError(f"--language: found {language}, expected none, because --recipe is {recipe}")
    if language is not None and language not in codes:
        raise UserError(f"--language: found {language}, expected a language of --train: {', '.join(codes)}")
    own = codes[:1] if recipe == "zero-shot" else codes if language is None else (language,)
    return Mixture(codes, own, share)


class CodeSwitchedDataset(Dataset[tuple[Any, int]]):
    """The model inputs of all epochs of a seed.

    Maps ``(epoch, index)`` to ``(example, index of the input within the example)``. The languages of both sides are
    drawn in the constructor (2 bytes per example and epoch). Texts are combined and tokenized per batch.
    ``lengths[epoch]``: int32 [inputs], used to group batches by length.
    """

    def __init__(self, task: Task, data: ParallelExamples, mixture: Mixture, seed: int, epochs: int) -> None:
        self.task, self.data, self.mixture = task, data, mixture
        rows = torch.tensor(data.rows)
        by_language = torch.stack([task.lengths(data.examples[code]) for code in mixture.codes])
        place = torch.arange(len(rows)).repeat(len(mixture.own))
        self.sides: list[Tensor] = []
        self.owners: list[Tensor] = []  # index of the example of every input
        self.first: list[Tensor] = []  # index of the first input of every example
        self.lengths: list[Tensor] = []
        for epoch in range(epochs):
            sides = mixture.sides(seed, epoch, rows)
            lengths = torch.stack([by_language[sides[:, side].long(), place, side] for side in (0, 1)], dim=1)
            pieces = task.pieces(lengths)
            self.sides.append(sides)
            self.owners.append(torch.arange(len(sides), dtype=torch.int32).repeat_interleave(pieces))
            self.first.append((pieces.cumsum(0) - pieces).int())
            self.lengths.append(lengths.sum(1).int().repeat_interleave(pieces))

    def __len__(self) -> int:
        return sum(map(len, self.lengths))

    def __getitem__(self, at: tuple[int, int]) -> tuple[Any, int]:
        epoch, number = at
        owner = int(self.owners[epoch][number])
        row = owner % len(self.data.rows)
        codes = (self.mixture.codes[side] for side in self.sides[epoch][owner].tolist())
        first, second = (self.data.examples[code][row] for code in codes)
        return self.task.mix(first, second), number - int(self.first[epoch][owner])


def dump(task: Task, data: ParallelExamples, mixture: Mixture, seeds: Iterable[int], epochs: int, path: Path) -> None:
    """Writes the training sets of all seeds as JSON lines: every example of every epoch, in the files' order.

    A line has the seed, the epoch, the row, the copy's ``own`` language, whether the example is switched, the languages
    of its sides, and its texts. The file is written atomically.
    """
    rows = torch.tensor(data.rows)
    temporary = path.with_name(f".{path.name}.tmp")
    with write_errors(path), temporary.open("w", encoding="utf-8") as file:
        for seed in seeds:
            for epoch in range(epochs):
                for number, sides in enumerate(mixture.sides(seed, epoch, rows).tolist()):
                    own, row = divmod(number, len(rows))
                    first, second = (mixture.codes[side] for side in sides)
                    line = {
                        "seed": seed,
                        "epoch": epoch,
                        "row": data.rows[row],
                        "own": mixture.own[own],
                        "switched": first != second,
                        "languages": [first, second],
                        **task.record(task.mix(data.examples[first][row], data.examples[second][row])),
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.rename(path)
