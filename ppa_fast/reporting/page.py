"""``ppa-fast report``: an HTML page about one or several runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from ppa_fast.data.reading.languages import is_code, is_english
from ppa_fast.errors import UserError, needs_extra
from ppa_fast.files import is_locked, write_text
from ppa_fast.reporting import plots, vectors
from ppa_fast.reporting.plots import Picture
from ppa_fast.reporting.run import RECENT, Run, read_run
from ppa_fast.reporting.summary import at_a_glance, sentence
from ppa_fast.settings import ReportSettings, takes
from ppa_fast.tasks.retrieval import retrieval_scores

with needs_extra("report"):
    from jinja2 import Environment, PackageLoader, StrictUndefined

WATCH_SECONDS = 30

# Metrics of metrics.jsonl: title, unit, and whether the y axis starts at 0.
LOSSES = {
    "loss": ("Total loss", "", False),
    "loss_tlm": ("TLM loss", "nats per masked token", False),
    "loss_moco": ("MoCo loss", "nats per pair", False),
    "queue_top1": ("MoCo top-1", "share", True),
    "loss_symmetric": ("Symmetric loss", "nats per pair", False),
    "in_batch_top1": ("In-batch top-1", "share", True),
}
COURSE = {
    "pairs_per_s": ("Throughput", "pairs/s", True),
    "tokens_per_s": ("Throughput", "encoder tokens/s", True),
    "mfu": ("Model FLOP utilization", "%", True),
    "memory_gib": ("Peak memory so far, rank 0", "GiB", True),
    "lr": ("Learning rate", "", True),
    "grad_norm": ("Gradient norm", "before clipping", True),
    "skipped": ("Skipped steps", "cumulative", True),
}


@dataclass
class Part:
    """The content of the page for one run. ``number``: its index; ``no_…``: the reasons why figures are missing."""

    number: int
    run: Run
    sentence: str
    verdict: str = ""
    answer: list[tuple[str, list[str]]] = field(default_factory=list)
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
            continue  # the table shows 0
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


def _other_language(pair: str) -> str:
    """The language that determines the colour of a pair: the one that is not English."""
    a, _, b = pair.partition("-")
    return a if is_code(b) and is_english(b) else b


def _language_colors(codes: set[str]) -> dict[str, int | None]:
    """A colour number for each language; None, the text colour, for English."""
    others = sorted(code for code in codes if not (is_code(code) and is_english(code)))
    return {**dict.fromkeys(codes - set(others)), **{code: number for number, code in enumerate(others)}}


class Scores(NamedTuple):
    """Precision at 1 by language pair, averaged over both directions, and the number of sentences of each side.

    ``step`` 0: before training.
    """

    step: int
    shares: dict[str, float]
    sentences: dict[str, int]


def _logged_scores(record: dict[str, Any]) -> Scores:
    pairs = record["pairs"]
    shares = {pair: fmean((scores["a_to_b"], scores["b_to_a"])) for pair, scores in pairs.items()}
    return Scores(record["step"], shares, {pair: scores.get("n", 0) for pair, scores in pairs.items()})


def _measured_scores(step: int, texts: Sequence[vectors.Texts], of_model: vectors.Vectors) -> Scores:
    shares = {f"{s.a}-{s.b}": fmean(retrieval_scores(a, b)) for s, (a, b) in zip(texts, of_model, strict=True)}
    return Scores(step, shares, {f"{s.a}-{s.b}": len(s) for s in texts})


def _answer(part: Part, before: Scores, after: Scores) -> None:
    """Adds whether training helped: a sentence, and the scores by language pair."""
    first, last = fmean(before.shares.values()), fmean(after.shares.values())
    # Two standard errors of the difference of two shares of that many sentences.
    total = max(1, sum(after.sentences.values()))
    error = 2 * math.sqrt((first * (1 - first) + last * (1 - last)) / total)
    word = "No clear change" if abs(last - first) <= error else "Yes" if last > first else "No"
    part.verdict = (
        f"{word}: retrieval of translations was {100 * first:.1f} % before training and is {100 * last:.1f} % at step "
        f"{after.step:,}, the mean over {len(after.shares)} language pair{'s' * (len(after.shares) > 1)}."
    )
    part.answer = [
        (pair, [f"{after.sentences[pair]:,}", f"{100 * before.shares[pair]:.1f}", f"{100 * share:.1f}"])
        for pair, share in after.shares.items()
    ]


def _retrieval(part: Part, key: str, colors: dict[str, int | None], measured: list[Scores]) -> None:
    """Adds the logged retrieval scores. ``measured``: scores from the vectors, if the log lacks before and after."""
    run = part.run
    if run.evaluations:
        by_pair = {pair: colors[_other_language(pair)] or 0 for pair in run.retrieval()}
        part.retrieval.append(plots.retrieval_curves(f"{key}-retrieval", run.retrieval(), by_pair))
    else:
        part.no_retrieval.append("The run logged no evaluation: pass --eval-pairs to train.py.")
    both = run.before_after()
    if both:
        measured = [_logged_scores(record) for record in both]
        for pair, scores in both[1]["pairs"].items():
            shares = [f"{100 * record['pairs'][pair][way]:.1f}" for way in ("a_to_b", "b_to_a") for record in both]
            part.scores.append((pair, [*shares, f"{scores.get('n', 0):,}"]))
    if len(measured) == 2:
        _answer(part, *measured)
        before, after = ({**scores.shares, "mean": fmean(scores.shares.values())} for scores in measured)
        part.retrieval.append(plots.retrieval_bars(f"{key}-bars", before, after, measured[1].step))
    elif run.evaluations:
        part.no_retrieval.append(
            "No scores before and after training: found no evaluations of the same pairs at step 0 and later."
        )


Known = dict[tuple[Path, int], vectors.Vectors]
"""Vectors by run folder and step (0: the base model) that an earlier call of :func:`render` has computed."""


def _vectors(part: Part, key: str, specs: Sequence[str], colors: dict[str, int | None], known: Known) -> list[Scores]:
    """Adds the maps, the similarity matrices and the confusions; reasons for missing ones go to ``part.no_vectors``.

    Returns the retrieval scores from the vectors before and after training, as far as available.
    """
    run = part.run
    try:
        texts = vectors.read_texts(specs)
    except UserError as error:
        part.no_vectors.append(f"No maps, similarities or confused sentences: {error}.")
        return []
    found: list[tuple[int, vectors.Vectors]] = []
    try:
        if (run.path, 0) not in known:
            known[run.path, 0] = vectors.embed_before(run, texts)
        found.append((0, known[run.path, 0]))
    except UserError as error:
        part.no_vectors.append(f"No map or similarities before training: {error}.")
    try:
        step = vectors.selected_step(run)
        if (run.path, step) not in known:
            known[run.path, step] = vectors.embed_after(run, texts, step)
        after = known[run.path, step]
        found.append((step, after))
        part.confusions, wrong, total = vectors.confusions(texts, after)
        part.confused = f"At step {step:,}, {wrong:,} of {total:,} sentences have a wrong nearest neighbour."
    except UserError as error:
        part.no_vectors.append(f"No map, similarities or confused sentences after training: {error}.")
    chosen = vectors.compared(texts)
    part.compared = [(texts[n].a, texts[n].texts_a[row], texts[n].b, texts[n].texts_b[row]) for n, row in chosen]
    for step, of_model in found:
        when = f"After, at step {step:,}" if step else "Before, base model"
        pairs, projection = [(s.a, s.b) for s in texts], vectors.project(of_model)
        part.maps.append(plots.vector_map(f"{key}-map-{step}", when, projection, pairs, colors))
        part.matrices.append((when, vectors.similarities(of_model, chosen)))
    return [_measured_scores(step, texts, of_model) for step, of_model in found]


def _tag(code: str) -> str:
    """A language code for HTML's lang attribute."""
    return code.replace("_", "-")


