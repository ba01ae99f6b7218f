"""The packer, native and in NumPy: equal bytes, a balanced split, the layout of ``ops.assemble``, no reads out of
bounds."""

from __future__ import annotations

import gc
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_fast.data.loading import packing
from ppa_fast.data.loading.batching import PairBatch, micro_batches
from ppa_fast.data.loading.packing import Packer, ReferencePacker, Sizes, boundaries, native_packer, packer_for
from ppa_fast.data.store.store import Store, StoreWriter, record_batch
from ppa_fast.errors import UserError
from ppa_fast.ops.assemble import assemble, layout
from ppa_fast.settings import MAX_TOKENS_LIMIT

VOCAB = 100
DESCRIPTION = {
    "special_ids": {"cls": 2, "sep": 3, "mask": 4, "pad": 0},
    "vocab_size": VOCAB,
    "max_tokens": 126,
    "language_pairs": {"en-de": {}},
}
DRAWS = {"seed": 3, "mask_probability": 0.15, "input_shuffling": True}

native = pytest.mark.skipif(bool(packing.WHY_NOT_NATIVE), reason=packing.WHY_NOT_NATIVE)


def write_store(path: Path, lengths: list[tuple[int, int]], rows_per_batch: int = 4, seed: int = 0) -> Store:
    """A store of random rows with these lengths; groups are the row numbers plus 1000."""
    rng = np.random.default_rng(seed)
    a, b = ([rng.integers(0, VOCAB, pair[side]).tolist() for pair in lengths] for side in (0, 1))
    with StoreWriter(path, rows_per_batch) as writer:
        writer.add(record_batch(a, b, list(range(1000, 1000 + len(lengths))), 0))
        writer.finish(DESCRIPTION)
    return Store.open(path)


def some_lengths(count: int, longest: int = 12, seed: int = 0) -> list[tuple[int, int]]:
    drawn = np.random.default_rng(seed).integers(1, longest + 1, (count, 2))
    return [(int(a), int(b)) for a, b in drawn]


@pytest.fixture(params=["reference", pytest.param("native", marks=native)])
def make(request):
    """Returns a packer of one kind for a store."""

    def packer(store: Store, threads: int = 1, **draws) -> Packer:
        if request.param == "reference":
            return ReferencePacker(store, **{**DRAWS, **draws})
        return native_packer(store, **{**DRAWS, **draws}, threads=threads)

    return packer


def ints(values) -> np.ndarray:
    return np.array(list(values), np.int64)


def packed(packer: Packer, rows: np.ndarray, epochs: np.ndarray, parts: int) -> tuple[list, list[bytes]]:
    """Everything that a packer returns for a step, and the bytes of its buffers, which contain garbage before."""
    step = packer.step(rows, epochs, parts)
    sizes = [Sizes(*step.sizes(number)) for number in range(parts)]
    buffers = [np.full(size.bytes, 0xAB, np.uint8) for size in sizes]
    for number, buffer in enumerate(buffers):
        step.fill(number, buffer)
    return [step.pairs, step.masked, step.text_tokens, sizes], [buffer.tobytes() for buffer in buffers]


def read(packer: Packer, rows: np.ndarray, epochs: np.ndarray, parts: int) -> list[PairBatch]:
    return list(micro_batches(packer, rows, epochs, parts))


# Native and reference.


@native
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=12),
    rows_per_batch=st.integers(1, 5),
    seed=st.integers(-(2**40), 2**40),
    probability=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    shuffling=st.booleans(),
    data=st.data(),
)
def test_native_equals_reference_bit_for_bit(
    tmp_path_factory, lengths, rows_per_batch, seed, probability, shuffling, data
):
    store = write_store(tmp_path_factory.mktemp("store"), lengths, rows_per_batch, seed=abs(seed))
    rows = ints(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=30)))
    epochs = ints(data.draw(st.lists(st.integers(0, 2**33), min_size=len(rows), max_size=len(rows))))
    parts = data.draw(st.integers(1, len(rows)))
    one = native_packer(store, seed, probability, shuffling, threads=1)
    other = ReferencePacker(store, seed, probability, shuffling)
    assert packed(one, rows, epochs, parts) == packed(other, rows, epochs, parts)


