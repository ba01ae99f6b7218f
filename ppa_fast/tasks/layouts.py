"""Finds published evaluation sets in a folder by their usual file names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppa_fast.data.reading.compression import unpacked_name
from ppa_fast.data.reading.languages import best_match, is_code, standard_code
from ppa_fast.errors import UserError, shortened
from ppa_fast.tasks.nli import read_nli


@dataclass(frozen=True)
class Layout:
    """The file names of a data set, and the tasks that it tests.

    ``pattern`` matches the end of a path, with ``/`` between names and without an extension such as ``.gz``. Its groups
    are all optional:

    - ``language``: the language of the file; without it, the file's rows state their languages.
    - ``question``: the second language of a file with two (MLQA).
    - ``set``: the part of the name that the files of one evaluation set share; they also share their folder.
    - ``a``, ``b``, ``part``: the two languages of word links, and the role of the file: ``gold``, ``src-tgt`` or a
      language.
    - ``name``: text that is added to the name of the data set.
    - ``split``: files of ``train`` and ``dev`` are not scored.

    ``options``: further options of the evaluation.
    """

    pattern: str
    tasks: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


_FLORES = r"(?P<language>[a-z]{3}_[A-Z][a-z]{3})"
LAYOUTS = {
    "Tatoeba": Layout(r"tatoeba\.(?P<set>\w+-\w+)\.(?P<language>\w+)", ("retrieval",)),
    "FLORES-200": Layout(rf"(?P<split>dev|devtest)/{_FLORES}\.(?P=split)", ("retrieval", "mine")),
    "NTREX": Layout(r"newstest2019-(?:src|ref)\.(?P<language>[\w-]+)\.txt", ("retrieval", "mine")),
    "word links": Layout(r"(?P<a>[a-z]{2,3}?)-?(?P<b>[a-z]{2,3})\.(?P<part>gold|src-tgt|(?P=a)|(?P=b))", ("align",)),
    "XNLI": Layout(r"xnli\.(?P<split>dev|test)\.tsv", ("nli",)),
    "MultiNLI": Layout(r"multinli\.(?P<language>\w+)\.tsv", ("nli",)),
    "SIB-200": Layout(rf"{_FLORES}/(?P<split>train|dev|test)\.tsv", ("classify",)),
    "XQuAD": Layout(r"xquad\.(?P<language>\w+)\.json", ("qa",), {"metric": "squad"}),
    "MLQA": Layout(r"(?P<split>dev|test)-context-(?P<language>\w+)-question-(?P<question>\w+)\.json", ("qa",)),
    "UD": Layout(r"(?P<language>[a-z]{2,3})_(?P<name>\w+)-ud-(?P<split>train|dev|test)\.conllu", ("tagging",)),
    "PUD": Layout(r"pud\.(?P<language>\w+)\.tsv", ("tagging",)),
}
"""Data set → its layout."""

UNKNOWN = "not a file name of a known data set"


@dataclass(frozen=True)
class EvaluationSet:
    """Files to score: a data set in one language, or in two.

    ``languages``: the codes as the files name them. ``files``: one file, a file for each of two languages, or the text
    of word links and then the gold links.
    """

    dataset: str
    tasks: tuple[str, ...]
    languages: tuple[str, ...]
    files: tuple[Path, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def language(self) -> str:
        """The languages as a name: "de", or "en-de"."""
        return "-".join(map(standard_code, self.languages))


LeftOut = list[tuple[Path, str]]
"""Files that are not scored, with the reason."""


def find_sets(
    folder: Path, pivot: str = "en", languages: Sequence[str] = (), ignored: Path | None = None
) -> tuple[list[EvaluationSet], LeftOut]:
    """The evaluation sets in a folder and its subfolders, in the order of ``LAYOUTS``, and the files without a score.

    Parallel files are paired with the file in ``pivot``. ``languages``: the languages to score besides the pivot; all
    if empty. Hidden files, and files in the folder ``ignored``, are ignored. Raises UserError for a folder without
    files.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_hidden(path.relative_to(folder))]
    paths = [path for path in paths if ignored is None or ignored.resolve() not in path.resolve().parents]
    if not paths:
        raise UserError(f"data: found no files in {folder}, expected a folder of evaluation sets")
    left: LeftOut = []
    groups: dict[tuple[str, Path, str, str], dict[str, Path]] = defaultdict(dict)
    for path in paths:
        dataset, parts = _match(folder.resolve().name / path.relative_to(folder))
        codes = [parts[name].replace("-", "_") for name in ("language", "question", "a", "b") if name in parts]
        if not dataset:
            left.append((path, UNKNOWN))
        elif parts.get("split") in ("train", "dev"):
            left.append((path, f"training or development data of {dataset}"))
        elif not all(map(is_code, codes)):
            left.append((path, f"a file name of {dataset} without a BCP-47 language code"))
        else:
            languages_of = "-".join(dict.fromkeys(codes))
            together, key = parts.get("set", ""), languages_of
            if "part" in parts:
                together, key = languages_of, parts["part"]
            title = f"{dataset} {parts['name']}" if "name" in parts else dataset
            group = groups[dataset, path.parent, together, title]
            if group.setdefault(key, path) != path:
                left.append((path, f"the same as {group[key].name}"))

    sets: dict[tuple[str, str], EvaluationSet] = {}
    for (dataset, _, together, title), files in sorted(groups.items(), key=lambda each: [*LAYOUTS].index(each[0][0])):
        layout = LAYOUTS[dataset]
        for named, members in _members(layout, together, files, pivot, left):
            found = EvaluationSet(title, layout.tasks, named, members, layout.options)
            if languages and any(best_match(code, [pivot, *languages]) is None for code in named):
                left.append((members[-1], "not in the given languages"))
            elif (title, found.language) in sets:
                left.append((members[-1], f"{title} {found.language} is also in another folder"))
            else:
                sets[title, found.language] = found
    return list(sets.values()), left


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _match(path: Path) -> tuple[str, dict[str, str]]:
    """The data set of a file and the groups of its pattern that matched; ("", {}) for an unknown file."""
    for dataset, layout in LAYOUTS.items():
        if found := re.fullmatch(f"(?:.*/)?{layout.pattern}", unpacked_name(path).as_posix()):
            return dataset, {name: text for name, text in found.groupdict().items() if text}
    return "", {}


