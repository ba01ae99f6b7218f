"""InfoNCE against the formula in fp64 and in Python floats, and against plain PyTorch in the same precision."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppa_fast.ops import library
from ppa_fast.ops.infonce import infonce
from ppa_fast.ops.library import OPERATIONS
from ppa_fast.ops.reference import infonce as reference
from ppa_fast.ops.ring import enqueue
from tests.ops.conftest import Backend, products

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TAU = 0.05


@dataclass(frozen=True)
class Case:
    """The arguments of the operator, and which rows are live."""

    query: Tensor
    positive: Tensor
    groups: Tensor
    ring: Tensor
    ring_groups: Tensor
    state: Tensor
    live: Tensor

    @property
    def ring_arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.ring, self.ring_groups, self.state

    def loss(self, temperature: float = TAU) -> tuple[Tensor, Tensor]:
        return infonce(self.query, self.positive, self.groups, *self.ring_arguments, temperature)

    def operator(self, temperature: float = TAU, step_indices: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns loss, top-1 and dq. Fills freed memory with NaN first, because the allocator may return it for the
        outputs."""
        poison = [
            torch.full(shape, torch.nan, device=self.query.device) for shape in ((len(self.query),), self.query.shape)
        ]
        del poison
        arguments = (self.query, self.positive, self.groups, *self.ring_arguments, step_indices, temperature)
        found: tuple[Tensor, Tensor, Tensor] = OPERATIONS["infonce"](*arguments)
        return found


