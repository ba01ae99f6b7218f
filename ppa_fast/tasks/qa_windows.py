"""Splits long contexts into windows, locates gold answers in them, and extracts predicted answers.

Answers are extracted from the context by character offsets, because detokenization would insert spaces between Chinese
characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppa_fast.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ppa_fast.tasks.question_answering import QaExample

CHUNK = 512  # questions tokenized and sorted at a time; the offsets of a window take 0.1 MB as Python objects
MAX_ANSWER_TOKENS = 30  # as in SQuAD's reference implementation

Span = tuple[int, int]


def shorten_questions(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_tokens: int) -> list[str]:
    """Truncates questions to 64 tokens, as in SQuAD's reference implementation, and to a sixth of ``max_tokens``.

    The second limit leaves room for the context in small models.
    """
    encoded = tokenizer(
        list(questions),
        add_special_tokens=False,
        truncation=True,
        max_length=min(64, max_tokens // 6),
        return_offsets_mapping=True,
    )
    ends = ([end for _, end in offsets] for offsets in encoded["offset_mapping"])
    return [text[: max(end, default=0)] for text, end in zip(questions, ends, strict=True)]


def shared_tokens(stride: int, max_tokens: int) -> int:
    """The number of tokens that consecutive windows share: ``stride``, but at most a third of ``max_tokens``."""
    return min(stride, max_tokens // 3)


def question_windows(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_tokens: int = 384,
    stride: int = 128,
) -> Any:
    """Encodes questions with their contexts, with one row of at most ``max_tokens`` tokens per window of the context.

    See ``shorten_questions`` and ``shared_tokens``.

    Returns the tokenizer's encoding with ``overflow_to_sample_mapping`` (the question of each row) and
    ``offset_mapping`` (character offsets in the context for tokens whose ``sequence_ids`` are 1).
    """
    return tokenizer(
        shorten_questions(tokenizer, questions, max_tokens),
        list(contexts),
        truncation="only_second",
        max_length=max_tokens,
        stride=shared_tokens(stride, max_tokens),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def answer_tokens(offsets: Sequence[Span], context: Sequence[bool], start: int, end: int) -> Span:
    """The first and last token of characters ``start`` to ``end`` (exclusive) in a window; (0, 0) if not all inside.

    ``offsets``: the character offsets of the tokens; ``context``: marks the tokens of the context. Token 0 is
    ``[CLS]``, the target of windows without the complete answer, as in SQuAD's reference implementation.
    """
    inside = [token for token, belongs in enumerate(context) if belongs]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    covering = [token for token in inside if offsets[token][1] > start and offsets[token][0] < end]
    return (covering[0], covering[-1]) if covering else (0, 0)


def best_spans(starts: Tensor, ends: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The span with the largest sum of start and end logits in each row, of at most ``MAX_ANSWER_TOKENS`` tokens.

    ``starts``, ``ends``: logits [B, L]; ``allowed``: bool [B, L], marks the context's tokens, at least one per row.
    SQuAD's reference implementation searches the 20 best starts and ends; this searches all. Ties are resolved in
    favour of the first span.

    Returns ``(score fp32 [B], first token int64 [B], last token int64 [B])``.
    """
    import torch
    import torch.nn.functional as F

    starts, ends = (logits.float().masked_fill(~allowed, -torch.inf) for logits in (starts, ends))
    following = F.pad(ends, (0, MAX_ANSWER_TOKENS - 1), value=-torch.inf).unfold(1, MAX_ANSWER_TOKENS, 1)
    score, index = (starts.unsqueeze(2) + following).flatten(1).max(1)
    first = index // MAX_ANSWER_TOKENS
    return score, first, first + index % MAX_ANSWER_TOKENS


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[QaExample],
    max_tokens: int = 384,
    stride: int = 128,
    progress: str | None = None,
) -> dict[str, str]:
    """The answer to each question by id: the text of the best span over all windows of its context.

    See ``question_windows`` and ``best_spans``. Ties are resolved in favour of the first window. The answer for a
    context without tokens is "". The model's device and mode are unchanged afterwards. ``progress``: the title of a
    progress bar.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from ppa_fast.model.encoder import max_sequence
    from ppa_fast.tasks.prediction import batched_outputs, predicting

    limit = min(max_tokens, max_sequence(model.config))
    best = {example.id: (float("-inf"), 0, "") for example in examples}
    bar = Progress(progress or "", len(examples), "questions", enabled=bool(progress))
    with predicting(model) as device, bar:
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            texts = [example.question for example in chunk], [example.context for example in chunk]
            windows = question_windows(tokenizer, *texts, limit, stride)
            for rows, output in batched_outputs(model, tokenizer, windows, device):
                marks = [torch.tensor([side == 1 for side in windows.sequence_ids(row)]) for row in rows]
                spans = best_spans(output.start_logits, output.end_logits, pad_sequence(marks, True).to(device))
                for row, mark, score, first, last in zip(rows, marks, *(part.tolist() for part in spans), strict=True):
                    if mark.any():
                        example, offsets = (
                            chunk[windows["overflow_to_sample_mapping"][row]],
                            windows["offset_mapping"][row],
                        )
                        answer = example.context[offsets[first][0] : offsets[last][1]].strip()
                        best[example.id] = max(best[example.id], (score, -row, answer))
            bar.update(len(chunk))
    return {id_: answer for id_, (_, _, answer) in best.items()}
