"""Natural language inference and text classification: accuracy and macro-F1, shares between 0 and 1.

XNLI (Conneau et al., 2018) is scored by accuracy in each of 15 languages and their mean, SIB-200 (Adelani et al., 2024)
by accuracy and macro-F1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ppa_fast.data.examples import (
    NLI_ALIASES,
    NLI_LABELS,
    NO_GOLD_LABEL,
    NliExample,
    TextExample,
    language_of,
    read_classification,
    read_nli,
    rows_of,
)
from ppa_fast.data.lines import Reject, text_lines
from ppa_fast.errors import UserError
from ppa_fast.evaluation.by_language import NO_LANGUAGE, check_same, format_scores, means, named_files
from ppa_fast.progress import note

METRICS = ("accuracy", "macro_f1")

Examples = Sequence[NliExample | TextExample]
Reader = Callable[[Path], tuple[Examples, list[Reject]]]


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of rows whose predicted label is the gold one."""
    return fmean(g == p for g, p in zip(gold, predicted, strict=True))


def macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean over labels of F1 = 2 · both / (gold + predicted), the counts of rows that bear the label.

    The labels are those of either side, as scikit-learn's default has it: one that is only predicted counts 0.
    """
    both = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    in_gold, in_predicted = Counter(gold), Counter(predicted)
    return fmean(2 * both[x] / (in_gold[x] + in_predicted[x]) for x in sorted({*in_gold, *in_predicted}))


def score_labels(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """``{"accuracy": share, "macro_f1": share, "n": rows}``; raises UserError for unequal numbers, or none."""
    if len(gold) != len(predicted) or not gold:
        raise UserError(f"found {len(predicted):,} predicted and {len(gold):,} gold labels, expected as many, and some")
    return {"accuracy": accuracy(gold, predicted), "macro_f1": macro_f1(gold, predicted), "n": len(gold)}


def read_labels(path: str | Path) -> list[str]:
    """A label for each line of a file, without surrounding white space; raises UserError for a line without one."""
    labels = []
    for number, label in text_lines(path):
        if not label:
            raise UserError(f"{path}:{number}: an empty line, expected a label")
        labels.append(label)
    return labels


def _read_gold(name: str, path: Path, read: Reader) -> tuple[Examples, int]:
    """The rows to score, and how many rows the file has.

    Those without a gold label are left out, as everywhere; any other bad row is an error. Of a file with a column for
    the language those of ``name`` are scored, if that says one.
    """
    examples, rejected = read(path)
    if bad := [reject for reject in rejected if reject.reason != NO_GOLD_LABEL]:
        raise UserError(f"{bad[0]} ({len(bad):,} such; an evaluation set must have no bad row)")
    if rejected:
        note(f"{path}: {len(rejected):,} rows without a gold label are not scored")
    count = len(examples) + len(rejected)
    if name != NO_LANGUAGE:
        examples = rows_of(examples, name)
    if not examples:
        raise UserError(f"{path}: no rows to score in language {name}")
    return examples, count


def _text_of(example: NliExample | TextExample) -> str | tuple[str, str]:
    return (example.premise, example.hypothesis) if isinstance(example, NliExample) else example.text


def _read_predicted(path: Path, gold: Examples, count: int, labels: Sequence[str] | None) -> list[str]:
    """The labels predicted for the rows that are scored, from a file for these or for all ``count`` rows.

    A label that cannot be right is an error where the set is known (NLI), else it is named on stderr.
    """
    lines = read_labels(path)
    if len(lines) not in (len(gold), count):
        every = f" or {count:,}, for every row of the gold file" if count != len(gold) else ""
        raise UserError(
            f"{path}: {len(lines):,} lines, expected {len(gold):,}: a label for each row that is scored{every}"
        )
    places = [example.row for example in gold] if len(lines) == count else range(len(gold))
    predicted = []
    for place in places:
        label = NLI_ALIASES.get(lines[place], lines[place]) if labels else lines[place]
        if labels and label not in labels:
            raise UserError(f"{path}:{place + 1}: label {label!r}, expected one of {', '.join(labels)}")
        predicted.append(label)
    if unknown := {*predicted} - {example.label for example in gold}:
        note(f"{path}: labels that no gold row has: {', '.join(sorted(unknown))}")
    return predicted


def _predict(
    model: str, examples: dict[str, Examples], labels: Sequence[str] | None, max_tokens: int
) -> dict[str, list[str]]:
    """A fine-tuned model's labels for the rows of each file."""
    from ppa_fast.evaluation.predict import load_classifier, predict_classes

    classifier, tokenizer = load_classifier(model)
    names = {int(i): str(name) for i, name in (classifier.config.id2label or {}).items()}
    if labels:
        names = {i: NLI_ALIASES.get(name.lower(), name.lower()) for i, name in names.items()}
    expected = {*(labels or (example.label for rows in examples.values() for example in rows))}
    if not expected <= {*names.values()}:
        found = ", ".join(names.values())
        raise UserError(f"{model}: its classes (id2label in config.json) are {found}; expected {sorted(expected)}")
    predicted = {}
    for name, rows in examples.items():
        title = "classifying" if name == NO_LANGUAGE else f"{name}: classifying"
        texts = [_text_of(example) for example in rows]
        classes = predict_classes(classifier, tokenizer, texts, max_tokens=max_tokens, progress=title)
        predicted[name] = [names[class_] for class_ in classes]
    return predicted