def unit(n: int, d: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def case(
    backend: Backend,
    n: int,
    rows: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    count: int | None = None,
    cursor: int = 0,
    n_groups: int = 7,
    seed: int = 0,
) -> Case:
    """Unit rows, with positives close to their queries. Rows that are not live hold zeros and groups like the
    others."""
    count = rows if count is None else count
    live = (cursor - 1 - torch.arange(rows)) % rows < count
    query = unit(n, d, 3 * seed + 1)
    positive = F.normalize(query + unit(n, d, 3 * seed + 2), dim=1)
    ring = unit(rows, d, 3 * seed + 3) * live[:, None]
    generator = torch.Generator().manual_seed(seed)
    groups, ring_groups = (torch.randint(n_groups, (k,), generator=generator) for k in (n, rows))
    state = torch.tensor([cursor, count, 0])
    vectors = [x.to(backend.device, dtype) for x in (query, positive, ring)]
    others = [x.to(backend.device) for x in (groups, ring_groups, state, live)]
    return Case(vectors[0], vectors[1], others[0], vectors[2], *others[1:])


def formula(c: Case, temperature: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns loss, margin (positive minus highest negative logit), gradient, and Σ_j p_j |u_j| / τ, all in this
    precision."""
    query, rows = c.query.to(dtype).detach().requires_grad_(), c.ring.to(dtype)[c.live]
    logit = (query * c.positive.to(dtype)).sum(1) / temperature
    others = query @ rows.T / temperature
    others = others.masked_fill(c.ring_groups[c.live] == c.groups[:, None], -torch.inf)
    total = torch.logsumexp(torch.cat([logit[:, None], others], dim=1), dim=1)
    loss = total - logit
    (gradient,) = torch.autograd.grad(loss.sum(), query)
    highest = others.detach().amax(1) if len(rows) else torch.full_like(loss, -torch.inf)
    weighted = torch.exp(others - total[:, None]).detach() @ rows.abs() / temperature
    return loss.detach(), logit.detach() - highest, gradient, weighted


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())


def check_case(c: Case, temperature: float = TAU) -> None:
    """Compares the errors against fp64 with those of plain PyTorch in fp32, even if the vectors have 16 bits. This is
    stricter than a comparison in 16 bits. The additional error of 16 bits is the rounding of the weights p_j in the
    gradient, and the truncation of sums in tensor cores: 16 steps of 2^-23 for 256 columns."""
    loss, top1, dq = c.operator(temperature)
    exact, margin, gradient, weighted = formula(c, temperature, torch.float64)
    plain, _, plain_gradient, _ = formula(c, temperature, torch.float32)
    assert (loss.dtype, top1.dtype, dq.dtype) == (torch.float32, torch.bool, torch.float32)
    logits = rounding = 0.0
    if c.ring.dtype != torch.float32:
        logits = 2e-6 * max(1.0, float(c.ring.float().norm(dim=1).max())) / temperature
        rounding = torch.finfo(c.ring.dtype).eps / 2
    assert error(loss, exact) <= 2 * error(plain, exact) + 1e-5 + logits
    further = (logits + rounding) * float(weighted.max())
    assert error(dq, gradient) <= 3 * error(plain_gradient, gradient) + 1e-5 + further
    clear = margin.abs() > 1e-5 / temperature
    assert torch.equal(top1[clear], margin[clear] > 0)


def test_loss_and_gradient_equal_python_floats(backend: Backend) -> None:
    c = case(backend, 5, 17, 16, count=12, cursor=4)
    loss, top1, dq = c.operator()
    for i, (q, k, group) in enumerate(zip(c.query.tolist(), c.positive.tolist(), c.groups.tolist(), strict=True)):
        rows = [
            u for u, g, alive in zip(c.ring.tolist(), c.ring_groups.tolist(), c.live.tolist(), strict=True)
            if alive and g != group
        ]  # fmt: skip
        logits = [sum(x * y for x, y in zip(q, row, strict=True)) / TAU for row in [k, *rows]]
        total = math.fsum(math.exp(z) for z in logits)
        weights = [math.exp(z) / total for z in logits]
        weights[0] -= 1
        columns = zip(*[[w * x for x in row] for w, row in zip(weights, [k, *rows], strict=True)], strict=True)
        assert float(loss[i]) == pytest.approx(math.log(total) - logits[0], rel=1e-5, abs=1e-6)
        assert bool(top1[i]) == all(logits[0] > z for z in logits[1:])
        assert dq[i].tolist() == pytest.approx([math.fsum(column) / TAU for column in columns], rel=1e-4, abs=1e-5)


# Numbers of queries, rows and columns that are not multiples of the kernels' blocks and tiles.
SHAPES = [(1, 1, 8), (17, 63, 64), (130, 300, 40), (64, 130, 72), (257, 300, 128), (65, 321, 200), (17, 129, 256)]
SHAPES += [(17, 65, 264), (64, 257, 768), (1, 700, 1024), (3, 40, 1032), (5, 300, 4096)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "rows", "d"), SHAPES)
def test_shapes_and_types_equal_the_formula(backend: Backend, n: int, rows: int, d: int, dtype: torch.dtype) -> None:
    check_case(case(backend, n, rows, d, dtype, count=rows - rows // 5, cursor=rows // 3))


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 8), (torch.bfloat16, 32), (torch.float16, 264)], ids=str)
def test_many_rows_equal_the_formula(backend: Backend, dtype: torch.dtype, d: int) -> None:
    """The ring has several chunks, and several parts with several tiles each; some have no live row."""
    for count, cursor in ((55_000, 20_011), (4_000, 7)):
        check_case(case(backend, 3, 55_117, d, dtype, count, cursor, n_groups=100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [0, 1, 5, 12, 13])
def test_every_cursor_equals_the_formula(backend: Backend, count: int, dtype: torch.dtype) -> None:
    for cursor in range(13):
        check_case(case(backend, 3, 13, 8, dtype, count, cursor, n_groups=3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rings_that_wrap_within_a_tile_equal_the_formula(backend: Backend, dtype: torch.dtype) -> None:
    for cursor in (1, 64, 77, 128, 149):
        check_case(case(backend, 2, 150, 16, dtype, 140, cursor))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.005, 0.5, 10.0])
def test_every_temperature_equals_the_formula(backend: Backend, temperature: float, dtype: torch.dtype) -> None:
    for d in (64, 264):
        check_case(case(backend, 9, 150, d, dtype), temperature)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_any_norm_equal_the_formula(backend: Backend, dtype: torch.dtype) -> None:
    """Logits reach several hundred with either sign, and the running maximum changes from tile to tile."""
    c = case(backend, 9, 150, 64, dtype)
    growing = torch.linspace(0.1, 4, 150, device=backend.device)[:, None].to(dtype)
    check_case(replace(c, ring=c.ring * growing))
    check_case(replace(c, ring=c.ring * growing.flip(0), positive=-c.positive))


GROUPS = [0, 1, 2**32, 2**32 + 1, -1, 2**63 - 1, -(2**63)]  # some groups share their lower or upper half


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_groups_and_sizes_equal_the_formula(backend: Backend, data: st.DataObject) -> None:
    n, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 80))
    d, dtype = data.draw(st.sampled_from([8, 24, 64, 136, 264])), data.draw(st.sampled_from(DTYPES))
    count, cursor = data.draw(st.integers(0, rows)), data.draw(st.integers(0, rows - 1))
    c = case(backend, n, rows, d, dtype, count, cursor)
    groups, ring_groups = (
        torch.tensor(data.draw(st.lists(st.sampled_from(GROUPS), min_size=k, max_size=k)), device=backend.device)
        for k in (n, rows)
    )
    check_case(replace(c, groups=groups, ring_groups=ring_groups))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("why", ["own group", "empty queue"])
def test_no_negatives_give_a_loss_of_0(backend: Backend, why: str, dtype: torch.dtype) -> None:
    for d, temperature in ((16, TAU), (264, TAU), (16, 0.005)):
        if why == "own group":
            c = case(backend, 70, 90, d, dtype, n_groups=1)
        else:
            c = case(backend, 70, 90, d, dtype, count=0, cursor=11)
        for positive in (c.positive, -c.positive):
            loss, top1, dq = replace(c, positive=positive).operator(temperature)
            assert torch.equal(loss, torch.zeros_like(loss))
            assert top1.all()
            assert torch.equal(dq, torch.zeros_like(dq))


def test_only_rows_of_the_querys_group_are_excluded(backend: Backend) -> None:
    """A row equal to the query, the hardest negative possible, counts unless it belongs to the query's group."""
    c = case(backend, 1, 100, 32, torch.bfloat16, n_groups=1)
    c = replace(c, ring_groups=torch.arange(100, device=backend.device), groups=torch.full_like(c.groups, 1000))
    c.ring[70] = c.query[0]
    with_it, top1, _ = c.operator()
    without, other, _ = replace(c, groups=torch.full_like(c.groups, 70)).operator()
    assert with_it > without + 1
    assert not top1
    assert other


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [40, 264])
def test_rows_that_are_not_live_never_count(backend: Backend, d: int, dtype: torch.dtype) -> None:
    """Not even NaN counts. Only the products of cuBLAS need finite rows, which the ring always has."""
    finite_only = backend.name in ("cuda", "simt") and (d > 256 or dtype == torch.float32)
    c = case(backend, 5, 150, d, dtype, count=90, cursor=30)
    expected = c.operator()
    for garbage in (3e4,) if finite_only else (torch.nan, torch.inf, -torch.inf):
        c.ring[~c.live] = garbage
        for found, before in zip(c.operator(), expected, strict=True):
            assert torch.equal(found, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("state", [[150, 40, 0], [-1, 40, 0], [0, -5, 0], [2, 151, 0], [10**18, 10**18, 0]])
def test_an_invalid_state_counts_as_an_empty_queue(backend: Backend, state: list[int], dtype: torch.dtype) -> None:
    for d in (16, 264):
        c = case(backend, 3, 150, d, dtype)
        loss, _, _ = replace(c, state=torch.tensor(state, device=backend.device)).operator()
        assert torch.equal(loss, torch.zeros_like(loss))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [16, 264])
def test_non_finite_vectors_give_non_finite_losses(backend: Backend, d: int, dtype: torch.dtype) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        for name in ("query", "positive"):
            c = case(backend, 4, 90, d, dtype)
            getattr(c, name)[1, 3] = value
            loss, _, _ = c.operator()
            assert loss.isfinite().tolist() == [True, False, True, True]


def test_small_losses_are_precise(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("a sum that contains e^(q·k+) has lost them")
    c = case(backend, 1, 20, 32)
    c = replace(c, positive=c.query, ring=-c.query.repeat(20, 1), groups=c.groups + 10)
    exact, _, gradient, _ = formula(c, 0.1, torch.float64)
    loss, _, dq = c.operator(0.1)
    assert 0 < float(exact) < 1e-7
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(dq.double(), gradient, rtol=1e-4, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [16, 264])
def test_a_tie_is_not_a_hit(backend: Backend, d: int, dtype: torch.dtype) -> None:
    """Every sum of these elements is exact."""
    c = case(backend, 2, 70, d, dtype)
    half = torch.zeros_like(c.query)
    half[:, :4] = 0.5
    c = replace(c, query=half, positive=half.clone(), ring=torch.zeros_like(c.ring), groups=c.groups + 10)
    c.ring[40] = half[0]
    _, top1, _ = c.operator()
    assert not top1.any()
    c.ring[40, 0] = 0.498
    _, top1, _ = c.operator()
    assert top1.all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [72, 264])
def test_two_runs_are_equal_bit_for_bit(backend: Backend, d: int, dtype: torch.dtype) -> None:
    c = case(backend, 20, 200, d, dtype)
    for found, again in zip(c.operator(), c.operator(), strict=True):
        assert torch.equal(found, again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [24, 264])
def test_step_indices_enqueue_the_positives(backend: Backend, d: int, dtype: torch.dtype) -> None:
    c = case(backend, 6, 40, d, dtype, count=30, cursor=37)
    c.positive[2, 1] = torch.nan
    step_indices = torch.tensor([4, 0, 5, 9, 10, 3], device=backend.device)  # there are 10 pending rows
    expected = c.operator()
    ring, ring_groups, state = (t.clone() for t in c.ring_arguments)
    enqueue(c.positive, c.groups, step_indices, ring, ring_groups, state)
    before = c.ring.clone()
    for found, other in zip(c.operator(step_indices=step_indices), expected, strict=True):
        assert torch.equal(found.nan_to_num(7), other.nan_to_num(7))
    assert not torch.equal(c.ring, before)
    assert state.tolist() == [37, 30, 2]
    for found, other in zip(c.ring_arguments, (ring, ring_groups, state), strict=True):
        assert torch.equal(found, other)


def test_without_step_indices_nothing_is_written(backend: Backend) -> None:
    c = case(backend, 6, 40, 24, count=30)
    before = [t.clone() for t in c.ring_arguments]
    c.operator()
    assert all(torch.equal(a, b) for a, b in zip(c.ring_arguments, before, strict=True))


# The public function.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_query_has_a_gradient(backend: Backend, dtype: torch.dtype) -> None:
    c = case(backend, 6, 40, 24, dtype)
    for tensor in (c.query, c.positive, c.ring):
        tensor.requires_grad_()
    weights = torch.arange(6.0, device=backend.device)
    loss, top1 = c.loss()
    assert not top1.requires_grad
    (loss * weights).sum().backward()
    with torch.no_grad():
        _, _, dq = c.operator()
    assert c.query.grad is not None
    assert c.query.grad.dtype == dtype
    assert torch.equal(c.query.grad, (weights[:, None] * dq).to(dtype))
    assert c.positive.grad is None
    assert c.ring.grad is None
    with torch.no_grad():
        again, _ = c.loss()
    assert not again.requires_grad
    assert torch.equal(again, loss)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_fp32_vectors_are_rounded_to_the_type_of_the_ring(backend: Backend, dtype: torch.dtype) -> None:
    wide = case(backend, 6, 40, 24)
    narrow = case(backend, 6, 40, 24, dtype)
    mixed = replace(narrow, query=wide.query.requires_grad_(), positive=wide.positive)
    loss, top1 = mixed.loss()
    expected, expected_top1, dq = narrow.operator()
    assert torch.equal(loss, expected)
    assert torch.equal(top1, expected_top1)
    (gradient,) = torch.autograd.grad(loss.sum(), mixed.query)
    assert torch.equal(gradient, dq)  # not rounded


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_wide_16_bit_keys_equal_the_reference(backend: Backend, dtype: torch.dtype) -> None:
    """Loss and gradient of the public function, over several chunks of a ring that wraps. On the harness the products
    have 16-bit types, as on CUDA."""
    c = case(backend, 5, 36_000, 264, dtype, count=35_500, cursor=77, n_groups=50)
    weights = torch.linspace(-1, 2, 5, device=backend.device)

    def loss_and_gradient() -> tuple[Tensor, Tensor, Tensor]:
        query = c.query.detach().requires_grad_()
        loss, top1 = replace(c, query=query).loss()
        (gradient,) = torch.autograd.grad((loss * weights).sum(), query)
        return loss.detach(), top1, gradient

    products.clear()
    loss, top1, gradient = loss_and_gradient()
    if backend.name == "simt":
        assert products == [dtype] * 4  # two products for each of two chunks
    with library.using("reference"):
        expected, expected_top1, expected_gradient = loss_and_gradient()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-4)
    assert torch.equal(top1, expected_top1)
    assert gradient.dtype == dtype
    eps = torch.finfo(dtype).eps  # rounding of the gradient in the query's type, and of the weights
    atol = 2 * eps * float(formula(c, TAU, torch.float64)[3].max())  # the weights of the loss are at most 2
    torch.testing.assert_close(gradient, expected_gradient, rtol=eps, atol=atol)


