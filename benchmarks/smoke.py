"""Checks within seconds, on unusual shapes, whether the native operations are correct here.

It prints a line per operation.

    python benchmarks/smoke.py --device cpu|cuda [--json FILE]

Each operation is compared with its reference on the CPU: bit for bit if its result is exact, else in fp64. Before a
call, the memory of its outputs is filled with NaN. The exit status is 1 if an operation is wrong, fails, or uses the
reference.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import NAMES, commit, describe, relative, unequal, write_rows
from torch import Tensor

from ppa_fast.ops import library
from ppa_fast.ops.assemble import layout
from ppa_fast.ops.ema import ema_
from ppa_fast.ops.infonce import infonce
from ppa_fast.ops.masked_lm_loss import masked_lm_loss
from ppa_fast.ops.reference.infonce import infonce as reference_infonce
from ppa_fast.ops.ring import commit as commit_ring
from ppa_fast.ops.ring import enqueue

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LOW = (torch.bfloat16, torch.float16, torch.float32)
VOCABULARY = 119_547

Call = Callable[[Callable[[Tensor], Tensor]], Sequence[Tensor]]
"""Runs an operation on tensors that a function has moved, and returns all that it wrote."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(seed: int, below: int, count: int) -> Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed))


def poison(outputs: Sequence[Tensor], device: torch.device) -> None:
    """Fills memory of the sizes of the outputs with NaN; the allocator returns it again for the outputs."""
    filled = [torch.full((max(1, x.nbytes),), 255, dtype=torch.uint8, device=device) for x in outputs]
    del filled


