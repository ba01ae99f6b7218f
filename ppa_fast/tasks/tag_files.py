"""Reads files of tagged words: CoNLL, PAN-X, CoNLL-U and TSV."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ppa_fast.data.reading.lines import decoded_lines
from ppa_fast.tasks.reading import RejectedSentence, check_evaluation_set, check_not_empty, unexpected_label

_ID = re.compile(r"#\s*(?:id\s+)?(\S+)")
_CONLLU_ID = re.compile(r"#\s*sent_id\s*=\s*(\S+)")
_CONLLU = re.compile(r"\d+(?:[-.]\d+)?(?:\t[^\t]*){9}")
_PANX = re.compile(r"[a-z]{2,}(?:-[a-z]+)*:")


@dataclass(frozen=True)
class TaggedSentence:
    """Words with one tag each. ``row``: the sentence's number in the file, from 0; ``line``: its first line, from 1.

    ``index``: the id in the comment before the sentence, which is the same in all languages; "" if absent.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    row: int
    line: int
    index: str = ""


@dataclass(frozen=True)
class _Layout:
    """The layout of a file. Without ``tabs``, spaces separate its columns. ``only_tags``: one column is enough."""

    conllu: bool
    tabs: bool
    only_tags: bool

    def is_comment(self, line: str) -> bool:
        """Whether a line is a comment. If spaces separate the columns, only ``# id`` starts one, because ``#`` may be a
        word."""
        return line.startswith("#" if self.conllu or self.tabs else "# id ") and (self.conllu or "\t" not in line)

    def index(self, comment: str) -> str:
        """The sentence's id in a comment, "" if there is none."""
        found = (_CONLLU_ID if self.conllu else _ID).match(comment)
        return found[1] if found else ""

    def word(self, line: str) -> tuple[str, str] | str | None:
        """The word and the tag of a line, the reason to reject it, or None for a multiword token or an empty node."""
        fields = line.split("\t") if self.tabs else [field for field in line.split(" ") if field]
        if self.conllu and len(fields) != 10:
            return f"found {len(fields)} columns, expected 10 as in CoNLL-U"
        if self.conllu and re.search("[-.]", fields[0]):
            return None
        word, tag = (fields[1], fields[3]) if self.conllu else (fields[0].strip(" "), fields[-1].strip(" "))
        if not tag or (self.conllu and tag == "_") or (len(fields) < 2 and not self.only_tags):
            return "no tag"
        return (word, tag) if word or self.only_tags else "no word"


def _blocks(lines: Sequence[tuple[str, str]]) -> Iterator[list[tuple[int, str, str]]]:
    """The (number, text, problem) of the lines between empty lines and lines with -DOCSTART-."""
    block = []
    for number, (line, problem) in enumerate([*lines, ("", "")], 1):
        if problem or (line.strip(" \t") and not line.startswith("-DOCSTART-")):
            block.append((number, line, problem))
        elif block:
            yield block
            block = []


def _sentences(
    path: Path, labels: Sequence[str] = (), only_tags: bool = False
) -> tuple[list[TaggedSentence], list[RejectedSentence]]:
    lines = [*decoded_lines(path)]
    first = next((line for line, _ in lines if "\t" in line and not line.startswith("#")), "")
    layout = _Layout(".conllu" in path.suffixes or bool(_CONLLU.fullmatch(first)), bool(first), only_tags)
    sentences: list[TaggedSentence] = []
    rejected: list[RejectedSentence] = []
    for block in _blocks(lines):
        row, index = len(sentences) + len(rejected), ""
        words: list[tuple[str, str]] = []
        bad: list[RejectedSentence] = []
        for number, line, problem in block:
            if not problem and layout.is_comment(line):
                index = layout.index(line) or index
                continue
            found = problem or layout.word(line)
            if found is None:
                continue
            reason = found if isinstance(found, str) else unexpected_label(found[1], labels)
            if isinstance(found, str) or reason:
                bad.append(RejectedSentence(path, number, reason, row))
            else:
                words.append(found)
        if bad:
            rejected.append(bad[0])
        elif words:
            texts, tags = zip(*words, strict=True)
            sentences.append(TaggedSentence(texts, tags, row, block[0][0], index))
    check_not_empty(path, len(sentences) + len(rejected))
    return sentences, rejected


def _without_language(sentences: list[TaggedSentence]) -> list[TaggedSentence]:
    """The sentences without the prefix of PAN-X (``de:``), if all words of the file have the same prefix."""
    found = {match[0] if (match := _PANX.match(word)) else "" for each in sentences for word in each.words}
    if len(found) != 1 or not (prefix := found.pop()):
        return sentences
    return [replace(each, words=tuple(word.removeprefix(prefix) for word in each.words)) for each in sentences]


def read_tagged(path: str | Path, labels: Sequence[str] = ()) -> tuple[list[TaggedSentence], list[RejectedSentence]]:
    """Reads sentences of tagged words, plain or .gz, in one of four layouts, which is detected.

    - CoNLL-2002 and CoNLL-2003: a line for each word, which is the first column; its tag is the last one. Spaces
      separate the columns. An empty line ends a sentence. Lines that begin with ``-DOCSTART-`` are skipped.
    - TSV: the same with tabs, so that a word may contain spaces. A line without a tab that begins with ``#`` is a
      comment; before a sentence it has the sentence's id.
    - PAN-X (WikiANN): TSV whose words all begin with the code of the language and a colon, which are removed.
    - CoNLL-U (Universal Dependencies), by its 10 columns or the extension ``.conllu``: FORM and UPOS. Multiword tokens
      (``1-2``) and empty nodes (``1.1``) are skipped.

    Rejects a sentence with a line without a word or a tag, with a tag outside ``labels`` (if ``labels`` is empty, any
    tag is accepted), with a wrong number of columns of CoNLL-U, or with bytes that are not UTF-8. A rejected sentence
    has the number of its first bad line. Raises UserError for a file without sentences.
    """
    sentences, rejected = _sentences(Path(path), labels)
    return _without_language(sentences), rejected


def read_tags(path: str | Path) -> list[tuple[str, ...]]:
    """The tags of each sentence of a file in a layout of ``read_tagged``, or with a tag alone in each line.

    Raises UserError, naming the lines, for sentences that ``read_tagged`` rejects.
    """
    sentences, rejected = _sentences(Path(path), only_tags=True)
    check_evaluation_set(rejected)
    return [sentence.tags for sentence in sentences]