def _languages(runs: Sequence[Run], specs: Sequence[str] | None) -> set[str]:
    """The language codes of all evaluated pairs."""
    pairs = {pair for run in runs for pair in run.retrieval()}
    for run in runs:
        pairs |= {spec.partition(":")[0] for spec in specs or run.settings.get("eval_pairs") or []}
    return {code for pair in pairs for code in pair.split("-")}


def render(
    folders: Sequence[str | Path],
    pairs: Sequence[str] | None = None,
    model: str | Path | None = None,
    known: Known | None = None,
    refresh: int = 0,
) -> str:
    """The page as HTML; see :func:`report`. ``refresh``: seconds after which a browser loads it again; 0: never."""
    runs = [read_run(folder) for folder in folders]
    colors = _language_colors(_languages(runs, pairs))
    parts = []
    for number, run in enumerate(runs):
        part = Part(number, run, sentence(run))
        measured = _vectors(
            part, f"r{number}", pairs or run.settings.get("eval_pairs") or [], colors, {} if known is None else known
        )
        _retrieval(part, f"r{number}", colors, measured)
        parts.append(part)
    environment = Environment(
        loader=PackageLoader("ppa_fast.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["tag"] = _tag
    return environment.get_template("page.html").render(
        title=", ".join(run.name for run in runs),
        parts=parts,
        model=None if model is None else str(model),
        refresh=refresh,
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


@takes(ReportSettings)
def report(settings: ReportSettings) -> Path:
    """Writes a self-contained HTML page about one or several runs, finished or in progress.

    The page begins with retrieval before and after training and how to load the encoder. ``watch`` writes it again
    every ``WATCH_SECONDS`` while one of the runs trains on this machine, and a last time at the end.

    Computes sentence vectors with the base model and with the run's best checkpoint, or the latest if there is no best.
    If texts, models or logs are missing, the page gives the reason and shows the rest.

    The arguments are the fields of :class:`ReportSettings`.

    Returns the path of the page. Raises UserError for a folder that is not a run, logs that cannot be read, and an
    output file that cannot be written.
    """
    file = Path(settings.folders[0]) / "report.html" if settings.out is None else Path(settings.out)
    if not file.parent.is_dir():
        raise UserError(f"--out {file}: found no folder {file.parent}, expected an existing folder")
    known: Known = {}
    while True:
        running = settings.watch and any(is_locked(Path(folder)) for folder in settings.folders)
        page = render(settings.folders, settings.pairs, settings.model, known, WATCH_SECONDS if running else 0)
        write_text(file, page)
        if not running:
            return file
        time.sleep(WATCH_SECONDS)
