"""Coins, sequences and masks against a slow implementation of the method, pair by pair and token by token. Every
backend equals the reference bit for bit."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppa_fast.ops import library
from ppa_fast.ops.assemble import AssembledBatch, Layout, PackedSequences, assemble, layout
from tests.ops.conftest import Backend
from tests.ops.test_philox import slow_philox

CLS, SEP, MASK, VOCABULARY = 101, 102, 103, 1000

Pair = tuple[list[int], list[int], int, int]  # row a, row b, pair_id, epoch


def slow_pair(
    a: list[int], b: list[int], pair_id: int, epoch: int, seed: int, p: float, shuffling: bool = True
) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Returns the query, the key, the TLM sequence, the selected positions and the labels of one pair."""

    def words(position: int, stream: int) -> tuple[int, ...]:
        return slow_philox((position, stream, pair_id % 2**32, pair_id >> 32), (seed % 2**32, epoch % 2**32))

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


def make_pairs(count: int, seed: int = 0, longest: int = 12, shortest: int = 0) -> list[Pair]:
    rng = random.Random(seed)

    def row() -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(rng.randint(shortest, longest))]

    return [(row(), row(), rng.randrange(2**50), rng.randrange(5)) for _ in range(count)]


def flat(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *[len(r) for r in rows]]).cumsum(0)
    return torch.tensor([t for r in rows for t in r], dtype=torch.int32), offsets.int()


NUMBERS: dict[str, Any] = {
    "seed": 11,
    "cls": CLS,
    "sep": SEP,
    "mask": MASK,
    "vocab_size": VOCABULARY,
    "mask_probability": 0.15,
    "input_shuffling": True,
}


@dataclass
class Call:
    """The arguments of one call, on the CPU. Tests can modify them before the call."""

    a_tokens: Tensor
    a_offsets: Tensor
    b_tokens: Tensor
    b_offsets: Tensor
    pair_ids: Tensor
    epochs: Tensor
    layout: Layout
    numbers: dict[str, Any]

    def tensors(self, device: torch.device) -> list[Tensor]:
        names = ("a_tokens", "a_offsets", "b_tokens", "b_offsets", "pair_ids", "epochs")
        return [getattr(self, name).to(device) for name in names]

    def bounds(self, device: torch.device) -> list[Tensor]:
        return [self.layout.query_cu_seqlens.to(device), self.layout.masked_offsets.to(device)]

    def run(self, device: torch.device) -> AssembledBatch:
        """Calls the public function."""
        query, masked = self.bounds(device)
        there = dataclasses.replace(self.layout, query_cu_seqlens=query, masked_offsets=masked)
        return assemble(*self.tensors(device), there, **self.numbers)

    def operands(self, device: torch.device) -> tuple[Any, ...]:
        """Returns the arguments of the operator."""
        sizes = (self.layout.query_tokens, self.layout.masked)
        return (*self.tensors(device), *self.bounds(device), *sizes, *self.numbers.values())


def call_of(pairs: list[Pair], **numbers: Any) -> Call:
    numbers = NUMBERS | numbers
    a, b = flat([pair[0] for pair in pairs]), flat([pair[1] for pair in pairs])
    pair_ids, epochs = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (2, 3))
    options = {name: numbers[name] for name in ("seed", "mask_probability", "input_shuffling")}
    return Call(*a, *b, pair_ids, epochs, layout(a[1], b[1], pair_ids, epochs, **options), numbers)


def run(pairs: list[Pair], backend: Backend, **numbers: Any) -> AssembledBatch:
    return call_of(pairs, **numbers).run(backend.device)


def sequences(stream: PackedSequences) -> list[list[int]]:
    return [part.tolist() for part in stream.tokens.split(stream.cu_seqlens.diff().tolist())]


def everything(assembled: AssembledBatch) -> dict[str, Tensor]:
    parts = {name: getattr(assembled, name) for name in ("masked_positions", "labels", "is_swapped")}
    for name in ("query", "key", "tlm"):
        stream = getattr(assembled, name)
        parts |= {f"{name}.{part}": getattr(stream, part) for part in ("tokens", "cu_seqlens", "positions", "sequence")}
    return parts


def assert_same_bits(got: AssembledBatch, expected: AssembledBatch) -> None:
    wanted = everything(expected)
    for name, tensor in everything(got).items():
        torch.testing.assert_close(tensor.cpu(), wanted[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**40 + 3, -1])