def test_the_reference_computes_in_fp64() -> None:
    c = case(Backend("reference", "reference", torch.device("cpu")), 4, 20, 8, torch.float64, count=15, cursor=3)
    query = c.query.requires_grad_()

    def loss(query: Tensor) -> Tensor:
        return reference.infonce(query, c.positive, c.groups, *c.ring_arguments, None, 0.3)[0]

    assert torch.autograd.gradcheck(loss, [query])
    found, _, dq = reference.infonce(query, c.positive, c.groups, *c.ring_arguments, None, 0.3)
    exact, _, gradient, _ = formula(c, 0.3, torch.float64)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(dq, gradient, rtol=1e-10, atol=1e-12)


# Memory.

PEAK = """
import resource, torch
from ppa_fast.ops import library
from ppa_fast.ops.infonce import infonce
torch.set_num_threads(1)
assert library.backend("cpu") == "native"
def run(rows):
    ring, groups = torch.ones(rows, 8), torch.arange(rows)
    state = torch.tensor([0, rows, 0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    infonce(ring[:256], ring[:256], groups[:256], ring, groups, state, 0.05)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
run(20_000)
print(run(400_000))
"""


def test_memory_does_not_grow_with_the_ring(backend: Backend) -> None:
    if backend.name != "cpu":
        pytest.skip("measured on the CPU")
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000  # in KB; the logits would take 410 MB, the ring takes 13 MB


