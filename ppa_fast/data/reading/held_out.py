"""Holds out an evaluation set from parallel text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ppa_fast.data.reading.corpus import parse_pairs, read_pairs
from ppa_fast.data.reading.groups import comparison_form, sentence_group
from ppa_fast.data.reading.source import Pair
from ppa_fast.errors import UserError
from ppa_fast.files import write_text

MOST_PAIRS = 1000  # held out for each language pair
MOST_SHARE = 0.1  # of the pairs of a language pair
FEWEST_PAIRS = 2
SPARE = 4  # candidates for each held-out pair; those that repeat a sentence are left out


def hold_out(specs: Sequence[str], folder: Path) -> dict[str, tuple[str, int]]:
    """Writes held-out pairs of each language pair to line-parallel files in ``folder``, which exists.

    Holds out up to ``MOST_PAIRS`` pairs, and at most ``MOST_SHARE`` of the text. No sentence occurs twice on one side.
    The choice depends on the pivot sentence alone, so text in several languages gives the same sentences in each of
    them. The pairs remain in the text: ``exclude`` of :class:`ppa_fast.settings.Filters` removes them, and all pairs
    that share a sentence with them.

    Args:
        specs: ``--pairs`` arguments; several may have one language pair.
        folder: receives ``en-de.en`` and ``en-de.de``.

    Returns the ``--pairs`` argument and the number of held-out pairs, by language pair.

    Raises UserError as :func:`parse_pairs`, and for text with too few pairs.
    """
    counts, candidates = Counter[str](), dict[str, dict[int, Pair]]()
    for source in map(parse_pairs, specs):
        lowest = candidates.setdefault(source.name, {})
        for pair in read_pairs(source, lambda *_: None):
            counts[source.name] += 1
            if "\n" not in pair.a + pair.b:
                lowest.setdefault(sentence_group(pair.pivot), pair)
            if len(lowest) > 2 * SPARE * MOST_PAIRS:
                candidates[source.name] = lowest = _lowest(lowest, SPARE * MOST_PAIRS)
    held_out = {}
    for name, lowest in candidates.items():
        chosen = _distinct(_lowest(lowest, SPARE * MOST_PAIRS), min(MOST_PAIRS, int(MOST_SHARE * counts[name])))
        if len(chosen) < FEWEST_PAIRS:
            raise UserError(
                f"pairs: {name}: found {counts[name]:,} pairs, too few to hold out {FEWEST_PAIRS} of them; expected "
                "more pairs, or an evaluation set (--dev)"
            )
        files = [folder / f"{name}.{code}" for code in name.split("-")]
        for file, texts in zip(files, zip(*((pair.a, pair.b) for pair in chosen), strict=True), strict=True):
            write_text(file, "".join(f"{text}\n" for text in texts))
        held_out[name] = f"{name}:{files[0]},{files[1]}", len(chosen)
    return held_out


def _lowest(candidates: dict[int, Pair], n: int) -> dict[int, Pair]:
    """The ``n`` candidates with the lowest hashes, in their order."""
    return {group: candidates[group] for group in sorted(candidates)[:n]}


def _distinct(candidates: dict[int, Pair], n: int) -> list[Pair]:
    """The first ``n`` candidates without a sentence of an earlier one on the same side."""
    seen_a, seen_b, chosen = set[str](), set[str](), list[Pair]()
    for pair in candidates.values():
        a, b = comparison_form(pair.a), comparison_form(pair.b)
        if a not in seen_a and b not in seen_b and len(chosen) < n:
            seen_a.add(a)
            seen_b.add(b)
            chosen.append(pair)
    return chosen