Members = tuple[tuple[str, ...], tuple[Path, ...]]


def _members(layout: Layout, together: str, files: dict[str, Path], pivot: str, left: LeftOut) -> Iterator[Members]:
    """The languages and files of each evaluation set among files that belong together."""
    if "retrieval" in layout.tasks:
        return _pairs(files, pivot, left)
    if "align" in layout.tasks:
        return _links(together.split("-"), files, left)
    return _single(files, left)


def _pairs(files: dict[str, Path], pivot: str, left: LeftOut) -> Iterator[Members]:
    """The file in the pivot language with the file in each other language."""
    place = best_match(pivot, [*files])
    others = [code for code in files if best_match(pivot, [code]) is None]
    if place is None or not others:
        missing = f"in the pivot language {pivot}" if place is None else "in another language"
        left += [(path, f"no file {missing} beside it") for path in files.values()]
        return
    first = [*files][place]
    left += [
        (path, f"the file of the pivot language {pivot} is {files[first].name}")
        for code, path in files.items()
        if code != first and code not in others
    ]
    yield from (((first, code), (files[first], files[code])) for code in others)


def _links(codes: Sequence[str], files: dict[str, Path], left: LeftOut) -> Iterator[Members]:
    """Gold links with their text: one file ``src-tgt``, or a file for each language."""
    texts = [files[part] for part in (["src-tgt"] if "src-tgt" in files else codes) if part in files]
    if "gold" in files and (len(texts) == 2 or "src-tgt" in files):
        yield tuple(codes), (*texts, files["gold"])
    else:
        expected = f"expected .gold with .src-tgt, or with {' and '.join(f'.{code}' for code in codes)}"
        left += [(path, f"incomplete word links: {expected}") for path in files.values()]


def _single(files: dict[str, Path], left: LeftOut) -> Iterator[Members]:
    """One file for each language, or a file whose rows state their languages (XNLI)."""
    for code, path in files.items():
        try:
            codes = [code] if code else dict.fromkeys(example.language for example in read_nli(path)[0])
        except UserError as error:
            left.append((path, one_line(error)))
        else:
            yield from ((tuple(each.split("-")), (path,)) for each in codes)


def one_line(error: UserError) -> str:
    """An error as the reason that something is not scored."""
    return shortened("; ".join(str(error).splitlines()))
