"""The queue of keys against a Python list."""

import pytest
import torch

from ppa_fast.model.queue import KeyQueue


def keys(first, count):
    """Recognisable rows [i, -i]."""
    i = torch.arange(first, first + count, dtype=torch.float32)
    return torch.stack([i, -i], dim=1)


@pytest.mark.parametrize(("size", "batch"), [(8, 8), (8, 3), (7, 5), (64, 1), (5, 4)])
def test_live_rows_are_the_last_k_keys_in_order_at_every_wrap(size, batch):
    queue, everything = KeyQueue(size, batch, 2), []
    for step in range(4 * (size + batch) // batch + 3):
        new = keys(1 + step * batch, batch)
        order = torch.randperm(batch, generator=torch.Generator().manual_seed(step))
        half = batch // 2
        for part in (order[:half], order[half:]):  # the micro-batches are enqueued in any order
            queue.enqueue(new[part], 100 + new[part, 0].long(), part)
        before, _ = queue.content()
        assert before[:, 0].tolist() == everything[-size:]  # pending rows are not read
        queue.commit(batch)
        everything += new[:, 0].tolist()
        content, groups = queue.content()
        assert content[:, 0].tolist() == everything[-size:]
        assert groups.tolist() == [100 + int(i) for i in everything[-size:]]
        assert int(queue.live.sum()) == min(size, len(everything))
        assert sorted(queue.vectors[queue.live][:, 0].tolist()) == sorted(everything[-size:])


def test_fill_then_content_is_the_identity_and_keeps_the_newest():
    queue = KeyQueue(6, 4, 2)
    queue.fill(keys(1, 4), torch.arange(4))
    assert queue.content()[0][:, 0].tolist() == [1, 2, 3, 4]
    queue.fill(keys(1, 9), torch.arange(9))
    content, groups = queue.content()
    assert content[:, 0].tolist() == [4, 5, 6, 7, 8, 9]
    assert groups.tolist() == [3, 4, 5, 6, 7, 8]
    queue.enqueue(keys(10, 4), torch.arange(4), torch.arange(4))
    queue.commit(4)
    assert queue.content()[0][:, 0].tolist() == [8, 9, 10, 11, 12, 13]


def test_a_restored_queue_continues_like_the_original():
    one, other = KeyQueue(6, 4, 2), KeyQueue(6, 4, 2)
    for step in range(3):
        one.enqueue(keys(step * 4, 4), torch.arange(4), torch.arange(4))
        one.commit(4)
    other.fill(*one.content(), one.cursor)
    assert torch.equal(one.live, other.live)
    assert torch.equal(one.vectors[one.live], other.vectors[other.live])  # every key keeps its row
    for queue in (one, other):
        queue.enqueue(keys(50, 4), torch.arange(4), torch.arange(4))
        queue.commit(4)
    assert torch.equal(one.content()[0], other.content()[0])


def test_keys_are_stored_in_the_requested_type():
    queue = KeyQueue(6, 4, 2, dtype=torch.bfloat16)
    odd = keys(1, 4) + 1 / 512  # not representable in bf16
    queue.fill(odd, torch.arange(4))
    assert queue.vectors.dtype == torch.bfloat16
    assert torch.equal(queue.content()[0], odd.bfloat16().float())
    queue.enqueue(odd, torch.arange(4), torch.arange(4))
    queue.commit(4)
    assert torch.equal(queue.content()[0], torch.cat([odd, odd])[-6:].bfloat16().float())


def test_non_finite_keys_are_not_enqueued():
    queue, new = KeyQueue(6, 4, 2), keys(1, 4)
    new[2, 1] = torch.nan
    with pytest.raises(ValueError, match="keys: found elements that are not finite"):
        queue.fill(new, torch.arange(4))
    assert queue.count == 0
    queue.enqueue(new, torch.arange(4), torch.arange(4))
    assert queue.state.tolist() == [0, 0, 1]
    assert queue.vectors.isfinite().all()


def test_a_queue_without_rows_is_an_error():
    with pytest.raises(ValueError, match="size: found 0, expected at least 1"):
        KeyQueue(0, 4, 2)
