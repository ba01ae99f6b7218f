"""A plan whose files exist, for tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml


def write_files(folder: Path) -> dict[str, Any]:
    """Writes text for every task in English and German to ``folder``; returns a plan that uses it."""
    folder.mkdir(parents=True, exist_ok=True)
    for code, words in (("en", "one two three"), ("de", "eins zwei drei")):
        (folder / f"text.{code}").write_text("".join(f"{words} {i}\n" for i in range(20)), encoding="utf-8")
        rows = ["premise\thypo\tlabel", *(f"{words}\t{words}\t{x}" for x in ("entailment", "neutral") * 8)]
        (folder / f"nli.{code}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        rows = ["index_id\tcategory\ttext", *(f"{i}\t{'ab'[i % 2]}\t{words.split()[i % 2]}" for i in range(16))]
        (folder / f"topic.{code}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        tagged = "".join(f"{word}\t{'ABB'[i]}\n" for i, word in enumerate(words.split()))
        (folder / f"tags.{code}.tsv").write_text(f"{tagged}\n" * 16, encoding="utf-8")
        answer = {"text": words.split()[1], "answer_start": words.index(words.split()[1])}
        questions = [{"id": str(i), "question": words, "answers": [answer]} for i in range(8)]
        data = [{"title": "t", "paragraphs": [{"context": words, "qas": questions}]}]
        (folder / f"qa.{code}.json").write_text(json.dumps({"data": data}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"train_batch_size": 8}), encoding="utf-8")

    def task(name: str, suffix: str) -> dict[str, Any]:
        return dict.fromkeys(("train", "dev", "test"), f"{folder}/{name}.{{}}{suffix}")

    return {
        "seeds": 2,
        "languages": ["de"],
        "base": {
            "files": f"{folder}/text.{{}}",
            "tokenizer": {"vocab_size": 60},
            "init": {"layers": 1, "hidden": 16, "heads": 2, "max_positions": 32},
            "pretrain": {"steps": 2, "batch": 4, "max_tokens": 20},
        },
        "alignment": {
            "pairs": f"en-{{}}:{folder}/text.en,{folder}/text.{{}}",
            "prepare": {"max_tokens": 12},
            "settings": {"deepspeed_config": f"{folder}/config.json", "steps": 2, "queue_size": 8, "pooling": "mean"},
        },
        "evaluations": {
            "tatoeba": {"task": "retrieval", "pairs": f"en-{{}}:{folder}/text.en,{folder}/text.{{}}"},
            "topic": {"task": "classify", **task("topic", ".tsv"), "epochs": 1, "batch": 8},
            "nli": {"task": "nli", **task("nli", ".tsv"), "epochs": 1, "batch": 8, "code_switch": 0.25},
            "tags": {"task": "tagging", **task("tags", ".tsv"), "epochs": 1, "batch": 8},
            "xquad": {"task": "qa", **task("qa", ".json"), "epochs": 1, "batch": 4, "metric": "squad"},
        },
    }


def write_plan(path: Path, values: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
    """Writes ``values`` with ``changes``, such as ``{"alignment.settings.steps": 3}``; None removes a key."""
    values = copy.deepcopy(values)
    for place, value in (changes or {}).items():
        *blocks, name = place.split(".")
        block = values
        for part in blocks:
            block = block[part]
        if value is None:
            del block[name]
        else:
            block[name] = value
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path
