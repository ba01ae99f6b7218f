"""Reads task files: JSON, tables of labelled examples, and files by language; lists unusable rows.

A task's reader returns ``(examples, rejected)``: the usable rows in file order, and the unusable ones with file, line
and reason. ``row`` counts the data rows of a file from 0, including unusable ones, so that row i of two row-parallel
files is the same example. Files ending in ``.gz`` are decompressed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ppa_fast.data.reading.compression import open_bytes
from ppa_fast.data.reading.languages import parse_files, standard_code
from ppa_fast.data.reading.lines import NOT_UTF8, Reject, decoded_lines
from ppa_fast.errors import UserError

LISTED = 20  # rejected rows listed in a message; the others are counted
NO_GOLD_LABEL = "no gold label (-)"  # in SNLI and MultiNLI, a pair without agreement between annotators
NO_GOLD = ("-", "-1")  # "-1" in the data sets on hubs
NO_LANGUAGE = "und"  # BCP-47 code for an undetermined language

Example = TypeVar("Example")


@dataclass(frozen=True)
class RejectedQuestion:
    """A question that cannot be used; ``str`` gives ``file: question ID: reason``."""

    path: Path
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: question {self.id}: {self.reason}"


@dataclass(frozen=True)
class RejectedSentence(Reject):
    """A sentence of several lines that cannot be used. ``line``: its first bad line; ``row``: its number, from 0."""

    row: int


Rejected = Reject | RejectedQuestion


def format_rejected(rejected: Sequence[Rejected]) -> str:
    """One line per rejected row for the first ``LISTED``, and the number of further ones."""
    lines = [str(reject) for reject in rejected[:LISTED]]
    if len(rejected) > LISTED:
        lines.append(f"… and {len(rejected) - LISTED:,} more, {len(rejected):,} rejected in all")
    return "\n".join(lines)


def check_evaluation_set(rejected: Sequence[Rejected]) -> None:
    """Raises UserError, with a list, for rejected rows of an evaluation set, except those without a gold label."""
    if bad := [reject for reject in rejected if reject.reason != NO_GOLD_LABEL]:
        raise UserError(
            f"{format_rejected(bad)}\nfound {len(bad):,} unusable rows, expected none in an evaluation set; correct or "
            "remove them"
        )


def load_json(path: str | Path) -> Any:
    """The value in a JSON file; raises UserError, naming the line, for invalid JSON."""
    path = Path(path)
    with open_bytes(path) as file:
        data = file.read()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {NOT_UTF8}: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def _tsv(line: str, header: list[str], needed: int) -> dict[str, str] | str:
    """The fields of a row by column, or the reason for a rejection. Quotes are literal, as in the published files."""
    columns = line.split("\t")
    if not needed <= len(columns) <= len(header):
        return f"found {len(columns)} columns, expected {len(header)} as in the header"
    return {name: column.strip() for name, column in zip(header, columns, strict=False)}


def _json(line: str) -> dict[str, str] | str:
    """The texts of a JSON object by key, or the reason for a rejection."""
    try:
        record = json.loads(line)
    except ValueError:
        return "not JSON"
    if not isinstance(record, dict):
        return "not a JSON object"
    texts = {key: text_or_number(value) for key, value in record.items()}
    return {key: text.strip() for key, text in texts.items() if isinstance(text, str)}


def text_or_number(value: Any) -> Any:
    """A whole number as text, because data sets on hubs have numbers as labels and ids; any other value unchanged."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def check_not_empty(path: Path, rows: int) -> None:
    """Raises UserError for a file without rows."""
    if rows == 0:
        raise UserError(f"{path}: found no rows, expected at least one")


def _is_json(first_line: str) -> bool:
    """Whether a file is in JSON lines; otherwise it is a TSV with a header."""
    return first_line.startswith("{")


def line_of(path: Path, row: int) -> int:
    """The line number (from 1) of a data row (from 0) in a file of ``read_table``."""
    first, _ = next(decoded_lines(path), ("", ""))
    return row + (1 if _is_json(first) else 2)


