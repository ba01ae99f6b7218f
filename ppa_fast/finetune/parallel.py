"""Row-parallel training data: the same examples in several languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppa_fast.data.examples import QaExample, RejectedQuestion, format_rejected, line_of
from ppa_fast.data.lines import Reject
from ppa_fast.errors import UserError

Rejected = Reject | RejectedQuestion
Reader = Callable[[Path, str], tuple[list[Any], list[Any]]]  # of a file and its language


@dataclass(frozen=True)
class Parallel:
    """``examples[code][i]`` are translations of each other; ``rows[i]`` is their row in the files, counted from 0.

    For question answering it is the question's place among those usable in the first file. ``rejected`` lists what is
    left out, in all languages together.
    """

    examples: dict[str, list[Any]]
    rows: list[int]
    rejected: list[Rejected]


def _mark(path: Path, example: Any, reason: str) -> Rejected:
    """A rejected example with its place: the question's id, or the line in a TSV with a header or in JSON lines."""
    if isinstance(example, QaExample):
        return RejectedQuestion(path, example.id, reason)
    return Reject(path, line_of(path, example.row), reason)


def _key(example: Any) -> Hashable:
    return example.id if isinstance(example, QaExample) else example.row


def _difference(translation: Any, example: Any) -> str:
    """What translations of one example must have in common and these have not, "" where they have."""
    for name in ("label", "index"):
        found, expected = (getattr(each, name, None) for each in (translation, example))
        if found != expected:
            return f"{name} {found!r}, but {expected!r}"
    return ""


def _check_lengths(files: dict[str, Path], counts: dict[str, int]) -> None:
    """Files are joined by row: of unequal length they cannot be parallel (most have the right one)."""
    expected = Counter(counts.values()).most_common(1)[0][0]
    if wrong := [f"{files[code]} has {count:,}" for code, count in counts.items() if count != expected]:
        named = next(files[code] for code, count in counts.items() if count == expected)
        raise UserError(
            f"--train: files of unequal length: {named} has {expected:,} rows, {', '.join(wrong)}; "
            "row i of all must be one example"
        )


def read_parallel(files: dict[str, Path], read: Reader, max_rejected: float = 0.05) -> Parallel:
    """Reads row-parallel files by language and keeps what is usable in all of them.

    Rows are joined by their number, questions by their id (in the order of the first file). An example that a reader
    rejects in one language, that one language lacks, or whose label (or ``index_id``) differs from the first file's is
    left out in all, and listed.

    Raises UserError for files with unequal numbers of rows, and where more than the share ``max_rejected`` of the
    first file's examples is left out, or all of them.
    """
    found: dict[str, dict[Hashable, Any]] = {}
    rejected: list[Rejected] = []
    listed: set[Hashable] = set()
    counts: dict[str, int] = {}
    for code, path in files.items():
        examples, bad = read(path, code)
        found[code] = {_key(example): example for example in examples}
        counts[code] = len(examples) + len(bad)
        rejected += bad
        start = line_of(path, 0) if any(isinstance(reject, Reject) for reject in bad) else 0
        listed |= {reject.line - start if isinstance(reject, Reject) else reject.id for reject in bad}
    first, *others = files
    by_id = any(isinstance(example, QaExample) for examples in found.values() for example in examples.values())
    if not by_id:
        _check_lengths(files, counts)

    kept: dict[str, list[Any]] = {code: [] for code in files}
    rows = []
    for place, (key, example) in enumerate(found[first].items()):
        translations = {code: found[code].get(key) for code in files}
        usable = all(translation is not None for translation in translations.values())
        for code in others:
            translation = translations[code]
            if translation is None:
                if key not in listed:
                    rejected.append(_mark(files[first], example, f"not in {code}:{files[code]}"))
            elif reason := _difference(translation, example):
                rejected.append(_mark(files[code], translation, f"{reason} in {files[first]}"))
                usable = False
        if usable:
            rows.append(place if by_id else example.row)
            for code, translation in translations.items():
                kept[code].append(translation)
    rejected += [
        _mark(files[code], example, f"not in {first}:{files[first]}")
        for code in others
        for key, example in found[code].items()
        if key not in found[first] and key not in listed
    ]

    share = 1 - len(rows) / counts[first]
    if not rows or share > max_rejected:
        raise UserError(
            f"--train: {counts[first] - len(rows):,} of {counts[first]:,} examples are not usable in every language "
            f"({share:.1%}, at most {max_rejected:.1%} is accepted):\n{format_rejected(rejected)}"
        )
    return Parallel(kept, rows, rejected)
