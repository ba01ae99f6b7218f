"""Task data as it is published: natural language inference, question answering, text classification.

A reader returns ``(examples, rejected)``: what can be used, in the file's order, and what cannot, with file, line and
reason. ``row`` counts the data rows of a file from 0, unusable ones too, so that row i of two row-parallel translations
is one example whatever was rejected in either. Names ending in ``.gz`` are read unzipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ppa_fast.data.compression import open_bytes
from ppa_fast.data.languages import is_code, standard_code
from ppa_fast.data.lines import NOT_UTF8, Reject, decoded_lines
from ppa_fast.errors import UserError

NLI_LABELS = ("entailment", "neutral", "contradiction")
NO_GOLD_LABEL = "no gold label (-)"  # SNLI's and MultiNLI's mark of a pair whose annotators do not agree
LISTED = 20  # rejected rows that a message names; it counts the others

NLI_ALIASES = {"contradictory": "contradiction"}  # the machine-translated MultiNLI of XNLI's authors
_PREMISE, _HYPOTHESIS = ("premise", "sentence1"), ("hypothesis", "hypo", "sentence2")
_LABEL, _CATEGORY = ("label", "gold_label"), ("category", "label")


@dataclass(frozen=True)
class NliExample:
    """Does ``premise`` entail ``hypothesis``? ``language`` is the file's column (XNLI has 15 in a file), "" without."""

    premise: str
    hypothesis: str
    label: str
    row: int
    language: str = ""


@dataclass(frozen=True)
class TextExample:
    """A text of class ``label``; ``index`` is SIB-200's ``index_id``, equal in all languages, "" without the column."""

    text: str
    label: str
    row: int
    index: str = ""


