"""What a step costs at least, and what of a device it uses."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from ppa_fast.training import utilisation


@pytest.mark.parametrize(("name", "dtype", "expected"), [
    ("NVIDIA H200", torch.bfloat16, 989e12),
    ("NVIDIA H100 80GB HBM3", torch.float16, 989e12),
    ("NVIDIA H200", torch.float32, None),
    ("CPU", torch.bfloat16, None),
])  # fmt: skip
def test_only_a_peak_that_is_known_is_told(name, dtype, expected):
    assert utilisation.peak(name, dtype) == expected


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_operations_are_those_that_torch_counts_but_for_attention(frozen):
    """A TLM forward and backward of 6 × 40 tokens, all of them masked rows; frozen layers have no backward."""
    config = BertConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=160
    )
    mlm = BertForMaskedLM(config)
    mlm.requires_grad_(requires_grad=False)
    for part in (*mlm.bert.encoder.layer[frozen:], mlm.cls):
        part.requires_grad_()
    ids, tokens = torch.zeros(6, 40, dtype=torch.long), 240
    inputs = mlm.bert.embeddings(ids).requires_grad_()  # the first layer's backward gives its input's gradient too
    with FlopCounterMode(display=False) as counter:
        mlm(inputs_embeds=inputs if not frozen else inputs.detach()).logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "attention" not in str(op) and "bmm" not in str(op))
    products += frozen * 3 * 2 * 64**2 * tokens  # the lowest trained layer's input needs no gradient; we count it
    assert utilisation.step_flop(config, tokens, 0, tokens, frozen) == pytest.approx(products, rel=1e-6)


def test_the_momentum_encoders_half_has_no_backward():
    config = BertConfig(vocab_size=300, hidden_size=64, num_hidden_layers=3, intermediate_size=160)
    assert utilisation.step_flop(config, 0, 200, 0, 0) == pytest.approx(
        utilisation.step_flop(config, 100, 0, 0, 0) * 4 / 3
    )
