"""How fast a training step is: from the one that is written first to the product's, a change at a time.

    python benchmarks/step.py --device cpu|cuda [--json FILE] [--picture FILE.svg]
        [--model small|mbert-base|xlmr-base] [--pairs N] [--world-size W] [--quick]

One row a way to do it (steps.py), all on the same pairs, from the same weights; the last one is the trainer's own step
under DeepSpeed, in W ranks. Weights are random, nothing is downloaded; sentences are of random words, as long as those
of real bitext. Before a row is timed its losses and gradient norm of two steps without dropout are compared with the
naive ones. Then the rows take turns, with dropout; ratios are medians over the rounds. README.md here says what the
JSON holds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import MACHINES, NAMES, Machine, commit, describe, ratios, spread
from ranks import Ranks
from step_report import heading, picture, shares, table, targets
from steps import DIM, Job, Packed, Plain, Source, Step
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ppa_fast.data.prepare import prepare
from ppa_fast.model.encoder import load_config
from ppa_fast.model.initialise import init_model
from ppa_fast.ops import library
from ppa_fast.ops.assemble import Assembled
from ppa_fast.training.utilisation import PEAKS

ROOT = Path(__file__).resolve().parent.parent
MEDIAN, SIGMA, LONGEST = 24, 0.5, 126
LENGTHS = f"tokens a sentence log-normal, median {MEDIAN}, sigma {SIGMA}, cut at {LONGEST}"
STORED = 4096  # pairs in the store; steps that go past them begin again
DROPOUT = 0.1


@dataclass(frozen=True)
class Size:
    """A model, and how large a step of it is."""

    family: str
    vocabulary: int
    layers: int
    hidden: int
    heads: int
    pairs: int
    queue: int


SIZES = {
    "small": Size("bert", 119_547, 6, 384, 6, 32, 32768),
    "mbert-base": Size("bert", 119_547, 12, 768, 12, 256, 32768),
    "xlmr-base": Size("xlm-roberta", 250_002, 12, 768, 12, 256, 32768),
    "quick": Size("bert", 1000, 2, 64, 4, 16, 64),
}


def make(folder: Path, size: Size) -> None:
    """A model, its tokenizer and a store of pairs."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*specials, *(f"w{i}" for i in range(size.vocabulary - len(specials)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{word.strip('[]').lower()}_token": word for word in specials}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "tokenizer")

    rng = np.random.default_rng(0)
    for code in ("en", "de"):
        lengths = np.exp(rng.normal(math.log(MEDIAN), SIGMA, STORED)).round().clip(1, LONGEST).astype(int)
        lines = (" ".join(f"w{i}" for i in rng.integers(size.vocabulary - len(specials), size=n)) for n in lengths)
        (folder / f"text.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sizes = {"layers": size.layers, "hidden": size.hidden, "heads": size.heads, "dropout": 0.0}
    with contextlib.redirect_stdout(sys.stderr):
        init_model(folder / "model", str(folder / "tokenizer"), family=size.family, **sizes)
        text = f"en-de:{folder / 'text.en'},{folder / 'text.de'}"
        prepare([text], str(folder / "tokenizer"), folder / "store", max_tokens=LONGEST)


def needed_flop(config: Any, streams: Assembled, queue: int) -> int:
    """Floating-point operations that a step cannot do without: products only, no padding, masked rows only.

    A multiplication and an addition each count; forward and backward of what is trained is three times the forward.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    pairs, masked = len(streams.swap), len(streams.labels)

    def encoder(*lengths: Any) -> int:
        n = np.concatenate(lengths)
        return int(layers * (2 * (4 * hidden**2 + 2 * hidden * inner) * n.sum() + 4 * hidden * (n**2).sum()))

    head = 2 * masked * (hidden**2 + hidden * config.vocab_size)
    projection = 2 * pairs * (hidden**2 + hidden * DIM)
    query = encoder(streams.tlm.lengths, streams.query.lengths)
    return 3 * (query + head + projection) + encoder(streams.key.lengths) + projection + 4 * pairs * queue * DIM


@dataclass
class Row:
    """A way to do the step, and what was found out about it."""

    name: str
    build: Callable[[], Step]
    step: Step | None = None
    notes: list[str] = field(default_factory=list)
    error: float | None = None
    performed: int | None = None
    peak: int | None = None
    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)

    def give_up(self, why: str) -> None:
        self.notes.append(why)
        self.seconds.clear()
        if isinstance(self.step, Ranks):
            self.step.close()
        self.step = None


def figures(row: Row, steps: int) -> list[dict[str, float]]:
    """Of the row's next steps, without dropout; counts the first one's floating-point operations."""
    assert row.step is not None
    if row.step.compiled or isinstance(row.step, Ranks):
        found = [row.step()]
    else:
        # The counter does not know the CPU's own fused attention.
        countable = sdpa_kernel(SDPBackend.MATH) if row.step.job.device.type == "cpu" else contextlib.nullcontext()
        with countable, FlopCounterMode(display=False) as counter:
            found = [row.step()]
        row.performed = counter.get_total_flops()
    found += [row.step() for _ in range(steps - 1)]
    return [{name: float(value) for name, value in each.items()} for each in found]


def error_of(found: list[dict[str, float]], truth: list[dict[str, float]]) -> float:
    """The largest difference of a loss, or of the first step's gradient norm, relative where that is above 1; infinite
    for NaN. Later norms are left out: they hang on differences between keys that bf16 hardly tells apart (the tests
    compare them, in fp32)."""
    names = [(i, name) for i in range(len(truth)) for name in truth[i] if i == 0 or name != "grad_norm"]
    errors = [abs(found[i][name] - truth[i][name]) / max(1.0, abs(truth[i][name])) for i, name in names]
    return max(math.inf if math.isnan(error) else error for error in errors)


def time_steps(machine: Machine, row: Row, count: int) -> None:
    assert row.step is not None
    _wait(machine)
    begin = time.perf_counter()
    for _ in range(count):
        row.step()
    _wait(machine)
    row.seconds.append((time.perf_counter() - begin) / count)
    if not isinstance(row.step, Ranks):
        row.parts.append({name: seconds / count for name, seconds in row.step.clock.read().items()})


def _wait(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


def strongest(machine: Machine, job: Job, per_turn: int, compiles: bool) -> tuple[dict[str, Any], str]:
    """The fastest settings of the plain step: the precision is chosen first, then the groups, then whether to compile.

    Returns:
        The settings, and what was tried. Choices that compete take turns, like the rows.
    """
    best: dict[str, Any] = {}
    tried = []
    groups = [{"groups": n} for n in (1, 2, 4, 8) if job.pairs % n == 0]
    for choices in ([{"autocast": False}, {"autocast": True}], groups, [{"compiled": False}, {"compiled": True}]):
        if "compiled" in choices[0] and not compiles:
            continue
        rows = []
        for choice in choices:
            row = Row(" ".join(f"{k}={v}" for k, v in choice.items()), functools.partial(Plain, job, **best, **choice))
            try:
                row.step = row.build()
                row.step.set_dropout(DROPOUT)
                row.step()  # warm
                row.step.clock.read()
                rows.append((row, choice))
            except Exception as error:  # torch.compile's are of many kinds
                tried.append(f"{row.name} failed: {describe(error)}")
        for _ in range(2):
            for row, _ in rows:
                time_steps(machine, row, per_turn)
        tried.append(", ".join(f"{row.name} {1e3 * median(row.seconds):,.0f} ms" for row, _ in rows))
        if rows:
            best |= min(rows, key=lambda tuned: median(tuned[0].seconds))[1]
    return best, "tried, each with the best before it: " + "; ".join(tried)


def ladder(job: Job, plain: dict[str, Any], world_size: int, compiles: bool) -> list[Row]:
    name = NAMES[job.dtype]
    rows = [
        Row("naive", lambda: Plain(job, "eager", fused=False)),
        Row("strongest plain", lambda: Plain(job, **plain)),
        Row("packed", lambda: Packed(job)),
        Row("masked rows", lambda: Packed(job, masked=True)),
        Row("fused loss", lambda: Packed(job, fused_loss=True)),
        Row("fused EMA", lambda: Packed(job, fused_loss=True, fused_update=True)),
        Row("compiled", lambda: Packed(job, fused_loss=True, fused_update=True, compiled=True)),
        Row("DeepSpeed", lambda: Ranks(job, world_size)),
    ]
    zero = "ZeRO-1 bf16" if job.dtype == torch.bfloat16 else "ZeRO-0 fp32"
    notes = {
        "naive": "fp32, padded, eager attention, LM head on all tokens, cat([positive, negatives]), AdamW and the "
        "momentum update parameter by parameter",
        "strongest plain": "SDPA, fused AdamW, momentum update over lists of tensors",
        "packed": f"from here on {name} weights" + (", fp32 masters" if job.dtype != torch.float32 else ""),
        "fused EMA": "and the fused AdamW, which the rows above have as well",
        "DeepSpeed": f"the trainer's step, {zero}, {world_size} rank{'s' * (world_size > 1)}, the next step's pairs "
        "assembled meanwhile; not compiled",
    }
    for row in rows:
        row.notes += [notes[row.name]] if row.name in notes else []
    return [row for row in rows if compiles or row.name != "compiled"]


def check(machine: Machine, rows: list[Row], tolerance: float) -> None:
    """Builds every row and compares its first two steps with those of the naive one; what differs is given up."""
    truth: list[dict[str, float]] = []
    begin = time.monotonic()
    for row in rows:
        before = machine.held()
        try:
            row.step = row.build()
            found = figures(row, 2)
            truth = truth or found
            row.error = error_of(found, truth)
            row.step.set_dropout(DROPOUT)
            row.step()
            held, extra = machine.held(), None if isinstance(row.step, Ranks) else machine.peak(row.step)
        except Exception as error:  # the others are measured all the same
            row.give_up(f"failed: {describe(error)}")
            continue
        if isinstance(row.step, Ranks):
            row.peak = row.step.peak()
        else:
            row.step.clock.read()
            row.peak = None if None in (before, held, extra) else max(0, held - before) + extra
        print(f"{time.monotonic() - begin:4.0f} s  {row.name}: {found}", flush=True)
        if row.error > tolerance:
            row.give_up(f"wrong: {row.error:.2g} from the naive step, {tolerance:g} was allowed")


def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measures; returns the rows of the JSON."""
    size = SIZES[options.model]
    machine = MACHINES[options.device](options.quick)
    rates = {dtype: machine.rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    stated = next((flop for word, flop in PEAKS.items() if word in machine.name), None)
    ceiling = stated or max(rates.values())
    # bf16 where it is worth it: a CPU without products in bf16 is slower at them than in fp32.
    dtype = torch.bfloat16 if rates[torch.bfloat16] > 1.2 * rates[torch.float32] else torch.float32
    job = Job(folder, options.pairs, size.queue, machine.device, dtype)
    about: dict[str, Any] = {"device": options.device, "device_name": machine.name, "model": options.model}
    about |= {"pairs": job.pairs, "queue": job.queue, "world_size": options.world_size, "lengths": LENGTHS}
    about |= {"dtype": NAMES[dtype], "threads": torch.get_num_threads(), "backend": library.backend(options.device)}
    about |= {"torch": torch.__version__, "commit": commit(ROOT), "ceiling": ceiling, "ceiling_stated": bool(stated)}
    about |= {"measured_rates": {NAMES[dtype]: rate for dtype, rate in rates.items()}}
    print(heading(about), flush=True)

    make(folder, size)
    config, source = load_config(folder / "model"), Source(job)
    per_turn = 1 if options.device == "cpu" else 5
    plain, tried = ({}, "not tuned") if options.quick else strongest(machine, job, per_turn, options.compile)
    rows = ladder(job, plain, options.world_size, options.compile)
    rows[1].notes.append(" ".join(f"{k}={v}" for k, v in plain.items()) or "fp32, one batch")
    rows[1].notes.append(tried)
    try:
        check(machine, rows, 1e-4 if dtype == torch.float32 and not plain.get("autocast") else 0.05)
        taken = 4  # steps: two compared, one to warm up, one for the memory
        needed, tokens = [], []
        for number in range(options.rounds):
            steps = [source(taken + number * per_turn + i)[1] for i in range(per_turn)]
            needed.append(sum(needed_flop(config, streams, job.queue) for streams in steps) / per_turn)
            lengths = [s.lengths.sum() for streams in steps for s in (streams.tlm, streams.query, streams.key)]
            tokens.append(float(sum(lengths)) / per_turn)
            order = [row for row in rows if row.step is not None]
            shift = number % len(order) if order else 0
            for row in order[shift:] + order[:shift]:  # nobody always follows the same one
                try:
                    time_steps(machine, row, per_turn)
                except Exception as error:
                    row.give_up(f"failed: {describe(error)}")
            print(f"round {number + 1} of {options.rounds}", flush=True)
    finally:
        for row in rows:
            if isinstance(row.step, Ranks):
                row.step.close()
    return [finished(row, rows, needed, tokens, about) for row in rows]


def finished(
    row: Row, rows: list[Row], needed: list[float], tokens: list[float], about: dict[str, Any]
) -> dict[str, Any]:
    """A row of the JSON."""
    out: dict[str, Any] = {"name": row.name, "pairs_per_s": None, "tokens_per_s": None, "mfu": None}
    out |= {"peak_bytes": row.peak, "speedup": None, "over_plain": None, "overhead": None, "step_ms": None}
    out |= {"spread": None, "parts_ms": {}, "flop": None, "performed_flop": row.performed, "error": row.error}
    if row.seconds:
        times = {other.name: other.seconds for other in rows if other.seconds}
        ratio = ratios({**times, "ours": row.seconds})
        seconds = median(row.seconds)
        out |= {"pairs_per_s": about["pairs"] / seconds, "step_ms": 1e3 * seconds, "spread": spread(row.seconds)}
        out["tokens_per_s"] = median(n / s for n, s in zip(tokens, row.seconds, strict=True))
        out["mfu"] = median(n / s for n, s in zip(needed, row.seconds, strict=True)) / about["ceiling"]
        out |= {"speedup": ratio.get("naive"), "over_plain": ratio.get("strongest plain"), "flop": median(needed)}
        if row.name == "DeepSpeed" and "fused EMA" in ratio:
            out["overhead"] = 1 / ratio["fused EMA"] - 1
        out["parts_ms"] = {name: 1e3 * median(p[name] for p in row.parts) for name in (row.parts or [{}])[0]}
    return out | {"rounds": len(row.seconds), "notes": row.notes} | about


def main(argv: Sequence[str] | None = None) -> int:
    """Entry; returns 1 where a row could not be measured, other than the naive and the plain one."""
    parser = argparse.ArgumentParser(description="Speed of the training step: see the head of this file.")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--model", choices=[*SIZES], help="default: small on a CPU, mbert-base on CUDA")
    parser.add_argument("--pairs", type=int, help="a step, in all ranks (default 32 for small, 256 for others)")
    parser.add_argument("--world-size", type=int, default=1, help="ranks of the DeepSpeed row (default 1)")
    parser.add_argument("--rounds", type=int, help="turns of each row (default 5, on a CPU 3, with --quick 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, a list")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the rows there")
    parser.add_argument("--quick", action="store_true", help="a tiny model, nothing compiled or tuned: does it run?")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    options.compile = not options.quick
    usual = "small" if options.device == "cpu" else "mbert-base"
    options.model = "quick" if options.quick else options.model or usual
    size = SIZES[options.model]
    options.pairs = size.pairs if options.pairs is None else options.pairs
    options.rounds = options.rounds or (1 if options.quick else 3 if options.device == "cpu" else 5)
    if min(options.pairs, options.world_size) < 1 or size.queue % options.pairs or options.pairs % options.world_size:
        parser.error(
            f"--pairs: found {options.pairs}, expected a divisor of {size.queue} (the queue) and a multiple of "
            f"--world-size, {options.world_size}"
        )

    folder = Path(tempfile.mkdtemp(prefix="ppa_fast_step"))
    try:
        rows = run(options, folder)
    finally:
        shutil.rmtree(folder)
    print(f"\n{table(rows)}\n\n{shares(rows)}\n")
    for row in rows:
        print("\n".join(f"{row['name']}: {note}" for note in row["notes"]))
    print(f"\n{targets(rows)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.picture:
        options.picture.write_text(picture(rows), encoding="utf-8")
    return 0 if all(row["step_ms"] for row in rows[2:]) else 1


if __name__ == "__main__":
    sys.exit(main())
