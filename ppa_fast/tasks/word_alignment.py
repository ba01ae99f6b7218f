"""Word alignment with an encoder, and its error rate, precision and recall (Och and Ney, 2003).

A link is (sentence, source position, target position), counted from 0. The links of a corpus form one set, so that
counts are set sizes. Links to a NULL word are not scored, as in the shared task of 2005.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ppa_fast.data.reading.languages import split_paths
from ppa_fast.data.reading.lines import Reject, decoded_lines, text_lines
from ppa_fast.data.reading.source import EMPTY_SIDE
from ppa_fast.errors import UserError
from ppa_fast.files import output_file, write_text
from ppa_fast.progress import Progress
from ppa_fast.settings import AlignmentSettings
from ppa_fast.tasks.evaluation import evaluation

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor

    from ppa_fast.tasks.embedder import Embedder

CHUNK = 1024  # pairs embedded at a time: 0.25 GB for 40 subwords per sentence and width 768

Link = tuple[int, int, int]

_PHARAOH = re.compile(r"([0-9]+)([-SpP])([0-9]+)")
_NUMBERED = re.compile(r"([0-9]+)\s+([0-9]+)\s+([0-9]+)(?:\s+([SP]))?(?:\s+[0-9.]+)?(?:\s+([SP]))?")
_FORMS = "'i-j' and 'ipj' (one line per sentence) or 'sentence i j [S|P] [confidence]' (one line per link)"


class WordLinks(NamedTuple):
    """The links of a file with ``sentences`` sentences. ``possible`` includes the ``sure`` links.

    ``lines``: the number of the first line with a link, for all links. ``numbered``: whether lines contain sentence
    numbers; ``sentences`` is then the number of the last sentence with a link.
    """

    sure: set[Link]
    lines: dict[Link, int]
    sentences: int
    numbered: bool

    @property
    def possible(self) -> set[Link]:
        return set(self.lines)


def read_alignment(path: str | Path, one_indexed: bool = False) -> WordLinks:
    """Reads word links in one of two formats, detected by the first non-empty line.

    - Pharaoh: one sentence per line, with sure links ``i-j`` or ``iSj`` and possible links ``ipj`` or ``iPj``; the
      line may be empty.
    - The format of the shared tasks of 2003 and 2005 (Mihalcea and Pedersen): one link per line, ``sentence i j``, then
      ``S`` (the default) or ``P`` and a confidence, both optional. Sentences are numbered from 1, or from 0 if the file
      has a sentence 0.

    ``one_indexed``: positions i and j in the file are numbered from 1. Repeated links count once; a link that is sure
    and possible is sure. Raises UserError, naming the line, for another format, and for a position 0 with
    ``one_indexed``.
    """
    sure: set[Link] = set()
    lines: dict[Link, int] = {}
    count, numbered = 0, None
    for line, text in text_lines(path):
        fields = text.split()
        if fields and numbered is None:
            numbered = fields[0].isdigit()
        if numbered:
            matches = [_NUMBERED.fullmatch(text)] if fields else []
            links = [(int(m[1]), m[2], m[3], "P" in m.groups()) for m in matches if m]
        else:
            matches = [_PHARAOH.fullmatch(field) for field in fields]
            links = [(line - 1, m[1], m[3], m[2] in "pP") for m in matches if m]
            count = line
        if len(links) < len(matches):
            raise UserError(f"{path}:{line}: found {text[:80]!r}, expected links {_FORMS}")
        for sentence, source, target, only_possible in links:
            link = (sentence, int(source) - one_indexed, int(target) - one_indexed)
            if min(link) < 0:
                raise UserError(f"{path}:{line}: found position 0, expected positions from 1; remove links to NULL")
            lines.setdefault(link, line)
            if not only_possible:
                sure.add(link)
    if numbered:
        first = min(min(lines)[0], 1)
        sure = {(s - first, i, j) for s, i, j in sure}
        lines = {(s - first, i, j): line for (s, i, j), line in lines.items()}
        count = max(lines)[0] + 1
    return WordLinks(sure, lines, count, bool(numbered))


def score_links(links: set[Link], sure: set[Link], possible: set[Link]) -> dict[str, float]:
    """``{"aer": …, "precision": …, "recall": …}`` of links A against gold links S ⊆ P of a corpus, as shares.

    AER = 1 − (|A ∩ S| + |A ∩ P|) / (|A| + |S|), precision = |A ∩ P| / |A|, recall = |A ∩ S| / |S| (Och and Ney, 2003).
    Links in a sentence without gold links are wrong, as in the tools of the shared task and of awesome-align. Precision
    and recall are 0 if their denominator is 0. Raises UserError if |A| + |S| is 0.
    """
    possible = possible | sure
    if not links and not sure:
        raise UserError("links: found neither links nor sure gold links, expected at least one")
    in_sure, in_possible = len(links & sure), len(links & possible)
    return {
        "aer": 1 - (in_sure + in_possible) / (len(links) + len(sure)),
        "precision": in_possible / len(links) if links else 0.0,
        "recall": in_sure / len(sure) if sure else 0.0,
    }


def format_pharaoh(links: set[Link], sentences: int) -> str:
    """Links in Pharaoh format, one line per sentence, with positions from 0."""
    lines: list[list[str]] = [[] for _ in range(sentences)]
    for sentence, source, target in sorted(links):
        lines[sentence].append(f"{source}-{target}")
    return "".join(" ".join(line) + "\n" for line in lines)


def read_words(pairs: str) -> list[tuple[list[str], list[str]]]:
    """The sentence pairs of ``SRC,TGT``, two line-parallel files of words, or of a file of ``source ||| target`` lines.

    Spaces and tabs separate words, as in the tools that make gold links. A no-break space is part of a word, such as
    "10\u00a0000". Raises UserError for unequal numbers of lines, for a line without words, and for a line without one
    "|||" in a single file.
    """
    names = split_paths(pairs, (1, 2))
    if len(names) > 2 or not all(names):
        raise UserError(
            f"--pairs: found {pairs}, expected SRC,TGT, two line-parallel files of tokenized text, or one file of "
            "'source ||| target' lines"
        )
    if len(names) == 1:
        return _read_word_pairs(Path(names[0]))
    a, b = (_read_words(Path(name)) for name in names)
    if len(a) != len(b):
        raise UserError(f"--pairs: {names[0]} has {len(a):,} lines, {names[1]} has {len(b):,}; expected equal numbers")
    return list(zip(a, b, strict=True))


def _words(text: str, path: Path, number: int, reason: str = "") -> list[str]:
    words = [word for word in re.split("[ \t]", text) if word]
    if reason or not words:
        raise UserError(f"{Reject(path, number, reason or EMPTY_SIDE)}; expected words in every line")
    return words


def _read_words(path: Path) -> list[list[str]]:
    return [_words(text, path, number, reason) for number, (text, reason) in enumerate(decoded_lines(path), 1)]


def _read_word_pairs(path: Path) -> list[tuple[list[str], list[str]]]:
    pairs = []
    for number, (text, reason) in enumerate(decoded_lines(path), 1):
        sides = text.split("|||")
        if reason or len(sides) != 2:
            raise UserError(
                f"{path}:{number}: found {reason or repr(text[:80])}, expected 'source ||| target'; or give two files, "
                "SRC,TGT"
            )
        pairs.append((_words(sides[0], path, number), _words(sides[1], path, number)))
    return pairs


def _check_positions(
    path: str | Path, links: WordLinks, words: Sequence[tuple[list[str], list[str]]], one_indexed: bool
) -> None:
    """Raises UserError, naming the line, for the first link to a word that its sentence does not have."""
    for (sentence, *positions), line in sorted(links.lines.items(), key=lambda entry: entry[1]):
        for side, position, words_of_side in zip(("source", "target"), positions, words[sentence], strict=True):
            if position >= len(words_of_side):
                last = len(words_of_side) - 1 + one_indexed
                raise UserError(
                    f"{path}:{line}: found a link to {side} word {position + one_indexed} of sentence {sentence + 1}, "
                    f"which has {len(words_of_side)} words; expected {int(one_indexed)} to {last}. Check the order of "
                    "--pairs, the tokenization and --one-indexed"
                )


def _check_index_base(path: str | Path, alignment: WordLinks, one_indexed: bool, option: str) -> None:
    """Warns that positions may be numbered from 1: files numbered from 0 nearly always have a link at position 0."""
    if not one_indexed and alignment.possible and all(i and j for _, i, j in alignment.possible):
        log.warning(f"{path}: found no position 0; if positions are numbered from 1, pass {option}")


def _check_counts(gold: str | Path, expected: WordLinks, found: int, of: str, at_most: bool = False) -> None:
    """Compares sentence counts. A numbered gold file omits sentences after its last link, so a larger count only gives
    a warning."""
    if found > expected.sentences and expected.numbered:
        log.warning(f"{of} has {found:,} sentences, {gold} has links in the first {expected.sentences:,} only")
    elif found > expected.sentences or (found < expected.sentences and not at_most):
        raise UserError(f"{of}: found {found:,} sentences, expected {expected.sentences:,} as in {gold}")


def default_layer(layers: int) -> int:
    """Two thirds of the layers: 8 of 12, as in SimAlign and awesome-align for mBERT and XLM-R; 16 of 24; 4 of 6."""
    return round(layers * 2 / 3)


def mutual_argmax(a: Tensor, b: Tensor) -> Tensor:
    """Marks mutual nearest neighbours by cosine, bool [S, T] (SimAlign; Jalili Sabet et al., 2020).

    ``a`` [S, H], ``b`` [T, H], at least one row each. Ties are resolved in favour of the first.
    """
    import torch
    import torch.nn.functional as F

    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    forward, backward = torch.zeros_like(similarity, dtype=torch.bool), torch.zeros_like(similarity, dtype=torch.bool)
    forward.scatter_(1, similarity.argmax(1, keepdim=True), True)
    backward.scatter_(0, similarity.argmax(0, keepdim=True), True)
    return forward & backward


def softmax_intersection(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Marks pairs above ``threshold`` in both directions, bool [S, T] (awesome-align; Dou and Neubig, 2021).

    ``a`` [S, H], ``b`` [T, H], not normalized. Both the softmax of the inner products over the target and the softmax
    over the source must be above ``threshold``.
    """
    product = a @ b.T
    return (product.softmax(1) > threshold) & (product.softmax(0) > threshold)


