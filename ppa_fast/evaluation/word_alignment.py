"""Word alignment against gold links: alignment error rate, precision, recall (Och and Ney, 2003).

A link is (sentence, position in the source, position in the target), counted from 0, so a corpus is one set of links
and its sums are sizes of sets. Links to a NULL word are not scored, as in the shared task of 2005.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppa_fast.data.corpus import PairSource, read_pairs
from ppa_fast.data.examples import output_file
from ppa_fast.data.formats import moses
from ppa_fast.data.lines import Reject, text_lines
from ppa_fast.errors import UserError
from ppa_fast.files import write_text

METHODS = ("mutual", "softmax")
THRESHOLD = 0.001  # awesome-align's

Link = tuple[int, int, int]

_PHARAOH = re.compile(r"([0-9]+)([-p])([0-9]+)")
_NUMBERED = re.compile(r"([0-9]+)\s+([0-9]+)\s+([0-9]+)(?:\s+([SP]))?(?:\s+[0-9.]+)?(?:\s+([SP]))?")
_FORMS = "'i-j' and 'ipj' (a line a sentence) or 'sentence i j [S|P] [confidence]' (a line a link)"


class Alignment(NamedTuple):
    """The links of a file: ``sure`` and ``possible`` ones, the sure among these too, of ``sentences`` sentences.

    ``numbered``: lines name their sentence, so ``sentences`` is the last one that has a link.
    """

    sure: set[Link]
    possible: set[Link]
    sentences: int
    numbered: bool


def read_alignment(path: str | Path, one_indexed: bool = False) -> Alignment:
    """Reads word links in either of two forms, told apart by the first line that is not empty.

    - Pharaoh: a line a sentence, a sure link ``i-j``, a possible one ``ipj``; an empty line has no links.
    - That of the shared tasks of 2003 and 2005 (Mihalcea and Pedersen): a line a link, ``sentence i j``, then ``S``
      (the default) or ``P`` and a confidence, both optional. Sentences count from 1, or from 0 if the file has a
      sentence 0.

    ``one_indexed``: positions i and j count from 1 in the file. A link twice counts once; one that is sure and possible
    is sure. Raises UserError, with the line, for what is neither form and for a position 0 where they count from 1.
    """
    sure: set[Link] = set()
    possible: set[Link] = set()
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
            links = [(line - 1, m[1], m[3], m[2] == "p") for m in matches if m]
            count = line
        if len(links) < len(matches):
            raise UserError(f"{path}:{line}: found {text[:80]!r}, expected links {_FORMS}")
        for sentence, source, target, only_possible in links:
            link = (sentence, int(source) - one_indexed, int(target) - one_indexed)
            if min(link) < 0:
                raise UserError(
                    f"{path}:{line}: position 0 in a file whose positions count from 1; expected no links to NULL"
                )
            possible.add(link)
            if not only_possible:
                sure.add(link)
    if numbered:
        first = min(min(possible)[0], 1)
        sure, possible = ({(s - first, i, j) for s, i, j in links} for links in (sure, possible))
        count = max(possible)[0] + 1
    return Alignment(sure, possible, count, bool(numbered))


def score_links(links: set[Link], sure: set[Link], possible: set[Link]) -> dict[str, float]:
    """``{"aer": …, "precision": …, "recall": …}``, shares, of links A against gold links S and P, of a whole corpus.

    With S within P: AER = 1 − (|A ∩ S| + |A ∩ P|) / (|A| + |S|), precision = |A ∩ P| / |A|, recall = |A ∩ S| / |S| (Och
    and Ney, 2003). A sentence without gold links counts like any other: what is linked in it is wrong, as in the tools
    of the shared task and of awesome-align. A share of nothing is 0. Raises UserError where |A| + |S| is 0.
    """
    possible = possible | sure
    if not links and not sure:
        raise UserError("found neither links nor sure gold links, nothing to score")
    in_sure, in_possible = len(links & sure), len(links & possible)
    return {
        "aer": 1 - (in_sure + in_possible) / (len(links) + len(sure)),
        "precision": in_possible / len(links) if links else 0.0,
        "recall": in_sure / len(sure) if sure else 0.0,
    }


def format_pharaoh(links: set[Link], sentences: int) -> str:
    """Links as Pharaoh lines, one for each of ``sentences`` sentences, positions from 0."""
    lines: list[list[str]] = [[] for _ in range(sentences)]
    for sentence, source, target in sorted(links):
        lines[sentence].append(f"{source}-{target}")
    return "".join(" ".join(line) + "\n" for line in lines)


def read_words(pairs: str) -> list[tuple[list[str], list[str]]]:
    """The sentence pairs of ``SRC,TGT``, two line-parallel files of words with white space between them.

    Raises UserError for unequal numbers of lines and a line without words.
    """
    names = pairs.split(",")
    if len(names) != 2 or not all(names):
        raise UserError(f"--pairs {pairs}: expected SRC,TGT, two line-parallel files of tokenised text")
    source = PairSource("source", "target", [Path(name) for name in names], moses.read)

    def reject(path: Path, line: int, reason: str) -> None:
        raise UserError(f"{Reject(path, line, reason)} (an evaluation set must have no bad line)")

    return [(pair.a.split(), pair.b.split()) for pair in read_pairs(source, reject)]


def _note_base(path: str | Path, alignment: Alignment, one_indexed: bool, option: str) -> None:
    """Says on stderr that positions may count from 1: files that count from 0 nearly always have a link to a 0."""
    if not one_indexed and alignment.possible and all(i and j for _, i, j in alignment.possible):
        print(f"{path}: no position is 0; if positions count from 1, say {option}", file=sys.stderr)


def _check_counts(gold: str | Path, expected: Alignment, found: int, of: str, at_most: bool = False) -> None:
    """A numbered gold file does not tell of sentences after its last link: of those a note says that they are there."""
    if found > expected.sentences and expected.numbered:
        print(
            f"{of} has {found:,} sentences, {gold} links in {expected.sentences:,}: the rest have none", file=sys.stderr
        )
    elif found > expected.sentences or (found < expected.sentences and not at_most):
        raise UserError(f"{gold} has {expected.sentences:,} sentences, {of} {found:,}; expected as many")


def evaluate_alignment(
    gold: str | Path,
    links: str | Path | None = None,
    one_indexed: bool = False,
    links_one_indexed: bool = False,
    model: str | None = None,
    pairs: str | None = None,
    layer: int | None = None,
    method: str = "mutual",
    threshold: float = THRESHOLD,
    links_out: str | Path | None = None,
) -> dict[str, Any]:
    """Word links of a file, or of a model, against gold links.

    Args:
        gold: file of gold links, see ``read_alignment``.
        links: file of links to score, in either form; its possible links count like its sure ones.
        one_indexed, links_one_indexed: positions count from 1 in the gold file, in the file of links.
        model: instead of ``links``, name or folder of an encoder, which links the words of ``pairs``.
        pairs: ``SRC,TGT``, line-parallel tokenised text.
        layer, method, threshold: as ``aligner.align`` takes them.
        links_out: file for the model's links, in Pharaoh's form, from 0.

    Returns:
        ``{"aer": share, "precision": share, "recall": share, "sentences": n, "links": |A|, "sure": |S|,
        "possible": |P|}``; of a model also ``model``, ``layer``, ``method``, ``threshold`` (None for mutual argmax) and
        ``truncated``, the number of pairs too long for the model, whose last words have no links.

    Raises UserError for unusable files and requests, and unequal numbers of sentences.
    """
    if (links is None) == (model is None) or (pairs is None) != (model is None):
        raise UserError("align: expected either links, or a model with pairs")
    if links_out is not None:
        if model is None:
            raise UserError(f"--links-out {links_out}: goes with a model")
        links_out = output_file(links_out, "--links-out")
    wanted = read_alignment(gold, one_indexed)
    _note_base(gold, wanted, one_indexed, "--one-indexed")
    about: dict[str, Any] = {}
    if links is not None:
        read = read_alignment(links, links_one_indexed)
        _note_base(links, read, links_one_indexed, "--links-one-indexed")
        _check_counts(gold, wanted, read.sentences, str(links), at_most=read.numbered)
        found = read.possible
    else:
        assert model is not None
        assert pairs is not None
        words = read_words(pairs)
        _check_counts(gold, wanted, len(words), pairs)
        found, about = _links_of_model(model, words, layer, method, threshold)
        if links_out is not None:
            write_text(Path(links_out), format_pharaoh(found, len(words)))
    scores = score_links(found, wanted.sure, wanted.possible)
    counts = {"links": len(found), "sure": len(wanted.sure), "possible": len(wanted.possible)}
    return {**scores, "sentences": wanted.sentences, **counts, **about}


def _links_of_model(
    model: str, words: Sequence[tuple[list[str], list[str]]], layer: int | None, method: str, threshold: float
) -> tuple[set[Link], dict[str, Any]]:
    from ppa_fast.evaluation.aligner import align, default_layer
    from ppa_fast.evaluation.embedder import Embedder

    if method not in METHODS:
        raise UserError(f"method: found {method!r}, expected one of {', '.join(METHODS)}")
    if not 0 < threshold < 1:
        raise UserError(f"threshold: found {threshold}, expected a probability between 0 and 1")
    embedder = Embedder(model, layer)
    if layer is None:
        embedder.layer = default_layer(embedder.encoder.config.num_hidden_layers)
    found, truncated = align(embedder, words, threshold if method == "softmax" else None)
    about = {"model": model, "layer": embedder.layer, "method": method}
    return found, {**about, "threshold": threshold if method == "softmax" else None, "truncated": truncated}


def format_scores(result: dict[str, Any]) -> str:
    """The scores in per cent, lower AER being better, and what they are of."""
    aer, precision, recall = (100 * result[name] for name in ("aer", "precision", "recall"))
    only_possible = result["possible"] - result["sure"]
    lines = [
        f"AER {aer:.2f}  P {precision:.2f}  R {recall:.2f} (%; of AER less is better)",
        f"{result['links']:,} links against {result['sure']:,} sure and {only_possible:,} only possible ones in "
        f"{result['sentences']:,} sentences",
    ]
    if result.get("truncated"):
        lines.append(f"{result['truncated']:,} pairs are longer than the model reads: their last words have no links")
    return "\n".join(lines)
