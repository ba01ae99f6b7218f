"""Coins, streams and masks against a slow implementation, pair by pair and token by token, straight from the method."""

import random

import pytest
import torch

from ppa_fast.ops.assemble import assemble
from tests.ops.test_philox import slow_philox

CLS, SEP, MASK, VOCABULARY = 101, 102, 103, 1000


def slow_pair(a, b, pair_id, epoch, seed, p, shuffling=True):
    """Query, key, TLM sequence, selected positions and labels of one pair."""

    def words(position, stream):
        return slow_philox((position, stream, pair_id % 2**32, pair_id >> 32), (seed % 2**32, epoch))

    query, key = (b, a) if shuffling and words(0, 1)[0] >> 31 else (a, b)
    tlm = [CLS, *query, SEP, *key, SEP]
    specials = {0, len(query) + 1, len(tlm) - 1}
    selected, labels = [], []
    for i, token in enumerate(list(tlm)):
        w0, w1, w2, _ = words(i, 0)
        if i in specials or w0 >= int(p * 2**32):
            continue
        selected.append(i)
        labels.append(token)
        if w1 < int(0.8 * 2**32):
            tlm[i] = MASK
        elif w1 < int(0.9 * 2**32):
            tlm[i] = (w2 * VOCABULARY) >> 32
    return [CLS, *query, SEP], [CLS, *key, SEP], tlm, selected, labels


def make_pairs(count, seed=0, longest=12, shortest=0):
    rng = random.Random(seed)

    def row():
        return [rng.randrange(VOCABULARY) for _ in range(rng.randint(shortest, longest))]

    return [(row(), row(), rng.randrange(2**50), rng.randrange(5)) for _ in range(count)]


def run(pairs, seed=11, p=0.15, **options):
    def flat(rows):
        offsets = torch.tensor([0, *[len(r) for r in rows]]).cumsum(0)
        return torch.tensor([t for r in rows for t in r], dtype=torch.int32), offsets

    a_tokens, a_offsets = flat([pair[0] for pair in pairs])
    b_tokens, b_offsets = flat([pair[1] for pair in pairs])
    ids, epochs = (torch.tensor([pair[i] for pair in pairs]) for i in (2, 3))
    sizes = {"cls": CLS, "sep": SEP, "mask": MASK, "vocab_size": VOCABULARY}
    return assemble(
        a_tokens, a_offsets, b_tokens, b_offsets, ids, epochs, seed=seed, mask_probability=p, **sizes, **options
    )


def sequences(stream):
    return [part.tolist() for part in stream.tokens.split(stream.cu_seqlens.diff().tolist())]


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**40 + 3])
@pytest.mark.parametrize("p", [0.0, 0.15, 1.0])
def test_equals_the_slow_implementation_bit_for_bit(seed, p):
    pairs = make_pairs(60, seed=seed)
    got = run(pairs, seed=seed, p=p)
    expected = [slow_pair(*pair, seed, p) for pair in pairs]
    assert sequences(got.query) == [e[0] for e in expected]
    assert sequences(got.key) == [e[1] for e in expected]
    assert sequences(got.tlm) == [e[2] for e in expected]
    starts = got.tlm.cu_seqlens.tolist()
    assert got.masked_rows.tolist() == [starts[i] + at for i, e in enumerate(expected) for at in e[3]]
    assert got.labels.tolist() == [label for e in expected for label in e[4]]


def test_without_input_shuffling_a_is_the_query():
    pairs = make_pairs(20)
    got = run(pairs, input_shuffling=False)
    assert not got.swap.any()
    assert sequences(got.query) == [[CLS, *a, SEP] for a, *_ in pairs]


def test_coin_is_fair():
    swapped = int(run([([1], [2], i, 0) for i in range(4000)]).swap.sum())
    assert abs(swapped - 2000) < 4 * (4000 * 0.25) ** 0.5


def test_a_decision_depends_on_the_pair_alone():
    pairs = make_pairs(30)
    order = list(range(30))
    random.Random(3).shuffle(order)
    together, alone = run([pairs[i] for i in order]), [run([pair]) for pair in pairs]
    for stream in ("query", "key", "tlm"):
        got = sequences(getattr(together, stream))
        assert got == [sequences(getattr(alone[i], stream))[0] for i in order]


def test_epoch_changes_coins_and_masks():
    pairs = make_pairs(50, shortest=5)
    later = [(a, b, pair_id, epoch + 1) for a, b, pair_id, epoch in pairs]
    assert run(pairs).swap.tolist() != run(later).swap.tolist()
    assert sequences(run(pairs).tlm) != sequences(run(later).tlm)


def test_shares_within_four_sigma_and_specials_never_selected():
    # Tokens are CLS and SEP ids too: what is exempt is the inserted position, not the id.
    pairs = [([CLS, SEP, MASK, 5] * 10, [7, 8, CLS, 9] * 10, i, 0) for i in range(300)]
    got = run(pairs)
    original = [
        [CLS, *(b if s else a), SEP, *(a if s else b), SEP] for (a, b, *_), s in zip(pairs, got.swap, strict=True)
    ]
    before = torch.tensor([t for row in original for t in row])
    after, rows = got.tlm.tokens, got.masked_rows
    at = got.tlm.positions[rows]
    assert not ((at == 0) | (at == 41) | (at == 82)).any()
    assert (got.labels == CLS).any()
    assert torch.equal(before[rows], got.labels)
    unselected = torch.ones(len(after), dtype=torch.bool)
    unselected[rows] = False
    assert torch.equal(before[unselected], after[unselected])

    ordinary, selected = 300 * 80, len(rows)

    def near(count, n, share):
        return abs(count - n * share) < 4 * (n * share * (1 - share)) ** 0.5

    assert near(selected, ordinary, 0.15)
    plain = got.labels != MASK  # for these, a [MASK] in the input was put there
    masked = int((after[rows] == MASK)[plain].sum())
    kept = int((after[rows] == got.labels)[plain].sum())
    n = int(plain.sum())
    assert near(masked, n, 0.8 + 0.1 / VOCABULARY)
    assert near(kept, n, 0.1 + 0.1 / VOCABULARY)


def test_random_ids_cover_the_vocabulary_specials_included():
    pairs = [([5] * 60, [6] * 60, i, 0) for i in range(400)]
    got = run(pairs, p=1.0)
    drawn = set(got.tlm.tokens[got.masked_rows].tolist()) - {MASK, 5, 6}
    assert len(drawn) > 0.95 * VOCABULARY
    assert {CLS, SEP} <= drawn
    assert max(drawn) < VOCABULARY


def test_padded_puts_each_sequence_in_its_row():
    got = run(make_pairs(9))
    ids, mask = got.tlm.padded(pad=0)
    assert ids.shape == mask.shape
    for row, keep, sequence in zip(ids, mask, sequences(got.tlm), strict=True):
        assert row[keep].tolist() == sequence
        assert not keep[len(sequence) :].any()
        assert not row[len(sequence) :].any()
