"""The evaluation of prediction files does not import torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NLI = ("premise\thypo\tlabel\np\th\tneutral\n", "neutral\n")
TOPICS = ("text\tlabel\nt\tsports\n", "sports\n")
SQUAD = {"data": [{"paragraphs": [{"context": "a b", "qas": [{"id": "1", "answers": [{"text": "b"}]}]}]}]}
FILES = {"nli": NLI, "classify": TOPICS, "qa": (json.dumps(SQUAD), json.dumps({"1": "b"}))}
FILES["tagging"] = ("a NOUN\n", "NOUN\n")


@pytest.mark.parametrize("task", FILES)
def test_predictions_are_scored_without_torch(tmp_path: Path, task: str) -> None:
    gold, predictions = tmp_path / "gold", tmp_path / "predictions"
    for path, text in zip((gold, predictions), FILES[task], strict=True):
        path.write_text(text, encoding="utf-8")
    options = {"gold": [f"en:{gold}"], "predictions": [f"en:{predictions}"]}
    code = f"import sys; from ppa_fast.tasks import evaluate; result = evaluate({task!r}, **{options})"
    code += "; assert result['languages']['en']['n'] == 1; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
