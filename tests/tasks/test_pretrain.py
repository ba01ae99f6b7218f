"""Pretraining: the loss is that of the model, the text is read completely, a killed run resumes, the folder is
complete."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, DataCollatorForLanguageModeling, TrainingArguments

from ppa_fast.data.store.tokenize import load_tokenizer, special_ids
from ppa_fast.errors import UserError
from ppa_fast.model.encoder import load_masked_lm
from ppa_fast.model.packed import ATTENTION
from ppa_fast.tasks.pretrain import MaskedLMTrainer, PackedMasking, pretrain
from ppa_fast.tasks.sampler import LengthGroupedSampler
from tests.conftest import Tiny, pseudo_text

QUICK: dict[str, Any] = {"batch": 8, "max_tokens": 30, "learning_rate": 1e-2}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(line for lines in pseudo_text(0, 60).values() for line in lines), encoding="utf-8")
    return path


def masking(tiny: Tiny) -> PackedMasking:
    tokenizer = load_tokenizer(str(tiny.model))
    return PackedMasking(
        DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5), special_ids(tokenizer), seed=0
    )


def test_the_loss_equals_that_of_the_padded_model_with_its_full_head(tiny: Tiny, tmp_path: Path) -> None:
    rows = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 11, 1, 7, 11)]
    batch = masking(tiny)([(0, i, row) for i, row in enumerate(rows)])
    padded, plain = (load_masked_lm(tiny.model).eval() for _ in range(2))
    ids = torch.full((5, 13), padded.config.pad_token_id)
    labels = torch.full((5, 13), -100)
    for i, start in enumerate(batch["cu_seqlens"][:-1].tolist()):
        length = batch["lengths"][i]
        ids[i, :length] = batch["tokens"][start : start + length]
        for row, original in zip(batch["masked_positions"].tolist(), batch["originals"].tolist(), strict=True):
            if start <= row < start + length:
                labels[i, row - start] = original
    mask = torch.arange(13) < torch.tensor(batch["lengths"])[:, None]
    expected = padded(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
    expected.backward()

    plain.set_attn_implementation(ATTENTION)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    loss = MaskedLMTrainer(plain, LengthGroupedSampler([], 1, 0), args=arguments).compute_loss(plain, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for (name, ours), theirs in zip(plain.named_parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_special_tokens_are_never_masked(tiny: Tiny) -> None:
    special = special_ids(load_tokenizer(str(tiny.model)))
    collate = masking(tiny)
    masked = set()
    for epoch in range(20):
        batch = collate([(epoch, 0, np.arange(5, 25, dtype=np.int32)), (epoch, 1, np.arange(9, 11, dtype=np.int32))])
        masked |= set(batch["masked_positions"].tolist())
        assert batch["tokens"][[0, 22]].tolist() == [special.cls, special.cls]
        assert batch["tokens"][[21, 25]].tolist() == [special.sep, special.sep]
        assert batch["positions"].tolist() == [*range(22), *range(4)]
    assert masked == {*range(26)} - {0, 21, 22, 25}  # new masks in each epoch


def masked_loss(model: Path, text: Path) -> float:
    """The mean loss over all words of the first lines, masked one at a time."""
    mlm, tokenizer = load_masked_lm(model), AutoTokenizer.from_pretrained(model)
    losses = []
    for line in text.read_text(encoding="utf-8").splitlines()[:20]:
        ids = tokenizer(line, return_tensors="pt")["input_ids"]
        for place in range(1, ids.shape[1] - 1):
            masked = ids.clone()
            masked[0, place] = tokenizer.mask_token_id
            losses.append(F.cross_entropy(mlm(input_ids=masked).logits[0, place], ids[0, place]).item())
    return float(np.mean(losses))


def test_pretraining_learns_and_writes_a_complete_folder(tiny: Tiny, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretrain(str(tiny.model), [text], out, steps=250, **QUICK)
    assert masked_loss(out, text) < masked_loss(tiny.model, text) - 0.3  # measured: 0.56 to 0.58
    pooler = AutoModel.from_pretrained(tiny.model).pooler.dense.weight
    assert torch.equal(AutoModel.from_pretrained(out).pooler.dense.weight, pooler)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert not list(out.glob("checkpoint*"))


def test_a_killed_run_resumes_to_the_same_weights(
    tiny: Tiny, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers dropout, masks and order. The run is killed in step 14 of 20, after the checkpoint of step 12; the resumed
    run also finds an incomplete checkpoint of step 14."""
    pretrain(str(tiny.model), [text], tmp_path / "whole", steps=20, **QUICK)
    compute = MaskedLMTrainer.compute_loss

    def killed(self: MaskedLMTrainer, *args: Any, **options: Any) -> torch.Tensor:
        if self.state.global_step == 13:
            raise KeyboardInterrupt
        return compute(self, *args, **options)

    monkeypatch.setattr(MaskedLMTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(str(tiny.model), [text], tmp_path / "cut", steps=20, **QUICK)
    monkeypatch.setattr(MaskedLMTrainer, "compute_loss", compute)
    work = tmp_path / ".cut.pretraining"
    assert [path.name for path in (work / "checkpoints").iterdir()] == ["checkpoint-12"]
    (work / "checkpoints" / "checkpoint-14").mkdir()
    with pytest.raises(UserError, match="found a run with other settings or text"):
        pretrain(str(tiny.model), [text], tmp_path / "cut", steps=30, **QUICK)

    steps = []
    monkeypatch.setattr(MaskedLMTrainer, "compute_loss", lambda *a, **o: (steps.append(1), compute(*a, **o))[1])
    pretrain(str(tiny.model), [text], tmp_path / "cut", steps=20, **QUICK)
    assert len(steps) == 8
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], atol=0, rtol=0, msg=name)
    assert not work.exists()


def test_bad_lines_are_listed_and_counted(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"kalo mine\n\n\xff\xfe\n" + b"kalo\n" * 40 + b"x" * 70_000))
    pretrain(str(tiny.model), [path], tmp_path / "out", steps=1, **QUICK)
    out = capsys.readouterr().out
    assert f"{path}:3: not UTF-8\n{path}:44: line over 64 KiB\n" in out
    assert "41 lines, " in out  # a blank line is not a bad line
    assert "2 lines rejected" in out
    with pytest.raises(UserError, match=r"found 2 unusable lines of 44 \(4.5%\), expected at most 4.0%"):
        pretrain(str(tiny.model), [path], tmp_path / "none", steps=1, max_rejected=0.04, **QUICK)
    assert not (tmp_path / "none").exists()


def test_an_invalid_argument_is_named(tiny: Tiny, text: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n\n", encoding="utf-8")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"files": [tmp_path / "absent"]}, "absent: no such file"),
        ({"files": [empty]}, "--files: found no text in"),
        ({"steps": 3, "epochs": 1.0}, "expected one of them"),
        ({"steps": 0}, "steps: found 0, expected more than 0"),
        ({"seed": -1}, "seed: found -1, expected at least 0"),
        ({"max_rejected": 2.0}, r"max_rejected: found 2\.0, expected 0 to 1"),
        ({"max_tokens": 63}, "--max-tokens: found 63, expected at most 62 for the positions of"),
        ({"out": tmp_path}, "not an empty folder"),
        ({"model": str(tmp_path / "absent")}, "no such folder"),
    ]
    for change, message in cases:
        options: dict[str, Any] = {"model": str(tiny.model), "files": [text], "out": tmp_path / "out"}
        with pytest.raises(UserError, match=message):
            pretrain(**{**options, "max_tokens": 30, **change})
    assert not (tmp_path / "out").exists()