def align(
    embedder: Embedder, pairs: Sequence[tuple[list[str], list[str]]], threshold: float | None = None
) -> tuple[set[Link], int]:
    """The links of tokenized sentence pairs, and the number of pairs that were truncated to the encoder's limit.

    Uses mutual argmax, or softmax intersection if ``threshold`` is given.
    """
    links: set[Link] = set()
    truncated = 0
    with Progress("aligning", len(pairs), "pairs") as bar:
        for start in range(0, len(pairs), CHUNK):
            sides = [sentence for pair in pairs[start : start + CHUNK] for sentence in pair]
            embedded, longer = embedder.words(sides)
            truncated += len({row // 2 for row in longer})
            both = zip(embedded[::2], embedded[1::2], strict=True)
            for sentence, ((a, words_a), (b, words_b)) in enumerate(both, start):
                if len(a) and len(b):
                    linked = mutual_argmax(a, b) if threshold is None else softmax_intersection(a, b, threshold)
                    source, target = linked.nonzero().unbind(1)
                    found = zip(words_a[source].tolist(), words_b[target].tolist(), strict=True)
                    links.update((sentence, i, j) for i, j in found)
                bar.update()
    return links, truncated


@evaluation(AlignmentSettings)
def evaluate_alignment(settings: AlignmentSettings) -> dict[str, Any]:
    """Scores word links of a file or a model against gold links. For the file formats see ``read_alignment``.

    Possible links in the scored file count like sure ones.

    Returns:
        ``{"aer": share, "precision": share, "recall": share, "sentences": n, "links": |A|, "sure": |S|,
        "possible": |P|}``. For a model also ``model``, ``layer``, ``method``, ``threshold`` (None for mutual argmax)
        and ``truncated``, the number of pairs that are too long for the model; their last words have no links.

    Raises UserError for unusable files, invalid options, unequal numbers of sentences, and gold links to words that a
    sentence does not have.
    """
    gold, links, pairs = settings.gold, settings.links, settings.pairs
    out = None if settings.links_out is None else output_file(settings.links_out, "--links-out")
    wanted = read_alignment(gold, settings.one_indexed)
    _check_index_base(gold, wanted, settings.one_indexed, "--one-indexed")
    about: dict[str, Any] = {}
    if links is not None:
        read = read_alignment(links, settings.links_one_indexed)
        _check_index_base(links, read, settings.links_one_indexed, "--links-one-indexed")
        _check_counts(gold, wanted, read.sentences, str(links), at_most=read.numbered)
        found = read.possible
    else:
        assert pairs is not None
        words = read_words(pairs)
        _check_counts(gold, wanted, len(words), pairs)
        _check_positions(gold, wanted, words, settings.one_indexed)
        found, about = _links_of_model(settings, words)
        if out:
            write_text(out, format_pharaoh(found, len(words)))
    scores = score_links(found, wanted.sure, wanted.possible)
    counts = {"links": len(found), "sure": len(wanted.sure), "possible": len(wanted.possible)}
    return {**scores, "sentences": wanted.sentences, **counts, **about}


def _links_of_model(
    settings: AlignmentSettings, words: Sequence[tuple[list[str], list[str]]]
) -> tuple[set[Link], dict[str, Any]]:
    from ppa_fast.tasks.embedder import Embedder

    assert settings.model is not None
    embedder = Embedder(settings.model, settings.layer)
    if embedder.layer is None:
        embedder.layer = default_layer(embedder.encoder.config.num_hidden_layers)
    threshold = settings.threshold if settings.method == "softmax" else None
    found, truncated = align(embedder, words, threshold)
    about = {"model": settings.model, "layer": embedder.layer, "method": settings.method}
    return found, {**about, "threshold": threshold, "truncated": truncated}


def format_scores(result: dict[str, Any]) -> str:
    """The scores in per cent, with the numbers of links and sentences."""
    aer, precision, recall = (100 * result[name] for name in ("aer", "precision", "recall"))
    only_possible = result["possible"] - result["sure"]
    lines = [
        f"AER {aer:.2f}  P {precision:.2f}  R {recall:.2f} (%; lower AER is better)",
        f"{result['links']:,} links against {result['sure']:,} sure and {only_possible:,} only possible gold links in "
        f"{result['sentences']:,} sentences",
    ]
    if result.get("truncated"):
        lines.append(f"{result['truncated']:,} pairs exceed the model's limit: their last words have no links")
    return "\n".join(lines)
