"""Measures the speed of the operations: the floor, eager PyTorch, torch.compile and ours, by operation and shape.

    python benchmarks/kernels.py --device cpu|cuda [--json FILE] [--picture FILE.svg] [--ops ema_,infonce]
        [--no-compile] [--quick]

The floor is the larger of two times: the fewest bytes that an operation can move (each input read once, each output
written once) over the bandwidth, and its floating-point operations over the rate of a matrix product in its type. The
bandwidth and the rate are measured in the same run. The competitors are called alternately, so that noise affects
all equally. Each is called with cold caches, and immediately again with warm caches. Ratios are medians over the
rounds. Each result is compared with the correct result in fp64 before it is timed. README.md in this folder explains
the JSON.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import (
    COMPETITORS,
    MACHINES,
    NAMES,
    Case,
    Competitor,
    Machine,
    commit,
    describe,
    measure,
    relative,
    unequal,
    write_rows,
)
from report import ceilings, heading, notes, picture, table, targets
from torch import Tensor

from ppa_fast.data.loading import packing
from ppa_fast.data.store.store import FORMAT_VERSION, Store, StoreWriter, record_batch
from ppa_fast.ops import library
from ppa_fast.ops.assemble import assemble, layout
from ppa_fast.ops.ema import ema_
from ppa_fast.ops.infonce import infonce
from ppa_fast.ops.masked_lm_loss import masked_lm_loss
from ppa_fast.ops.reference import ring as reference_ring
from ppa_fast.ops.ring import enqueue

ROOT = Path(__file__).resolve().parent.parent
MOMENTUM, TEMPERATURE = 0.999, 0.05
MBERT = 119_547  # the vocabulary of mBERT
PAD, UNK, CLS, SEP, MASK = range(5)


@dataclass(frozen=True)
class Setting:
    """The parameters of the cases."""

    machine: Machine
    quick: bool
    full: bool
    compile: bool

    @property
    def device(self) -> torch.device:
        return self.machine.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the operations that use low precision on a GPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def choose(self, cpu: list[Any], cuda: list[Any], quick: list[Any]) -> list[Any]:
        return quick if self.quick else cuda if self.device.type == "cuda" else cpu

    def normal(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device)

    def integers(self, below: int, count: int, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randint(below, (count,), generator=generator, device=self.device)

    def compiled(self, run: Callable[..., Any]) -> Callable[..., Any] | None:
        return torch.compile(run, dynamic=False) if self.compile else None


def sentences(count: int, shortest: int, longest: int, seed: int) -> list[list[int]]:
    """Random ids above the special ones, with uniform lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(5, MBERT) for _ in range(rng.randint(shortest, longest))] for _ in range(count)]


# --- assemble --------------------------------------------------------------------------------------------------------


def assemble_cases(setting: Setting) -> list[Callable[[], Case]]:
    sizes = setting.choose([256, 1024], [256, 1024], [64])
    return [functools.partial(assemble_case, setting, pairs) for pairs in sizes]


