"""Row-parallel training data: the same examples in several languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppa_fast.data.reading.lines import Reject
from ppa_fast.errors import UserError
from ppa_fast.tasks.question_answering import QaExample
from ppa_fast.tasks.reading import (
    Rejected,
    RejectedQuestion,
    RejectedSentence,
    format_rejected,
    line_of,
    rows_of,
)
from ppa_fast.tasks.tag_files import TaggedSentence

Reader = Callable[[Path], tuple[list[Any], list[Any]]]


@dataclass(frozen=True)
class ParallelExamples:
    """Examples by language. ``examples[code][i]`` for all codes are translations of each other.

    ``rows[i]`` is their row in the files, counted from 0. For question answering it is the question's index among the
    usable ones of the first file. ``rejected`` lists the dropped examples of all languages.
    """

    examples: dict[str, list[Any]]
    rows: list[int]
    rejected: list[Rejected]


def _mark(path: Path, example: Any, reason: str) -> Rejected:
    """A rejected example with its position: the question's id, or the line in a file of sentences or rows."""
    if isinstance(example, QaExample):
        return RejectedQuestion(path, example.id, reason)
    if isinstance(example, TaggedSentence):
        return RejectedSentence(path, example.line, reason, example.row)
    return Reject(path, line_of(path, example.row), reason)


def _key(example: Any) -> Hashable:
    return example.id if isinstance(example, QaExample) else example.row


def _rejected_key(reject: Rejected, first_line: int) -> Hashable:
    if isinstance(reject, RejectedQuestion):
        return reject.id
    return reject.row if isinstance(reject, RejectedSentence) else reject.line - first_line


def _difference(translation: Any, example: Any) -> str:
    """The first difference in label or index between translations of one example, "" if there is none."""
    for name in ("label", "index"):
        found, expected = (getattr(each, name, None) for each in (translation, example))
        if found != expected:
            return f"{name} {found!r}, expected {expected!r} as"
    return ""


def _check_lengths(files: dict[str, Path], counts: dict[str, int]) -> None:
    """Raises UserError for files of unequal length; the most frequent length is taken as the expected one."""
    expected = Counter(counts.values()).most_common(1)[0][0]
    if wrong := [f"{files[code]} has {count:,}" for code, count in counts.items() if count != expected]:
        named = next(files[code] for code, count in counts.items() if count == expected)
        raise UserError(
            f"--train: found files of unequal length: {named} has {expected:,} rows, {', '.join(wrong)}; expected row "
            "i to be the same example in all files"
        )


def read_parallel(files: dict[str, Path], read: Reader, max_rejected: float = 0.05) -> ParallelExamples:
    """Reads row-parallel files by language and keeps the examples that are usable in all languages.

    Rows are joined by number, questions by id (in the order of the first file). An example is dropped in all languages
    and listed if it is rejected or missing in one language, or if its label (or ``index_id``) differs from the first
    file's.

    Raises UserError for files with unequal numbers of rows, and if all examples of the first file, or more than the
    share ``max_rejected``, are dropped.
    """
    found: dict[str, dict[Hashable, Any]] = {}
    rejected: list[Rejected] = []
    listed: set[Hashable] = set()
    counts: dict[str, int] = {}
    for code, path in files.items():
        examples, bad = read(path)
        examples = rows_of(examples, code)
        found[code] = {_key(example): example for example in examples}
        counts[code] = len(examples) + len(bad)
        rejected += bad
        start = line_of(path, 0) if any(isinstance(reject, Reject) for reject in bad) else 0
        listed |= {_rejected_key(reject, start) for reject in bad}
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
            f"--train: found {counts[first] - len(rows):,} of {counts[first]:,} examples unusable in some language "
            f"({share:.1%}), expected at most {max_rejected:.1%}:\n{format_rejected(rejected)}"
        )
    return ParallelExamples(kept, rows, rejected)
