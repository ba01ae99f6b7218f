"""Extractive question answering (SQuAD 1.1, MLQA, XQuAD): reading, fine-tuning and scores by language."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppa_fast.data.reading.languages import is_code
from ppa_fast.errors import UserError
from ppa_fast.settings import AnswersSettings
from ppa_fast.tasks.evaluation import evaluation
from ppa_fast.tasks.qa_metrics import METRICS, score_answers
from ppa_fast.tasks.qa_windows import (
    answer_questions,
    answer_tokens,
    question_windows,
    shared_tokens,
    shorten_questions,
)
from ppa_fast.tasks.reading import (
    LISTED,
    NO_LANGUAGE,
    RejectedQuestion,
    check_evaluation_set,
    check_not_empty,
    check_same,
    load_json,
    missing_field,
    only_file,
    text_or_number,
)
from ppa_fast.tasks.tables import format_scores, means, text_table
from ppa_fast.tasks.task import Defaults, Task

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_MLQA_NAME = re.compile(r"context-(\w+)-question-(\w+)\.json(?:\.gz)?$")


@dataclass(frozen=True)
class QaExample:
    """A question about ``context``. ``answers``: (text, start) with ``start`` a character offset in the context.

    ``start`` is -1 if the file has none; scoring needs only the texts of the answers.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    title: str


def _questions(path: Path) -> Iterator[QaExample]:
    """The questions of a SQuAD 1.1 file; raises UserError, naming the position, for another format."""

    def get(owner: Any, key: str, kind: type, place: str, default: Any = None) -> Any:
        value = owner.get(key, default) if isinstance(owner, dict) else None
        value = text_or_number(value) if key == "id" else value
        if not isinstance(value, kind):
            name = {list: "a list", str: "text", int: "a whole number"}[kind]
            raise UserError(f"{path}: {place}: {key}: found {str(value)[:50]!r}, expected {name} as in SQuAD 1.1")
        return value

    for i, article in enumerate(get(load_json(path), "data", list, "the file")):
        for j, paragraph in enumerate(get(article, "paragraphs", list, f"data[{i}]")):
            place = f"data[{i}].paragraphs[{j}]"
            for k, question in enumerate(get(paragraph, "qas", list, place)):
                id_ = get(question, "id", str, f"{place}.qas[{k}]")
                answers = [
                    (get(answer, "text", str, id_), get(answer, "answer_start", int, id_, -1))
                    for answer in get(question, "answers", list, id_)
                ]
                yield QaExample(
                    id=id_,
                    question=get(question, "question", str, id_, ""),
                    context=get(paragraph, "context", str, place, ""),
                    answers=tuple(answers),
                    title=get(article, "title", str, f"data[{i}]", ""),
                )


def read_gold(path: str | Path, asked: bool = False) -> tuple[list[QaExample], list[RejectedQuestion]]:
    """Reads a SQuAD 1.1 file for scoring. Rejects questions with a repeated id or without a gold answer.

    As in the official scripts, answer offsets are ignored (``read_qa`` checks them). If ``asked`` (the questions are
    given to a model), also rejects questions without a text or a context.

    Raises UserError for a file that is not in SQuAD's format or has no questions.
    """
    path = Path(path)
    examples: dict[str, QaExample] = {}
    rejected = []
    for question in _questions(path):
        if question.id in examples:
            rejected.append(RejectedQuestion(path, question.id, "repeated id"))
        elif not question.answers:
            rejected.append(RejectedQuestion(path, question.id, "no answer"))
        elif asked and (reason := missing_field(question=question.question.strip(), context=question.context.strip())):
            rejected.append(RejectedQuestion(path, question.id, reason))
        else:
            examples[question.id] = question
    check_not_empty(path, len(examples) + len(rejected))
    return list(examples.values()), rejected


def _misplaced_answer(example: QaExample) -> str:
    """The first answer that is not at its offset, "" if all are."""
    for text, start in example.answers:
        found = example.context[start : start + len(text)] if start >= 0 else ""
        if not text or found != text:
            return f"found {found!r} at character {start} of the context, expected answer {text!r}"
    return ""


def read_qa(path: str | Path) -> tuple[list[QaExample], list[RejectedQuestion]]:
    """Reads extractive question answering in SQuAD 1.1 JSON (SQuAD, MLQA, XQuAD).

    Rejects the questions that ``read_gold`` with ``asked`` rejects, and questions with an answer whose text is not
    exactly at ``answer_start``. Raises UserError for a file that is not in SQuAD's format or has no questions.
    """
    path = Path(path)
    questions, rejected = read_gold(path, asked=True)
    examples = []
    for example in questions:
        if reason := _misplaced_answer(example):
            rejected.append(RejectedQuestion(path, example.id, reason))
        else:
            examples.append(example)
    return examples, rejected