def assemble_case(setting: Setting, pairs: int) -> Case:
    a, b = sentences(pairs, 8, 52, 1), sentences(pairs, 8, 52, 2)
    flat = [torch.tensor([token for row in rows for token in row], dtype=torch.int32) for rows in (a, b)]
    bounds = [torch.tensor([0, *np.cumsum([len(row) for row in rows])], dtype=torch.int32) for rows in (a, b)]
    ids, epochs = torch.arange(pairs), torch.zeros(pairs, dtype=torch.int64)
    plan = layout(*bounds, ids, epochs, seed=7)
    inputs = [x.to(setting.device) for x in (flat[0], bounds[0], flat[1], bounds[1], ids, epochs)]
    known = [x.to(setting.device) for x in (plan.query_cu_seqlens, plan.masked_offsets)]
    plan = replace(plan, query_cu_seqlens=known[0], masked_offsets=known[1])

    def ours() -> list[Tensor]:
        out = assemble(*inputs, plan, seed=7, cls=CLS, sep=SEP, mask=MASK, vocab_size=MBERT)
        streams = [x for s in (out.query, out.key, out.tlm) for x in (s.tokens, s.cu_seqlens, s.positions)]
        return [*streams, out.masked_positions, out.labels, out.is_swapped]

    def reference() -> list[Tensor]:
        with library.using("reference"):
            return ours()

    truth = reference()
    competitors = {
        "eager": collators(setting.device, a, b, truth),
        "reference": Competitor(reference, lambda out: unequal(out, truth)),
        "ours": Competitor(ours, lambda out: unequal(out, truth)),
    }
    moved = " and moved to the device" if setting.device.type == "cuda" else ""
    notes = [
        "eager: transformers' collators, given tokens that are swapped and joined already and special-token masks; "
        f"three batches padded, the TLM one masked{moved}; no torch.compile: it is not PyTorch's work"
    ]
    size = sum(x.nbytes for x in [*inputs, known[1], *truth])
    shape = f"{pairs:,} pairs {sum(map(len, flat)):,} tokens"
    return Case("assemble", shape, torch.int32, size, 0, competitors, exact=True, notes=notes)