@native
def test_the_number_of_threads_does_not_change_the_result(tmp_path):
    store = write_store(tmp_path, some_lengths(500), rows_per_batch=100)
    rows, epochs = ints(i * 7 % 500 for i in range(6000)), ints(i // 500 for i in range(6000))
    results = [packed(native_packer(store, **DRAWS, threads=threads), rows, epochs, 3) for threads in (1, 2, 4, 64)]
    assert all(result == results[0] for result in results)


@native
def test_a_packer_outlives_its_store(tmp_path):
    store = write_store(tmp_path, some_lengths(9))
    rows, epochs = ints(range(9)), ints([1] * 9)
    expected = packed(ReferencePacker(store, **DRAWS), rows, epochs, 1)
    packer = native_packer(store, **DRAWS, threads=1)
    del store
    step = packer.step(rows, epochs, 1)
    del packer
    gc.collect()
    buffer = np.empty(Sizes(*step.sizes(0)).bytes, np.uint8)
    step.fill(0, buffer)
    assert [buffer.tobytes()] == expected[1]


def test_the_native_packer_is_chosen_if_it_is_built(tmp_path, monkeypatch):
    store = write_store(tmp_path, some_lengths(5))
    assert isinstance(packer_for(store, **DRAWS), ReferencePacker) == bool(packing.WHY_NOT_NATIVE)
    monkeypatch.setattr(packing, "WHY_NOT_NATIVE", "a reason")
    assert isinstance(packer_for(store, **DRAWS), ReferencePacker)


def test_the_reason_for_the_reference_packer_is_reported(monkeypatch):
    assert packing._load()[1] == packing.WHY_NOT_NATIVE
    monkeypatch.delenv("PPA_FAST_BACKEND", raising=False)
    monkeypatch.setitem(sys.modules, "ppa_fast._packer", None)  # as if it were not built
    assert packing._load()[1].startswith("_packer is not built for this Python")
    monkeypatch.setenv("PPA_FAST_BACKEND", "reference")
    assert packing._load() == (None, "PPA_FAST_BACKEND=reference")


# The split.


def largest(tokens: list[int], bounds: list[int]) -> int:
    return max(sum(tokens[begin:end]) for begin, end in pairwise(bounds))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(7, 60), min_size=1, max_size=9), st.data())
def test_the_split_minimises_the_largest_part(tokens, data):
    tokens = sorted(tokens)
    parts = data.draw(st.integers(1, len(tokens)))
    bounds = boundaries(np.array(tokens), parts)
    inner = combinations(range(1, len(tokens)), parts - 1)  # every possible split
    assert largest(tokens, bounds) == min(largest(tokens, [0, *cut, len(tokens)]) for cut in inner)
    assert len(bounds) == parts + 1
    assert (bounds[0], bounds[-1]) == (0, len(tokens))
    assert all(begin < end for begin, end in pairwise(bounds))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_split_has_every_pair_once_in_order_of_length(make_store, data):
    store, make = make_store
    count = data.draw(st.integers(1, 80))
    parts = data.draw(st.integers(1, count))
    rows = ints(data.draw(st.lists(st.integers(0, len(store) - 1), min_size=count, max_size=count)))
    batches = read(make(store), rows, rows * 0, parts)
    assert [batch.number for batch in batches] == list(range(parts))
    assert {batch.totals.pairs for batch in batches} == {tuple(len(batch) for batch in batches)}
    assert min(len(batch) for batch in batches) > 0
    joined = torch.cat([batch.step_indices for batch in batches]).tolist()
    assert sorted(joined) == list(range(count))
    assert torch.cat([batch.pair_ids for batch in batches]).tolist() == rows[joined].tolist()
    a, b = (lengths.astype(int) for lengths in store.lengths(rows))
    lengths = (a + b)[joined]
    assert (np.diff(lengths) >= 0).all()
    assert all(p < q for (p, q), step in zip(pairwise(joined), np.diff(lengths), strict=True) if step == 0)
    # Within one pair of the mean, whatever the lengths.
    tokens = 2 * (a + b) + 7
    assert max(tokens[batch.step_indices].sum() for batch in batches) - tokens.sum() / parts <= tokens.max()


@pytest.fixture(scope="module", params=["reference", pytest.param("native", marks=native)])
def make_store(request, tmp_path_factory):
    store = write_store(tmp_path_factory.mktemp("store"), some_lengths(40, longest=30), rows_per_batch=7)

    def make(store: Store) -> Packer:
        return (
            ReferencePacker(store, **DRAWS)
            if request.param == "reference"
            else native_packer(store, **DRAWS, threads=1)
        )

    return store, make


# The content of a micro-batch.


