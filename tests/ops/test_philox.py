"""Philox4x32-10 against the known answers of Random123 and a slow implementation in Python integers."""

import pytest
import torch

from ppa_fast.ops.philox import pair_words, philox4x32, threshold, torch_seed

ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def slow_philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, words):
    got = philox4x32(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert tuple(int(w) for w in got) == words
    assert philox4x32(counter, key) == words  # with integers instead of tensors
    assert slow_philox(counter, key) == words


def test_pair_words_use_the_documented_counter_and_key():
    seed, epoch, pair_id, stream, position = 2**32 + 17, 3, (5 << 40) + 123_456_789, 1, 9
    got = pair_words(seed, torch.tensor([epoch]), torch.tensor([pair_id]), stream, torch.tensor([position]))
    expected = slow_philox((position, stream, pair_id % 2**32, pair_id >> 32), (17, epoch))
    assert tuple(int(w) for w in got) == expected


def test_threshold_is_exact_in_double():
    assert [threshold(p) for p in (0.0, 0.15, 0.8, 0.9, 0.5, 1.0)] == [
        0,
        644245094,
        3435973836,
        3865470566,
        2**31,
        2**32,
    ]


def test_a_torch_seed_has_two_words_of_stream_4():
    seed, step, number = 2**32 + 17, (3 << 32) + 5, 9
    w0, w1, _, _ = slow_philox((number, 4, 5, 3), (17, 0))
    assert torch_seed(seed, step, number) == w0 << 32 | w1


def test_torch_seeds_differ_by_each_part():
    seeds = {torch_seed(s, step, n) for s in range(4) for step in range(4) for n in range(4)}
    assert len(seeds) == 64
    torch.manual_seed(max(seeds))  # all 64 bits are accepted
