"""The progress of prepare on disk, from which an interrupted run resumes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppa_fast.files import write_text

JOURNAL = "journal.json"


@dataclass
class Journal:
    """The state to resume after the last shard; STORE/journal.json is replaced after each shard.

    Attributes:
        arguments: everything that the rows depend on: the text, the tokenizer, the options.
        base: the fingerprint of the finished store to append to; None for a new store.
        shards: the number of finished shards, including those of ``base``.
        rejected_bytes: the size of ``rejected.tsv``.
        dropped: the samples of ``dropped.json``.
        counts: the counts of the manifest; ``records`` of a source is the number of consumed items.
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
        """Reads the journal of a store; None if it is missing or cannot be read."""
        try:
            return cls(**json.loads((store / JOURNAL).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None