@dataclass(frozen=True)
class QaExample:
    """A question on ``context``; ``answers`` are (text, start), ``start`` a character offset in the context.

    ``start`` is -1 where the file gives none (gold answers alone are enough to score with).
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    title: str


@dataclass(frozen=True)
class RejectedQuestion:
    """A question that cannot be used; ``str`` gives ``file: question ID: reason``."""

    path: Path
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: question {self.id}: {self.reason}"


def format_rejected(rejected: Sequence[Reject | RejectedQuestion]) -> str:
    """A line for each rejected row, the first ``LISTED`` of them, and how many more there are."""
    lines = [str(reject) for reject in rejected[:LISTED]]
    if len(rejected) > LISTED:
        lines.append(f"… and {len(rejected) - LISTED:,} more, {len(rejected):,} rejected in all")
    return "\n".join(lines)


def parse_file(spec: str, flag: str) -> tuple[str, Path]:
    """``("en", FILE)`` of an argument ``en:FILE``; raises UserError, naming ``flag``, for other forms and no file."""
    language, colon, name = spec.partition(":")
    if not colon or not name or not is_code(language):
        raise UserError(f"{flag} {spec}: expected LANG:FILE with a BCP-47 code, such as en:train.tsv")
    if not Path(name).is_file():
        raise UserError(f"{flag} {spec}: {name}: no such file")
    return language, Path(name)


def parse_files(specs: Sequence[str], flag: str) -> dict[str, Path]:
    """Files by language of arguments such as ``en:FILE de:FILE``; raises UserError for a language given twice."""
    files: dict[str, Path] = {}
    for spec in specs:
        language, path = parse_file(spec, flag)
        if standard_code(language) in map(standard_code, files):
            raise UserError(f"{flag} {spec}: {language} is given twice; expected each language once")
        files[language] = path
    return files


def output_file(path: str | Path, flag: str) -> Path:
    """The file that an argument names for output, links followed: ``files.write_text`` will replace it.

    Raises UserError, naming ``flag``, where that cannot be: no folder, or what is no regular file, such as /dev/stdout.
    """
    file = Path(path).resolve()
    if not file.parent.is_dir() or (Path(path).exists() and not Path(path).is_file()):
        raise UserError(f"{flag} {path}: expected a regular file in a folder that exists")
    return file


def _tsv(line: str, header: list[str], needed: int) -> dict[str, str] | str:
    """The fields of a row by column, or why there are none. Quotes are text: the published files do not quote."""
    columns = line.split("\t")
    if not needed <= len(columns) <= len(header):
        return f"columns: {len(columns)}, the header has {len(header)}"
    return {name: column.strip() for name, column in zip(header, columns, strict=False)}


def _json(line: str) -> dict[str, str] | str:
    """The texts of a JSON object by key, or why there are none."""
    try:
        record = json.loads(line)
    except ValueError:
        return "not JSON"
    if not isinstance(record, dict):
        return "not a JSON object"
    return {key: value.strip() for key, value in record.items() if isinstance(value, str)}


def _not_empty(path: Path, rows: int) -> None:
    if rows == 0:
        raise UserError(f"{path}: no rows, expected at least one")


def _is_json(first_line: str) -> bool:
    """Whether a file is one of JSON lines; any other has a header."""
    return first_line.startswith("{")


def line_of(path: Path, row: int) -> int:
    """The line, from 1, of a data row, from 0, of a file that ``read_nli`` and ``read_classification`` read."""
    first, _ = next(decoded_lines(path), ("", ""))
    return row + (1 if _is_json(first) else 2)


def _rows(path: Path, columns: Sequence[Sequence[str]]) -> Iterator[tuple[int, int, dict[str, str] | str]]:
    """``(row, line, fields or reason)`` of a TSV with a header, or of JSON lines; rows count from 0, lines from 1.

    ``columns`` are the names that each needed column may have. Raises UserError for a header without one of them, and
    for a file without rows.
    """
    lines = decoded_lines(path)
    first, reason = next(lines, ("", "no line"))
    parse: Callable[[str], dict[str, str] | str] = _json
    start = 1
    if _is_json(first):
        lines = chain([(first, reason)], lines)
    else:
        header = [name.strip() for name in first.split("\t")]
        missing = [" or ".join(names) for names in columns if not set(names) & set(header)]
        if missing:
            raise UserError(
                f"{path}:1: expected JSON lines or a header with the columns {', '.join(missing)}; "
                f"found {reason or header}"
            )
        # The annotators' labels at the end (label1 … label5) may be left out: only dev and test rows have five of them.
        needed = max(i for i, name in enumerate(header, 1) if not re.fullmatch(r"label\d", name))
        parse, start = partial(_tsv, header=header, needed=needed), 2
    row = -1
    for row, (line, reason) in enumerate(lines):
        yield row, row + start, reason or parse(line)
    _not_empty(path, row + 1)


def _field(record: dict[str, str], names: Sequence[str]) -> str:
    return next((record[name] for name in names if name in record), "")


def _lack(**fields: str) -> str:
    """Why a row with an empty or missing field cannot be used, "" where it can."""
    return next((f"no {name}" for name, value in fields.items() if not value), "")


def read_nli(path: str | Path, labels: Sequence[str] = NLI_LABELS) -> tuple[list[NliExample], list[Reject]]:
    """Reads NLI data: TSV with a header, or JSON lines.

    The forms are XNLI's and MultiNLI's (``sentence1``, ``sentence2``, ``gold_label``, XNLI with ``language``) and
    ``premise``, ``hypothesis`` or ``hypo``, ``label``. ``contradictory`` is read as ``contradiction``.

    Rejected are rows with another number of columns than the header, an empty text, no gold label (``-``), a label
    outside ``labels``, a language that is no code, or bytes that are not UTF-8. Raises UserError for a file without
    rows or with another header.
    """
    path = Path(path)
    examples, rejected = [], []
    for row, line, record in _rows(path, (_PREMISE, _HYPOTHESIS, _LABEL)):
        if isinstance(record, str):
            rejected.append(Reject(path, line, record))
            continue
        premise, hypothesis, label = (_field(record, names) for names in (_PREMISE, _HYPOTHESIS, _LABEL))
        label, language = NLI_ALIASES.get(label, label), record.get("language", "")
        reason = NO_GOLD_LABEL if label == "-" else _lack(premise=premise, hypothesis=hypothesis, label=label)
        if not reason and label not in labels:
            reason = f"label {label!r}, expected one of {', '.join(labels)}"
        if not reason and "language" in record and not is_code(language):
            reason = f"language {language!r}, expected a BCP-47 code such as en"
        if reason:
            rejected.append(Reject(path, line, reason))
        else:
            examples.append(NliExample(premise, hypothesis, label, row, language))
    return examples, rejected


def language_of(example: NliExample | TextExample) -> str:
    """The language that an example's row states, "" where it states none."""
    return example.language if isinstance(example, NliExample) else ""


def rows_of(examples: Sequence[NliExample | TextExample], language: str) -> list[Any]:
    """The examples in a language (by any code of it) of a file with a column for it; of another file all."""
    code = standard_code(language)
    return [each for each in examples if not language_of(each) or standard_code(language_of(each)) == code]