@pytest.mark.parametrize(("probability", "shuffling"), [(0.15, True), (0.0, True), (1.0, False), (0.5, False)])
def test_the_layout_equals_that_of_assemble(tmp_path, make, probability, shuffling):
    store = write_store(tmp_path, [*some_lengths(50, longest=60), (1, 1), (1, 60)])
    draws = {"seed": 2**35 + 7, "mask_probability": probability, "input_shuffling": shuffling}
    rows, epochs = ints(range(52)), ints(i % 3 for i in range(52))
    special = store.special
    ids = {"cls": special.cls, "sep": special.sep, "mask": special.mask, "vocab_size": VOCAB}
    batches = read(make(store, **draws), rows, epochs, 5)
    for batch in batches:
        expected = layout(batch.a_offsets, batch.b_offsets, batch.pair_ids, batch.epochs, **draws)
        assert torch.equal(batch.layout.query_cu_seqlens, expected.query_cu_seqlens)
        assert torch.equal(batch.layout.masked_offsets, expected.masked_offsets)
        assert (batch.layout.query_tokens, batch.layout.masked) == (expected.query_tokens, expected.masked)
        tensors = (batch.a_tokens, batch.a_offsets, batch.b_tokens, batch.b_offsets, batch.pair_ids, batch.epochs)
        assembled = assemble(*tensors, batch.layout, **ids, **draws)
        assert len(assembled.labels) == batch.layout.masked
        assert torch.equal(assembled.query.cu_seqlens, batch.layout.query_cu_seqlens)
    assert {batch.totals.masked for batch in batches} == {sum(batch.layout.masked for batch in batches)}
    assert (batches[0].totals.masked > 0) == (probability > 0)


def test_rows_equal_those_of_the_store(tmp_path, make):
    store = write_store(tmp_path, some_lengths(11), rows_per_batch=3)
    rows, epochs = ints([10, 0, 5, 5, 3, 8, 0]), ints([0, 0, 1, 2, 1, 0, 9])
    for batch in read(make(store), rows, epochs, 2):
        assert batch.a_offsets.dtype == batch.b_offsets.dtype == batch.a_tokens.dtype == torch.int32
        assert batch.layout.query_cu_seqlens.dtype == batch.layout.masked_offsets.dtype == torch.int32
        assert batch.epochs.tolist() == epochs[batch.step_indices].tolist()
        assert batch.groups.tolist() == (rows[batch.step_indices] + 1000).tolist()
        for i, row in enumerate(batch.pair_ids.tolist()):
            single = store.rows(np.array([row]))
            assert batch.a_tokens[batch.a_offsets[i] : batch.a_offsets[i + 1]].tolist() == single.a_tokens.tolist()
            assert batch.b_tokens[batch.b_offsets[i] : batch.b_offsets[i + 1]].tolist() == single.b_tokens.tolist()


# Invalid input.


def test_an_invalid_argument_is_named(tmp_path, make):
    packer = make(write_store(tmp_path, some_lengths(9)))
    for bad in ([9], [0, -1], [1 << 40], [-(1 << 63)]):
        with pytest.raises(IndexError, match=f"rows: found {min(bad)} to {max(bad)}, expected 0 to 8"):
            packer.step(ints(bad), ints(bad) * 0, 1)
    for rows, parts in ((range(5), 6), (range(5), 0), ([], 1), ([], 0)):
        with pytest.raises(ValueError, match=f"parts: found {parts} micro-batches for {len(rows)} pairs"):
            packer.step(ints(rows), ints(rows), parts)
    with pytest.raises(ValueError, match="epochs: found 2, expected one for each of 3 rows"):
        packer.step(ints(range(3)), ints(range(2)), 1)
    step = packer.step(ints(range(3)), ints(range(3)), 2)
    for error in (-16, 16):
        size = Sizes(*step.sizes(1)).bytes
        with pytest.raises(
            ValueError, match=f"^buffer: found {size + error} bytes, expected {size}, the micro-batch's"
        ):
            step.fill(1, np.empty(size + error, np.uint8))


