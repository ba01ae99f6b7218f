"""``ppa-fast pretrain``: masked language modelling (Devlin et al., 2019) on plain text, by transformers' Trainer.

It trains small encoders on their languages before alignment. As in alignment, sentences are packed without padding, and
the LM head is computed at the masked positions only.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, Trainer, TrainingArguments

from ppa_fast.data.reading.lines import Reject, count_lines, read_texts
from ppa_fast.data.store.tokenize import SpecialIds, TextTokenizer, load_tokenizer, special_ids
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder, new_folder, write_json
from ppa_fast.model.alignment import LMLoss
from ppa_fast.model.encoder import check_vocabulary, encoder_of, lm_decoder, lm_transform, load_masked_lm, max_sequence
from ppa_fast.model.folder import save_folder, untouched_weights
from ppa_fast.model.packed import ATTENTION, packed_hidden
from ppa_fast.model.vectors import pack_rows
from ppa_fast.ops.assemble import PackedSequences
from ppa_fast.ops.philox import torch_seed
from ppa_fast.progress import Progress
from ppa_fast.ranks import check_ranks
from ppa_fast.settings import PretrainSettings, takes
from ppa_fast.tasks.reading import format_rejected, load_json
from ppa_fast.tasks.sampler import LengthGroupedSampler, steps_of
from ppa_fast.tasks.trainer import ProgressCallback, last_checkpoint, train, training_arguments

MASKED = 0.15  # share of masked tokens (BERT)
WARMUP = 0.06  # share of warm-up steps
CHUNK_LINES = 1_000
SAVES = 10  # checkpoints per run, so that a killed run loses at most a tenth
DECISIVE = ("model", "steps", "epochs", "batch", "learning_rate", "max_tokens", "seed")
"""The options that change the result. They are saved with the checkpoints and must be the same to resume."""


Item = tuple[int, int, NDArray[np.int32]]  # epoch, row, token ids


class TokenRows(Dataset[Item]):
    """Concatenated token rows in memory: ``ids`` int32 [T]; row i is ``ids[bounds[i]:bounds[i + 1]]``."""

    def __init__(self, ids: NDArray[np.int32], bounds: NDArray[np.int64]) -> None:
        self.ids, self.bounds = ids, bounds

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, at: tuple[int, int]) -> Item:
        epoch, row = at
        return epoch, row, self.ids[self.bounds[row] : self.bounds[row + 1]]


class PackedMasking:
    """Packs rows with their special tokens and masks them with transformers' collator.

    The masks are a function of the seed, the epoch and the batch's first row, so that a resumed run needs no state.
    """

    def __init__(self, masking: DataCollatorForLanguageModeling, special: SpecialIds, seed: int) -> None:
        self.masking, self.special, self.seed = masking, special, seed

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        """The packed sequences: ``tokens`` int32 [T], ``positions`` int32 [T], ``cu_seqlens`` int32 [S+1] and
        ``lengths`` int64 [S] (NumPy, on the host); ``masked_positions`` int64 [M] and the original token ids there,
        ``originals`` int64 [M]."""
        epoch, first, _ = items[0]
        stream = pack_rows([row for _, _, row in items], self.special)
        special = torch.zeros(1, len(stream.tokens), dtype=torch.bool)
        special[0, stream.cu_seqlens[:-1]] = special[0, stream.cu_seqlens[1:] - 1] = True
        self.masking.generator = torch.Generator().manual_seed(torch_seed(self.seed, epoch, first))
        tokens, labels = self.masking.torch_mask_tokens(stream.tokens.long()[None], special)
        masked_positions = (labels[0] != -100).nonzero()[:, 0]
        return {
            "tokens": tokens[0].int(),
            "positions": stream.positions,
            "cu_seqlens": stream.cu_seqlens,
            "lengths": stream.lengths,
            "masked_positions": masked_positions,
            "originals": labels[0, masked_positions],
        }


class MaskedLMTrainer(Trainer):
    """transformers' Trainer on packed batches, with the mean loss over the batch's masked tokens."""

    def __init__(self, model: PreTrainedModel, sampler: LengthGroupedSampler, **options: Any) -> None:
        super().__init__(model, **options)
        self.sampler, self.lm_loss = sampler, LMLoss(lm_decoder(model))

    def _get_train_sampler(self, *args: Any) -> LengthGroupedSampler:
        return self.sampler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        stream = PackedSequences(*(inputs[name] for name in ("tokens", "cu_seqlens", "positions", "lengths")))
        with self.accelerator.autocast():
            hidden = packed_hidden(encoder_of(model), stream)
            transformed = lm_transform(model, hidden.index_select(0, inputs["masked_positions"]))
        loss: Tensor = self.lm_loss(transformed.float(), inputs["originals"]) / max(1, len(inputs["originals"]))
        return loss


def _tokenize(files: Sequence[Path], encoder: TextTokenizer, max_rejected: float) -> TokenRows:
    """Tokenizes all usable lines and prints the rejected ones; raises UserError for too many of these."""
    chunks: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    rejected: list[Reject] = []
    lines = sum(map(count_lines, files))

    def usable(path: Path) -> Iterator[str]:
        for item in read_texts(path):
            if isinstance(item, Reject):
                rejected.append(item)
            else:
                yield item

    with Progress("tokenizing", lines, "lines") as bar:
        for path in files:
            texts = usable(path)
            while chunk := list(islice(texts, CHUNK_LINES)):
                rows = [ids for ids in encoder(chunk) if ids]  # empty for a line of control characters
                lengths += map(len, rows)
                chunks.append(np.fromiter((id_ for ids in rows for id_ in ids), np.int32))
                bar.update(len(chunk))
    if rejected:
        print(format_rejected(rejected), flush=True)
    if len(rejected) > max_rejected * lines:
        raise UserError(
            f"--files: found {len(rejected):,} unusable lines of {lines:,} ({len(rejected) / lines:.1%}), expected at "
            f"most {max_rejected:.1%}; the first is {rejected[0]}"
        )
    if not lengths:
        raise UserError(f"--files: found no text in {', '.join(map(str, files))}, expected some")
    print(f"{len(lengths):,} lines, {sum(lengths):,} tokens, {len(rejected):,} lines rejected", flush=True)
    return TokenRows(np.concatenate(chunks), np.concatenate([[0], np.cumsum(lengths)]))


def _resume_from(work: Path, wanted: dict[str, Any]) -> tuple[Path | None, int]:
    """The last checkpoint of an interrupted run and its step; raises UserError if the run had other settings."""
    path = work / "settings.json"
    if path.is_file() and load_json(path) != wanted:
        raise UserError(f"{path}: found a run with other settings or text; use the same, or remove {work}")
    work.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)
    return last_checkpoint(work)


def _arguments(work: Path, settings: PretrainSettings, steps: int) -> TrainingArguments:
    return training_arguments(
        work,
        settings.seed,
        steps,
        max_steps=steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(WARMUP * steps),
        weight_decay=0.01,
        bf16=torch.cuda.is_available(),
        save_steps=-(-steps // SAVES),
    )


@takes(PretrainSettings)
def pretrain(settings: PretrainSettings) -> None:
    """Trains an encoder with its MLM head on plain text and writes it, with its tokenizer, as a Hugging Face folder.

    Uses AdamW with weight decay 0.01, linear warm-up over 6 % of the steps, then linear decay. Masks 15 % of the
    tokens, differently in each epoch. Runs in one process on one device (a GPU in bf16 if available). Files have one
    sentence or paragraph per line; the token ids are held in memory, 4 bytes each. Blank lines are skipped. Lines that
    are not UTF-8 or longer than 64 KiB are listed and counted.

    ``settings.out`` is written when training is complete. Until then, checkpoints are in ``.NAME.pretraining`` in the
    same parent folder. After an interruption, the same call resumes from them.

    Raises UserError for invalid arguments, missing files, a model or tokenizer that cannot be loaded, too many
    unusable lines, no text, a loss that is not finite, and checkpoints of a run with other arguments.
    """
    check_ranks()
    model, max_tokens = settings.model, settings.max_tokens
    folder, paths = Path(settings.out).resolve(), [Path(file) for file in settings.files]
    check_new_folder(settings.out)
    for path in paths:
        if not path.is_file():
            raise UserError(f"--files {path}: no such file")

    mlm, tokenizer = load_masked_lm(model), load_tokenizer(model)
    special = special_ids(tokenizer)
    if max_tokens + 2 > max_sequence(mlm.config):
        limit = max_sequence(mlm.config)
        raise UserError(f"--max-tokens: found {max_tokens}, expected at most {limit - 2} for the positions of {model}")
    check_vocabulary(model, special.vocab_size, mlm.config)
    untouched = untouched_weights(model, mlm)
    mlm.set_attn_implementation(ATTENTION)

    texts = _tokenize(paths, TextTokenizer(tokenizer, max_tokens), settings.max_rejected)
    batch, seed = settings.batch, settings.seed
    lengths = torch.from_numpy(np.diff(texts.bounds))
    masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    total = settings.steps or max(1, round((settings.epochs or 1.0) * len(texts) / batch))
    decisive = {name: getattr(settings, name) for name in DECISIVE}
    work = folder.with_name(f".{folder.name}.pretraining")
    checkpoint, done = _resume_from(work, {**decisive, "text": xxhash.xxh3_64_hexdigest(texts.ids.tobytes())})
    with Progress("pretraining", total, "steps", initial=done) as bar:
        trainer = MaskedLMTrainer(
            mlm,
            LengthGroupedSampler([lengths] * -(-total // steps_of(len(texts), batch)), batch, seed),
            args=_arguments(work, settings, total),
            train_dataset=texts,
            data_collator=PackedMasking(masking, special, seed),
            callbacks=[ProgressCallback(bar)],
        )
        train(trainer, checkpoint)

    with new_folder(settings.out) as finished:
        save_folder(mlm, untouched, tokenizer, finished)
    shutil.rmtree(work)
