"""Weights and outputs that are not finite: one error that names the model and the first weight or text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.model.encoder import load_masked_lm
from ppa_fast.model.folder import save_base
from ppa_fast.settings import Settings
from ppa_fast.tasks import evaluate
from ppa_fast.tasks.finetuning import finetune
from ppa_fast.tasks.pretrain import pretrain
from ppa_fast.training.export import export
from ppa_fast.training.trainer import train
from tests.conftest import Tiny, write_config
from tests.tasks import toy
from tests.training.test_export import write_checkpoint, write_settings

NORM = "bert.encoder.layer.1.output.LayerNorm.weight"


def spoiled(model: Path, out: Path, weight: str, value: float) -> str:
    """A copy of a model with a value as the last element of a weight; all elements for a finite value."""
    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    flat = tensors[weight].view(-1)
    flat[slice(None) if torch.isfinite(torch.tensor(value)) else slice(-1, None)] = value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return str(out)


def with_head(tiny: Tiny, out: Path, auto: type, **config: object) -> Path:
    auto.from_pretrained(tiny.model, **config).save_pretrained(out)
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(out)
    return out


def align_files(folder: Path) -> dict[str, str]:
    for name, text in {"gold": "0-0\n", "a": "kalo\n", "b": "schufra\n"}.items():
        (folder / name).write_text(text)
    return {"gold": str(folder / "gold"), "pairs": f"{folder}/a,{folder}/b"}


def mine_files(folder: Path) -> dict[str, str]:
    for name, text in {"ga": "x1\ty1\n", "sa": "x1\tkalo\nx2\tlomi\n", "ta": "y1\tschufra\ny2\tgelbro\n"}.items():
        (folder / name).write_text(text)
    return {"dev": f"{folder}/sa,{folder}/ta,{folder}/ga"}


@pytest.fixture
def encoder_tasks(tiny: Tiny, tmp_path: Path) -> dict[str, Callable[[str], object]]:
    """The evaluations that read vectors of an encoder."""
    return {
        "retrieval": lambda model: evaluate("retrieval", model=model, pairs=tiny.pairs[:1]),
        "mine": lambda model: evaluate("mine", model=model, **mine_files(tmp_path)),
        "align": lambda model: evaluate("align", model=model, **align_files(tmp_path)),
        "align, softmax": lambda model: evaluate(
            "align", model=model, method="softmax", layer=2, **align_files(tmp_path)
        ),
    }


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_ends_every_command(
    tiny: Tiny, tmp_path: Path, encoder_tasks: dict[str, Callable[[str], object]], value: float
) -> None:
    model = spoiled(tiny.model, tmp_path / "spoiled", NORM, value)
    message = rf"^{model}: weight \S*encoder.layer.1.output.LayerNorm.weight: found {value}, expected finite numbers"
    nli = toy.nli(tmp_path, "train", 6, seed=1)
    config = write_config(tmp_path / "ds.json", 16, 8)
    job = {"model": model, "data": [str(tiny.store)], "output": str(tmp_path / "run"), "deepspeed_config": str(config)}
    tasks = {
        **encoder_tasks,
        "finetune": lambda model: finetune(task="nli", model=model, train=toy.specs(nli, "en"), out=tmp_path / "out"),
        "pretrain": lambda model: pretrain(model=model, files=[str(nli["en"])], steps=1, out=tmp_path / "trained"),
        "train": lambda model: train(Settings(**job, queue_size=40, steps=1)),
    }
    for task in tasks.values():
        with pytest.raises(UserError, match=message):
            task(model)


def test_a_finetuned_model_with_such_a_weight(tiny: Tiny, tmp_path: Path) -> None:
    folder = with_head(tiny, tmp_path / "head", AutoModelForQuestionAnswering)
    model = spoiled(folder, tmp_path / "spoiled", "qa_outputs.bias", torch.nan)
    gold = toy.qa(tmp_path, "test", 2, seed=1)["en"]
    with pytest.raises(UserError, match=rf"^{model}: weight qa_outputs.bias: found nan"):
        evaluate("qa", gold=[str(gold)], model=model, language="en")


def test_vectors_that_overflow_name_the_sentence(
    tiny: Tiny, tmp_path: Path, encoder_tasks: dict[str, Callable[[str], object]]
) -> None:
    model = spoiled(tiny.model, tmp_path / "large", NORM, 3e38)
    first = Path(tiny.pairs[0].partition(":")[2].split(",")[0]).read_text().partition("\n")[0]
    expected = {"retrieval": first, "mine": "kalo", "align, softmax": "kalo"}
    for name, text in expected.items():
        message = rf"^{model}: the output for '{text[:60]}.*' has NaN or infinite elements, expected finite numbers"
        with pytest.raises(UserError, match=message):
            encoder_tasks[name](model)


def test_logits_that_overflow_name_the_text(tiny: Tiny, tmp_path: Path) -> None:
    labels = dict(enumerate(toy.LABELS))
    folder = with_head(tiny, tmp_path / "nli", AutoModelForSequenceClassification, id2label=labels, num_labels=3)
    model = spoiled(folder, tmp_path / "large", NORM, 3e38)
    gold = toy.nli(tmp_path, "test", 3, seed=1)["en"]
    with pytest.raises(UserError, match=rf"^{model}: the output for '\w.*' has NaN or infinite elements"):
        evaluate("nli", gold=[f"en:{gold}"], model=model)
    folder = with_head(tiny, tmp_path / "qa", AutoModelForQuestionAnswering)
    model = spoiled(folder, tmp_path / "large-qa", "qa_outputs.weight", 3e38)
    gold = toy.qa(tmp_path, "test-qa", 2, seed=1)["en"]
    with pytest.raises(UserError, match=rf"^{model}: the output for '\w.*' has NaN or infinite elements"):
        evaluate("qa", gold=[str(gold)], model=model, language="en")


def test_export_names_the_file_and_the_weight(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mlm = load_masked_lm(str(tiny.model))
    save_base(mlm, str(tiny.model), load_tokenizer(str(tiny.model)), run / "model")
    write_checkpoint(run, mlm, step=3, seed=0)
    write_settings(run)
    file = run / "checkpoints" / "step-00000003" / "query.safetensors"
    tensors = load_file(file)
    tensors[f"mlm.{NORM}"][0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"^{file}: weight mlm.{NORM}: found nan, expected finite numbers"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
