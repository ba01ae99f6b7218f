"""The training set as drawn: every example of every epoch, made when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ppa_fast.files import writing
from ppa_fast.finetune.code_switch import Mixture
from ppa_fast.finetune.parallel import Parallel
from ppa_fast.finetune.task import Task


class Drawn(Dataset[tuple[Any, int]]):
    """The model inputs of all epochs of a seed: ``(example, number of its piece)`` of ``(epoch, number)``.

    Both languages of every example are drawn at the start (2 bytes an example and epoch); texts are put together and
    encoded batch by batch. ``lengths[epoch]`` int32 [inputs] are what batches are grouped by.
    """

    def __init__(self, task: Task, data: Parallel, mix: Mixture, seed: int, epochs: int) -> None:
        self.task, self.data, self.mix = task, data, mix
        rows = torch.tensor(data.rows)
        by_language = torch.stack([task.lengths(data.examples[code]) for code in mix.codes])
        place = torch.arange(len(rows)).repeat(len(mix.own))
        self.sides: list[Tensor] = []
        self.owners: list[Tensor] = []  # of every input, its example
        self.first: list[Tensor] = []  # of every example, its first input
        self.lengths: list[Tensor] = []
        for epoch in range(epochs):
            sides = mix.sides(seed, epoch, rows)
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
        first, second = (self.data.examples[self.mix.codes[side]][row] for side in self.sides[epoch][owner].tolist())
        return self.task.mix(first, second), number - int(self.first[epoch][owner])


def dump(task: Task, data: Parallel, mix: Mixture, seeds: Iterable[int], epochs: int, path: Path) -> None:
    """Writes the training sets of all seeds as JSON lines: every example of every epoch, in the files' order.

    A line has the seed, the epoch, the row, the copy's ``own`` language, whether the example is switched, the languages
    of its sides, and its texts. The file appears whole or not at all.
    """
    rows = torch.tensor(data.rows)
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path), temporary.open("w", encoding="utf-8") as file:
        for seed in seeds:
            for epoch in range(epochs):
                for number, sides in enumerate(mix.sides(seed, epoch, rows).tolist()):
                    own, row = divmod(number, len(rows))
                    first, second = (mix.codes[side] for side in sides)
                    line = {
                        "seed": seed,
                        "epoch": epoch,
                        "row": data.rows[row],
                        "own": mix.own[own],
                        "switched": first != second,
                        "languages": [first, second],
                        **task.record(task.mix(data.examples[first][row], data.examples[second][row])),
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.rename(path)
