"""Tagging of words (part of speech, named entities): fine-tuning and scores by language."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ppa_fast.errors import UserError
from ppa_fast.settings import TagsSettings
from ppa_fast.tasks.evaluation import evaluation
from ppa_fast.tasks.reading import NO_LANGUAGE, check_same, named_files
from ppa_fast.tasks.tables import format_scores, means
from ppa_fast.tasks.tag_files import TaggedSentence, read_tagged, read_tags
from ppa_fast.tasks.tag_metrics import ACCURACY, ENTITY_METRICS, has_entities, score_tags
from ppa_fast.tasks.task import Defaults, Task

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ppa_fast.data.store.tokenize import TextTokenizer

CHUNK = 512  # sentences tokenized and sorted at a time
IGNORED = -100  # label of tokens without a tag, which transformers' loss skips

Window = list[list[int]]
"""The subword ids of consecutive words, for each word."""


class TaggingTask(Task):
    """Tagging of each word of a sentence, with any set of tags; scored by accuracy.

    The tag of a word is the label of its first subword; other subwords have no label. As in XTREME, words are tokenized
    one by one, a word without subwords becomes the unknown token (the mask token if the tokenizer has none), and a
    sentence of more than ``max_tokens`` tokens is split into consecutive windows of complete words. Unlike there, a
    word longer than a window is cut, and the tags of a split sentence are scored together. Every word has a prediction.

    A sentence has one side, so a switched example is either in English or in another language. The loss of a
    micro-batch is the mean over its words, as in transformers, so that it depends slightly on ``micro_batch``.
    """

    name = "tagging"
    auto = "AutoModelForTokenClassification"
    metrics: ClassVar[tuple[str, ...]] = ACCURACY
    selection = "accuracy"
    scale = 100
    defaults = Defaults(max_tokens=128, learning_rate=2e-5, epochs=10)
    read = staticmethod(read_tagged)

    @classmethod
    def labels_of(cls, examples: Sequence[TaggedSentence]) -> tuple[str, ...]:
        return tuple(sorted({tag for example in examples for tag in example.tags}))

    @classmethod
    def for_labels(cls, labels: Sequence[str]) -> type[Task]:
        return EntityTask if has_entities(labels) else TaggingTask

    @staticmethod
    def mix(first: TaggedSentence, second: TaggedSentence) -> TaggedSentence:
        return first

    @staticmethod
    def record(example: TaggedSentence) -> dict[str, Any]:
        return {"words": [*example.words], "tags": [*example.tags]}

    @property
    def _room(self) -> int:
        """The maximum number of tokens of a window without the special tokens."""
        return self.max_tokens - 2

    @cached_property
    def _tokenize(self) -> TextTokenizer:
        from ppa_fast.data.store.tokenize import TextTokenizer

        return TextTokenizer(self.tokenizer, self._room)

    def windows(self, examples: Sequence[TaggedSentence]) -> list[list[Window]]:
        """The windows of each sentence: as many words as fit into ``max_tokens`` tokens, at least one."""
        words = list(dict.fromkeys(word for example in examples for word in example.words))
        unknown = self.tokenizer.unk_token_id
        missing = [self.tokenizer.mask_token_id if unknown is None else unknown]
        found = self._tokenize([f" {word}" for word in words])
        subwords = {word: ids or missing for word, ids in zip(words, found, strict=True)}
        windows: list[list[Window]] = []
        for example in examples:
            parts: list[Window] = []
            room = 0
            for word in example.words:
                ids = subwords[word]
                if not parts or len(ids) > room:
                    parts.append([])
                    room = self._room
                parts[-1].append(ids)
                room -= len(ids)
            windows.append(parts)
        return windows

    def lengths(self, examples: Sequence[TaggedSentence]) -> Tensor:
        """The number of tokens of a sentence with one window; with several, their total capacity. The second side is
        0."""
        import torch

        lengths = [
            sum(map(len, parts[0])) if len(parts) == 1 else len(parts) * self._room for parts in self.windows(examples)
        ]
        return torch.tensor([[length, 0] for length in lengths])

    def pieces(self, lengths: Tensor) -> Tensor:
        return (lengths[:, 0] + self._room - 1) // self._room

    def _encode(self, windows: Sequence[Window]) -> tuple[dict[str, list[list[int]]], list[list[int]]]:
        """The model's inputs for windows, not padded, and the position of each word's first subword."""
        from ppa_fast.data.store.tokenize import special_ids

        special = special_ids(self.tokenizer)
        rows = [[special.cls, *chain(*window), special.sep] for window in windows]
        starts = []
        for window in windows:
            places, at = [], 1
            for ids in window:
                places.append(at)
                at += len(ids)
            starts.append(places)
        encoded = {
            "input_ids": rows,
            "attention_mask": [[1] * len(row) for row in rows],
            "token_type_ids": [[0] * len(row) for row in rows],
        }
        return {name: encoded[name] for name in self.tokenizer.model_input_names}, starts

    def collate(self, items: list[tuple[TaggedSentence, int]]) -> dict[str, Tensor]:
        """The padded batch; ``labels`` int64 [B, L] have ``IGNORED`` where no word begins."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        parts = self.windows([example for example, _ in items])
        encoded, starts = self._encode([windows[piece] for windows, (_, piece) in zip(parts, items, strict=True)])
        number = {label: number for number, label in enumerate(self.labels)}
        encoded["labels"] = []
        for row, windows, places, (example, piece) in zip(encoded["input_ids"], parts, starts, items, strict=True):
            first = sum(map(len, windows[:piece]))
            labels = [IGNORED] * len(row)
            for place, tag in zip(places, example.tags[first:], strict=False):
                labels[place] = number[tag]
            encoded["labels"].append(labels)
        padding = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORED}
        return {
            name: pad_sequence([torch.tensor(row) for row in rows], True, padding.get(name, 0))
            for name, rows in encoded.items()
        }

    def predict(
        self, model: PreTrainedModel, examples: Sequence[TaggedSentence], progress: str | None
    ) -> list[list[str]]:
        """The tag of each word of each sentence."""
        from ppa_fast.progress import Progress
        from ppa_fast.tasks.prediction import batched_outputs, predicting

        predicted: list[list[str]] = []
        bar = Progress(progress or "", len(examples), "sentences", enabled=bool(progress))
        with predicting(model) as device, bar:
            for start in range(0, len(examples), CHUNK):
                parts = self.windows(examples[start : start + CHUNK])
                encoded, starts = self._encode([*chain(*parts)])
                tags: list[list[str]] = [[] for _ in starts]
                for rows, output in batched_outputs(model, self.tokenizer, encoded, device):
                    for row, classes in zip(rows, output.logits.float().argmax(2).tolist(), strict=True):
                        tags[row] = [self.labels[classes[place]] for place in starts[row]]
                windows = iter(tags)
                predicted += [[*chain(*(next(windows) for _ in sentence))] for sentence in parts]
                bar.update(len(parts))
        return predicted

    def score_predictions(self, examples: Sequence[TaggedSentence], predictions: Any, language: str) -> dict[str, Any]:
        """The ``metrics``, shares between 0 and 1; see ``score_tags``."""
        return score_tags([example.tags for example in examples], predictions, self.metrics == ENTITY_METRICS)


