"""Predictions of fine-tuned models: loading, batched forward passes, and classification.

Rows are sorted by length and run in batches of bounded size, in bf16 on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.hub import load_pretrained
from ppa_fast.model.encoder import check_complete, check_vocabulary, max_sequence, missing_weights
from ppa_fast.model.vectors import check_outputs, evaluation_mode, length_batches
from ppa_fast.progress import Progress

TOKENS_PER_BATCH = 16384  # padding included
CHUNK = 512  # texts tokenized and sorted at a time


def load_finetuned(auto: str, name_or_dir: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fine-tuned model in fp32, on the GPU if available, and its tokenizer.

    ``auto``: name of transformers' Auto class for the task. Raises UserError for a missing or broken folder, a model
    without the task's head, and a tokenizer with more tokens than the model.
    """
    model, info = load_pretrained(
        getattr(transformers, auto), name_or_dir, dtype=torch.float32, output_loading_info=True
    )
    missing = missing_weights(model, info["missing_keys"])
    check_complete(name_or_dir, missing, f"weights of {type(model).__name__}", "a model fine-tuned for the task")
    tokenizer = load_tokenizer(name_or_dir)
    check_vocabulary(name_or_dir, len(tokenizer), model.config)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


@contextmanager
def predicting(model: PreTrainedModel) -> Iterator[torch.device]:
    """Sets the model to eval mode without gradients, with bf16 autocast on CUDA; yields its device."""
    device = next(model.parameters()).device
    bf16 = torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")
    with evaluation_mode(model), torch.inference_mode(), bf16:
        yield device


def batched_outputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Any, device: torch.device
) -> Iterator[tuple[list[int], Any]]:
    """Yields ``(rows, output)`` for batches of encoded rows, longest first, of up to ``TOKENS_PER_BATCH`` tokens.

    Raises UserError for logits that are not finite.
    """

    def text_of(rows: list[int], index: int) -> str:
        return str(tokenizer.decode(encoded["input_ids"][rows[index]], skip_special_tokens=True))

    padding = {name: tokenizer.pad_token_id if name == "input_ids" else 0 for name in tokenizer.model_input_names}
    for rows in length_batches([len(ids) for ids in encoded["input_ids"]], TOKENS_PER_BATCH):
        batch = {
            name: pad_sequence([torch.tensor(encoded[name][row]) for row in rows], True, value).to(device)
            for name, value in padding.items()
        }
        output = model(**batch)
        for name, logits in output.items():
            if name.endswith("logits"):
                check_outputs(str(model.config.name_or_path), logits, partial(text_of, rows))
        yield rows, output


def predict_classes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | tuple[str, str]],
    max_tokens: int = 128,
    progress: str | None = None,
) -> list[int]:
    """The predicted class of each text or pair of texts: the index of the largest logit.

    ``max_tokens`` includes special tokens; in a pair the longer text is truncated first. The model's device and mode
    are unchanged afterwards. ``progress``: the title of a progress bar.
    """
    limit = min(max_tokens, max_sequence(model.config))
    classes = torch.zeros(len(texts), dtype=torch.int64)
    with predicting(model) as device, Progress(progress or "", len(texts), "sentences", enabled=bool(progress)) as bar:
        for start in range(0, len(texts), CHUNK):
            encoded = tokenizer(list(texts[start : start + CHUNK]), truncation=True, max_length=limit)
            for rows, output in batched_outputs(model, tokenizer, encoded, device):
                classes[[start + row for row in rows]] = output.logits.float().argmax(1).cpu()
                bar.update(len(rows))
    return classes.tolist()