def test_a_ring_can_have_more_than_two_to_the_31_elements(backend: Backend) -> None:
    """Only its last rows are live. The others are never touched, so they need no memory on the CPU."""
    if backend.name == "reference":
        pytest.skip("touches all of it")
    small = case(backend, 3, 500, 64, torch.bfloat16)
    rows = 2**31 // 64 + 1000
    ring = torch.empty(rows, 64, dtype=torch.bfloat16, device=backend.device)
    ring_groups = torch.empty(rows, dtype=torch.int64, device=backend.device)
    ring[-500:], ring_groups[-500:] = small.ring, small.ring_groups
    state = torch.tensor([0, 500, 0], device=backend.device)
    large = replace(small, ring=ring, ring_groups=ring_groups, state=state)
    loss, top1, dq = large.operator()
    expected, hits, gradient = small.operator()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-4)
    assert torch.equal(top1, hits)
    rounding = torch.finfo(torch.bfloat16).eps * float(formula(small, TAU, torch.float64)[3].max())
    torch.testing.assert_close(dq, gradient, rtol=0, atol=rounding)  # on other backends the ring is split into parts


# Arguments.

BAD = {
    "query: found shape": lambda c: replace(c, query=c.query[:0], positive=c.positive[:0], groups=c.groups[:0]),
    "query: found torch.float64": lambda c: replace(c, query=c.query.double()),
    "query: found shape \\[4, 8\\]": lambda c: replace(c, query=c.query[:, :8].contiguous()),
    "query: expected a contiguous": lambda c: replace(c, query=c.query.T.contiguous().T),
    "positive": lambda c: replace(c, positive=c.positive[:-1]),
    "groups": lambda c: replace(c, groups=c.groups.int()),
    "ring: found 12 columns": lambda c: replace(c, ring=c.ring[:, :12].contiguous()),
    "ring: found 4104 columns": lambda c: replace(c, ring=torch.ones(9, 4104, device=c.ring.device)),
    "ring: found shape \\[0, 16\\]": lambda c: replace(c, ring=c.ring[:0], ring_groups=c.ring_groups[:0]),
    "ring: found torch.int64": lambda c: replace(c, ring=c.ring.long()),
    "ring_groups": lambda c: replace(c, ring_groups=c.ring_groups[1:]),
    "state: found shape \\[2\\]": lambda c: replace(c, state=c.state[:2]),
    "state: found torch.int32": lambda c: replace(c, state=c.state.int()),
}


