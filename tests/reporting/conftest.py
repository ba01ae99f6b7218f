"""A real run of four steps, and run folders made by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import pseudo_text, write_config
from tests.training.harness import run_here

EVIL = '<script>window.hacked = 1</script> & "quoted" $x$'
SENTENCES = 40


@dataclass(frozen=True)
class Trained:
    """A run folder, and the texts of its evaluation."""

    folder: Path
    pairs: list[str]
    texts: dict[str, list[str]]


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("report")
    words = pseudo_text(1, SENTENCES)
    texts = {
        "en": [*words["en"][:2], EVIL, *words["en"][3:]],
        "ar": [f"النص {line}" for line in words["de"]],
        "zh_Hant": [f"文本 {line}" for line in words["fr"]],
    }
    for code, lines in texts.items():
        (folder / f"dev.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pairs = [f"en-ar:{folder}/dev.en,{folder}/dev.ar", f"zh_Hant-en:{folder}/dev.zh_Hant,{folder}/dev.en"]
    run_here(
        {
            "model": str(tiny.model),
            "data": str(tiny.store),
            "output": str(folder / "run"),
            "deepspeed_config": str(write_config(folder / "ds.json")),
            "steps": 4,
            "queue_size": 32,
            "log_every": 1,
            "eval_every": 2,
            "save_every": 2,
            "eval_pairs": pairs,
        }
    )
    return Trained(folder / "run", pairs, texts)


def write_run(
    folder: Path, metrics: list[dict[str, Any]] = (), evaluations: list[dict[str, Any]] = (), **settings: Any
) -> Path:
    """A run folder without model and checkpoints."""
    folder.mkdir(parents=True)
    store = {"pairs": {"en-de": 90, "en-fr": 10}, "languages": ["de", "en", "fr"], "batch": 8}
    values = {"model": "/nowhere/base", "pooling": "mean", "steps": 40, "eval_pairs": [], "store": store, **settings}
    (folder / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for name, records in (("metrics", metrics), ("evaluations", evaluations)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def evaluation(step: int, **shares: float) -> dict[str, Any]:
    """A record of evaluations.jsonl with the same share in both directions, by the language that is paired with
    English."""
    pairs = {f"en-{code}": {"a_to_b": share, "b_to_a": share, "n": 10} for code, share in shares.items()}
    return {"step": step, "pairs": pairs, "mean": sum(shares.values()) / len(shares)}