def assemble_case(pairs: int) -> Call:
    bounds = [F.pad(integers(seed, 40, pairs).cumsum(0), (1, 0)).int() for seed in (1, 2)]  # some rows are empty
    tokens = [integers(seed, VOCABULARY, int(offsets[-1])).int() for seed, offsets in zip((3, 4), bounds, strict=True)]
    ids, epochs = integers(5, 2**40, pairs), integers(6, 3, pairs)
    plan = layout(*bounds, ids, epochs, seed=7)
    numbers = (plan.query_tokens, plan.masked, 7, 101, 102, 103, VOCABULARY, 0.15, True)

    def call(move: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        inputs = (tokens[0], bounds[0], tokens[1], bounds[1], ids, epochs, plan.query_cu_seqlens, plan.masked_offsets)
        found: Sequence[Tensor] = library.OPERATIONS["assemble"](*map(move, inputs), *numbers)
        return found

    return call


def infonce_case(n: int, rows: int, dim: int, dtype: torch.dtype) -> Call:
    """A ring that wraps and has pending rows, to which the positives are written; the query is in fp32."""
    query, ring = (F.normalize(normal(seed, k, dim), dim=1).to(dtype) for seed, k in ((1, n), (2, rows + n)))
    positive = F.normalize(query.float() + F.normalize(normal(3, n, dim), dim=1), dim=1).to(dtype)
    groups, ring_groups = integers(4, 9, n), integers(5, 9, rows + n)
    state, places = torch.tensor([rows // 3, rows, 0]), torch.arange(n).flip(0)

    def call(move: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        changed = [move(x.clone()) for x in (ring, ring_groups, state)]
        inputs = move(query.float()).requires_grad_(), move(positive), move(groups)
        if inputs[0].dtype == torch.float64:  # the truth
            return [*(x.detach() for x in reference_infonce(*inputs, *changed, move(places), 0.05)), *changed]
        loss, top1 = infonce(*inputs, *changed, 0.05, move(places))
        return [loss.detach(), top1, *torch.autograd.grad(loss.sum(), inputs[0]), *changed]

    return call


def ring_case(keys: int, rows: int, dim: int, dtype: torch.dtype) -> Call:
    vectors, groups, places = normal(1, keys, dim), integers(2, 1000, keys), torch.arange(keys).flip(0)
    vectors[keys // 2, dim - 1] = torch.nan  # is refused and counted

    def call(move: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        ring = move(torch.full((rows, dim), -7.0, dtype=dtype))
        ring_groups, state = move(torch.full((rows,), -7)), move(torch.tensor([rows - 2, rows - keys, 0]))
        enqueue(move(vectors), move(groups), move(places), ring, ring_groups, state)
        commit_ring(state, keys, rows - keys, rows)
        return [ring, ring_groups, state]

    return call


def logits_case(rows: int, vocabulary: int, dtype: torch.dtype) -> Call:
    """The loss and the gradient of the logits; the padding contains NaN before."""
    stride = -(-vocabulary // 64) * 64
    logits, bias = (
        F.pad(x.to(dtype), (0, stride - vocabulary), value=torch.nan)
        for x in (2 * normal(1, rows, vocabulary), normal(2, vocabulary))
    )
    labels = integers(3, vocabulary, rows)

    def call(move: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        buffer = move(logits.clone())
        return [library.OPERATIONS["cross_entropy_"](buffer, move(bias), move(labels), vocabulary), buffer]

    return call


def head_case(rows: int, vocabulary: int, hidden: int, dtype: torch.dtype, budget: int) -> Call:
    """From hidden rows to the loss and all gradients."""
    x, weight, bias = normal(1, rows, hidden), normal(2, vocabulary, hidden) * hidden**-0.5, normal(3, vocabulary)
    inputs, labels = [y.to(dtype) for y in (x, weight, bias)], integers(4, vocabulary, rows)

    def call(move: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        there = [move(y).requires_grad_() for y in inputs]
        if there[0].dtype == torch.float64:  # the truth
            loss = F.cross_entropy(F.linear(*there), labels, reduction="sum")
        else:
            loss = masked_lm_loss(*there, move(labels), budget)
        return [loss.detach(), *torch.autograd.grad(loss, there)]

    return call


def ema_case(sizes: Sequence[int], dtype: torch.dtype) -> Call:
    """Tensors with odd alignments."""
    whole, sources = normal(1, sum(sizes)), normal(2, sum(sizes))

    def call(move: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        masters, working = move(whole.clone()), move(torch.full((sum(sizes),), torch.nan, dtype=dtype))
        ema_(*(list(x.split(list(sizes))) for x in (masters, move(sources), working)), 0.999)
        return [masters, working]

    return call


def cases() -> Iterator[tuple[str, str, torch.dtype, bool, Callable[[], Call]]]:
    """Returns operation, shape, type, whether the result is exact, and the function that builds the call."""
    for pairs in (1, 17, 257):
        yield "assemble", f"{pairs} pairs", torch.int32, True, functools.partial(assemble_case, pairs)
    for n, rows, dim in ((1, 1, 8), (17, 63, 64), (257, 1300, 128), (65, 321, 256), (17, 650, 768)):
        for dtype in LOW:
            yield (
                "infonce",
                f"N={n} K={rows} D={dim}",
                dtype,
                False,
                functools.partial(infonce_case, n, rows, dim, dtype),
            )
    for dtype in LOW:
        yield "enqueue", "M=7 R=40 D=72", dtype, True, functools.partial(ring_case, 7, 40, 72, dtype)
    for vocabulary in (63, 1003, VOCABULARY, 250_002):
        for dtype in LOW[:1] if vocabulary > 10**4 else LOW:
            shape = f"logits M=5 V={vocabulary:,}"
            yield "masked_lm_loss", shape, dtype, False, functools.partial(logits_case, 5, vocabulary, dtype)
    for rows, vocabulary, budget in ((0, 501, 2**30), (17, VOCABULARY, 2**30), (2049, 501, 1)):
        shape = f"head M={rows:,} V={vocabulary:,} H=64"
        build = functools.partial(head_case, rows, vocabulary, 64, torch.bfloat16, budget)
        yield "masked_lm_loss", shape, torch.bfloat16, False, build
    sizes = (5, 0, 4096, 1, 9001, *range(1, 70))
    for dtype in LOW:
        yield "ema_", f"{len(sizes)} tensors", dtype, True, functools.partial(ema_case, sizes, dtype)


def wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def check(device: torch.device, call: Call, exact: bool) -> float:
    """Returns the error of an operation on a device, the largest over its outputs."""
    with library.using("reference"):
        truth = call((lambda x: x) if exact else wide)
    poison(truth, device)
    found = [x.cpu() for x in call(lambda x: x.to(device))]
    if exact:
        return max(unequal([f.nan_to_num(7)], [t.nan_to_num(7)]) for f, t in zip(found, truth, strict=True))
    return max(
        relative([f], [t]) if t.is_floating_point() else unequal([f], [t]) for f, t in zip(found, truth, strict=True)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if an operation is wrong, fails, or uses the reference."""
    parser = argparse.ArgumentParser(description="Are the native operations right? See the head of this file.")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, a list")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    about = {"device": options.device, "torch": torch.__version__, "commit": commit(ROOT)}
    rows: list[dict[str, Any]] = []
    if reason := library.why_not_native(options.device):
        print(f"the native operations do not run on {options.device}: {reason}")
    for op, shape, dtype, exact, build in cases():
        allowed = 0.0 if exact else TOLERANCE[dtype]
        row: dict[str, Any] = {"op": op, "shape": shape, "dtype": NAMES[dtype], "error": None, "allowed": allowed}
        row |= {"right": False, "note": ""}
        try:
            row["error"] = check(torch.device(options.device), build(), exact)
            row["right"] = row["error"] <= allowed and not reason
        except Exception as error:  # the other operations are still checked
            row["note"] = describe(error)
        rows.append(row | about)
        write_rows(options.json, rows)
        print(line(row), flush=True)
    return 0 if all(row["right"] for row in rows) else 1


def line(row: dict[str, Any]) -> str:
    """Returns a row as text."""
    said = row["note"] or f"error {row['error']:.1e}, {row['allowed']:g} allowed"
    return f"{'right' if row['right'] else 'WRONG'}  {row['op']:<15} {row['shape']:<28} {row['dtype']:<5}  {said}"


if __name__ == "__main__":
    sys.exit(main())
