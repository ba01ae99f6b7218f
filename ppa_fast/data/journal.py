"""How far a prepare has come, so that the next one goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppa_fast.files import write_text

JOURNAL = "journal.json"


@dataclass
class Journal:
    """STORE/journal.json, replaced after each shard: with it all that is needed to go on behind that shard.

    Attributes:
        arguments: what the rows depend on: the text, the tokenizer, the options.
        base: fingerprint of the finished store that is appended to; None: a new one.
        shards: how many are finished, those of ``base`` among them.
        rejected_bytes: size of ``rejected.tsv`` at that point.
        dropped: the samples of ``dropped.json`` so far.
        counts: the manifest's counts so far; ``records`` of a source says how many of its items were consumed.
    """

    arguments: dict[str, Any]
    base: str | None
    shards: int
    rejected_bytes: int
    dropped: dict[str, dict[str, list[dict[str, Any]]]]
    counts: dict[str, Any]

    def save(self, store: Path) -> None:
        write_text(store / JOURNAL, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, store: Path) -> Journal | None:
        """The journal that was left; None where there is none, or one that cannot be read."""
        try:
            return cls(**json.loads((store / JOURNAL).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None
