"""Learnable data sets of pseudo text in "en", "de" and "fr": the meaning of a word decides, in every language."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from tests.conftest import pseudo_text

CODES = ("en", "de", "fr")
LABELS = ("entailment", "neutral", "contradiction")


def meanings() -> list[tuple[str, ...]]:
    """The words of each meaning by language, from the corpus of the tiny tokenizer."""
    lines = pseudo_text(0, 150)
    words = zip(*(" ".join(lines[code]).split() for code in CODES), strict=True)
    return sorted(set(words))


def _words_of_class(rng: random.Random, label: int, count: int) -> list[tuple[str, ...]]:
    """Returns words whose meanings belong to one of three classes."""
    return rng.choices(meanings()[label::3], k=count)


def _text(words: list[tuple[str, ...]], language: int) -> str:
    return " ".join(word[language] for word in words)


def _files(folder: Path, name: str, content: Callable[[int], str]) -> dict[str, Path]:
    files = {code: folder / f"{name}.{code}" for code in CODES}
    for language, path in enumerate(files.values()):
        path.write_text(content(language), encoding="utf-8")
    return files


def nli(folder: Path, name: str, rows: int, seed: int) -> dict[str, Path]:
    """The class of the hypothesis is the label; the premise is irrelevant."""
    rng = random.Random(seed)
    examples = []
    for row in range(rows):
        premise = _words_of_class(rng, rng.randrange(3), 3)
        examples.append((premise, _words_of_class(rng, row % 3, 3), LABELS[row % 3]))

    def content(language: int) -> str:
        lines = [f"{_text(p, language)}\t{_text(h, language)}\t{label}" for p, h, label in examples]
        return "\n".join(["premise\thypo\tlabel", *lines]) + "\n"

    return _files(folder, name, content)


def classify(folder: Path, name: str, rows: int, seed: int) -> dict[str, Path]:
    """The class of the words is the category."""
    rng = random.Random(seed)
    examples = [(_words_of_class(rng, row % 3, 4), ("geography", "health", "travel")[row % 3]) for row in range(rows)]

    def content(language: int) -> str:
        lines = [f"{row}\t{label}\t{_text(words, language)}" for row, (words, label) in enumerate(examples)]
        return "\n".join(["index_id\tcategory\ttext", *lines]) + "\n"

    return _files(folder, name, content)


def qa(folder: Path, name: str, rows: int, seed: int, length: int = 6) -> dict[str, Path]:
    """The answer is the only word of the first class in the context. The question is of the second class and
    irrelevant."""
    rng = random.Random(seed)
    examples = []
    for _ in range(rows):
        context = [_words_of_class(rng, rng.choice((1, 2)), 1)[0] for _ in range(length)]
        place = rng.randrange(length)
        context[place] = _words_of_class(rng, 0, 1)[0]
        examples.append((_words_of_class(rng, 1, 2), context, place))

    def content(language: int) -> str:
        paragraphs = []
        for row, (question, context, place) in enumerate(examples):
            before = _text(context[:place], language)
            answer = {"text": context[place][language], "answer_start": len(before) + bool(before)}
            asked = {"id": f"q{row}", "question": _text(question, language) + "?", "answers": [answer]}
            paragraphs.append({"context": _text(context, language), "qas": [asked]})
        return json.dumps({"version": "1.1", "data": [{"title": "toy", "paragraphs": paragraphs}]})

    return _files(folder, name, content)


def tagging(folder: Path, name: str, rows: int, seed: int) -> dict[str, Path]:
    """The class of a word is its tag."""
    rng = random.Random(seed)
    tags = ("ADJ", "NOUN", "VERB")
    examples = []
    for _ in range(rows):
        labels = [rng.randrange(3) for _ in range(rng.randint(1, 6))]
        examples.append([(_words_of_class(rng, label, 1)[0], tags[label]) for label in labels])

    def content(language: int) -> str:
        return "".join(
            f"# s{row}\n" + "".join(f"{word[language]}\t{tag}\n" for word, tag in words) + "\n"
            for row, words in enumerate(examples)
        )

    return _files(folder, name, content)


def specs(files: dict[str, Path], *codes: str) -> list[str]:
    """Returns arguments such as ``en:FILE`` for the languages, all of them by default."""
    return [f"{code}:{files[code]}" for code in codes or CODES]