@dataclass(frozen=True)
class QuestionAnsweringTask(Task):
    """Extractive question answering. The language of an answer is that of the context.

    ``stride``: the number of tokens shared by consecutive windows of a context; ``scoring``: "mlqa" or "squad".
    """

    stride: int = 128
    scoring: str = "mlqa"

    name = "qa"
    auto = "AutoModelForQuestionAnswering"
    metrics = METRICS
    selection = "f1"
    scale = 1
    defaults = Defaults(max_tokens=384, learning_rate=3e-5, epochs=3, warmup_steps=500, weight_decay=1e-4)

    @staticmethod
    def read(path: Path, labels: Sequence[str] = ()) -> tuple[list[Any], list[Any]]:
        return read_qa(path)

    @classmethod
    def read_scored(cls, path: Path, labels: Sequence[str] = ()) -> tuple[list[Any], list[Any]]:
        """Reads without checking answer offsets, which scoring does not use."""
        return read_gold(path, asked=True)

    @staticmethod
    def mix(first: QaExample, second: QaExample) -> QaExample:
        return replace(second, question=first.question)

    @staticmethod
    def record(example: QaExample) -> dict[str, Any]:
        answers = [{"text": text, "answer_start": start} for text, start in example.answers]
        return {"id": example.id, "question": example.question, "context": example.context, "answers": answers}

    def lengths(self, examples: Sequence[QaExample]) -> Tensor:
        """The number of tokens of the truncated question and of the complete context, int64 [N, 2]."""
        import torch

        def count(texts: list[str]) -> list[int]:
            return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

        questions = count(shorten_questions(self.tokenizer, [e.question for e in examples], self.max_tokens))
        contexts = [*dict.fromkeys(e.context for e in examples)]  # several questions share a context
        tokens = dict(zip(contexts, count(contexts), strict=True))
        return torch.tensor([[q, tokens[e.context]] for q, e in zip(questions, examples, strict=True)])

    def pieces(self, lengths: Tensor) -> Tensor:
        """The number of windows of ``room`` context tokens, where consecutive ones share up to ``stride`` tokens."""
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add(pair=True) - lengths[:, 0]
        step = room - shared_tokens(self.stride, self.max_tokens)
        return 1 + ((lengths[:, 1] - room).clamp(min=0) + step - 1) // step

    def collate(self, items: list[tuple[QaExample, int]]) -> dict[str, Tensor]:
        """The windows as a batch, with ``start_positions`` and ``end_positions`` int64 [B] of the first answer."""
        questions, contexts = [e.question for e, _ in items], [e.context for e, _ in items]
        encoded = question_windows(self.tokenizer, questions, contexts, self.max_tokens, self.stride)
        first = {item: row for row, item in reversed([*enumerate(encoded["overflow_to_sample_mapping"])])}
        rows = [first[number] + piece for number, (_, piece) in enumerate(items)]
        spans = []
        for row, (example, _) in zip(rows, items, strict=True):
            text, start = example.answers[0]
            context = [side == 1 for side in encoded.sequence_ids(row)]
            spans.append(answer_tokens(encoded["offset_mapping"][row], context, start, start + len(text)))
        inputs = [name for name in self.tokenizer.model_input_names if name in encoded]
        batch = self.tokenizer.pad(
            {name: [encoded[name][row] for row in rows] for name in inputs},
            return_tensors="pt",
        )
        starts, ends = batch["input_ids"].new_tensor(spans).unbind(1)
        return {**batch, "start_positions": starts, "end_positions": ends}

    def predict(self, model: PreTrainedModel, examples: Sequence[QaExample], progress: str | None) -> dict[str, str]:
        """The answer to each question, by id."""
        return answer_questions(model, self.tokenizer, examples, self.max_tokens, self.stride, progress)

    def score_predictions(self, examples: Sequence[QaExample], predictions: Any, language: str) -> dict[str, Any]:
        """``exact_match`` and ``f1`` × 100."""
        return score_answers(examples, predictions, language if self.scoring == "mlqa" else None)


def read_predictions(path: str | Path) -> dict[str, str]:
    """Answers by question id from JSON ``{"id": "answer"}``; raises UserError for another format."""
    predictions = load_json(path)
    if not isinstance(predictions, dict):
        raise UserError(
            f'{path}: found {type(predictions).__name__}, expected a JSON object {{"question id": "answer"}}'
        )
    for id_, answer in predictions.items():
        if not isinstance(answer, str):
            raise UserError(f"{path}: question {id_}: found {answer!r}, expected text")
    return predictions


def _named_files(specs: Sequence[str], flag: str, name: str | None) -> dict[str, Path]:
    """Files by language of the context, or by "context language-question language" (G-XLT).

    A single file without a language has the key ``name``, if given. Otherwise the language is taken from a file name in
    MLQA's format.
    """
    path = only_file(specs)
    if path and name:
        return {name: path}
    files: dict[str, Path] = {}
    for spec in specs:
        key, colon, file = spec.partition(":")
        if not colon:
            key, file = "-".join(dict.fromkeys(match.groups())) if (match := _MLQA_NAME.search(spec)) else "", spec
        codes = key.split("-")
        if len(codes) > 2 or not all(map(is_code, codes)):
            hint = "; or --language LANG for a single file" if flag == "--gold" else ""
            raise UserError(
                f"{flag} {spec}: expected LANG:FILE, LANG-LANG:FILE (context and question) or a file with MLQA's name "
                f"such as test-context-zh-question-en.json{hint}"
            )
        if key in files:
            raise UserError(f"{flag} {spec}: found {key} twice, expected each once")
        files[key] = Path(file)
    return files


