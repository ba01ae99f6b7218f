"""Cross-entropy on masked rows against a computation by hand."""

import math

import torch

from ppa_fast.ops.masked_lm_loss import masked_lm_loss


def test_sum_of_negative_log_probabilities():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 10, 3, 3, 7])
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    expected = math.fsum(math.log(math.fsum(map(math.exp, row))) - row[label] for row, label in rows)
    assert math.isclose(float(masked_lm_loss(logits, labels)), expected, rel_tol=1e-6)


def test_low_precision_logits_are_summed_in_fp32():
    logits = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(1000) % 8
    assert torch.equal(masked_lm_loss(logits, labels), masked_lm_loss(logits.float(), labels))


def test_no_masked_row_is_a_loss_of_zero_with_a_gradient():
    logits = torch.randn(0, 8, requires_grad=True)
    loss = masked_lm_loss(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
