"""New heads are equal for all encoders that are compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.tasks.head import load_with_head
from tests.conftest import Tiny

LABELS = ("a", "b", "c")
CLASSIFIER, READER = "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"


def head(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.state_dict().items() if not name.startswith("bert.")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def other(tiny: Tiny, tmp_path: Path) -> Path:
    """An encoder with other weights, another number of layers, and a pooler of its own."""
    init_model(tmp_path / "other", str(tiny.tokenizer), layers=3, hidden=32, heads=2, max_positions=64, seed=9)
    path = tmp_path / "other" / "model.safetensors"
    pooler = {"bert.pooler.dense.weight": torch.eye(32), "bert.pooler.dense.bias": torch.ones(32)}
    save_file({**load_file(path), **pooler}, path, metadata={"format": "pt"})
    return tmp_path / "other"


@pytest.mark.parametrize("auto", [CLASSIFIER, READER])
def test_heads_are_equal_for_different_encoders(tiny: Tiny, other: Path, auto: str) -> None:
    labels = LABELS if auto is CLASSIFIER else ()
    first = head(load_with_head(tiny.model, auto, labels, seed=3))
    torch.rand(5)
    second = head(load_with_head(other, auto, labels, seed=3))
    assert same(first, second)
    assert not same(first, head(load_with_head(tiny.model, auto, labels, seed=4)))
    weights = torch.cat([weight.flatten() for weight in first.values() if weight.dim() > 1])
    assert 0.01 < weights.std() < 0.03  # N(0, 0.02²)


def test_an_existing_pooler_is_kept_and_a_new_one_depends_on_the_seed(tiny: Tiny, other: Path) -> None:
    auto = CLASSIFIER
    assert torch.equal(load_with_head(other, auto, LABELS, 0).bert.pooler.dense.weight, torch.eye(32))
    first = load_with_head(tiny.model, auto, LABELS, 0).bert.pooler.dense.weight
    torch.rand(5)
    assert torch.equal(first, load_with_head(tiny.model, auto, LABELS, 0).bert.pooler.dense.weight)


def test_a_fine_tuned_head_is_replaced(tiny: Tiny, tmp_path: Path) -> None:
    auto = CLASSIFIER
    model = load_with_head(tiny.model, auto, ("x", "y"), seed=7)
    model.save_pretrained(tmp_path / "fine-tuned")
    found = load_with_head(tmp_path / "fine-tuned", auto, LABELS, seed=0)
    assert same(head(found), head(load_with_head(tiny.model, auto, LABELS, seed=0)))
    assert found.config.id2label == dict(enumerate(LABELS))


def test_a_checkpoint_without_a_layer_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.model, tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if ".layer.1." not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 16 encoder weights, the first is encoder\.layer\.1"):
        load_with_head(tmp_path / "broken", CLASSIFIER, LABELS, seed=0)