def test_more_tokens_than_32_bits_can_count_are_an_error(tmp_path, make):
    store = write_store(tmp_path, [(MAX_TOKENS_LIMIT, MAX_TOKENS_LIMIT)])
    tokens = 4 * MAX_TOKENS_LIMIT + 7
    count = -(-(1 << 31) // tokens)
    rows = ints([0] * count)
    packer = make(store, mask_probability=0.0)
    with pytest.raises(ValueError, match=f"parts: found 1, but one micro-batch has {count * tokens} tokens"):
        packer.step(rows, rows, 1)


@native
def test_columns_of_unequal_lengths_are_an_error(tmp_path):
    store = write_store(tmp_path, some_lengths(9))

    def pack_columns(batches: list[tuple[np.ndarray | str, ...]]) -> object:
        return packing._native.Packer(batches, 12, 12, VOCAB, 3, 0.15, True, 1)

    columns = store.batches
    pack_columns(columns)
    for place in (1, 3, 4):
        short = list(columns[0])
        short[place] = short[place][:-1]
        with pytest.raises(ValueError, match="columns of unequal length"):
            pack_columns([tuple(short), *columns[1:]])
    with pytest.raises(ValueError, match="columns of unequal length"):
        pack_columns([columns[0]._replace(pair_ids=np.arange(2)), *columns[1:]])
    for place in range(6):
        other = list(columns[0])
        other[place] = other[place].astype(np.float64)
        with pytest.raises(TypeError):
            pack_columns([tuple(other), *columns[1:]])


# A damaged store.


def damage(path: Path, column: int, batch: int, place: int, value: int) -> None:
    """Overwrites one number of a column in the file (0, 1: values and offsets of side a; 2, 3: of side b)."""
    content = bytearray((path / "rows-00000.arrow").read_bytes())
    columns = Store.open(path).batches
    first = columns[0][0]  # one mapping contains all columns
    assert content.count(first.tobytes()) == 1
    at = content.index(first.tobytes()) + columns[batch][column].ctypes.data - first.ctypes.data + 4 * place
    content[at : at + 4] = np.int32(value).tobytes()
    (path / "rows-00000.arrow").write_bytes(content)


# Rows have 3 tokens on side a and 5 on side b; a batch has 4 rows; row 6 is row 2 of batch 1.
DAMAGES = {
    "an offset that decreases": ((1, 1, 3, 2), "row 6, side a: found tokens 6 to 2 of 12, expected at most 3 tokens;"),
    "a negative offset": ((1, 1, 2, -3), r"row [56], side a: found tokens (3 to -3|-3 to 9) of 12"),
    "an offset beyond the values": (
        (3, 1, 3, 21),
        "row 6, side b: found tokens 10 to 21 of 20, expected at most 5 tokens;",
    ),
    "an offset far beyond": ((3, 1, 3, 2**31 - 1), "row 6, side b: found tokens 10 to 2147483647 of 20"),
    "a row too long": ((1, 1, 3, 10), "row 6, side a: found tokens 6 to 10 of 12, expected at most 3 tokens;"),
    "an id beyond the vocabulary": ((2, 1, 11, VOCAB), "row 6, side b: token id 100, expected 0 to 99"),
    "a negative id": ((0, 1, 8, -1), "row 6, side a: token id -1, expected 0 to 99"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_reported_with_its_row_and_side(tmp_path, make, name):
    place, message = DAMAGES[name]
    write_store(tmp_path, [(3, 5)] * 10)
    damage(tmp_path, *place)
    packer = make(Store.open(tmp_path))
    with pytest.raises(ValueError, match=rf"{tmp_path}: {message}"):
        read(packer, ints(range(10)), ints([0] * 10), 2)
    intact = ints([0, 1, 2, 3, 8, 9])
    assert sum(map(len, read(packer, intact, intact * 0, 2))) == 6


@native
def test_threads_report_the_first_damage(tmp_path):
    write_store(tmp_path, [(3, 5)] * 10)
    damage(tmp_path, 1, 1, 3, 2)  # row 6
    damage(tmp_path, 0, 2, 1, -7)  # row 8
    rows = np.zeros(8000, np.int64)
    packer = native_packer(Store.open(tmp_path), **DRAWS, threads=4)
    rows[[1500, 6500]] = 6, 7
    for _ in range(20):
        with pytest.raises(ValueError, match="row 6, side a: found tokens 6 to 2"):
            packer.step(rows, rows * 0, 1)
    rows[[1500, 6500]] = 7, 6
    with pytest.raises(ValueError, match="row 7, side a: found tokens 2 to 12"):
        packer.step(rows, rows * 0, 1)
    rows[[1500, 6500]] = 1, 8
    step = packer.step(rows, rows * 0, 1)
    with pytest.raises(ValueError, match="row 8, side a: token id -7"):
        step.fill(0, np.empty(Sizes(*step.sizes(0)).bytes, np.uint8))


def test_a_store_with_offsets_outside_their_buffer_does_not_open(tmp_path):
    write_store(tmp_path, [(3, 5)] * 10)
    damage(tmp_path, 1, 1, 4, 13)
    with pytest.raises(UserError, match=r"rows-00000\.arrow: damaged or truncated"):
        Store.open(tmp_path)
