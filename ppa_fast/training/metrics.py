"""What a run says of itself: ``metrics.jsonl`` and ``evaluations.jsonl``, one JSON object a line, by step."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from ppa_fast.errors import UserError
from ppa_fast.files import write_text, writing


class JsonLines:
    """An append-only log of records with a ``step``, each written at once.

    Opening it for a run that goes on after ``step`` drops the lines of later steps (they will be written again) and a
    last line that was cut off, so that the file reads as if the run had never stopped.

    Raises UserError, naming the file, where it cannot be written, or read as such a file.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.path = path
        self._file = path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        with writing(self.path):
            if self._file.write(line) < len(line):  # the next start drops the part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of such a file; none if it is not there. A last line without its end is left out.

    Raises UserError, naming file and line, for a line that is no record.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "step" not in record:
            raise UserError(f"{path}:{number}: found {line[:60]!r}, expected a JSON object with a step")
        records.append(record)
    return records