@pytest.mark.parametrize("message", BAD)
def test_an_invalid_argument_is_named(backend: Backend, message: str) -> None:
    c = BAD[message](case(backend, 4, 9, 16))
    with pytest.raises((TypeError, ValueError), match=message):
        c.loss()
    if backend.name != "reference":  # the kernels check their arguments too
        with pytest.raises(RuntimeError, match=message.split(":")[0]):
            c.operator()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_an_error(backend: Backend, temperature: float) -> None:
    c = case(backend, 4, 9, 16)
    with pytest.raises(ValueError, match="temperature"):
        c.loss(temperature)
    if backend.name != "reference":
        with pytest.raises(RuntimeError, match="temperature"):
            c.operator(temperature)


def test_invalid_step_indices_are_named(backend: Backend) -> None:
    c = case(backend, 4, 9, 16)
    with pytest.raises(ValueError, match="step_indices"):
        infonce(c.query, c.positive, c.groups, *c.ring_arguments, TAU, c.groups[:2])
    if backend.name != "reference":
        with pytest.raises(RuntimeError, match="step_indices"):
            c.operator(step_indices=c.groups[:2])
        shifted = torch.empty(c.query.numel() + 1, device=backend.device)[1:].view_as(c.query)
        with pytest.raises(RuntimeError, match=r"query.*16 bytes"):
            replace(c, query=shifted).operator()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_passes_opcheck(backend: Backend, dtype: torch.dtype) -> None:
    c = case(backend, 4, 9, 16, dtype, count=5)
    op = getattr(torch.ops, "ppa_fast" if backend.name == "reference" else backend.namespace).infonce.default
    for step_indices in (None, torch.arange(4, device=backend.device)):
        torch.library.opcheck(op, (c.query, c.positive, c.groups, *c.ring_arguments, step_indices, TAU))