@pytest.mark.parametrize("p", [0.0, 0.15, 1.0])
def test_equals_the_slow_implementation_bit_for_bit(backend: Backend, seed: int, p: float) -> None:
    pairs = make_pairs(60, seed=seed)
    got = run(pairs, backend, seed=seed, mask_probability=p)
    expected = [slow_pair(*pair, seed, p) for pair in pairs]
    assert sequences(got.query) == [e[0] for e in expected]
    assert sequences(got.key) == [e[1] for e in expected]
    assert sequences(got.tlm) == [e[2] for e in expected]
    starts = got.tlm.cu_seqlens.tolist()
    assert got.masked_positions.tolist() == [starts[i] + at for i, e in enumerate(expected) for at in e[3]]
    assert got.labels.tolist() == [label for e in expected for label in e[4]]
    for name, part in (("query", 0), ("key", 1), ("tlm", 2)):
        stream = getattr(got, name)
        assert stream.positions.tolist() == [at for e in expected for at in range(len(e[part]))]
        assert stream.sequence.tolist() == [i for i, e in enumerate(expected) for _ in e[part]]


lengths = st.one_of(st.sampled_from([0, 1, 2, 13, 14, 15, 29, 30, 31, 32]), st.integers(0, 200))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_backend_equals_the_reference_bit_for_bit(backend: Backend, data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.tuples(lengths, lengths), max_size=6 if backend.slow else 40))
    vocabulary = data.draw(st.sampled_from([1, 1000, 119_547, 250_002, 2**31]))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    pairs = [
        (
            [rng.randrange(vocabulary) for _ in range(a)],
            [rng.randrange(vocabulary) for _ in range(b)],
            data.draw(st.one_of(st.integers(0, 2**63 - 1), st.integers(2**40, 2**40 + 9))),
            data.draw(st.integers(0, 2**33)),
        )
        for a, b in shapes
    ]
    call = call_of(
        pairs,
        seed=data.draw(st.integers(-(2**70), 2**70)),
        mask_probability=data.draw(st.sampled_from([0.0, 0.15, 0.5, 1.0])),
        input_shuffling=data.draw(st.booleans()),
        vocab_size=vocabulary,
        **{name: rng.randrange(vocabulary) for name in ("cls", "sep", "mask")},
    )
    got = call.run(backend.device)
    with library.using("reference"):
        assert_same_bits(got, call.run(torch.device("cpu")))


def test_long_and_short_sentences_are_assembled_together(backend: Backend) -> None:
    long = 1500 if backend.slow else 32_768
    rng = random.Random(5)
    shapes = [(long, 1), (1, 1), (1, long), (0, 0), *[(long // 40, long // 50)] * 40]
    pairs = [
        ([rng.randrange(VOCABULARY) for _ in range(a)], [rng.randrange(VOCABULARY) for _ in range(b)], i << 40, 0)
        for i, (a, b) in enumerate(shapes)
    ]
    call = call_of(pairs)
    got = call.run(backend.device)
    with library.using("reference"):
        assert_same_bits(got, call.run(torch.device("cpu")))


def test_two_runs_give_equal_results(backend: Backend) -> None:
    call = call_of(make_pairs(100))
    first, second = call.run(backend.device), call.run(backend.device)
    for name, tensor in everything(first).items():
        assert torch.equal(tensor, everything(second)[name]), name


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 13])
def test_outputs_are_aligned_views_of_one_buffer_with_zero_padding(backend: Backend, count: int) -> None:
    call = call_of(make_pairs(count))
    others = ("query.cu_seqlens", "query.sequence", "key.sequence", "tlm.sequence")
    tensors = [x for name, x in everything(call.run(backend.device)).items() if name not in others]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}) == 1
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
    poison = torch.full(
        (4096,), -1, dtype=torch.int32, device=backend.device
    )  # the allocator may return the same memory again
    del poison
    buffer = library.OPERATIONS["assemble"](*call.operands(backend.device))
    with library.using("reference"):
        assert torch.equal(buffer.cpu(), library.OPERATIONS["assemble"](*call.operands(torch.device("cpu"))))


def test_no_pairs_give_empty_outputs(backend: Backend) -> None:
    got = run([], backend)
    for stream in (got.query, got.key, got.tlm):
        assert stream.cu_seqlens.tolist() == [0]
        assert len(stream.tokens) == len(stream.positions) == len(stream.sequence) == 0
    assert len(got.masked_positions) == len(got.labels) == len(got.is_swapped) == 0
    if backend.name in ("reference", "cpu"):
        nobodys = call_of([])
        nobodys.b_tokens = torch.tensor([5], dtype=torch.int32)
        with pytest.raises(RuntimeError, match="b_offsets"):
            nobodys.run(backend.device)