def _warn_questions(path: Path, what: str, ids: Sequence[str]) -> None:
    if ids:
        more = f" … and {len(ids) - LISTED:,} more" if len(ids) > LISTED else ""
        log.warning(f"{path}: {len(ids):,} {what}: {', '.join(ids[:LISTED])}{more}")


def _answers(
    gold: dict[str, Path], examples: dict[str, list[QaExample]], predictions: Sequence[str] | None, model: str | None
) -> dict[str, dict[str, str]]:
    """Predictions by file and question id, read from files or computed by a model."""
    if predictions:
        files = _named_files(predictions, "--predictions", next(iter(gold)) if len(gold) == 1 else None)
        check_same(gold, files)
        return {key: read_predictions(files[key]) for key in gold}
    from ppa_fast.tasks.prediction import load_finetuned

    reader, tokenizer = load_finetuned(QuestionAnsweringTask.auto, str(model))
    task = QuestionAnsweringTask(tokenizer, QuestionAnsweringTask.defaults.max_tokens)
    return {key: task.predict(reader, examples[key], f"{key}: answering") for key in gold}


@evaluation(AnswersSettings)
def evaluate_qa(settings: AnswersSettings) -> dict[str, Any]:
    """Exact match and F1 of predicted answers in files, or of a fine-tuned model's answers.

    Logs questions without a prediction and predictions without a question.

    Returns:
        ``{"metric": …, "exact_match": …, "f1": …, "languages": {"zh": {"exact_match": …, "f1": …, "n": questions,
        "missing": questions without a prediction}}}``, scores × 100. The top-level scores are means over files. If
        question and context languages differ in a file, ``xlt`` and ``gxlt`` are the means over the files with one
        language and with two languages.

    Raises UserError for unusable files and invalid options. For a single gold file, MLQA's metric needs ``language`` or
    a file name in MLQA's format.
    """
    gold, predictions, model = settings.gold, settings.predictions, settings.model
    language, metric = settings.language, settings.metric
    if language is not None and (only_file(gold) is None or not is_code(language)):
        raise UserError(f"--language: found {language}, expected a BCP-47 code, for a single --gold FILE")
    mlqa_name = len(gold) == 1 and _MLQA_NAME.search(gold[0])
    files = _named_files(gold, "--gold", language or (None if metric == "mlqa" or mlqa_name else NO_LANGUAGE))
    examples = {}
    for key, path in files.items():
        examples[key], rejected = read_gold(path, asked=model is not None)
        check_evaluation_set(rejected)

    scores = {}
    for key, answers in _answers(files, examples, predictions, model).items():
        ids = dict.fromkeys(example.id for example in examples[key])
        _warn_questions(
            files[key], "questions have no prediction and score 0", [id_ for id_ in ids if id_ not in answers]
        )
        _warn_questions(
            files[key], "predictions have no question and are ignored", [id_ for id_ in answers if id_ not in ids]
        )
        scores[key] = score_answers(examples[key], answers, key.split("-")[0] if metric == "mlqa" else None)
    result: dict[str, Any] = {"metric": metric, **means(scores, METRICS), "languages": scores}
    if crossed := {key: score for key, score in scores.items() if "-" in key}:
        straight = {key: score for key, score in scores.items() if key not in crossed}
        result["xlt"] = means(straight, METRICS) if straight else None
        result["gxlt"] = means(crossed, METRICS)
    return {**result, "model": model} if model else result


def _matrix(result: dict[str, Any], metric: str) -> str:
    """MLQA's G-XLT table of one metric, or of ``n``: a row per context language, a column per question language."""
    cells = {(key.split("-")[0], key.split("-")[-1]): s[metric] for key, s in result["languages"].items()}
    questions, form = sorted({question for _, question in cells}), "{:,}" if metric == "n" else "{:.1f}"
    head = [f"{metric}, context\\question".ljust(29), *questions]
    rows = [
        [context, *(form.format(cells[context, q]) if (context, q) in cells else "–" for q in questions)]
        for context in sorted({context for context, _ in cells})
    ]
    return text_table(head, rows, width=7)


def format_table(result: dict[str, Any]) -> str:
    """A text table of ``evaluate_qa``'s result: a row per language, or G-XLT's matrices if languages differ."""
    name = {"mlqa": "MLQA's", "squad": "SQuAD 1.1's"}[result["metric"]]
    caption = f"Exact match and token F1 × 100, {name} definition."
    if "gxlt" not in result:
        return format_scores(result, METRICS, 1.0, caption)
    tables = [caption, *(_matrix(result, metric) for metric in (*METRICS, "n"))]
    for name, title in (("xlt", "XLT (one language)"), ("gxlt", "G-XLT (two languages)")):
        if result[name]:
            tables.append(f"{title}: " + ", ".join(f"{metric} {result[name][metric]:.1f}" for metric in METRICS))
    return "\n".join(tables)