def _evaluate(
    read: Reader,
    labels: Sequence[str] | None,
    gold: Sequence[str],
    predictions: Sequence[str] | None,
    model: str | None,
    max_tokens: int,
) -> dict[str, Any]:
    if bool(predictions) == bool(model):
        raise UserError("evaluate: expected either predictions or a model")
    files = named_files(gold, "--gold", NO_LANGUAGE)
    examples, counts = {}, {}
    for name, path in files.items():
        examples[name], counts[name] = _read_gold(name, path, read)
    if model:
        predicted = _predict(model, examples, labels, max_tokens)
    else:
        answers = named_files(predictions or [], "--predictions", next(iter(files)))
        check_same(files, answers)
        predicted = {name: _read_predicted(answers[name], examples[name], counts[name], labels) for name in files}

    by_language: dict[str, tuple[list[str], list[str]]] = {}
    for name, rows in examples.items():
        for example, label in zip(rows, predicted[name], strict=True):
            language = (language_of(example) or name) if name == NO_LANGUAGE else name
            of_gold, of_predicted = by_language.setdefault(language, ([], []))
            of_gold.append(example.label)
            of_predicted.append(label)
    scores = {language: score_labels(*both) for language, both in by_language.items()}
    result = {**means(scores, METRICS), "languages": scores}
    return {**result, "model": model} if model else result


def evaluate_nli(
    gold: Sequence[str], predictions: Sequence[str] | None = None, model: str | None = None, max_tokens: int = 128
) -> dict[str, Any]:
    """Accuracy and macro-F1 of natural language inference, of files of labels or of a fine-tuned model.

    Args:
        gold: NLI files (see ``read_nli``): one, or one for each language (``en:FILE``). A file with a column
            ``language`` (XNLI) is scored by language, or in the one that its argument names.
        predictions: text files with a label for each row of the gold files, or each that is scored (those with a gold
            label, in the language that is named), named in the same way.
        model: instead of predictions, the name or folder of a sequence classifier whose ``id2label`` has the three
            labels.
        max_tokens: of a pair, specials included, for the model (XTREME's 128).

    Returns:
        ``{"accuracy": …, "macro_f1": …, "languages": {"de": {"accuracy": …, "macro_f1": …, "n": rows}}}``, shares
        between 0 and 1; the two at the top are the means over languages.

    Raises UserError for unusable files and requests.
    """
    return _evaluate(read_nli, NLI_LABELS, gold, predictions, model, max_tokens)


def evaluate_classification(
    gold: Sequence[str], predictions: Sequence[str] | None = None, model: str | None = None, max_tokens: int = 128
) -> dict[str, Any]:
    """Accuracy and macro-F1 of text classification, as ``evaluate_nli``; files as ``read_classification`` reads them.

    The labels are the gold file's; a model's ``id2label`` must have them all.
    """
    return _evaluate(read_classification, None, gold, predictions, model, max_tokens)


def format_table(result: dict[str, Any]) -> str:
    """A text table in per cent: a line for each language, and their mean."""
    return format_scores(result, METRICS, 100.0, "Accuracy and macro-F1 in %.")