def test_without_input_shuffling_a_is_the_query(backend: Backend) -> None:
    pairs = make_pairs(20)
    got = run(pairs, backend, input_shuffling=False)
    assert not got.is_swapped.any()
    assert sequences(got.query) == [[CLS, *a, SEP] for a, *_ in pairs]


def test_coin_is_fair(backend: Backend) -> None:
    swapped = int(run([([1], [2], i, 0) for i in range(4000)], backend).is_swapped.sum())
    assert abs(swapped - 2000) < 4 * (4000 * 0.25) ** 0.5


def test_random_decisions_depend_only_on_the_pair(backend: Backend) -> None:
    pairs = make_pairs(30)
    order = list(range(30))
    random.Random(3).shuffle(order)
    together, alone = run([pairs[i] for i in order], backend), [run([pair], backend) for pair in pairs]
    for stream in ("query", "key", "tlm"):
        got = sequences(getattr(together, stream))
        assert got == [sequences(getattr(alone[i], stream))[0] for i in order]


def test_the_epoch_changes_coins_and_masks(backend: Backend) -> None:
    pairs = make_pairs(50, shortest=5)
    later = [(a, b, pair_id, epoch + 1) for a, b, pair_id, epoch in pairs]
    assert run(pairs, backend).is_swapped.tolist() != run(later, backend).is_swapped.tolist()
    assert sequences(run(pairs, backend).tlm) != sequences(run(later, backend).tlm)


def test_masking_shares_are_within_four_sigma_and_specials_are_never_selected(backend: Backend) -> None:
    # Tokens can have CLS and SEP ids: the inserted positions are exempt from masking, not the ids.
    pairs = [([CLS, SEP, MASK, 5] * 10, [7, 8, CLS, 9] * 10, i, 0) for i in range(300)]
    got = run(pairs, backend)
    original = [
        [CLS, *(b if s else a), SEP, *(a if s else b), SEP]
        for (a, b, *_), s in zip(pairs, got.is_swapped.tolist(), strict=True)
    ]
    before = torch.tensor([t for row in original for t in row])
    after, rows, labels = got.tlm.tokens.cpu(), got.masked_positions.cpu(), got.labels.cpu()
    at = got.tlm.positions.cpu()[rows]
    assert not ((at == 0) | (at == 41) | (at == 82)).any()
    assert (labels == CLS).any()
    assert torch.equal(before[rows], labels)
    unselected = torch.ones(len(after), dtype=torch.bool)
    unselected[rows] = False
    assert torch.equal(before[unselected], after[unselected].long())

    ordinary, selected = 300 * 80, len(rows)

    def near(count: int, n: int, share: float) -> bool:
        return abs(count - n * share) < 4 * (n * share * (1 - share)) ** 0.5

    assert near(selected, ordinary, 0.15)
    plain = labels != MASK  # for these, a [MASK] in the input comes from masking
    masked = int((after[rows] == MASK)[plain].sum())
    kept = int((after[rows] == labels)[plain].sum())
    n = int(plain.sum())
    assert near(masked, n, 0.8 + 0.1 / VOCABULARY)
    assert near(kept, n, 0.1 + 0.1 / VOCABULARY)


def test_random_ids_cover_the_vocabulary_with_special_tokens(backend: Backend) -> None:
    pairs = [([5] * 60, [6] * 60, i, 0) for i in range(400)]
    got = run(pairs, backend, mask_probability=1.0)
    drawn = set(got.tlm.tokens[got.masked_positions].tolist()) - {MASK, 5, 6}
    assert len(drawn) > 0.95 * VOCABULARY
    assert {CLS, SEP} <= drawn
    assert max(drawn) < VOCABULARY


def test_padded_has_one_sequence_per_row(backend: Backend) -> None:
    got = run(make_pairs(9), backend)
    ids, mask = got.tlm.padded(pad=0)
    assert ids.shape == mask.shape
    for row, keep, sequence in zip(ids, mask, sequences(got.tlm), strict=True):
        assert row[keep].tolist() == sequence
        assert not keep[len(sequence) :].any()
        assert not row[len(sequence) :].any()


