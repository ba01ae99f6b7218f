"""The momentum encoder: a master in the layout of the optimizer, a working copy in the training precision."""

from __future__ import annotations

import copy
import ctypes
import ctypes.util

import pytest
import torch

from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import load_masked_lm
from ppa_fast.model.momentum import MomentumEncoder, WorkingCopy


class Flat:
    """Masters as one flat tensor of all parameters, in reverse order."""

    def __init__(self, model: AlignmentModel) -> None:
        self.shapes = {name: p.shape for name, p in reversed(list(model.named_parameters()))}
        parameters = dict(model.named_parameters())
        self.tensors = [torch.cat([parameters[name].detach().flatten() for name in self.shapes])]

    def working_copy(self, whole) -> WorkingCopy:
        parts = [torch.empty_like(t, dtype=next(iter(whole.values())).dtype) for t in self.tensors]
        return WorkingCopy(parts, lambda: self.copy_to(parts, whole))

    def copy_to(self, tensors, whole) -> None:
        (flat,) = tensors
        for (name, shape), part in zip(
            self.shapes.items(), flat.split([s.numel() for s in self.shapes.values()]), strict=True
        ):
            whole[name].copy_(part.view(shape))


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16])
def momentum(request, tiny):
    torch.manual_seed(3)
    model = AlignmentModel(load_masked_lm(str(tiny.model)), "mean", 16)
    return MomentumEncoder(copy.deepcopy(model).to(request.param).train(), Flat(model))


def working_is_the_rounded_master(momentum) -> bool:
    expected = {name: p.detach().clone().fill_(torch.nan) for name, p in momentum.model.named_parameters()}
    momentum.masters.copy_to(momentum.tensors, expected)
    return all(torch.equal(p, expected[name]) for name, p in momentum.model.named_parameters())


def test_it_starts_as_a_copy_of_the_masters(momentum):
    (master,), (source,) = momentum.tensors, momentum.masters.tensors
    assert torch.equal(master, source)
    assert working_is_the_rounded_master(momentum)
    source.add_(1.0)
    assert not torch.equal(master, source)
    assert not any(p.requires_grad for p in momentum.model.parameters())
    assert not momentum.model.training


def test_an_update_is_fmaf_of_the_masters_and_updates_the_working_copy(momentum):
    fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    (master,), (source,) = momentum.tensors, momentum.masters.tensors
    source.add_(torch.randn_like(source))
    before = master.clone()
    for _ in range(2):
        added = (source * torch.tensor(1.0 - 0.999)).tolist()
        expected = [fmaf(0.999, k, q) for k, q in zip(master.tolist(), added, strict=True)]
        momentum.update(0.999)
        assert master.tolist() == expected
        assert working_is_the_rounded_master(momentum)
    assert not torch.equal(master, before)


def test_a_refresh_restores_the_working_copy(momentum):
    master = momentum.tensors[0].clone()
    with torch.no_grad():
        for parameter in momentum.model.parameters():
            parameter.fill_(7.0)
    momentum.refresh()
    assert torch.equal(momentum.tensors[0], master)
    assert working_is_the_rounded_master(momentum)