def read_classification(
    path: str | Path, labels: Sequence[str] | None = None
) -> tuple[list[TextExample], list[Reject]]:
    """Reads classified texts: TSV with the columns ``text`` and ``category`` or ``label`` (SIB-200), or JSON lines.

    ``labels`` None takes any label that is not empty. Rejected are rows with another number of columns than the header,
    an empty text or label, a label outside ``labels``, or bytes that are not UTF-8. Raises UserError for a file without
    rows or with another header.
    """
    path = Path(path)
    examples, rejected = [], []
    for row, line, record in _rows(path, (("text",), _CATEGORY)):
        if isinstance(record, str):
            rejected.append(Reject(path, line, record))
            continue
        text, label = record.get("text", ""), _field(record, _CATEGORY)
        reason = _lack(text=text, label=label)
        if not reason and labels is not None and label not in labels:
            reason = f"label {label!r}, expected one of {', '.join(labels)}"
        if reason:
            rejected.append(Reject(path, line, reason))
        else:
            examples.append(TextExample(text, label, row, record.get("index_id", "")))
    return examples, rejected


def load_json(path: str | Path) -> Any:
    """The value in a JSON file; raises UserError, naming the line, where it is none."""
    path = Path(path)
    with open_bytes(path) as file:
        data = file.read()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {NOT_UTF8}: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def _questions(path: Path) -> Iterator[QaExample]:
    """The questions of a SQuAD 1.1 file; raises UserError, naming the place, where it has another form."""

    def get(owner: Any, key: str, kind: type, place: str, default: Any = None) -> Any:
        value = owner.get(key, default) if isinstance(owner, dict) else None
        if not isinstance(value, kind):
            name = {list: "a list", str: "a text", int: "a whole number"}[kind]
            raise UserError(f"{path}: {place}: expected {key!r}, {name}, as in SQuAD 1.1; found {str(value)[:50]!r}")
        return value

    for i, article in enumerate(get(load_json(path), "data", list, "the file")):
        for j, paragraph in enumerate(get(article, "paragraphs", list, f"data[{i}]")):
            place = f"data[{i}].paragraphs[{j}]"
            for k, question in enumerate(get(paragraph, "qas", list, place)):
                id_ = get(question, "id", str, f"{place}.qas[{k}]")
                answers = [
                    (get(answer, "text", str, id_), get(answer, "answer_start", int, id_, -1))
                    for answer in get(question, "answers", list, id_)
                ]
                yield QaExample(
                    id=id_,
                    question=get(question, "question", str, id_, ""),
                    context=get(paragraph, "context", str, place, ""),
                    answers=tuple(answers),
                    title=get(article, "title", str, f"data[{i}]", ""),
                )


def read_gold(path: str | Path, asked: bool = False) -> tuple[list[QaExample], list[RejectedQuestion]]:
    """Reads a SQuAD 1.1 file to score with: each question that has an id of its own and a gold answer.

    As in the official scripts, the answers' texts count and not their offsets (``read_qa`` looks at these). To be
    ``asked`` of a model, a question needs its text and a context, too.

    Raises UserError for a file that is not of SQuAD's form or has no questions.
    """
    path = Path(path)
    examples: dict[str, QaExample] = {}
    rejected = []
    for question in _questions(path):
        if question.id in examples:
            rejected.append(RejectedQuestion(path, question.id, "an earlier question has this id"))
        elif not question.answers:
            rejected.append(RejectedQuestion(path, question.id, "no answer"))
        elif asked and (reason := _lack(question=question.question.strip(), context=question.context.strip())):
            rejected.append(RejectedQuestion(path, question.id, reason))
        else:
            examples[question.id] = question
    _not_empty(path, len(examples) + len(rejected))
    return list(examples.values()), rejected


def _misplaced(example: QaExample) -> str:
    """Which answer is not where it should be, "" where all are."""
    for text, start in example.answers:
        found = example.context[start : start + len(text)] if start >= 0 else ""
        if not text or found != text:
            return f"answer {text!r} is not at character {start} of its context, which has {found!r} there"
    return ""


def read_qa(path: str | Path) -> tuple[list[QaExample], list[RejectedQuestion]]:
    """Reads extractive question answering in SQuAD 1.1 JSON (SQuAD, MLQA, XQuAD).

    Rejected are what ``read_gold`` rejects of questions to be asked, and a question with an answer that is not, to
    the character, where ``answer_start`` says. Raises UserError for a file that is not of SQuAD's form or has no
    questions.
    """
    path = Path(path)
    questions, rejected = read_gold(path, asked=True)
    examples = []
    for example in questions:
        if reason := _misplaced(example):
            rejected.append(RejectedQuestion(path, example.id, reason))
        else:
            examples.append(example)
    return examples, rejected