@pytest.mark.gpu
def test_assemble_does_not_synchronise() -> None:
    if library.why_not_native("cuda"):
        pytest.skip(library.why_not_native("cuda"))
    device = torch.device("cuda")
    call = call_of(make_pairs(50))
    tensors, bounds = call.tensors(device), call.bounds(device)
    there = dataclasses.replace(call.layout, query_cu_seqlens=bounds[0], masked_offsets=bounds[1])
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _ = assemble(*tensors, there, **call.numbers).tlm.sequence
    finally:
        torch.cuda.set_sync_debug_mode(before)


# Layouts, on the host.


@pytest.mark.parametrize("p", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("shuffling", [True, False])
def test_the_layout_has_the_sizes_of_the_outputs(p: float, shuffling: bool) -> None:
    pairs = make_pairs(60)
    got = call_of(pairs, seed=3, mask_probability=p, input_shuffling=shuffling).layout
    expected = [slow_pair(*pair, 3, p, shuffling) for pair in pairs]
    assert got.query_cu_seqlens.dtype == got.masked_offsets.dtype == torch.int32
    assert got.query_cu_seqlens.diff().tolist() == [len(e[0]) for e in expected]
    assert got.masked_offsets.diff().tolist() == [len(e[3]) for e in expected]
    assert (got.query_cu_seqlens[0], got.masked_offsets[0]) == (0, 0)
    assert (got.query_tokens, got.masked) == (got.query_cu_seqlens[-1], got.masked_offsets[-1])


BAD_FOR_LAYOUT: dict[str, Callable[[Call], object]] = {
    "a_offsets: .*no decrease": lambda c: c.a_offsets[1:3].copy_(c.a_offsets[1:3].flip(0).clone()),
    "b_offsets: .*0 first": lambda c: c.b_offsets[0].fill_(1),
    "a_offsets: found shape": lambda c: setattr(c, "a_offsets", c.a_offsets[:-1]),
    "b_offsets: found torch.int64": lambda c: setattr(c, "b_offsets", c.b_offsets.long()),
    "epochs": lambda c: setattr(c, "epochs", c.epochs[1:]),
    "pair_ids": lambda c: setattr(c, "pair_ids", c.pair_ids.int()),
    "mask_probability": lambda c: c.numbers.update(mask_probability=-0.1),
}


@pytest.mark.parametrize("name", BAD_FOR_LAYOUT)
def test_an_invalid_argument_of_the_layout_is_named(name: str) -> None:
    call = call_of(make_pairs(9, shortest=1))
    BAD_FOR_LAYOUT[name](call)
    with pytest.raises((TypeError, ValueError), match=name):
        layout(
            call.a_offsets,
            call.b_offsets,
            call.pair_ids,
            call.epochs,
            seed=1,
            mask_probability=call.numbers["mask_probability"],
        )


# Invalid input.


def spoil_layout(call: Call, **changes: Any) -> None:
    call.layout = replace(call.layout, **changes)


BAD: dict[str, Callable[[Call], object]] = {
    "a_tokens: found torch.int64|a_tokens: found Long": lambda c: setattr(c, "a_tokens", c.a_tokens.long()),
    "b_tokens: found shape": lambda c: setattr(c, "b_tokens", c.b_tokens[None]),
    "b_tokens: expected a contiguous": lambda c: setattr(c, "b_tokens", c.b_tokens[::2]),
    "a_offsets": lambda c: setattr(c, "a_offsets", c.a_offsets[1:]),
    "b_offsets": lambda c: setattr(c, "b_offsets", c.b_offsets.long()),
    "pair_ids": lambda c: setattr(c, "pair_ids", c.pair_ids.int()),
    "epochs": lambda c: setattr(c, "epochs", c.epochs[1:]),
    "query_cu_seqlens": lambda c: spoil_layout(c, query_cu_seqlens=c.layout.query_cu_seqlens.long()),
    "masked_offsets": lambda c: spoil_layout(c, masked_offsets=c.layout.masked_offsets[1:]),
    "query_tokens: found 1,": lambda c: spoil_layout(c, query_tokens=1),
    "query_tokens: found 100": lambda c: spoil_layout(c, query_tokens=1000),
    "masked: found -1": lambda c: spoil_layout(c, masked=-1),
    "masked: found 100": lambda c: spoil_layout(c, masked=1000),
    "vocab_size": lambda c: c.numbers.update(vocab_size=2**31 + 1),
    "vocab_size: found 0": lambda c: c.numbers.update(vocab_size=0),
    "cls": lambda c: c.numbers.update(cls=VOCABULARY),
    "sep": lambda c: c.numbers.update(sep=-1),
    "mask: found": lambda c: c.numbers.update(mask=VOCABULARY),
    "mask_probability": lambda c: c.numbers.update(mask_probability=1.01),
    "mask_probability: found nan": lambda c: c.numbers.update(mask_probability=float("nan")),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_argument_is_named(backend: Backend, name: str) -> None:
    call = call_of(make_pairs(9, shortest=2))
    BAD[name](call)
    with pytest.raises((TypeError, ValueError), match=name):
        call.run(backend.device)
    if backend.name != "reference":  # the kernels check their arguments too
        with pytest.raises(RuntimeError, match=name):
            library.OPERATIONS["assemble"](*call.operands(backend.device))


def test_more_tokens_than_int32_can_count_are_an_error() -> None:
    device = torch.device("meta")
    call = call_of(make_pairs(1))
    call.a_tokens = torch.empty(2**31 - 4, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="a_tokens"):
        call.run(device)


def bounds_like(bounds: Tensor, at: int, value: int) -> Tensor:
    return torch.where(torch.arange(len(bounds)) == at, value, bounds).int()


OUTSIDE = "found an id outside the vocabulary, expected ids from 0 to below vocab_size"
BAD_DATA: dict[str, Callable[[Call], object]] = {
    "a_offsets: .*no decrease": lambda c: setattr(c, "a_offsets", bounds_like(c.a_offsets, 3, 10**6)),
    "a_offsets": lambda c: setattr(c, "a_offsets", bounds_like(c.a_offsets, 0, 1)),
    "b_offsets: .*last": lambda c: setattr(c, "b_offsets", bounds_like(c.b_offsets, 9, len(c.b_tokens) - 1)),
    "b_offsets": lambda c: setattr(c, "b_offsets", bounds_like(c.b_offsets, 0, -1)),
    f"a_tokens: {OUTSIDE}": lambda c: c.a_tokens[-1].fill_(VOCABULARY),
    f"b_tokens: {OUTSIDE}": lambda c: c.b_tokens[5].fill_(-1),
    "query_cu_seqlens": lambda c: c.numbers.update(seed=12),  # other coins
    "query_cu_seqlens: not the layout": lambda c: spoil_layout(c, query_tokens=c.layout.query_tokens - 1),
    "query_cu_seqlens: not": lambda c: spoil_layout(
        c, query_cu_seqlens=c.layout.query_cu_seqlens - 1, query_tokens=c.layout.query_tokens - 1
    ),
    "masked_offsets": lambda c: c.numbers.update(mask_probability=0.5),
    "masked_offsets: not": lambda c: c.numbers.update(mask_probability=0.0),
    "masked_offsets: not the layout": lambda c: spoil_layout(c, masked=c.layout.masked + 1),
    "masked_offsets: not the layout of": lambda c: spoil_layout(
        c, masked_offsets=bounds_like(c.layout.masked_offsets, 4, 2**31 - 1)
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_invalid_data_is_named_on_the_cpu_and_harmless_elsewhere(backend: Backend, name: str) -> None:
    call = call_of(make_pairs(9, shortest=2))
    BAD_DATA[name](call)
    if backend.name in ("reference", "cpu"):
        with pytest.raises(RuntimeError, match=name):
            call.run(backend.device)
    else:
        assert len(call.run(backend.device).labels) == call.layout.masked


@pytest.mark.parametrize("seed", range(6))
def test_garbage_offsets_never_write_out_of_bounds(backend: Backend, seed: int) -> None:
    call, g = call_of(make_pairs(13, longest=40)), torch.Generator().manual_seed(seed)
    reach = (2**31 - 1, 60, 600)[seed % 3]  # far out of bounds, and close to the bounds

    def garbage() -> Tensor:
        return torch.randint(-reach - 1 if seed < 3 else 0, reach + 1, (14,), generator=g).int()

    call.a_offsets, call.b_offsets = garbage(), garbage()
    spoil_layout(call, query_cu_seqlens=garbage(), masked_offsets=garbage())
    if backend.name in ("reference", "cpu"):
        with pytest.raises(RuntimeError, match="_offsets"):
            call.run(backend.device)
    else:
        call.run(backend.device)
        if backend.name == "cuda":
            torch.cuda.synchronize()


@pytest.mark.parametrize("count", [0, 1, 20])
def test_the_operator_passes_opcheck(backend: Backend, count: int) -> None:
    op = torch.ops.ppa_fast if backend.name == "reference" else getattr(torch.ops, backend.namespace)
    torch.library.opcheck(op.assemble.default, call_of(make_pairs(count)).operands(backend.device))
