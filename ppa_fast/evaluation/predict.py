"""Fine-tuned models at work: classes of texts, and answers to questions as text of their context.

Rows run sorted by length, in batches of bounded size, in bf16 on CUDA. An answer is cut out of the context by character
offsets, never put together from tokens: detokenising would put spaces between Chinese characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ppa_fast.data.encode import load_tokenizer
from ppa_fast.data.examples import QaExample
from ppa_fast.errors import UserError
from ppa_fast.hub import load_pretrained
from ppa_fast.model.encoder import max_sequence, missing_weights
from ppa_fast.progress import Progress

TOKENS_PER_BATCH = 16384  # padding included
CHUNK = 512  # texts or questions encoded and sorted at a time: their offsets as Python objects are 0.1 MB a window
MAX_ANSWER_TOKENS = 30  # as in SQuAD's reference


def _load(auto: Any, name_or_dir: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, info = load_pretrained(auto, name_or_dir, dtype=torch.float32, output_loading_info=True)
    if missing := missing_weights(model, info["missing_keys"]):
        raise UserError(
            f"{name_or_dir}: the checkpoint lacks {len(missing)} weights of {type(model).__name__}, the first is "
            f"{missing[0]}; expected a model fine-tuned for the task"
        )
    tokenizer = load_tokenizer(name_or_dir)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{name_or_dir}: {len(tokenizer)} tokens in its tokenizer, {model.config.vocab_size} in its model"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def load_classifier(name_or_dir: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier and its tokenizer, fp32, on the GPU if there is one.

    Raises UserError for an absent or broken folder, and for one without its classification head.
    """
    return _load(AutoModelForSequenceClassification, name_or_dir)


def load_reader(name_or_dir: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A question answering model and its tokenizer, fp32, on the GPU if there is one; raises as ``load_classifier``."""
    return _load(AutoModelForQuestionAnswering, name_or_dir)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[torch.device]:
    """The model in eval mode without gradients, in bf16 on CUDA; each module's mode is as before afterwards."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            yield device
    finally:
        for module, training in modes:
            module.training = training


def _outputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Any, device: torch.device
) -> Iterator[tuple[list[int], Any]]:
    """``(rows, output)`` of batches of encoded rows, longest first; at most ``TOKENS_PER_BATCH`` padded tokens each."""
    ids = encoded["input_ids"]
    padding = {name: tokenizer.pad_token_id if name == "input_ids" else 0 for name in tokenizer.model_input_names}
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    while order:
        size = max(1, TOKENS_PER_BATCH // len(ids[order[0]]))
        rows, order = order[:size], order[size:]
        batch = {
            name: pad_sequence([torch.tensor(encoded[name][row]) for row in rows], True, value).to(device)
            for name, value in padding.items()
        }
        yield rows, model(**batch)


def predict_classes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | tuple[str, str]],
    max_tokens: int = 128,
    progress: str | None = None,
) -> list[int]:
    """The class of each text, or pair of texts, by a sequence classifier: the number of its largest logit.

    ``max_tokens`` counts special tokens; of a pair the longer text is cut first. The model stays where it is and in the
    mode it is in. ``progress`` is the title of a progress bar.
    """
    limit = min(max_tokens, max_sequence(model.config))
    classes = torch.zeros(len(texts), dtype=torch.int64)
    with _evaluating(model) as device, Progress(progress or "", len(texts), "sentences", enabled=bool(progress)) as bar:
        for start in range(0, len(texts), CHUNK):
            encoded = tokenizer(list(texts[start : start + CHUNK]), truncation=True, max_length=limit)
            for rows, output in _outputs(model, tokenizer, encoded, device):
                classes[[start + row for row in rows]] = output.logits.float().argmax(1).cpu()
                bar.update(len(rows))
    return classes.tolist()


def best_spans(starts: Tensor, ends: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The span with the largest sum of start and end logit in each row, at most ``MAX_ANSWER_TOKENS`` tokens long.

    ``starts``, ``ends`` [B, L] are logits; ``allowed`` bool [B, L] marks the context's tokens, one at least in a row.
    SQuAD's reference tries the 20 best starts and ends; this tries all. Of equal sums the first span counts.

    Returns ``(score [B] in fp32, first token int64 [B], last token int64 [B])``.
    """
    starts, ends = (logits.float().masked_fill(~allowed, -torch.inf) for logits in (starts, ends))
    following = F.pad(ends, (0, MAX_ANSWER_TOKENS - 1), value=-torch.inf).unfold(1, MAX_ANSWER_TOKENS, 1)
    score, index = (starts.unsqueeze(2) + following).flatten(1).max(1)
    first = index // MAX_ANSWER_TOKENS
    return score, first, first + index % MAX_ANSWER_TOKENS


def shorten_questions(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_tokens: int) -> list[str]:
    """Questions for windows of ``max_tokens``: cut at 64 tokens, as in SQuAD's reference, and at a sixth of a window.

    The sixth leaves room for the context in a small model.
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
    """How many tokens consecutive windows of ``max_tokens`` share: ``stride``, but a third of a window at most."""
    return min(stride, max_tokens // 3)


def question_windows(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_tokens: int = 384,
    stride: int = 128,
) -> Any:
    """Questions with their contexts, a long context in windows: a row of at most ``max_tokens`` tokens for each window.

    See ``shorten_questions`` and ``shared_tokens``.

    Returns the tokenizer's encoding with ``overflow_to_sample_mapping`` (the question of each row) and
    ``offset_mapping`` (characters of the context for each of its tokens; ``sequence_ids`` tells which those are).
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


def _spans(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, windows: Any, device: torch.device
) -> list[tuple[float, int, int] | None]:
    """``best_spans`` of each window as ``(score, first, last)``; None for one without a token of the context."""
    spans: list[tuple[float, int, int] | None] = [None] * len(windows["input_ids"])
    for rows, output in _outputs(model, tokenizer, windows, device):
        marks = [torch.tensor([side == 1 for side in windows.sequence_ids(row)]) for row in rows]
        found = best_spans(output.start_logits, output.end_logits, pad_sequence(marks, True).to(device))
        for row, mark, *span in zip(rows, marks, *(part.tolist() for part in found), strict=True):
            if mark.any():
                spans[row] = (span[0], span[1], span[2])
    return spans


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[QaExample],
    max_tokens: int = 384,
    stride: int = 128,
    progress: str | None = None,
) -> dict[str, str]:
    """The answer to each question by id: the text of its context under the best span of all its windows.

    See ``question_windows`` and ``best_spans``; of equal spans that of the first window counts. A context without
    tokens has the answer "". The model stays where it is and in the mode it is in. ``progress`` is the title of a
    progress bar.
    """
    limit = min(max_tokens, max_sequence(model.config))
    best: dict[str, tuple[float, str]] = {}
    with (
        _evaluating(model) as device,
        Progress(progress or "", len(examples), "questions", enabled=bool(progress)) as bar,
    ):
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            windows = question_windows(
                tokenizer, [e.question for e in chunk], [e.context for e in chunk], limit, stride
            )
            for row, found in enumerate(_spans(model, tokenizer, windows, device)):
                example = chunk[windows["overflow_to_sample_mapping"][row]]
                best.setdefault(example.id, (-torch.inf, ""))
                if found is not None and found[0] > best[example.id][0]:
                    score, first, last = found
                    offsets = windows["offset_mapping"][row]
                    best[example.id] = (score, example.context[offsets[first][0] : offsets[last][1]].strip())
            bar.update(len(chunk))
    return {id_: text for id_, (_, text) in best.items()}
