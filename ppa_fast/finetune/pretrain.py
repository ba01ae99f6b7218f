"""``ppa-fast pretrain``: masked language modelling (Devlin et al., 2019) on plain text, by transformers' Trainer.

It makes small encoders that know something of their languages before they are aligned. As in alignment, sentences run
end to end, without padding, and the LM head sees the masked tokens only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from ppa_fast.data.encode import SpecialIds, TextEncoder, load_tokenizer, special_ids
from ppa_fast.data.examples import format_rejected
from ppa_fast.data.lines import Reject, count_lines, read_texts
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder, write_text
from ppa_fast.finetune.order import Order, steps_of
from ppa_fast.finetune.trainer import Epochs, last_checkpoint
from ppa_fast.hub import quiet
from ppa_fast.model.alignment import LMLoss
from ppa_fast.model.encoder import encoder_of, lm_decoder, lm_transform, load_masked_lm, max_sequence
from ppa_fast.model.folder import save_folder, untouched_weights
from ppa_fast.model.packed import ATTENTION, packed_hidden
from ppa_fast.ops.assemble import Stream
from ppa_fast.ops.philox import torch_seed
from ppa_fast.progress import Progress

MASKED = 0.15  # of the tokens (BERT)
WARMUP = 0.06  # of the steps
CHUNK_LINES = 1_000
SAVES = 10  # checkpoints of a run: a killed one loses a tenth at most


@dataclass(frozen=True)
class Settings:
    """What decides the result; kept beside the checkpoints, so that a killed run goes on with its own."""

    model: str
    steps: int | None
    epochs: float | None
    batch: int
    learning_rate: float
    max_tokens: int
    seed: int
    text: str  # XXH3-64 of the token ids


Item = tuple[int, int, NDArray[np.int32]]  # epoch, row, token ids


class Texts(Dataset[Item]):
    """Token rows, end to end in memory: ``ids`` int32 [T], row i being ``ids[bounds[i]:bounds[i + 1]]``."""

    def __init__(self, ids: NDArray[np.int32], bounds: NDArray[np.int64]) -> None:
        self.ids, self.bounds = ids, bounds

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, at: tuple[int, int]) -> Item:
        epoch, row = at
        return epoch, row, self.ids[self.bounds[row] : self.bounds[row + 1]]


class PackedMasking:
    """Rows laid end to end with their special tokens, masked by transformers' collator.

    The masks are a function of the seed, the epoch and the batch's first row: a run that goes on needs no state.
    """

    def __init__(self, masking: DataCollatorForLanguageModeling, special: SpecialIds, seed: int) -> None:
        self.masking, self.special, self.seed = masking, special, seed

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        """``tokens`` int32 [T], ``positions`` int32 [T] and ``cu_seqlens`` int32 [S+1] of the S sequences, ``lengths``
        int64 [S] (NumPy: it stays on the host), ``masked_rows`` int64 [M], where tokens are to be restored, and
        ``originals`` int64 [M], what they were."""
        epoch, first, _ = items[0]
        rows = [row for _, _, row in items]
        lengths = np.array([len(row) + 2 for row in rows])
        bounds = np.concatenate([[0], lengths.cumsum()])
        sequences = [np.concatenate([[self.special.cls], row, [self.special.sep]]) for row in rows]
        special = torch.zeros(1, bounds[-1], dtype=torch.bool)
        special[0, bounds[:-1]] = special[0, bounds[1:] - 1] = True
        self.masking.generator = torch.Generator().manual_seed(torch_seed(self.seed, epoch, first))
        tokens, labels = self.masking.torch_mask_tokens(torch.from_numpy(np.concatenate(sequences))[None], special)
        masked_rows = (labels[0] != -100).nonzero()[:, 0]
        return {
            "tokens": tokens[0].int(),
            "positions": torch.from_numpy(np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)).int(),
            "cu_seqlens": torch.from_numpy(bounds).int(),
            "lengths": lengths,
            "masked_rows": masked_rows,
            "originals": labels[0, masked_rows],
        }


class MaskedLMTrainer(Trainer):
    """transformers' Trainer on packed batches: the loss is the mean over the batch's masked tokens."""

    def __init__(self, model: PreTrainedModel, order: Order, **options: Any) -> None:
        super().__init__(model, **options)
        self.order, self.lm_loss = order, LMLoss(lm_decoder(model))

    def _get_train_sampler(self, *args: Any) -> Order:
        return self.order

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        stream = Stream(*(inputs[name] for name in ("tokens", "cu_seqlens", "positions", "lengths")))
        with self.accelerator.autocast():
            hidden = packed_hidden(encoder_of(model), stream)
            transformed = lm_transform(model, hidden.index_select(0, inputs["masked_rows"]))
        loss: Tensor = self.lm_loss(transformed.float(), inputs["originals"]) / max(1, len(inputs["originals"]))
        return loss


def _encode(files: Sequence[Path], encoder: TextEncoder, max_rejected: float) -> Texts:
    """All usable lines as token rows; the others are listed, and too many of them are a UserError."""
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

    with Progress("encoding", lines, "lines") as bar:
        for path in files:
            texts = usable(path)
            while chunk := list(islice(texts, CHUNK_LINES)):
                rows = [ids for ids in encoder(chunk) if ids]  # none: control characters alone
                lengths += map(len, rows)
                chunks.append(np.fromiter((id_ for ids in rows for id_ in ids), np.int32))
                bar.update(len(chunk))
    if rejected:
        print(format_rejected(rejected), flush=True)
    if len(rejected) > max_rejected * lines:
        raise UserError(
            f"--files: {len(rejected):,} of {lines:,} lines cannot be used ({len(rejected) / lines:.1%}, at most "
            f"{max_rejected:.1%} is accepted), the first is {rejected[0]}"
        )
    if not lengths:
        raise UserError(f"--files: no text in {', '.join(map(str, files))}")
    print(f"{len(lengths):,} lines, {sum(lengths):,} tokens, {len(rejected):,} lines rejected", flush=True)
    return Texts(np.concatenate(chunks), np.concatenate([[0], np.cumsum(lengths)]))


def _resume_from(work: Path, settings: Settings) -> tuple[Path | None, int]:
    """The checkpoint, and its step, that a killed run left; raises UserError where that had other settings."""
    path, text = work / "settings.json", json.dumps(asdict(settings), indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path}: a killed run with other settings or text; expected the same, or remove {work}")
    work.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return last_checkpoint(work)


def _arguments(work: Path, settings: Settings, steps: int) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(WARMUP * steps),
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=settings.seed,
        bf16=cuda,
        save_steps=-(-steps // SAVES),
        save_total_limit=1,
        logging_steps=max(1, steps // 100),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=2 if cuda else 0,
        dataloader_pin_memory=cuda,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # small encoders: one device is enough
    return arguments


def pretrain(
    model: str,
    files: Sequence[str | Path],
    out: str | Path,
    steps: int | None = None,
    epochs: float | None = None,
    batch: int = 64,
    learning_rate: float = 5e-4,
    max_tokens: int = 126,
    seed: int = 0,
    max_rejected: float = 0.05,
) -> None:
    """Trains an encoder with its MLM head on plain text and writes it, with its tokenizer, as a Hugging Face folder.

    AdamW with weight decay 0.01, linear warm-up over 6 % of the steps, then linear decay; 15 % of the tokens masked,
    anew each time. One process, one device (a GPU in bf16 if there is one). The text is held in memory as token ids,
    4 bytes each.

    Args:
        model: name or folder of a masked language model, such as ``ppa-fast init`` makes.
        files: UTF-8 text, one sentence or paragraph a line, ``.gz`` as it is. Blank lines say nothing; those that are
            not UTF-8 or over 64 KiB are listed and counted.
        out: a new or empty folder, which appears whole when training ends. Until then checkpoints lie beside it, in
            ``.NAME.pretraining``; the same call goes on from them after a kill.
        steps, epochs: the length of the run; give one of them, or neither for one epoch.
        batch: lines a step.
        max_tokens: a line is cut there, special tokens not counted.
        max_rejected: the largest share of lines, 0 to 1, that may be unusable.

    Raises UserError for arguments that cannot be used, files that are not there, a model or tokenizer that cannot be
    loaded, too many bad lines, no text, a loss that is not finite, and what a killed run with other arguments left.
    """
    folder, paths = Path(out).absolute(), [Path(file) for file in files]
    check_new_folder(out)
    for path in paths:
        if not path.is_file():
            raise UserError(f"--files {path}: no such file")
    if steps is not None and epochs is not None:
        raise UserError(f"--steps {steps} and --epochs {epochs}: expected one of them")
    sizes = {"--steps": steps, "--epochs": epochs, "--batch": batch, "--learning-rate": learning_rate}
    for name, value in {**sizes, "--max-tokens": max_tokens}.items():
        if value is not None and not value > 0:
            raise UserError(f"{name} {value}: expected more than 0")
    if seed < 0:
        raise UserError(f"--seed {seed}: expected at least 0")
    if not 0 <= max_rejected <= 1:
        raise UserError(f"--max-rejected {max_rejected}: expected a share between 0 and 1")

    mlm, tokenizer = load_masked_lm(model), load_tokenizer(model)
    special = special_ids(tokenizer)
    if max_tokens + 2 > max_sequence(mlm.config):
        limit = max_sequence(mlm.config)
        raise UserError(f"--max-tokens {max_tokens}: {model} has {limit} positions, expected at most {limit - 2}")
    if special.vocab_size > mlm.config.vocab_size:
        raise UserError(f"{model}: {special.vocab_size} tokens, but embeddings of {mlm.config.vocab_size} only")
    untouched = untouched_weights(model, mlm)
    mlm.set_attn_implementation(ATTENTION)

    texts = _encode(paths, TextEncoder(tokenizer, max_tokens), max_rejected)
    lengths = torch.from_numpy(np.diff(texts.bounds))
    masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    total = steps or max(1, round((epochs or 1.0) * len(texts) / batch))
    digest = xxhash.xxh3_64_hexdigest(texts.ids.tobytes())
    settings = Settings(model, steps, epochs, batch, learning_rate, max_tokens, seed, digest)
    work = folder.with_name(f".{folder.name}.pretraining")
    checkpoint, done = _resume_from(work, settings)
    with Progress("pretraining", total, "steps", initial=done) as bar:
        trainer = MaskedLMTrainer(
            mlm,
            Order([lengths] * -(-total // steps_of(len(texts), batch)), batch, seed),
            args=_arguments(work, settings, total),
            train_dataset=texts,
            data_collator=PackedMasking(masking, special, seed),
            callbacks=[Epochs(bar, [], evaluate=False)],
        )
        trainer.remove_callback(PrinterCallback)
        with quiet():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    finished = work / "model"
    shutil.rmtree(finished, ignore_errors=True)
    save_folder(mlm, untouched, tokenizer, finished)
    finished.rename(folder)
    shutil.rmtree(work)
