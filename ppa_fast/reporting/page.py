"""``ppa-fast report``: the page of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from ppa_fast.data.languages import is_code, is_english
from ppa_fast.errors import UserError
from ppa_fast.evaluation.retrieval import retrieval_scores
from ppa_fast.files import write_text
from ppa_fast.reporting import plots, vectors
from ppa_fast.reporting.plots import Picture
from ppa_fast.reporting.run import RECENT, Run, read_run
from ppa_fast.reporting.summary import at_a_glance, sentence

# Figures of metrics.jsonl: their title, unit, and whether the axis begins at 0.
LOSSES = {
    "loss": ("Total loss", "", False),
    "loss_tlm": ("TLM loss", "nats per masked token", False),
    "loss_moco": ("MoCo loss", "nats per pair", False),
    "queue_top1": ("MoCo top-1", "share", True),
}
COURSE = {
    "pairs_per_s": ("Throughput", "pairs/s", True),
    "tokens_per_s": ("Throughput", "encoder tokens/s", True),
    "mfu": ("Model FLOP utilisation", "%", True),
    "memory_gib": ("Peak memory so far, rank 0", "GiB", True),
    "lr": ("Learning rate", "", True),
    "grad_norm": ("Gradient norm", "before clipping", True),
    "skipped": ("Skipped steps", "in all", True),
}


@dataclass
class Part:
    """What the page shows of a run, the ``number``-th of its runs; ``no_…``: why figures of it are not there."""

    number: int
    run: Run
    sentence: str
    no_retrieval: list[str] = field(default_factory=list)
    no_vectors: list[str] = field(default_factory=list)
    retrieval: list[Picture] = field(default_factory=list)
    scores: list[tuple[str, list[str]]] = field(default_factory=list)
    maps: list[Picture] = field(default_factory=list)
    matrices: list[tuple[str, list[list[float]]]] = field(default_factory=list)
    compared: list[tuple[str, str, str, str]] = field(default_factory=list)
    confusions: list[vectors.Confusion] | None = None
    confused: str = ""


def _curves(runs: Sequence[Run], figures: dict[str, tuple[str, str, bool]]) -> list[Picture]:
    found = []
    for name, (title, unit, from_zero) in figures.items():
        of_runs = [(number, run.name, run.curve(name)) for number, run in enumerate(runs)]
        if name == "skipped" and not any(any(y) for _, _, (_, y) in of_runs):
            continue  # the table says 0
        if unit == "%":
            of_runs = [(number, run, (x, [100 * share for share in y])) for number, run, (x, y) in of_runs]
        found.append(plots.curves(name, title, unit, of_runs, from_zero))
    return [picture for picture in found if picture]


def _retrieval_means(runs: Sequence[Run]) -> Picture | None:
    of_runs = [
        (number, run.name, ([r["step"] for r in run.evaluations], [100 * r["mean"] for r in run.evaluations]))
        for number, run in enumerate(runs)
    ]
    return plots.curves("means", "Mean over the language pairs, precision at 1", "%", of_runs, True)


def _other(pair: str) -> str:
    """The language of a pair that names its colour: the one that is not English."""
    a, _, b = pair.partition("-")
    return a if is_code(b) and is_english(b) else b


def _language_colors(codes: set[str]) -> dict[str, int | None]:
    """A colour for each language; English is drawn in ink."""
    others = sorted(code for code in codes if not (is_code(code) and is_english(code)))
    return {**dict.fromkeys(codes - set(others)), **{code: number for number, code in enumerate(others)}}


class Scores(NamedTuple):
    """Precision at 1, the mean of both directions, by language pair; ``step`` 0 is before training."""

    step: int
    shares: dict[str, float]


def _logged(record: dict[str, Any]) -> Scores:
    pairs = record["pairs"].items()
    return Scores(record["step"], {pair: fmean((scores["a_to_b"], scores["b_to_a"])) for pair, scores in pairs})


def _measured(step: int, texts: Sequence[vectors.Texts], of_model: vectors.Vectors) -> Scores:
    sides = zip(texts, of_model, strict=True)
    return Scores(step, {f"{s.a}-{s.b}": fmean(retrieval_scores(a, b)) for s, (a, b) in sides})


def _retrieval(part: Part, key: str, colors: dict[str, int | None], measured: list[Scores]) -> None:
    """Retrieval as the run logged it; what it did not log before and after is ``measured`` from the vectors."""
    run = part.run
    if run.evaluations:
        by_pair = {pair: colors[_other(pair)] or 0 for pair in run.retrieval()}
        part.retrieval.append(plots.retrieval_curves(f"{key}-retrieval", run.retrieval(), by_pair))
    else:
        part.no_retrieval.append("The run has logged no evaluation: --eval-pairs of train.py asks for them.")
    both = run.before_after()
    if both:
        measured = [_logged(record) for record in both]
        for pair, scores in both[1]["pairs"].items():
            shares = [f"{100 * record['pairs'][pair][way]:.1f}" for way in ("a_to_b", "b_to_a") for record in both]
            part.scores.append((pair, [*shares, f"{scores.get('n', 0):,}"]))
    if len(measured) == 2:
        before, after = ({**scores.shares, "mean": fmean(scores.shares.values())} for scores in measured)
        part.retrieval.append(plots.retrieval_bars(f"{key}-bars", before, after, measured[1].step))
    elif run.evaluations:
        part.no_retrieval.append(
            "No scores before and after: expected evaluations of the same pairs at step 0 and later."
        )


def _vectors(part: Part, key: str, specs: Sequence[str], colors: dict[str, int | None]) -> list[Scores]:
    """The map, the matrix and the confusions; what cannot be made is said in ``part.no_vectors``.

    Returns the retrieval that the vectors show, before and after as far as both are there.
    """
    run = part.run
    try:
        texts = vectors.read_texts(specs)
    except UserError as error:
        part.no_vectors.append(f"No maps, similarities and confused sentences: {error}.")
        return []
    found: list[tuple[int, vectors.Vectors]] = []
    try:
        found.append((0, vectors.embed_before(run, texts)))
    except UserError as error:
        part.no_vectors.append(f"No map and similarities before training: {error}.")
    try:
        step, after = vectors.embed_after(run, texts)
        found.append((step, after))
        part.confusions, wrong, total = vectors.confusions(texts, after)
        part.confused = f"At step {step:,}, {wrong:,} of {total:,} sentences have a wrong nearest neighbour."
    except UserError as error:
        part.no_vectors.append(f"No map, similarities and confused sentences after training: {error}.")
    chosen = vectors.compared(texts)
    part.compared = [(texts[n].a, texts[n].texts_a[row], texts[n].b, texts[n].texts_b[row]) for n, row in chosen]
    for step, of_model in found:
        when = f"After, at step {step:,}" if step else "Before, by the base model"
        pairs, projection = [(s.a, s.b) for s in texts], vectors.project(of_model)
        part.maps.append(plots.vector_map(f"{key}-map-{step}", when, projection, pairs, colors))
        part.matrices.append((when, vectors.similarities(of_model, chosen)))
    return [_measured(step, texts, of_model) for step, of_model in found]


def _tag(code: str) -> str:
    """A language code as HTML's lang attribute has it."""
    return code.replace("_", "-")