def collators(device: torch.device, a: list[list[int]], b: list[list[int]], truth: list[Tensor]) -> Competitor:
    """The collators of transformers for the same batches, with the same coins and random masks of their own."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, PreTrainedTokenizerFast

    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    vocabulary = {word: i for i, word in enumerate([*names.values(), *map(str, range(5, MBERT))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    mask, pad = DataCollatorForLanguageModeling(tokenizer), DataCollatorWithPadding(tokenizer)
    pairs = [(y, x) if swap else (x, y) for x, y, swap in zip(a, b, truth[-1].tolist(), strict=True)]
    query = [{"input_ids": [CLS, *q, SEP]} for q, _ in pairs]
    key = [{"input_ids": [CLS, *k, SEP]} for _, k in pairs]
    tlm = [{"input_ids": [CLS, *q, SEP, *k, SEP]} for q, k in pairs]
    for features, (q, k) in zip(tlm, pairs, strict=True):
        features["special_tokens_mask"] = [1, *[0] * len(q), 1, *[0] * len(k), 1]

    def run() -> list[dict[str, Tensor]]:
        batches = [pad(query), pad(key), mask([dict(features) for features in tlm])]
        return [{name: x.to(device) for name, x in batch.items()} for batch in batches]

    def error(batches: list[dict[str, Tensor]]) -> float:
        """The error of the tokens before masking; about 15 % of them must be masked."""
        found = [batch["input_ids"] for batch in batches]
        labels = batches[2]["labels"]
        found[2] = torch.where(labels == -100, found[2], labels)
        found = [ids[batch["attention_mask"].bool()] for ids, batch in zip(found, batches, strict=True)]
        original = truth[6].clone()
        original[truth[9]] = truth[10].int()
        share = (labels != -100).sum().item() / sum(len(q) + len(k) for q, k in pairs)
        return unequal(found, [truth[0], truth[3], original]) if 0.1 < share < 0.2 else 1.0

    return Competitor(run, error, host=True)


# --- the queue -------------------------------------------------------------------------------------------------------


class Queue:
    """A full ring of K unit rows with N pending rows, and N queries with their keys; some groups occur in both."""

    def __init__(self, setting: Setting, n: int, k: int, dim: int) -> None:
        def unit(rows: int, seed: int) -> Tensor:
            return F.normalize(setting.normal(rows, dim, seed=seed), dim=1).to(setting.dtype)

        self.query, self.key, self.ring = unit(n, 1), unit(n, 2), unit(k + n, 3)
        self.groups, self.ring_groups = setting.integers(4 * k, n, seed=4), setting.integers(4 * k, k + n, seed=5)
        self.state = torch.tensor([k, k, 0], device=setting.device)  # rows 0 … K − 1 are live
        self.step_indices = torch.arange(n, device=setting.device)
        self.ones = torch.ones(n, device=setting.device)

    def ours(self) -> tuple[Tensor, Tensor]:
        query = self.query.detach().requires_grad_()
        ring = (self.ring, self.ring_groups, self.state)
        loss, _ = infonce(query, self.key, self.groups, *ring, TEMPERATURE)
        return loss.detach(), torch.autograd.grad(loss, query, self.ones)[0]


def plain_infonce(
    query: Tensor, key: Tensor, groups: Tensor, ring: Tensor, ring_groups: Tensor, live: Tensor
) -> tuple[Tensor, Tensor]:
    """The formula with N × R logits: loss and top-1. Products are in the given type, the rest in fp32 (or fp64)."""
    wide = torch.promote_types(query.dtype, torch.float32)
    positive = (query.to(wide) * key.to(wide)).sum(1, keepdim=True) / TEMPERATURE
    negatives = (query @ ring.T).to(wide) / TEMPERATURE
    negatives = negatives.masked_fill(~live | (ring_groups == groups[:, None]), -torch.inf)
    loss = torch.logsumexp(torch.cat([positive, negatives], dim=1), dim=1) - positive.squeeze(1)
    return loss, (positive > negatives).all(dim=1)


def infonce_cases(setting: Setting) -> list[Callable[[], Case]]:
    sizes = setting.choose([(128, 32768, 128)], [(256, 65536, 128), (256, 65536, 768)], [(17, 1000, 64)])
    return [functools.partial(infonce_case, setting, *size) for size in sizes]


def infonce_case(setting: Setting, n: int, k: int, dim: int) -> Case:
    queue, smaller = Queue(setting, n, k, dim), Queue(setting, n, k // 4, dim)
    live = torch.arange(k + n, device=setting.device) < k

    def with_gradient(forward: Callable[..., Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        query, key, ring = (x.detach().to(dtype) for x in (queue.query, queue.key, queue.ring))
        query.requires_grad_()
        loss, _ = forward(query, key, queue.groups, ring, queue.ring_groups, live)
        return loss.detach(), torch.autograd.grad(loss, query, queue.ones.to(loss.dtype))[0]

    truth = with_gradient(plain_infonce, torch.float64)

    def competitor(run: Callable[[], Any]) -> Competitor:
        return Competitor(run, lambda out: relative(out, truth))

    competitors = {"eager": competitor(lambda: with_gradient(plain_infonce, setting.dtype))}
    if compiled := setting.compiled(plain_infonce):
        competitors["compile"] = competitor(lambda: with_gradient(compiled, setting.dtype))
    competitors["ours"] = competitor(queue.ours)
    once = (
        queue.query,
        queue.key,
        queue.groups,
        queue.ring,
        queue.ring_groups,
        queue.query,
    )  # the last product is for dq
    size = sum(x.nbytes for x in once) + 4 * n
    shape = f"N={n} K={k:,} D={dim}"
    notes = ["forward, and backward to the query; eager: a product with the ring, fp32 softmax, autograd"]
    return Case("infonce", shape, setting.dtype, size, 4 * n * k * dim, competitors, smaller=smaller.ours, notes=notes)


def enqueue_cases(setting: Setting) -> list[Callable[[], Case]]:
    sizes = setting.choose([(128, 32768, 128)], [(256, 65536, 128), (256, 65536, 768)], [(17, 1000, 64)])
    return [functools.partial(enqueue_case, setting, *size) for size in sizes]


def enqueue_case(setting: Setting, n: int, k: int, dim: int) -> Case:
    def competitor(write: Callable[..., None]) -> Competitor:
        queue = Queue(setting, n, k, dim)
        truth = queue.ring.clone(), queue.ring_groups.clone()
        truth[0][k:], truth[1][k:] = queue.key, queue.groups

        def run() -> list[Tensor]:
            write(queue.key, queue.groups, queue.step_indices, queue.ring, queue.ring_groups, queue.state)
            return [queue.ring, queue.ring_groups]

        return Competitor(run, lambda out: unequal(out, truth))

    competitors = {"eager": competitor(reference_ring.enqueue)}
    if compiled := setting.compiled(reference_ring.enqueue):
        competitors["compile"] = competitor(compiled)
    competitors["ours"] = competitor(enqueue)
    size = n * (2 * dim * setting.dtype.itemsize + 24)
    notes = ["eager: ppa_fast.ops.reference, which picks the keys to accept by boolean indexing"]
    return Case("enqueue", f"M={n} K={k:,} D={dim}", setting.dtype, size, 0, competitors, exact=True, notes=notes)


# --- masked_lm_loss --------------------------------------------------------------------------------------------------


def masked_lm_loss_cases(setting: Setting) -> list[Callable[[], Case]]:
    (size,) = setting.choose([(64, MBERT, 768)], [(4096, MBERT, 768)], [(17, 1000, 64)])
    return [functools.partial(logits_case, setting, *size[:2]), functools.partial(head_case, setting, *size)]


def logits_case(setting: Setting, rows: int, vocabulary: int) -> Case:
    """Only the kernel: loss and gradient of logits without bias."""
    stride = -(-vocabulary // 64) * 64
    logits, bias = setting.normal(rows, stride, seed=1), setting.normal(stride, seed=2)
    logits, bias = (x.mul_(2).to(setting.dtype) for x in (logits, bias))
    labels = setting.integers(vocabulary, rows, seed=3)

    def cross_entropy(x: Tensor) -> Tensor:
        return F.cross_entropy(x, labels, reduction="none")

    def with_gradient(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        loss = forward(x)
        return loss.detach(), torch.autograd.grad(loss, x, torch.ones_like(loss))[0]

    exact = (logits[:, :vocabulary].double() + bias[:vocabulary].double()).requires_grad_()
    truth = with_gradient(cross_entropy, exact)
    given = exact.detach().to(setting.dtype).requires_grad_()
    del exact
    buffer = logits.clone()

    def ours() -> tuple[Tensor, Tensor]:
        loss = library.OPERATIONS["cross_entropy_"](buffer, bias, labels, vocabulary)
        return loss, buffer[:, :vocabulary]

    def competitor(run: Callable[[], Any]) -> Competitor:
        return Competitor(run, lambda out: relative(out, truth))

    competitors = {"eager": competitor(lambda: with_gradient(cross_entropy, given))}
    if compiled := setting.compiled(cross_entropy):
        competitors["compile"] = competitor(lambda: with_gradient(compiled, given))
    competitors["ours"] = competitor(ours)
    size = 2 * logits.nbytes + bias.nbytes + labels.nbytes
    shape = f"logits M={rows:,} V={vocabulary:,}"
    notes = ["eager: F.cross_entropy, forward and backward, of logits that have the bias already; ours adds it"]
    return Case("masked_lm_loss", shape, setting.dtype, size, 0, competitors, notes=notes)


def head_case(setting: Setting, rows: int, vocabulary: int, hidden: int) -> Case:
    """From the hidden rows to the loss and the gradients of the rows, the embedding and the bias."""
    labels = setting.integers(vocabulary, rows, seed=3)
    x, weight = setting.normal(rows, hidden, seed=1), setting.normal(vocabulary, hidden, seed=2).mul_(hidden**-0.5)
    given = [y.to(setting.dtype).requires_grad_() for y in (x, weight, setting.normal(vocabulary, seed=4))]
    del x, weight

    def head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight, bias), labels, reduction="sum")

    def with_gradient(forward: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        loss = forward(*inputs)
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    truth = with_gradient(head, [y.detach().double().requires_grad_() for y in given])

    def competitor(forward: Callable[..., Tensor]) -> Competitor:
        return Competitor(lambda: with_gradient(forward, given), lambda out: relative(out, truth))

    competitors = {"eager": competitor(head)}
    if compiled := setting.compiled(head):
        competitors["compile"] = competitor(compiled)
    competitors["ours"] = competitor(lambda x, weight, bias: masked_lm_loss(x, weight, bias, labels))
    size = 2 * sum(y.nbytes for y in given) + labels.nbytes
    shape = f"head M={rows:,} V={vocabulary:,} H={hidden}"
    notes = ["from hidden rows to loss and gradients; eager: F.linear and F.cross_entropy"]
    flop = 6 * rows * vocabulary * hidden
    return Case("masked_lm_loss", shape, setting.dtype, size, flop, competitors, notes=notes)


# --- ema_ ------------------------------------------------------------------------------------------------------------


def ema_cases(setting: Setting) -> list[Callable[[], Case]]:
    (millions,) = setting.choose([178 if setting.full else 25], [178], [1])
    return [functools.partial(ema_case, setting, millions * 10**6)]


def ema_case(setting: Setting, parameters: int) -> Case:
    source, start, rest = setting.normal(parameters, seed=1), setting.normal(parameters, seed=2), 1.0 - MOMENTUM

    def foreach(k: Tensor, q: Tensor, copy: Tensor) -> None:
        torch._foreach_lerp_([k], [q], rest)
        torch._foreach_copy_([copy], [k])

    def plain(k: Tensor, q: Tensor, copy: Tensor) -> None:
        k.lerp_(q, rest)
        copy.copy_(k)

    def competitor(update: Callable[[Tensor, Tensor, Tensor], None]) -> Competitor:
        k, copy = start.clone(), torch.empty_like(start, dtype=torch.bfloat16)

        def run() -> tuple[Tensor, Tensor]:
            update(k, source, copy)
            return k, copy

        def error(out: tuple[Tensor, Tensor]) -> float:
            truth = start.double().mul_(MOMENTUM).add_(source, alpha=rest)
            return relative(out[:1], [truth]) if torch.equal(out[1], out[0].bfloat16()) else 1.0

        return Competitor(run, error)

    competitors = {"eager": competitor(foreach)}
    if compiled := setting.compiled(plain):
        competitors["compile"] = competitor(compiled)
    competitors["ours"] = competitor(lambda k, q, copy: ema_([k], [q], [copy], MOMENTUM))
    notes = ["eager: torch._foreach_lerp_ and _foreach_copy_ to bf16: 18 bytes a parameter, ours 14"]
    shape = f"{parameters // 10**6} M parameters"
    return Case("ema_", shape, torch.float32, 14 * parameters, 0, competitors, notes=notes)


# --- the host packer -------------------------------------------------------------------------------------------------


def pack_cases(setting: Setting) -> list[Callable[[], Case]]:
    return [functools.partial(pack_case, pairs) for pairs in setting.choose([4096], [4096], [512])]


def pack_case(pairs: int) -> Case:
    stored, special = 4 * pairs, {"cls": CLS, "sep": SEP, "mask": MASK, "pad": PAD}
    sides = [sentences(stored, 4, 20, seed) for seed in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:  # the mapped rows remain valid
        with StoreWriter(Path(folder)) as writer:
            writer.add(record_batch(*sides, list(range(stored)), 0))
            other = {"special_ids": special, "vocab_size": MBERT, "max_tokens": 20, "language_pairs": {}}
            writer.finish({"format_version": FORMAT_VERSION, **other})
        store = Store.open(folder)
    rows, epochs = np.random.default_rng(0).permutation(stored)[:pairs], np.zeros(pairs, np.int64)
    parts = pairs // 256

    def pack_all(packer: packing.Packer) -> list[Tensor]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # NumPy uses one thread, but some steps of its packer use PyTorch
        step, buffers = packer.step(rows, epochs, parts), []
        for i in range(parts):
            buffers.append(torch.empty(packing.Sizes(*step.sizes(i)).bytes, dtype=torch.uint8))
            step.fill(i, buffers[-1].numpy())
        torch.set_num_threads(threads)
        return buffers

    draws = (7, 0.15, True)
    numpy = packing.ReferencePacker(store, *draws)
    ours = numpy if packing.WHY_NOT_NATIVE else packing.native_packer(store, *draws, threads=1)
    truth = pack_all(numpy)
    competitors = {
        name: Competitor(functools.partial(pack_all, packer), lambda out: unequal(out, truth), host=True)
        for name, packer in (("eager", numpy), ("ours", ours))
    }
    size = 2 * sum(x.nbytes for x in truth)
    notes = [f"{parts} micro-batches, on one thread; eager: the packer in NumPy"]
    notes += [f"ours is the packer in NumPy too: {packing.WHY_NOT_NATIVE}"] if packing.WHY_NOT_NATIVE else []
    shape = f"{pairs:,} pairs, short sentences"
    return Case("pack", shape, torch.int32, size, 0, competitors, exact=True, pairs=pairs, notes=notes)


# --- main ------------------------------------------------------------------------------------------------------------

CASES = {
    "assemble": assemble_cases,
    "infonce": infonce_cases,
    "enqueue": enqueue_cases,
    "ema_": ema_cases,
    "masked_lm_loss": masked_lm_loss_cases,
    "pack": pack_cases,
}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the selected operations, and writes each row immediately; returns the rows."""
    machine = MACHINES[options.device](options.quick)
    setting = Setting(machine, options.quick, options.full, options.compile)
    bandwidth, rate = machine.bandwidth(), machine.rate(setting.dtype)
    about = {"device": options.device, "device_name": machine.name, "torch": torch.__version__, "commit": commit(ROOT)}
    about |= {"backend": library.backend(options.device), "threads": torch.get_num_threads()}
    about |= {"ceilings": {"bytes_per_s": bandwidth, "flop_per_s": {NAMES[setting.dtype]: rate}}}
    print(f"{heading(about)}\n{ceilings(about)}", flush=True)
    if reason := library.why_not_native(options.device):
        print(f"ours is the PyTorch reference: {reason}")
    rows, begin = [], time.monotonic()
    for op in options.ops:
        for build in CASES[op](setting):
            try:
                case = build()
                print(f"{time.monotonic() - begin:4.0f} s  {case.op} {case.shape}", flush=True)
                row = measure(machine, case, bandwidth, options.seconds)
                del case
            except Exception as error:  # the other operations are still measured
                row = failed(op, describe(error))
            rows.append(row | about)
            write_rows(options.json, rows)
            torch._dynamo.reset()
    return rows


