"""bf16 matrix products with fp32 weights: where they are faster, and what they change."""

from __future__ import annotations

import pytest
import torch

from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import load_masked_lm
from ppa_fast.model.precision import has_fast_bf16
from tests.model.test_alignment import batch_of


@pytest.mark.parametrize("supported", ["_is_amx_tile_supported", "_is_avx512_bf16_supported", None])
@pytest.mark.parametrize(
    ("limit", "allows"),
    [
        (None, True),
        ("ALL", True),
        ("avx512_core_amx", True),
        ("AVX512_CORE_BF16", True),
        ("AVX512_CORE", False),
        ("AVX2", False),
    ],
)
def test_bf16_is_fast_if_the_cpu_has_instructions_that_onednn_can_use(monkeypatch, supported, limit, allows):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == supported)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert has_fast_bf16(256) is (allows and supported is not None)


@pytest.mark.parametrize(
    ("hidden", "lm_head", "expected"), [(128, False, False), (128, True, True), (768, False, True)]
)
def test_bf16_is_not_used_for_small_products(monkeypatch, hidden, lm_head, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    assert has_fast_bf16(hidden, lm_head=lm_head) is expected


def test_bf16_products_keep_weights_gradients_and_losses_in_fp32(tiny):
    assembled, _, _ = batch_of(tiny, range(12))
    found = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        model = AlignmentModel(load_masked_lm(str(tiny.model)).eval(), "mean", 16, bf16_products=bf16)
        types = set()
        for layer in model.mlm.bert.encoder.layer:
            layer.output.dense.register_forward_hook(lambda *args, types=types: types.add(args[-1].dtype))
        tlm, query = model(assembled)
        (tlm + query[:, 0].sum()).backward()
        assert types == {torch.bfloat16 if bf16 else torch.float32}
        assert {tlm.dtype, query.dtype} == {torch.float32}
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert {g.dtype for g in gradients.values()} == {torch.float32}
        found.append((tlm.detach(), query.detach(), gradients))
        assert model.project(assembled.key).dtype == torch.float32
    (tlm, query, gradients), (low_tlm, low_query, low_gradients) = found
    assert tlm != low_tlm
    torch.testing.assert_close(low_tlm, tlm, rtol=1e-2, atol=0)
    torch.testing.assert_close(low_query, query, rtol=0, atol=2e-2)
    assert gradients.keys() == low_gradients.keys()
    for name, gradient in gradients.items():
        error = (gradient - low_gradients[name]).norm() / gradient.norm().clamp_min(1e-3)
        assert error < 0.1, name
