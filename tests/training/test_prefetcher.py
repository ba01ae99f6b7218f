"""The prefetcher returns the correct micro-batches for any requested step, one step ahead."""

from __future__ import annotations

import threading

import pytest
import torch

from ppa_fast.data.loading.batching import Batches
from ppa_fast.data.loading.packing import packer_for
from ppa_fast.data.loading.sampler import Sampler
from ppa_fast.data.store.store import Store
from ppa_fast.training.prefetcher import Prefetcher


@pytest.fixture
def batches(tiny):
    store = Store.open(tiny.store)
    packer = packer_for(store, seed=0, mask_probability=0.15, input_shuffling=True)
    return Batches(packer, Sampler(len(store), 16, 0), 8, 0, 1)


@pytest.fixture
def feed(batches):
    feed = Prefetcher(batches, lambda batch: ("streams of", batch), "cpu")
    yield feed
    feed.close()


def test_steps_in_any_order_give_their_batches(feed, batches):
    for step in (0, 1, 2, 7, 8, 3, 3):
        got = feed(step)
        assert len(got) == 2
        for (batch, streams), expected in zip(got, batches(step), strict=True):
            assert torch.equal(batch.buffer, expected.buffer)
            assert streams == ("streams of", batch)


def test_the_next_step_is_loaded_while_this_one_runs(batches):
    made, asked = threading.Event(), []

    def watched(step):
        asked.append(step)
        if step == 1:
            made.set()
        return batches(step)

    feed = Prefetcher(watched, lambda batch: None, "cpu")
    feed(0)
    assert made.wait(60)  # step 1 was not requested
    feed(1)
    feed.close()
    assert asked[:2] == [0, 1]
    assert asked.count(1) == 1


def test_an_error_of_a_step_is_raised_when_the_step_is_requested(batches):
    def broken(step):
        if step == 1:
            raise ValueError("the store is damaged")
        return batches(step)

    feed = Prefetcher(broken, lambda batch: None, "cpu")
    feed(0)
    with pytest.raises(ValueError, match="the store is damaged"):
        feed(1)
    feed.close()
