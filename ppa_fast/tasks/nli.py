"""Natural language inference (XNLI): reading, fine-tuning and scores by language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppa_fast.data.reading.languages import is_code
from ppa_fast.data.reading.lines import Reject
from ppa_fast.settings import LabelsSettings
from ppa_fast.tasks.evaluation import evaluation
from ppa_fast.tasks.reading import NO_GOLD, NO_GOLD_LABEL, missing_field, read_table, unexpected_label
from ppa_fast.tasks.sequence_classification import SequenceClassification, evaluate_classes

NLI_LABELS = ("entailment", "neutral", "contradiction")
NLI_ALIASES = {"contradictory": "contradiction"}  # in XNLI's machine-translated MultiNLI
NLI_ALIASES |= {str(number): label for number, label in enumerate(NLI_LABELS)}  # XNLI, MultiNLI and SNLI on hubs

_COLUMNS = {
    "premise": ("premise", "sentence1"),
    "hypothesis": ("hypothesis", "hypo", "sentence2"),
    "label": ("label", "gold_label"),
}


@dataclass(frozen=True)
class NliExample:
    """A premise and a hypothesis with a label. ``language``: the column of multilingual files (XNLI); "" if absent."""

    premise: str
    hypothesis: str
    label: str
    row: int
    language: str = ""


def read_nli(path: str | Path, labels: Sequence[str] = ()) -> tuple[list[NliExample], list[Reject]]:
    """Reads NLI data: TSV with a header, or JSON lines.

    The columns are those of XNLI and MultiNLI (``sentence1``, ``sentence2``, ``gold_label``, in XNLI also
    ``language``), or ``premise``, ``hypothesis`` or ``hypo``, and ``label``. ``contradictory`` is read as
    ``contradiction``, and the numbers 0, 1 and 2 as the labels in the order of ``NLI_LABELS``.

    Rejects rows with another number of columns than the header, an empty text, no gold label (``-`` or -1), a label
    outside ``labels`` (by default ``NLI_LABELS``), an invalid language code, or bytes that are not UTF-8. Raises
    UserError for a file without rows or with another header.
    """

    def parse(fields: dict[str, str], row: int) -> NliExample | str:
        texts = {name: fields[name] for name in ("premise", "hypothesis")}
        label, language = NLI_ALIASES.get(fields["label"], fields["label"]), fields.get("language", "")
        if label in NO_GOLD:
            return NO_GOLD_LABEL
        reason = missing_field(**texts, label=label) or unexpected_label(label, labels or NLI_LABELS)
        if not reason and "language" in fields and not is_code(language):
            reason = f"language {language!r}, expected a BCP-47 code such as en"
        return reason or NliExample(**texts, label=label, row=row, language=language)

    return read_table(path, _COLUMNS, parse)


class NliTask(SequenceClassification):
    """Classification of a premise and a hypothesis, encoded as one sequence, into three classes."""

    name = "nli"
    read = staticmethod(read_nli)
    classes = NLI_LABELS
    aliases = NLI_ALIASES

    @staticmethod
    def mix(first: NliExample, second: NliExample) -> NliExample:
        return replace(first, hypothesis=second.hypothesis)

    @staticmethod
    def sides(example: NliExample) -> dict[str, str]:
        return {"premise": example.premise, "hypothesis": example.hypothesis}


@evaluation(LabelsSettings)
def evaluate_nli(settings: LabelsSettings) -> dict[str, Any]:
    """Accuracy and macro-F1 of natural language inference, for files of predicted labels or a fine-tuned model.

    A gold file (see ``read_nli``) with a column ``language`` (XNLI) is scored by language, or only in the language of
    its ``LANG:FILE`` argument. A file of predictions has one label for each row of the gold file, or for each scored
    row: those with a gold label, in the given language. A model's ``id2label`` must have the three labels.

    Returns:
        ``{"accuracy": …, "macro_f1": …, "languages": {"de": {"accuracy": …, "macro_f1": …, "n": rows}}}``, as shares
        between 0 and 1. The top-level scores are means over languages.

    Raises UserError for unusable files and invalid options.
    """
    return evaluate_classes(NliTask, settings)
