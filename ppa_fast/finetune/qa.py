"""Fine-tuning for extractive question answering (SQuAD 1.1, MLQA, XQuAD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

from ppa_fast.data.examples import QaExample, read_gold, read_qa
from ppa_fast.evaluation.predict import answer_questions, question_windows, shared_tokens, shorten_questions
from ppa_fast.evaluation.question_answering import score_answers
from ppa_fast.finetune.task import Defaults, Task, first_rank

Span = tuple[int, int]


def answer_tokens(offsets: Sequence[Span], context: Sequence[bool], start: int, end: int) -> Span:
    """The first and last token of the characters ``start`` … ``end`` (exclusive) in a window; (0, 0) outside of it.

    ``offsets`` are the tokens' characters, ``context`` marks the tokens that belong to the context. Token 0 is
    ``[CLS]``: a window without the whole answer points there, as in SQuAD's reference.
    """
    inside = [token for token, belongs in enumerate(context) if belongs]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    covering = [token for token in inside if offsets[token][1] > start and offsets[token][0] < end]
    return (covering[0], covering[-1]) if covering else (0, 0)


@dataclass(frozen=True)
class Qa(Task):
    """Questions on a context that holds the answer; the answer's language is the context's.

    ``stride`` tokens are shared by consecutive windows of a context; ``scoring`` is "mlqa" or "squad".
    """

    stride: int = 128
    scoring: str = "mlqa"

    name = "qa"
    auto = AutoModelForQuestionAnswering
    metric = "f1"
    scale = 1
    defaults = Defaults(max_tokens=384, learning_rate=3e-5, epochs=3, warmup_steps=500, weight_decay=1e-4)

    @staticmethod
    def read(path: Path, language: str, labels: Sequence[str] | None = None) -> tuple[list[Any], list[Any]]:
        return read_qa(path)

    @staticmethod
    def read_scored(path: Path, language: str, labels: Sequence[str] | None = None) -> tuple[list[Any], list[Any]]:
        """Scores need the answers' texts, not their places."""
        return read_gold(path, asked=True)

    @staticmethod
    def mix(first: QaExample, second: QaExample) -> QaExample:
        return replace(second, question=first.question)

    @staticmethod
    def record(example: QaExample) -> dict[str, Any]:
        answers = [{"text": text, "answer_start": start} for text, start in example.answers]
        return {"id": example.id, "question": example.question, "context": example.context, "answers": answers}

    def lengths(self, examples: Sequence[QaExample]) -> Tensor:
        """In tokens: of the question as it is cut, and of the whole context."""

        def count(texts: list[str]) -> list[int]:
            return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

        questions = count(shorten_questions(self.tokenizer, [e.question for e in examples], self.max_tokens))
        contexts = [*dict.fromkeys(e.context for e in examples)]  # each has several questions
        tokens = dict(zip(contexts, count(contexts), strict=True))
        return torch.tensor([[q, tokens[e.context]] for q, e in zip(questions, examples, strict=True)])

    def pieces(self, lengths: Tensor) -> Tensor:
        """Windows: one more for each ``room - stride`` tokens of the context beyond the first ``room``."""
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add(pair=True) - lengths[:, 0]
        step = room - shared_tokens(self.stride, self.max_tokens)
        return 1 + ((lengths[:, 1] - room).clamp(min=0) + step - 1) // step

    def collate(self, items: list[tuple[QaExample, int]]) -> dict[str, Tensor]:
        """The windows, with ``start_positions`` and ``end_positions`` int64 [B] of the first answer."""
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
        starts, ends = torch.tensor(spans).unbind(1)
        return {**batch, "start_positions": starts, "end_positions": ends}

    def score(self, model: PreTrainedModel, examples: Sequence[QaExample], language: str) -> dict[str, float]:
        """``exact_match`` and ``f1`` × 100."""
        title = f"{language}: answering" if first_rank() else None
        answers = answer_questions(model, self.tokenizer, examples, self.max_tokens, self.stride, progress=title)
        scores = score_answers(examples, answers, language if self.scoring == "mlqa" else None)
        return {name: scores[name] for name in ("exact_match", "f1")}
