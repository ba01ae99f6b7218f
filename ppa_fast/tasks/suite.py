"""``evaluate suite``: scores models on every evaluation set of a folder, in one table.

Each score is a file in ``OUT/scores``, whose name is a hash of everything that the score depends on. A score whose file
exists is read and not computed, so that the same command resumes, and a changed model or data file is scored again.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import xxhash
from torch import Tensor

from ppa_fast.data.reading.corpus import read_eval_pairs
from ppa_fast.data.reading.languages import is_code, standard_code
from ppa_fast.errors import UserError
from ppa_fast.files import MODEL_FILES, fingerprint, folder_lock, write_json, write_text
from ppa_fast.model.encoder import encoder_config
from ppa_fast.model.sentence_transformer import stated_pooling
from ppa_fast.settings import SuiteSettings, takes
from ppa_fast.tasks import evaluate
from ppa_fast.tasks.embedder import Embedder
from ppa_fast.tasks.layouts import EvaluationSet, find_sets, one_line
from ppa_fast.tasks.mining import Corpus, Side, score_corpora
from ppa_fast.tasks.reading import LISTED, load_json
from ppa_fast.tasks.retrieval import score_pair
from ppa_fast.tasks.tables import markdown_table, text_table
from ppa_fast.tasks.word_alignment import read_alignment
from ppa_fast.version import __version__

log = logging.getLogger(__name__)

HEADS = {
    "nli": "ForSequenceClassification",
    "classify": "ForSequenceClassification",
    "qa": "ForQuestionAnswering",
    "tagging": "ForTokenClassification",
}
"""Task → the end of the class name of models that are fine-tuned for it. The other tasks need an encoder only."""
METRICS = {
    "retrieval": {"a_to_b": "P@1 {pivot}→xx", "b_to_a": "P@1 xx→{pivot}"},
    "mine": {"f1": "mining F1"},
    "align": {"aer": "AER, lower is better"},
    "nli": {"accuracy": "accuracy"},
    "classify": {"accuracy": "accuracy", "macro_f1": "macro-F1"},
    "qa": {"f1": "F1", "exact_match": "exact match"},
    "tagging": {"accuracy": "accuracy", "f1": "entity F1"},
}
"""Task → the metrics in the table: name in the scores → title. A metric that the scores lack is left out."""
COUNTS = ("n", "sentences", "gold")  # the number of scored examples, by the first of these names in the scores
LEAST_ROWS = 12  # the fewest rows for mining; each half then has two gold pairs
KEPT = 50_000  # sentence vectors kept for the next language: 150 MB of width 768


class _Embedder(Embedder):
    """An embedder that keeps its sentence vectors, because data sets share their English sentences."""

    def __init__(self, model: str, layer: int | None) -> None:
        super().__init__(model, layer)
        self._known: dict[str, Tensor] = {}

    def sentences(self, texts: Sequence[str], pooling: str, progress: str) -> Tensor:
        if len(self._known) > KEPT:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, super().sentences(new, pooling, progress), strict=True))
        return torch.stack([self._known[text] for text in texts])


class _Model:
    """A model to score. Its encoder is loaded on first use."""

    def __init__(self, name: str, settings: SuiteSettings) -> None:
        self.name, self.settings = name, settings
        self.config = encoder_config(name)
        self.pooling = settings.pooling or stated_pooling(name) or "mean"
        self.fingerprint = _model_fingerprint(name, self.config)

    @cached_property
    def embedder(self) -> Embedder:
        return _Embedder(self.name, self.settings.layer)

    def check(self, task: str) -> None:
        """Raises UserError if the model cannot be scored on a task."""
        head = HEADS.get(task, "")
        if not any(name.endswith(head) for name in self.config.architectures or [""]):
            raise UserError(f"{task} needs a fine-tuned model, whose class ends with {head}")

    def score(self, found: EvaluationSet, task: str) -> dict[str, Any]:
        """The scores of one evaluation set, as the single command of the task computes them."""
        if task in ("retrieval", "mine"):
            a, b = map(standard_code, found.languages)
            name = f"{a}-{b}"
            _, *sides = read_eval_pairs(f"{name}:{found.files[0]},{found.files[1]}")
            if task == "mine":
                return score_corpora(self.embedder, self.pooling, mining_corpora(*sides))[0]
            return score_pair(self.embedder, self.pooling, name, (sides[0], sides[1]))
        if task == "align":
            *texts, gold = found.files
            one_indexed = all(i and j for _, i, j in read_alignment(gold).possible)
            pairs = ",".join(map(str, texts))
            return evaluate("align", gold=gold, pairs=pairs, model=self.name, one_indexed=one_indexed)
        result = evaluate(task, gold=[f"{found.language}:{found.files[0]}"], model=self.name, **found.options)
        (scores,) = result["languages"].values()
        return dict(scores)


def _model_fingerprint(name: str, config: Any) -> str:
    """A hash of the files of a model folder, or the commit of a model of the hub."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(config, '_commit_hash', None)}"
    files = sorted(p for p in (*folder.glob("*"), *folder.glob("*/config.json")) if p.suffix in MODEL_FILES)
    return _hash([[str(path.relative_to(folder)), fingerprint(path)] for path in files])


