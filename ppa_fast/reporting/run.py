"""Reads a run folder, finished or in progress."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from ppa_fast.errors import UserError
from ppa_fast.training.json_lines import read_lines

OBJECTIVES = {"loss_tlm": "tlm", "loss_moco": "moco", "queue_top1": "moco"}  # metric → setting that enables it
OBJECTIVES |= {"loss_symmetric": "moco", "in_batch_top1": "moco"}
RECENT = 5  # lines of metrics.jsonl over which final values are averaged; 50 steps by default
# Settings about paths, logging and checkpoints, which do not change the result.
PLACES = {"output", "deepspeed_config", "eval_pairs", "log_every", "eval_every", "save_every", "keep", "resume"}


@dataclass(frozen=True, eq=False)
class Run:
    """The content of a run folder.

    ``settings``: settings.yaml without ``store``; ``store``: its description of the data; ``config``: the model's
    configuration, or empty; ``metrics`` and ``evaluations``: the records of the two logs by step, possibly empty.
    """

    path: Path
    settings: dict[str, Any]
    store: dict[str, Any]
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def step(self) -> int:
        """The last logged step."""
        return max((record["step"] for record in (*self.metrics[-1:], *self.evaluations[-1:])), default=0)

    @property
    def steps(self) -> int | None:
        """The planned number of steps; None if unknown."""
        if self.settings.get("steps"):
            return int(self.settings["steps"])
        pairs, batch = sum(self.store.get("pairs", {}).values()), self.store.get("batch")
        return math.ceil((self.settings.get("epochs") or 1.0) * pairs / batch) if pairs and batch else None

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric of metrics.jsonl; NaN for values that are not finite.

        Both are empty if the metric has no values or its objective is disabled.
        """
        if name in OBJECTIVES and not self.settings.get(OBJECTIVES[name], True):
            return [], []
        found = [record for record in self.metrics if name in record]
        values = [math.nan if record[name] is None else record[name] for record in found]
        if all(map(math.isnan, values)):
            return [], []
        return [record["step"] for record in found], values

    def recent(self, name: str) -> float | None:
        """The mean of the last ``RECENT`` finite values of a metric; None without values."""
        values = [value for value in self.curve(name)[1] if not math.isnan(value)]
        return fmean(values[-RECENT:]) if values else None

    def median(self, name: str) -> float | None:
        values = [value for value in self.curve(name)[1] if not math.isnan(value)]
        return median(values) if values else None

    def retrieval(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and precision at 1 by language pair, averaged over both directions."""
        curves: dict[str, tuple[list[int], list[float]]] = {}
        for record in self.evaluations:
            for name, scores in record["pairs"].items():
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append((scores["a_to_b"] + scores["b_to_a"]) / 2)
        return curves

    def before_after(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The evaluation at step 0 and that of the checkpoint that ``export`` selects: the best, else the latest.

        None unless both exist and have the same language pairs.
        """
        if len(self.evaluations) < 2:
            return None
        first, *others = self.evaluations
        best = max(others, key=lambda record: record["mean"])
        after = best if best["mean"] > first["mean"] else others[-1]
        return (first, after) if first["step"] == 0 and first["pairs"].keys() == after["pairs"].keys() else None


def _mapping(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}, expected a mapping of names to values")
    return content


def read_run(folder: str | Path) -> Run:
    """Reads a run folder; the run may be in progress.

    Raises UserError for a folder without settings.yaml, and for a file that cannot be read.
    """
    path = Path(folder)
    file, config = path / "settings.yaml", path / "model" / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: not a run folder: found no settings.yaml, expected an output folder of train.py")
    settings = _mapping(file, file.read_text(encoding="utf-8", errors="replace"))
    for name in ("model", "pooling"):
        if not isinstance(settings.get(name), str):
            raise UserError(f"{file}: {name}: found {settings.get(name)!r}, expected text")
    evaluations = read_lines(path / "evaluations.jsonl")
    return Run(
        path,
        settings,
        settings.pop("store", None) or {},
        _mapping(config, config.read_text(encoding="utf-8", errors="replace")) if config.is_file() else {},
        read_lines(path / "metrics.jsonl"),
        [record for record in evaluations if record.get("pairs")],
    )


def differing_settings(runs: list[Run]) -> list[str]:
    """The names of the settings that differ between runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in PLACES)
    return [name for name in names if len({json.dumps(run.settings.get(name)) for run in runs}) > 1]
