"""The logs of a run: ``metrics.jsonl`` and ``evaluations.jsonl``, one JSON object per line, by step."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from ppa_fast.errors import UserError
from ppa_fast.files import write_errors, write_text


class JsonLines:
    """An append-only log of records with a ``step``, written without buffering.

    Opening it for a run that resumes after ``step`` drops the lines of later steps, which will be written again, and an
    incomplete last line. The file then reads as if the run had never stopped.

    Raises UserError, naming the file, if it cannot be written or is not such a log.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.path = path
        self._file = path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        with write_errors(self.path):
            if self._file.write(line) < len(line):  # the next start drops the incomplete line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Flushes the lines to disk."""
        with write_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a log; none if the file does not exist. An incomplete last line is skipped.

    Raises UserError, naming file and line, for a line that is not a record.
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


def plain(value: Any) -> Any:
    """``value``, or None for NaN and infinity, which JSON cannot represent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