def _languages(runs: Sequence[Run], specs: Sequence[str] | None) -> set[str]:
    """The codes of all language pairs that are evaluated."""
    pairs = {pair for run in runs for pair in run.retrieval()}
    for run in runs:
        pairs |= {spec.partition(":")[0] for spec in specs or run.settings.get("eval_pairs") or []}
    return {code for pair in pairs for code in pair.split("-")}


def render(folders: Sequence[str | Path], pairs: Sequence[str] | None = None) -> str:
    """The page as HTML, see :func:`report`."""
    runs = [read_run(folder) for folder in folders]
    colors = _language_colors(_languages(runs, pairs))
    parts = []
    for number, run in enumerate(runs):
        part = Part(number, run, sentence(run))
        measured = _vectors(part, f"r{number}", pairs or run.settings.get("eval_pairs") or [], colors)
        _retrieval(part, f"r{number}", colors, measured)
        parts.append(part)
    environment = Environment(
        loader=PackageLoader("ppa_fast.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["tag"] = _tag
    return environment.get_template("page.html").render(
        title=", ".join(run.name for run in runs),
        parts=parts,
        glance=at_a_glance(runs),
        recent=RECENT,
        losses=_curves(runs, LOSSES),
        course=_curves(runs, COURSE),
        means=_retrieval_means(runs) if len(runs) > 1 else None,
        no_metrics=[run.name for run in runs if not run.metrics],
        mfu_known=any(run.curve("mfu")[0] for run in runs),
        languages=[(code, number, _shape(number)) for code, number in sorted(colors.items())],
        lines=vectors.LINES,
        series=plots.COLORS,
    )


def _shape(number: int | None) -> str:
    return "○" if number is None else plots.SHAPES[number // plots.COLORS % len(plots.SHAPES)]


def report(folders: Sequence[str | Path], out: str | Path | None = None, pairs: Sequence[str] | None = None) -> Path:
    """Writes one HTML page of one or several runs, finished or in progress; it needs no network and no other file.

    The sentence vectors are computed here, from the base model and from the run's best (else latest) checkpoint. What
    cannot be shown (texts, models or logs that are not there) is named on the page with the reason; the rest is shown.

    Args:
        folders: run folders.
        out: the file; None is ``report.html`` in the first run folder.
        pairs: evaluation sets such as ``en-de:dev.en,dev.de`` for the sentence vectors; None are the run's own.

    Returns the file. Raises UserError for a folder that is no run, logs that cannot be read, a file that cannot be
    written.
    """
    file = Path(folders[0]) / "report.html" if out is None else Path(out)
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: no folder {file.parent}; expected a file in a folder that is there")
    write_text(file, render(folders, pairs))
    return file