def _records(path: Path, columns: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, int, dict[str, str] | str]]:
    """Yields ``(row, line, fields or reason)`` for a TSV with a header or JSON lines; rows from 0, lines from 1."""
    lines = decoded_lines(path)
    first, reason = next(lines, ("", "no line"))
    parse: Callable[[str], dict[str, str] | str] = _json
    start = 1
    if _is_json(first):
        lines = chain([(first, reason)], lines)
    else:
        header = [name.strip() for name in first.split("\t")]
        missing = [" or ".join(names) for names in columns.values() if not set(names) & set(header)]
        if missing:
            raise UserError(
                f"{path}:1: found {reason or header}, expected JSON lines or a header with the columns "
                f"{', '.join(missing)}"
            )
        # The annotators' labels at the end (label1 … label5) are optional: only dev and test rows have all five.
        needed = max(i for i, name in enumerate(header, 1) if not re.fullmatch(r"label\d", name))
        parse, start = partial(_tsv, header=header, needed=needed), 2
    row = -1
    for row, (line, reason) in enumerate(lines):
        yield row, row + start, reason or parse(line)
    check_not_empty(path, row + 1)


def read_table(
    path: str | Path, columns: Mapping[str, Sequence[str]], parse: Callable[[dict[str, str], int], Example | str]
) -> tuple[list[Example], list[Reject]]:
    """Reads a TSV with a header, or JSON lines.

    Args:
        columns: the accepted column names for each required field.
        parse: converts the fields and the number of a row to an example, or returns the reason for a rejection. The
            fields of ``columns`` have their own names, and are "" without such a column.

    Raises UserError for a header without one of the columns, and for a file without rows.
    """
    path = Path(path)
    examples: list[Example] = []
    rejected = []
    for row, line, record in _records(path, columns):
        parsed: Example | str = record if isinstance(record, str) else ""
        if isinstance(record, dict):
            fields = {
                field: next((record[name] for name in names if name in record), "") for field, names in columns.items()
            }
            parsed = parse({**record, **fields}, row)
        if isinstance(parsed, str):
            rejected.append(Reject(path, line, parsed))
        else:
            examples.append(parsed)
    return examples, rejected


def missing_field(**fields: str) -> str:
    """The reason to reject a row with an empty or missing field, "" if there is none."""
    return next((f"no {name}" for name, value in fields.items() if not value), "")


def unexpected_label(label: str, labels: Sequence[str]) -> str:
    """The reason to reject a label that is not in ``labels``, else "". Empty ``labels`` accept any label."""
    return f"label {label!r}, expected one of {', '.join(labels)}" if labels and label not in labels else ""


def language_of(example: Any) -> str:
    """The language in an example's row, "" if there is none."""
    language: str = getattr(example, "language", "")
    return language


def rows_of(examples: Sequence[Any], language: str) -> list[Any]:
    """The examples in a language (by any of its codes); all examples of a file without a language column."""
    code = standard_code(language)
    return [each for each in examples if not language_of(each) or standard_code(language_of(each)) == code]


def only_file(specs: Sequence[str]) -> Path | None:
    """The file of a single argument without a language prefix, such as ``test.tsv``; otherwise None."""
    if len(specs) == 1 and (":" not in specs[0] or Path(specs[0]).exists()):
        return Path(specs[0])
    return None


def named_files(specs: Sequence[str], flag: str, name: str) -> dict[str, Path]:
    """Files by language for ``en:FILE de:FILE``, or ``{name: FILE}`` for a single ``FILE``; see ``parse_files``."""
    path = only_file(specs)
    return {name: path} if path else parse_files(specs, flag)


def check_same(gold: dict[str, Path], predictions: dict[str, Path]) -> None:
    """Raises UserError unless predictions are given for exactly the gold files' languages."""
    if gold.keys() != predictions.keys():
        raise UserError(
            f"--predictions: found files for {', '.join(predictions)}, expected one for each of {', '.join(gold)}"
        )