def _hash(value: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def mining_corpora(a: Sequence[str], b: Sequence[str]) -> dict[str, Corpus]:
    """Corpora for mining from row-parallel sentences: the first half of the rows is "dev", the second half "test".

    Of three rows in a half, the first is on both sides and a gold pair, the second is in ``a`` only, and the third in
    ``b`` only. Ids are row numbers. Raises UserError for fewer than ``LEAST_ROWS`` rows.
    """
    if len(a) < LEAST_ROWS:
        raise UserError(f"mining: found {len(a)} rows, expected at least {LEAST_ROWS}")
    corpora = {}
    for name, rows in (("dev", range(len(a) // 2)), ("test", range(len(a) // 2, len(a)))):
        turn = {row: (row - rows.start) % 3 for row in rows}
        in_a, in_b = ([row for row in rows if turn[row] in (0, own)] for own in (1, 2))
        corpora[name] = Corpus(
            Side([str(row) for row in in_a], [a[row] for row in in_a]),
            Side([str(row) for row in in_b], [b[row] for row in in_b]),
            {(str(row), str(row)) for row in rows if turn[row] == 0},
        )
    return corpora


@takes(SuiteSettings)
def evaluate_suite(settings: SuiteSettings) -> dict[str, Any]:
    """Scores models on every evaluation set of a folder that ``layouts.LAYOUTS`` knows.

    Any encoder is scored on retrieval, on mining (see ``mining_corpora``) and on word alignment. A fine-tuned model is
    also scored on the data of its task. The scores are those of the single evaluations. What cannot be scored is listed
    with its reason.

    Returns:
        ``{"models": [{"model": …, "pooling": …, "fingerprint": …}], "pivot": …, "scores": [{"dataset": …, "task": …,
        "language": …, "scores": [the result for each model, or None]}], "not_scored": {reason: [names]}}``. ``out``
        contains it as result.json, the table as table.md, and each score in the folder ``scores``.

    Raises UserError for a model that cannot be loaded, an invalid language or folder, and if nothing can be scored.
    """
    data, out = Path(settings.data), Path(settings.out)
    for option, name in (("pivot", settings.pivot), *(("languages", name) for name in settings.languages)):
        if not is_code(name):
            raise UserError(f"{option}: found {name!r}, expected a BCP-47 code such as de")
    if not data.is_dir():
        raise UserError(f"data: found no folder {data}, expected a folder of evaluation sets")
    models = [_Model(name, settings) for name in dict.fromkeys(settings.model)]
    sets, left = find_sets(data, settings.pivot, settings.languages, ignored=out)
    files = {path: fingerprint(path) for found in sets for path in found.files}
    not_scored: dict[str, list[str]] = defaultdict(list)
    for path, reason in left:
        not_scored[reason].append(str(path.relative_to(data)))
    rows: dict[tuple[str, str, str], list[Any]] = defaultdict(lambda: [None] * len(models))
    with folder_lock(out, "another evaluate suite"):
        for place, model in enumerate(models):
            for found, task in [(each, task) for each in sets for task in each.tasks]:
                try:
                    model.check(task)
                    rows[found.dataset, task, found.language][place] = _score(model, found, task, files, out / "scores")
                except UserError as error:
                    who = f"{model.name}: " if len(models) > 1 else ""
                    not_scored[who + one_line(error)].append(f"{found.dataset} {found.language}")
            vars(model).pop("embedder", None)  # frees its memory
        result = {
            "models": [{"model": m.name, "pooling": m.pooling, "fingerprint": m.fingerprint} for m in models],
            "pivot": standard_code(settings.pivot),
            "scores": [
                {"dataset": dataset, "task": task, "language": language, "scores": scores}
                for (dataset, task, language), scores in rows.items()
            ],
            "not_scored": {reason: list(dict.fromkeys(names)) for reason, names in not_scored.items()},
        }
        if not result["scores"]:
            raise UserError(f"{data}: found nothing that can be scored:\n" + "\n".join(_reasons(result)))
        write_json(out / "result.json", result)
        listed = "".join(f"- {line}\n" for line in _reasons(result))
        write_text(out / "table.md", f"{markdown_table(*_table(result))}\n\n{listed}".rstrip() + "\n")
    return result


def _score(model: _Model, found: EvaluationSet, task: str, files: dict[Path, str], folder: Path) -> dict[str, Any]:
    """The scores in their file, which is written if it does not exist. ``files``: the fingerprints of data files."""
    sentences = (model.pooling, model.settings.layer) if task in ("retrieval", "mine") else ()
    data = [files[path] for path in found.files]
    depends = [__version__, model.fingerprint, task, found.languages, data, dict(found.options), sentences]
    file = folder / f"{_hash(depends)}.json"
    if not file.is_file():
        scores = model.score(found, task)
        about = {"model": model.name, "dataset": found.dataset, "task": task, "language": found.language}
        folder.mkdir(exist_ok=True)
        write_json(file, {**about, "files": [str(path) for path in found.files], "scores": scores})
        log.info(f"{model.name}: {task} on {found.dataset} {found.language}")
    return dict(load_json(file)["scores"])


def _labels(models: Sequence[str]) -> list[str]:
    """The last name of each path, or the complete names if these are equal."""
    names = [Path(model).name for model in models]
    return names if len(set(names)) == len(names) else list(models)


def _table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and rows of the table: a row for each data set, metric and language, with the mean over languages.

    With two models, the last column but one is their difference. The mean is over the languages that all models of the
    row have.
    """
    labels = _labels([model["model"] for model in result["models"]])
    tasks: dict[tuple[str, str], dict[str, list[Any]]] = defaultdict(dict)
    for row in result["scores"]:
        tasks[row["dataset"], row["task"]][row["language"]] = row["scores"]
    difference = ["difference"] if len(labels) == 2 else []

    def cells(values: list[float | None]) -> list[str]:
        shown = ["–" if value is None else f"{value:.1f}" for value in values]
        if difference:
            before, after = values
            shown.append("–" if before is None or after is None else f"{after - before:+.1f}")
        return shown

    rows = []
    for (dataset, task), by_language in tasks.items():
        for metric, label in METRICS[task].items():
            if not any(metric in score for scores in by_language.values() for score in scores if score):
                continue  # a tagging set has parts of speech or entities
            name, scale = f"{dataset}: {label.format(pivot=result['pivot'])}", 1 if task == "qa" else 100
            values, counts = {}, {}
            for language, scores in by_language.items():
                values[language] = [scale * score[metric] if score else None for score in scores]
                counts[language] = _count(next(score for score in scores if score))
                # The pivot is the first language of parallel data.
                shown = language.partition("-")[2] if task in ("retrieval", "mine") else language
                rows.append([name, shown, *cells(values[language]), f"{counts[language]:,}"])
            if len(by_language) > 1:
                average, common = _means(values)
                total = sum(counts[language] for language in common)
                rows.append([name, f"mean of {len(common)}", *cells(average), f"{total:,}"])
    return ["score", "language", *labels, *difference, "n"], rows


def _means(values: dict[str, list[float | None]]) -> tuple[list[float | None], list[str]]:
    """The mean of each model over the languages that all models with a score have, and these languages."""
    scored = [any(value is not None for value in column) for column in zip(*values.values(), strict=True)]
    common = [
        language
        for language, row in values.items()
        if all(value is not None for value, some in zip(row, scored, strict=True) if some)
    ]
    columns = ([values[language][place] for language in common] for place in range(len(scored)))
    found = ([value for value in column if value is not None] for column in columns)
    return [fmean(column) if column else None for column in found], common


def _count(scores: dict[str, Any]) -> int:
    scores = scores.get("test") or scores
    return int(next(scores[name] for name in COUNTS if isinstance(scores.get(name), int)))


def _reasons(result: dict[str, Any]) -> Iterator[str]:
    """A line for each reason that something is not scored."""
    for reason, names in result["not_scored"].items():
        more = f" … and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
        yield f"not scored ({reason}): {', '.join(names[:LISTED])}{more}"


def format_table(result: dict[str, Any]) -> str:
    """A text table of ``evaluate_suite``'s result, in per cent, and a line for each reason why sets are not
    scored."""
    head, rows = _table(result)
    width = max(12, *map(len, head))
    return "\n".join(["Scores in %.", text_table(head, rows, width), *_reasons(result)])