def failed(op: str, note: str) -> dict[str, Any]:
    """Returns the row of an operation that could not be measured."""
    row: dict[str, Any] = {"op": op, "shape": "", "dtype": "", "floor_ms": None}
    row |= {f"{name}_ms": None for name in COMPETITORS} | {"peak_bytes": None, "error": None}
    return row | {"warm_ms": {}, "spread": {}, "ratio": {}, "warm_ratio": {}, "notes": [note]}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if one of our operations failed or was wrong."""
    parser = argparse.ArgumentParser(description="Speed of the operations: see the head of this file.")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--ops", default=",".join(CASES), help="some of %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, a list")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the rows there")
    parser.add_argument("--no-compile", action="store_false", dest="compile", help="leave torch.compile out")
    parser.add_argument("--quick", action="store_true", help="small shapes, no torch.compile: does it run?")
    parser.add_argument("--full", action="store_true", help="ema_ on 178 M parameters on a CPU too (6 GB of memory)")
    parser.add_argument("--seconds", type=float, help="that a row is timed for (default 5; with --quick 0.5)")
    options = parser.parse_args(argv)
    options.ops = [op if op in CASES else f"{op}_" for op in options.ops.split(",")]
    if unknown := [op.rstrip("_") for op in options.ops if op not in CASES]:
        parser.error(f"--ops: found {', '.join(unknown)}, expected some of {', '.join(CASES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    options.seconds = options.seconds or (0.5 if options.quick else 5.0)
    options.compile &= not options.quick

    rows = run(options)
    print(f"\n{table(rows)}\n\n{notes(rows)}\n\n{targets(rows)}")
    if options.picture:
        options.picture.write_text(picture(rows, heading(rows[0])), encoding="utf-8")
    return 0 if all(row["ours_ms"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
