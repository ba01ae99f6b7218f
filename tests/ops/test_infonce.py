"""InfoNCE against a computation by hand, in Python floats."""

import math

import pytest
import torch
import torch.nn.functional as F

from ppa_fast.ops.infonce import infonce

TAU = 0.1


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(query, positive, groups, queue, queue_groups, live):
    """Loss, top-1 and dq of each row, from the formula."""
    losses, hits, gradients = [], [], []
    for q, k, group in zip(query.tolist(), positive.tolist(), groups.tolist(), strict=True):
        rows = [
            u for u, g, alive in zip(queue.tolist(), queue_groups.tolist(), live.tolist(), strict=True)
            if alive and g != group
        ]  # fmt: skip
        logits = [sum(x * y for x, y in zip(q, row, strict=True)) / TAU for row in [k, *rows]]
        total = math.fsum(math.exp(z) for z in logits)
        losses.append(math.log(total) - logits[0])
        hits.append(all(logits[0] > z for z in logits[1:]))
        weights = [math.exp(z) / total for z in logits]
        weights[0] -= 1
        columns = zip(*[[w * x for x in row] for w, row in zip(weights, [k, *rows], strict=True)], strict=True)
        gradients.append([math.fsum(column) / TAU for column in columns])
    return torch.tensor(losses), torch.tensor(hits), torch.tensor(gradients)


@pytest.mark.parametrize(("n", "r", "d"), [(1, 1, 8), (5, 17, 16), (17, 64, 128)])
def test_loss_top1_and_gradient(n, r, d):
    query, positive, queue = unit(n, d, seed=1), unit(n, d, seed=2), unit(r, d, seed=3)
    positive = F.normalize(positive + query, dim=1)
    groups, queue_groups = torch.arange(n) % 4, torch.arange(r) % 7
    live = torch.arange(r) % 5 != 3
    query.requires_grad_()
    loss, top1 = infonce(query, positive, groups, queue, queue_groups, live, TAU)
    expected, hits, gradient = by_hand(query.detach(), positive, groups, queue, queue_groups, live)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(top1, hits)
    (got,) = torch.autograd.grad(loss.sum(), query)
    torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-5)


def test_rows_of_the_own_group_and_dead_rows_are_not_negatives():
    query, queue = unit(2, 8, seed=1), unit(6, 8, seed=3)
    positive = unit(2, 8, seed=2)
    queue[0], queue[1] = query[0], query[0]  # the hardest negatives for row 0
    queue_groups = torch.tensor([7, 1, 2, 3, 4, 5])
    live = torch.tensor([True, False, True, True, True, True])
    groups = torch.tensor([7, 8])
    loss, _ = infonce(query, positive, groups, queue, queue_groups, live, TAU)
    without, _ = infonce(query[:1], positive[:1], groups[:1], queue[2:], queue_groups[2:], live[2:], TAU)
    torch.testing.assert_close(loss[:1], without)
    with_it, _ = infonce(query[:1], positive[:1], torch.tensor([9]), queue, queue_groups, live, TAU)
    assert with_it > loss[0] + 1


def test_no_negatives_means_no_loss():
    loss, top1 = infonce(
        unit(3, 8, seed=1), unit(3, 8, seed=2), torch.arange(3), unit(4, 8, seed=3), torch.arange(4),
        torch.zeros(4, dtype=torch.bool), TAU,
    )  # fmt: skip
    assert torch.equal(loss, torch.zeros(3))
    assert top1.all()


def test_a_tie_is_no_hit():
    same = unit(1, 8, seed=1)
    _, top1 = infonce(same, same, torch.tensor([0]), same, torch.tensor([1]), torch.tensor([True]), TAU)
    assert not top1.any()


def test_no_gradient_flows_to_keys():
    query, positive, queue = (unit(3, 8, seed=s).requires_grad_() for s in (1, 2, 3))
    groups = torch.arange(3)
    loss, _ = infonce(query, positive, groups, queue, groups + 10, torch.ones(3, dtype=torch.bool), TAU)
    loss.sum().backward()
    assert query.grad is not None
    assert positive.grad is None
    assert queue.grad is None