class EntityTask(TaggingTask):
    """Tagging of named entities, scored by the F1 of complete entities."""

    metrics = ENTITY_METRICS
    selection = "f1"


def _read_predicted(path: Path, gold: Sequence[TaggedSentence]) -> list[tuple[str, ...]]:
    """The predicted tags of the gold sentences; raises UserError for another number of sentences or words.

    Logs tags that never occur in the gold sentences.
    """
    predicted = read_tags(path)
    if len(predicted) != len(gold):
        raise UserError(f"{path}: found {len(predicted):,} sentences, expected {len(gold):,} as in the gold file")
    for number, (tags, example) in enumerate(zip(predicted, gold, strict=True), 1):
        if len(tags) != len(example.tags):
            raise UserError(
                f"{path}: sentence {number}: found {len(tags)} tags, expected {len(example.tags)}, one for each word "
                f"of the gold sentence at line {example.line}"
            )
    if unknown := {*chain(*predicted)} - {*chain(*(example.tags for example in gold))}:
        log.warning(f"{path}: tags that do not occur in the gold sentences: {', '.join(sorted(unknown))}")
    return predicted


def _predict(model: str, files: dict[str, Path], max_tokens: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gold sentences of each file, and a fine-tuned model's tags for them."""
    from ppa_fast.model.encoder import max_sequence
    from ppa_fast.tasks.prediction import load_finetuned

    tagger, tokenizer = load_finetuned(TaggingTask.auto, model)
    labels = tuple(str(name) for _, name in sorted((tagger.config.id2label or {}).items()))
    task = TaggingTask(tokenizer, min(max_tokens, max_sequence(tagger.config)), labels)
    examples = {name: task.read_evaluation_set(path, name, labels)[0] for name, path in files.items()}
    return examples, {
        name: task.predict(tagger, sentences, "tagging" if name == NO_LANGUAGE else f"{name}: tagging")
        for name, sentences in examples.items()
    }


@evaluation(TagsSettings)
def evaluate_tagging(settings: TagsSettings) -> dict[str, Any]:
    """Scores predicted tags of files, or of a fine-tuned model; see ``read_tagged`` for the gold files.

    Gold tags with ``B-``, ``I-``, ``E-`` or ``S-`` are entities, scored by F1, precision and recall as by seqeval.
    Other tags are scored by accuracy over words. A file of predictions has the sentences and words of the gold file;
    see ``read_tags``. A model's ``id2label`` must have every gold tag.

    Returns:
        ``{"accuracy": …, "languages": {"de": {"accuracy": …, "words": words, "n": sentences}}}``, or with ``f1``,
        ``precision``, ``recall`` and ``entities`` (gold entities), as shares between 0 and 1. The top-level scores are
        means over languages.

    Raises UserError for unusable files, gold tags that the model lacks, and invalid options.
    """
    model = settings.model
    files = named_files(settings.gold, "--gold", NO_LANGUAGE)
    if model:
        examples, predicted = _predict(model, files, settings.max_tokens)
    else:
        examples = {name: TaggingTask.read_evaluation_set(path, name)[0] for name, path in files.items()}
        answers = named_files(settings.predictions or [], "--predictions", next(iter(files)))
        check_same(files, answers)
        predicted = {name: _read_predicted(answers[name], examples[name]) for name in files}
    gold = {name: [example.tags for example in sentences] for name, sentences in examples.items()}
    of_entities = has_entities({tag for each in (*gold.values(), *predicted.values()) for tag in chain(*each)})
    scores = {name: score_tags(gold[name], predicted[name], of_entities) for name in files}
    result = {**means(scores, ENTITY_METRICS if of_entities else ACCURACY), "languages": scores}
    return {**result, "model": model} if model else result


def format_table(result: dict[str, Any]) -> str:
    """A text table in per cent: a row per language, and their mean."""
    if "f1" in result:
        return format_scores(result, ENTITY_METRICS, 100.0, "F1, precision and recall of entities in %.")
    return format_scores(result, ACCURACY, 100.0, "Accuracy over words in %.")
