"""Text classification (SIB-200): reading, fine-tuning and scores by language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppa_fast.data.reading.lines import Reject
from ppa_fast.settings import LabelsSettings
from ppa_fast.tasks.evaluation import evaluation
from ppa_fast.tasks.reading import missing_field, read_table, unexpected_label
from ppa_fast.tasks.sequence_classification import SequenceClassification, evaluate_classes

_COLUMNS = {"text": ("text",), "label": ("category", "label")}


@dataclass(frozen=True)
class TextExample:
    """A text with its class ``label``. ``index``: SIB-200's ``index_id``, equal in all languages; "" if absent."""

    text: str
    label: str
    row: int
    index: str = ""


def read_classification(path: str | Path, labels: Sequence[str] = ()) -> tuple[list[TextExample], list[Reject]]:
    """Reads classified texts: TSV with the columns ``text`` and ``category`` or ``label`` (SIB-200), or JSON lines.

    Rejects rows with another number of columns than the header, an empty text or label, a label outside ``labels`` (if
    ``labels`` is empty, any label is accepted), or bytes that are not UTF-8. Raises UserError for a file without rows
    or with another header.
    """

    def parse(fields: dict[str, str], row: int) -> TextExample | str:
        text, label = fields["text"], fields["label"]
        reason = missing_field(text=text, label=label) or unexpected_label(label, labels)
        return reason or TextExample(text, label, row, fields.get("index_id", ""))

    return read_table(path, _COLUMNS, parse)


class TextClassificationTask(SequenceClassification):
    """Text classification with any set of classes.

    A text has one side, so a switched example is either in English or in another language.
    """

    name = "classify"
    read = staticmethod(read_classification)

    @staticmethod
    def mix(first: TextExample, second: TextExample) -> TextExample:
        return first

    @staticmethod
    def sides(example: TextExample) -> dict[str, str]:
        return {"text": example.text}


@evaluation(LabelsSettings)
def evaluate_classification(settings: LabelsSettings) -> dict[str, Any]:
    """Accuracy and macro-F1 of text classification; see ``evaluate_nli``, and ``read_classification`` for the files.

    The labels are those of the gold file. A model's ``id2label`` must contain them all.
    """
    return evaluate_classes(TextClassificationTask, settings)
