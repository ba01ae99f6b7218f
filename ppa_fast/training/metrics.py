"""What a run says of itself: ``metrics.jsonl`` and ``evaluations.jsonl``, one JSON object a line, by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only log of records with a ``step``, flushed line by line.

    Opening it for a run that goes on after ``step`` drops the lines of later steps (they will be written again) and a
    last line that was cut off, so that the file reads as if the run had never stopped.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.rename(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of such a file; none if it is not there. A last line without its end is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
