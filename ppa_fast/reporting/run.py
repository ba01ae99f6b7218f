"""What a run folder says of itself, finished or in progress."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from ppa_fast.errors import UserError
from ppa_fast.training.metrics import read_lines

OBJECTIVES = {"loss_tlm": "tlm", "loss_moco": "moco", "queue_top1": "moco"}  # by figure: the setting that it hangs on
RECENT = 5  # lines of metrics.jsonl, by default 50 steps, that a last value is the mean of
# Settings that say where things lie and how often the run speaks, not what it computes.
PLACES = {"output", "deepspeed_config", "eval_pairs", "log_every", "eval_every", "save_every", "keep", "resume"}


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder as read.

    ``settings``: of settings.yaml; ``store``: what it says of the data; ``config``: the model's, empty where there is
    none; ``metrics`` and ``evaluations``: the records of the two logs by step, empty where nothing is logged yet.
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
        """The last step that the logs know of."""
        return max((record["step"] for record in (*self.metrics[-1:], *self.evaluations[-1:])), default=0)

    @property
    def steps(self) -> int | None:
        """The planned steps; None where the folder does not tell."""
        if self.settings.get("steps"):
            return int(self.settings["steps"])
        pairs, batch = sum(self.store.get("pairs", {}).values()), self.store.get("batch")
        return math.ceil((self.settings.get("epochs") or 1.0) * pairs / batch) if pairs and batch else None

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a figure of metrics.jsonl; not finite: NaN.

        Both are empty where it has none, and for an objective that is off.
        """
        if name in OBJECTIVES and not self.settings.get(OBJECTIVES[name], True):
            return [], []
        found = [record for record in self.metrics if name in record]
        values = [math.nan if record[name] is None else record[name] for record in found]
        if all(map(math.isnan, values)):
            return [], []
        return [record["step"] for record in found], values

    def recent(self, name: str) -> float | None:
        """The mean of the last ``RECENT`` finite values of a figure."""
        values = [value for value in self.curve(name)[1] if not math.isnan(value)]
        return fmean(values[-RECENT:]) if values else None

    def median(self, name: str) -> float | None:
        values = [value for value in self.curve(name)[1] if not math.isnan(value)]
        return median(values) if values else None

    def retrieval(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and precision at 1, the mean of both directions, by language pair."""
        curves: dict[str, tuple[list[int], list[float]]] = {}
        for record in self.evaluations:
            for name, scores in record["pairs"].items():
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append((scores["a_to_b"] + scores["b_to_a"]) / 2)
        return curves

    def before_after(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The evaluation of step 0 and the last one; None unless both are there and of the same language pairs."""
        if len(self.evaluations) < 2:
            return None
        first, last = self.evaluations[0], self.evaluations[-1]
        return (first, last) if first["step"] == 0 and first["pairs"].keys() == last["pairs"].keys() else None


def _mapping(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}, expected names and values")
    return content


def read_run(folder: str | Path) -> Run:
    """Reads a run folder, of a run in progress too.

    Raises UserError for a folder without settings.yaml, and for a file of it that cannot be read.
    """
    path = Path(folder)
    file, config = path / "settings.yaml", path / "model" / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: not a run folder: found no settings.yaml, expected what train.py --output made")
    settings = _mapping(file, file.read_text(encoding="utf-8", errors="replace"))
    for name in ("model", "pooling"):
        if not isinstance(settings.get(name), str):
            raise UserError(f"{file}: {name}: found {settings.get(name)!r}, expected a text")
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
    """The names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in PLACES)
    return [name for name in names if len({json.dumps(run.settings.get(name)) for run in runs}) > 1]
