"""AdamW as the training loop uses it."""

from __future__ import annotations

import torch
from torch import nn

from ppa_fast.training.optimizer import optimizer_for


def weights() -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def adamw(model: nn.Module, decay: float = 0.1):
    return optimizer_for(model, decay, 1e-2, (0.9, 0.98), 1e-8)


def test_without_an_anchor_it_equals_torchs_adamw_without_decay_of_biases():
    ours, theirs = weights(), weights()
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.98),
    )
    optimizer = adamw(ours)
    for _ in range(3):
        optimizer.step()
        reference.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-6, atol=1e-7)


def test_a_skipped_step_changes_nothing():
    model = weights()
    optimizer, before = adamw(model), [p.clone() for p in model.parameters()]
    optimizer.skip = True
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state


def test_the_anchor_applies_before_the_update_and_only_to_anchored_parameters():
    """p ← p + lr·λ·(p₀ − p), then AdamW: the anchor does not change the moments."""
    ours, theirs = weights(), weights()
    optimizer, reference = adamw(ours), adamw(theirs)
    start = torch.full((2, 5), 3.0)
    optimizer.anchors[ours.weight] = [ours.weight.detach()[:2]], [start]
    optimizer.strength = 20.0
    for _ in range(2):
        with torch.no_grad():
            theirs.weight[:2] += 1e-2 * 20.0 * (start - theirs.weight[:2])
        optimizer.step()
        reference.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-6, atol=1e-7)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["exp_avg"], reference.state[other]["exp_avg"])
