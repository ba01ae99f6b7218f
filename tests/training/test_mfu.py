"""The minimum operations of a step, and the peak of a device."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from ppa_fast.model.encoder import freeze
from ppa_fast.settings import Settings
from ppa_fast.training import mfu


@pytest.mark.parametrize(("name", "dtype", "expected"), [
    ("NVIDIA H200", torch.bfloat16, 989e12),
    ("NVIDIA H100 80GB HBM3", torch.float16, 989e12),
    ("NVIDIA H200", torch.float32, None),
    ("CPU", torch.bfloat16, None),
])  # fmt: skip
def test_only_listed_devices_have_a_peak(name, dtype, expected):
    assert mfu.peak(name, dtype) == expected


@pytest.mark.parametrize("frozen", [0, 1, -1])
def test_the_operations_are_those_that_torch_counts_but_for_attention(frozen):
    """A TLM forward and backward of 6 × 40 tokens, all of them masked rows; the lowest layers have no backward if they
    are frozen with the embeddings, and the highest have that of their input."""
    config = BertConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=160,
        attn_implementation="eager",
    )  # fmt: skip
    mlm = BertForMaskedLM(config)
    settings = Settings(freeze_layers=frozen)
    freeze(mlm, settings.frozen(3))
    ids, tokens = torch.zeros(6, 40, dtype=torch.long), 240
    inputs = mlm.bert.embeddings(ids).detach().requires_grad_()  # the first layer's backward gives that of its input
    with FlopCounterMode(display=False) as counter:
        mlm(inputs_embeds=inputs if frozen <= 0 else inputs.detach()).logits.sum().backward()
    # Attention has two products of its own forward and four backward; the lowest frozen layer has no backward. They are
    # subtracted by size, because a linear layer may also run as a batched product: ZeRO-3 replaces F.linear.
    attention = (2 * 3 + 4 * (3 - max(frozen, 0))) * 2 * 6 * 40**2 * 64
    products = counter.get_total_flops() - attention
    products += (frozen > 0) * 3 * 2 * 64**2 * tokens  # the lowest trained layer's input needs no gradient; we count it
    products += (frozen > 0) * 2 * 64 * 300 * tokens  # nor does the decoder, which is tied to frozen embeddings
    assert mfu.step_flop(config, settings, tokens, 0, tokens) == pytest.approx(products, rel=1e-6)


def test_the_tokens_of_the_momentum_encoder_have_no_backward():
    config = BertConfig(vocab_size=300, hidden_size=64, num_hidden_layers=3, intermediate_size=160)
    tlm = mfu.step_flop(config, Settings(), 300, 0, 0)
    assert mfu.step_flop(config, Settings(), 0, 300, 0) == pytest.approx(tlm * 2 / 3)
    symmetric = Settings(contrast="symmetric")
    assert mfu.step_flop(config, symmetric, 0, 300, 0) == pytest.approx(tlm)


def test_sentences_do_not_pass_the_layers_above_the_contrasts():
    config = BertConfig(vocab_size=300, hidden_size=64, num_hidden_layers=3, intermediate_size=160)
    whole, cut = Settings(), Settings(contrast_layer=2)
    assert mfu.step_flop(config, cut, 0, 90, 0) == pytest.approx(mfu.step_flop(config, whole, 0, 90, 0) * 2 / 3)
    assert mfu.step_flop(config, cut, 90, 0, 8) == mfu.step_flop(config, whole, 90, 0, 8)
