"""Measures the speed of a training step, from the naive implementation to the product's, one change at a time.

    python benchmarks/step.py --device cpu|cuda [--json FILE] [--picture FILE.svg] [--rows NAME,NAME]
        [--model small|mbert-base|xlmr-base] [--pairs N] [--world-size W] [--micro-batch N,N] [--profile N] [--quick]

Each row is an implementation of the step (steps.py). All use the same pairs and the same initial weights. The last row
is the trainer's own step under DeepSpeed, in W ranks. Weights are random, and nothing is downloaded. Sentences consist
of random words, with the lengths of real bitext. Before a row is timed, its losses and gradient norm of two steps
without dropout are compared with those of a padded fp32 step. On a CPU, whose speed varies, the rows run alternately.
On CUDA each row is measured alone, and then its memory is freed. Ratios are medians over the rounds. README.md in this
folder explains the JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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
from measuring import MACHINES, NAMES, Machine, commit, describe, ratios, spread, write_rows
from profiling import text as profile_text
from ranks import Ranks
from step_report import heading, picture, shares, table, targets
from steps import DIM, Job, Packed, Plain, Source, Step
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ppa_fast.data.store.prepare import prepare
from ppa_fast.model.encoder import load_config
from ppa_fast.model.initialise import init_model
from ppa_fast.ops import library
from ppa_fast.ops.assemble import AssembledBatch
from ppa_fast.training.mfu import PEAKS

ROOT = Path(__file__).resolve().parent.parent
MEDIAN, SIGMA, LONGEST = 24, 0.5, 126
LENGTHS = f"tokens a sentence log-normal, median {MEDIAN}, sigma {SIGMA}, cut at {LONGEST}"
STORED = 16  # steps whose pairs the store has; later steps start again from the first
DROPOUT = 0.1
COMPARED = 2  # steps
GROUPS = (8, 4, 2, 1)  # batches into which the plain step divides its pairs, by length
ROWS = ("naive", "strongest plain", "packed", "masked rows", "fused loss", "fused EMA", "compiled", "DeepSpeed")


@dataclass(frozen=True)
class Size:
    """A model, and the size of its step."""

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
    """Creates a model, its tokenizer and a store of pairs."""
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
        lengths = np.exp(rng.normal(math.log(MEDIAN), SIGMA, STORED * size.pairs)).round().clip(1, LONGEST).astype(int)
        lines = (" ".join(f"w{i}" for i in rng.integers(size.vocabulary - len(specials), size=n)) for n in lengths)
        (folder / f"text.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sizes = {"layers": size.layers, "hidden": size.hidden, "heads": size.heads, "dropout": 0.0}
    with contextlib.redirect_stdout(sys.stderr):
        init_model(folder / "model", str(folder / "tokenizer"), family=size.family, **sizes)
        text = f"en-de:{folder / 'text.en'},{folder / 'text.de'}"
        prepare([text], str(folder / "tokenizer"), folder / "store", max_tokens=LONGEST)


def needed_flop(config: Any, streams: AssembledBatch, queue: int) -> int:
    """The minimum floating-point operations of a step: matrix products without padding, masked positions only.
    Multiplications and additions both count. Forward and backward of trained parts count three times the forward."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    pairs, masked = len(streams.is_swapped), len(streams.labels)

    def encoder(*lengths: Any) -> int:
        n = np.concatenate(lengths)
        return int(layers * (2 * (4 * hidden**2 + 2 * hidden * inner) * n.sum() + 4 * hidden * (n**2).sum()))

    head = 2 * masked * (hidden**2 + hidden * config.vocab_size)
    projection = 2 * pairs * (hidden**2 + hidden * DIM)
    query = encoder(streams.tlm.lengths, streams.query.lengths)
    return 3 * (query + head + projection) + encoder(streams.key.lengths) + projection + 4 * pairs * queue * DIM


@dataclass
class Row:
    """An implementation of the step and its measurements."""

    name: str
    build: Callable[[], Step]
    step: Step | None = None
    notes: list[str] = field(default_factory=list)
    micro_batch: int | None = None
    failed: bool = False
    error: float | None = None
    performed: int | None = None
    peak: int | None = None
    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    profile: dict[str, Any] | None = None

    def leave_out(self, why: str) -> None:
        self.notes.append(why)
        self.failed = True
        self.seconds.clear()
        self.end()

    def end(self) -> None:
        """Frees everything that the step holds."""
        if isinstance(self.step, Ranks):
            self.step.close()
        if self.step is not None and self.step.compiled:
            torch._dynamo.reset()
        self.step = None


def figures(row: Row, steps: int) -> list[dict[str, float]]:
    """Returns the losses and norms of the row's next steps without dropout, and counts the operations of the
    first one."""
    assert row.step is not None
    if row.step.compiled or isinstance(row.step, Ranks):
        found = [row.step()]
    else:
        # The counter does not support the fused attention of the CPU.
        countable = sdpa_kernel(SDPBackend.MATH) if row.step.job.device.type == "cpu" else contextlib.nullcontext()
        with countable, FlopCounterMode(display=False) as counter:
            found = [row.step()]
        row.performed = counter.get_total_flops()
    found += [row.step() for _ in range(steps - 1)]
    return [{name: float(value) for name, value in each.items()} for each in found]


def error_of(found: list[dict[str, float]], truth: list[dict[str, float]]) -> float:
    r"""Returns the largest difference of a loss, or of the gradient norm of the first step, relative if it is above 1;
    infinite for NaN.

    Later norms are excluded: they depend on differences between keys that bf16 hardly represents (the tests compare
    them in fp32).
    """
    names = [(i, name) for i in range(len(truth)) for name in truth[i] if i == 0 or name != "grad_norm"]
    errors = [abs(found[i][name] - truth[i][name]) / max(1.0, abs(truth[i][name])) for i, name in names]
    return max(math.inf if math.isnan(error) else error for error in errors)


def time_steps(machine: Machine, row: Row, count: int) -> None:
    assert row.step is not None
    _synchronize(machine)
    begin = time.perf_counter()
    for _ in range(count):
        row.step()
    _synchronize(machine)
    row.seconds.append((time.perf_counter() - begin) / count)
    if not isinstance(row.step, Ranks):
        row.parts.append({name: seconds / count for name, seconds in row.step.clock.read().items()})


def _synchronize(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


def alternating_groups(machine: Machine, rows: list[Row]) -> list[list[Row]]:
    """Returns the rows in groups that run alternately, so that noise on a CPU affects all equally. On CUDA times vary
    little and memory is limited, so each row is a group."""
    return [rows] if machine.device.type == "cpu" else [[row] for row in rows]


def strongest(machine: Machine, job: Job, per_turn: int, longest: int, compiles: bool) -> tuple[dict[str, Any], str]:
    """Finds the fastest settings of the plain step: first the precision, then the groups, then compilation.

    The precision is chosen with the most groups, because they take the least memory.

    Args:
        longest: the step with the most tokens, for the warm-up.

    Returns:
        The settings, and a text that lists the tried ones.
    """
    groups = [{"groups": n} for n in GROUPS if job.pairs % n == 0]
    best: dict[str, Any] = {"autocast": True, **groups[0]}
    tried = []
    for choices in ([{"autocast": True}, {"autocast": False}], groups, [{"compiled": False}, {"compiled": True}]):
        if "compiled" in choices[0] and not compiles:
            continue
        rows = [
            Row(" ".join(f"{k}={v}" for k, v in choice.items()), functools.partial(Plain, job, **best | choice))
            for choice in choices
        ]
        for group in alternating_groups(machine, rows):
            for row in group:
                try:
                    row.step = row.build()
                    row.step.set_dropout(DROPOUT)
                    row.step.at(longest)
                    row.step.clock.read()
                except Exception as error:  # torch.compile raises errors of many types
                    row.leave_out(f"{row.name} failed: {describe(error)}")
            for _ in range(2):
                for row in group:
                    if row.step is not None:
                        time_steps(machine, row, per_turn)
            for row in group:
                row.end()
            machine.release()
        measured = [(row, choice) for row, choice in zip(rows, choices, strict=True) if row.seconds]
        tried += [note for row in rows for note in row.notes]
        tried.append(", ".join(f"{row.name} {1e3 * median(row.seconds):,.0f} ms" for row, _ in measured))
        if measured:
            best |= min(measured, key=lambda each: median(each[0].seconds))[1]
    return best, "tried, each with the best before it: " + "; ".join(tried)


def selected_rows(job: Job, options: argparse.Namespace, plain: dict[str, Any]) -> list[Row]:
    """Returns the selected rows; ``plain``: the settings of the strongest plain row."""
    name, world_size = NAMES[job.dtype], options.world_size
    builds: dict[str, Callable[[], Step]] = {
        "naive": lambda: Plain(job, "eager", fused=False),
        "strongest plain": lambda: Plain(job, **plain),
        "packed": lambda: Packed(job),
        "masked rows": lambda: Packed(job, masked=True),
        "fused loss": lambda: Packed(job, fused_loss=True),
        "fused EMA": lambda: Packed(job, fused_loss=True, fused_update=True),
        "compiled": lambda: Packed(job, fused_loss=True, fused_update=True, compiled=True),
    }
    zero = "ZeRO-1 bf16" if job.device.type == "cuda" else f"ZeRO-0, fp32 weights, {name} products"
    notes = {
        "naive": "fp32, padded, eager attention, LM head on all tokens, cat([positive, negatives]), AdamW and the "
        "momentum update parameter by parameter",
        "strongest plain": "SDPA, fused AdamW, momentum update over lists of tensors; "
        + (" ".join(f"{k}={v}" for k, v in plain.items()) or "fp32, one batch"),
        "packed": f"from here on {name} weights" + (", fp32 masters" if job.dtype != torch.float32 else ""),
        "fused EMA": "and the fused AdamW, which the rows above have as well",
    }
    rows = [Row(name, build, notes=[notes[name]] if name in notes else []) for name, build in builds.items()]
    for micro_batch in options.micro_batch:
        whole = micro_batch == job.pairs // world_size
        ranks = f"{world_size} rank{'s' * (world_size > 1)}, micro-batch {micro_batch}"
        rows.append(
            Row(
                "DeepSpeed" if whole else f"DeepSpeed, micro-batch {micro_batch}",
                functools.partial(Ranks, job, world_size, micro_batch),
                notes=[f"the trainer's step, {zero}, {ranks}; the next step's pairs assembled meanwhile; not compiled"],
                micro_batch=micro_batch,
            )
        )
    chosen = [row for row in rows if row.name.split(",")[0] in options.rows]
    return [row for row in chosen if options.compile or row.name != "compiled"]


def start(row: Row) -> None:
    """Builds the step of a row; if that fails, the row is left out."""
    try:
        row.step = row.build()
    except Exception as error:  # the other rows are still measured
        row.leave_out(f"failed: {describe(error)}")


def check(machine: Machine, rows: list[Row], truth: list[dict[str, float]], tolerance: float, longest: int) -> None:
    """Builds every row and compares its first steps with the correct results; a row that differs is left out.

    Args:
        truth: the correct results of those steps, from :func:`figures`.
        longest: the step with the most tokens, for the warm-up; it allocates the memory for later steps.
    """
    begin = time.monotonic()
    for row in rows:
        before = machine.held()
        if row.step is None and not row.failed:
            start(row)
        if row.step is None:
            continue
        try:
            found = figures(row, COMPARED)
            row.error = error_of(found, truth)
            row.step.set_dropout(DROPOUT)
            row.step.at(longest)
            if isinstance(row.step, Ranks):
                row.peak = row.step.peak(longest)
            else:
                held, extra = machine.held(), machine.peak(functools.partial(row.step.at, longest))
                row.step.clock.read()
                row.peak = None if None in (before, held, extra) else max(0, held - before) + extra
        except Exception as error:
            row.leave_out(f"failed: {describe(error)}")
            continue
        print(f"{time.monotonic() - begin:4.0f} s  {row.name}: {found}", flush=True)
        if row.error > tolerance:
            row.leave_out(f"wrong: {row.error:.2g} from the padded fp32 step, {tolerance:g} was allowed")


def true_figures(job: Job) -> list[dict[str, float]]:
    """Returns the correct losses and norms of the first steps, padded and in fp32, with the most groups, which take the
    least memory."""
    groups = next(n for n in GROUPS if job.pairs % n == 0)
    return figures(Row("padded fp32", lambda: Plain(job), Plain(job, groups=groups)), COMPARED)


def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measures the rows, and writes them after each change; returns the rows of the JSON."""
    size = SIZES[options.model]
    machine = MACHINES[options.device](options.quick)
    rates = {dtype: machine.rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    stated = next((flop for word, flop in PEAKS.items() if word in machine.name), None)
    ceiling = stated or max(rates.values())
    # bf16 if it is faster, which it is not on a CPU without bf16 products.
    dtype = torch.bfloat16 if rates[torch.bfloat16] > 1.2 * rates[torch.float32] else torch.float32
    job = Job(folder, options.pairs, size.queue, machine.device, dtype)
    about: dict[str, Any] = {"device": options.device, "device_name": machine.name, "model": options.model}
    about |= {"pairs": job.pairs, "queue": job.queue, "world_size": options.world_size, "lengths": LENGTHS}
    about |= {"dtype": NAMES[dtype], "threads": torch.get_num_threads(), "backend": library.backend(options.device)}
    about |= {"torch": torch.__version__, "commit": commit(ROOT), "ceiling": ceiling, "ceiling_stated": bool(stated)}
    about |= {"measured_rates": {NAMES[dtype]: rate for dtype, rate in rates.items()}}
    print(heading(about), flush=True)

    if not (folder / "store").exists():
        make(folder, size)
    config, source = load_config(folder / "model"), Source(job)
    per_turn = 1 if options.device == "cpu" else 5
    needed, tokens = [], []
    for number in range(COMPARED, COMPARED + options.rounds * per_turn):
        streams = source(number)[1]
        needed.append(needed_flop(config, streams, job.queue))
        tokens.append(sum(int(s.lengths.sum()) for s in (streams.tlm, streams.query, streams.key)))
    longest = COMPARED + max(range(len(tokens)), key=tokens.__getitem__)
    rounds = np.array([needed, tokens], dtype=np.float64).reshape(2, options.rounds, per_turn).mean(2)

    plain, tried = {}, "not tuned"
    if "strongest plain" in options.rows and not options.quick:
        plain, tried = strongest(machine, job, per_turn, longest, options.compile)
    rows = selected_rows(job, options, plain)
    for row in rows:
        if row.name == "strongest plain":
            row.notes.append(tried)
        if row.micro_batch:  # before this process allocates much memory of the device
            start(row)
    truth = true_figures(job)
    machine.release()
    tolerance = 1e-4 if dtype == torch.float32 and not plain.get("autocast") else 0.05
    done: list[Row] = []

    def finish() -> list[dict[str, Any]]:
        found = [finished(row, done, *rounds, about) for row in done]
        write_rows(options.json, found)
        return found

    try:
        for group in alternating_groups(machine, rows):
            check(machine, group, truth, tolerance, longest)
            done += group
            for number in range(options.rounds):
                order = [row for row in group if row.step is not None]
                shift = number % len(order) if order else 0
                for row in order[shift:] + order[:shift]:  # so that no row always follows the same one
                    try:
                        time_steps(machine, row, per_turn)
                    except Exception as error:
                        row.leave_out(f"failed: {describe(error)}")
                finish()
                print(f"round {number + 1} of {options.rounds}: {', '.join(row.name for row in order)}", flush=True)
            for row in group:
                if options.profile and isinstance(row.step, Ranks):
                    row.profile = row.step.profile(options.profile)
                row.end()
            machine.release()
            finish()
    finally:
        for row in rows:
            row.end()
    return finish()


def finished(
    row: Row, rows: list[Row], needed: Sequence[float], tokens: Sequence[float], about: dict[str, Any]
) -> dict[str, Any]:
    """Returns a row of the JSON from the rounds so far. ``needed``, ``tokens``: per step, by round."""
    out: dict[str, Any] = {"name": row.name, "pairs_per_s": None, "tokens_per_s": None, "mfu": None}
    out |= {"peak_bytes": row.peak, "speedup": None, "over_plain": None, "overhead": None, "step_ms": None}
    out |= {"spread": None, "parts_ms": {}, "flop": None, "performed_flop": row.performed, "error": row.error}
    if row.seconds:
        times = {other.name: other.seconds for other in rows if len(other.seconds) >= len(row.seconds)}
        times = {name: seconds[: len(row.seconds)] for name, seconds in times.items()}
        ratio = ratios({**times, "ours": row.seconds})
        seconds = median(row.seconds)
        out |= {"pairs_per_s": about["pairs"] / seconds, "step_ms": 1e3 * seconds, "spread": spread(row.seconds)}
        out["tokens_per_s"] = median(n / s for n, s in zip(tokens, row.seconds, strict=False))
        out["mfu"] = median(n / s for n, s in zip(needed, row.seconds, strict=False)) / about["ceiling"]
        out |= {"speedup": ratio.get("naive"), "over_plain": ratio.get("strongest plain"), "flop": median(needed)}
        if row.micro_batch and "fused EMA" in ratio:
            out["overhead"] = 1 / ratio["fused EMA"] - 1
        out["parts_ms"] = {name: 1e3 * median(p[name] for p in row.parts) for name in (row.parts or [{}])[0]}
    out |= {"rounds": len(row.seconds), "micro_batch": row.micro_batch, "profile": row.profile, "notes": row.notes}
    return out | about


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if a row other than the naive and the plain one could not be measured."""
    parser = argparse.ArgumentParser(description="Speed of the training step: see the head of this file.")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--model", choices=[*SIZES], help="default: small on a CPU, mbert-base on CUDA")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of %(default)s")
    parser.add_argument("--pairs", type=int, help="a step, in all ranks (default 32 for small, 256 for others)")
    parser.add_argument("--world-size", type=int, default=1, help="ranks of the DeepSpeed row (default 1)")
    parser.add_argument("--micro-batch", metavar="N,N", help="of a rank, a DeepSpeed row each (default: all its pairs)")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="profile N steps of the DeepSpeed rows")
    parser.add_argument("--rounds", type=int, help="of each row (default 5, on a CPU 3, with --quick 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, a list")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the rows there")
    parser.add_argument(
        "--folder", type=Path, help="keep the model and the pairs there, and use them if they are there"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, nothing compiled or tuned: does it run?")
    options = parser.parse_args(argv)
    options.rows = options.rows.split(",")
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"--rows: found {', '.join(unknown)}, expected some of {', '.join(ROWS)}")
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
    own = options.pairs // options.world_size
    named = options.micro_batch or str(own)
    options.micro_batch = [int(n) for n in named.split(",") if n.isdecimal() and int(n) and own % int(n) == 0]
    if len(options.micro_batch) < len(named.split(",")):
        parser.error(f"--micro-batch: found {named}, expected divisors of {own}, the pairs of a rank")

    folder = options.folder or Path(tempfile.mkdtemp(prefix="ppa_fast_step"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        rows = run(options, folder)
    finally:
        if not options.folder:
            shutil.rmtree(folder)
    print(f"\n{table(rows)}\n\n{shares(rows)}\n")
    for row in rows:
        print("\n".join(f"{row['name']}: {note}" for note in row["notes"]))
        if row["profile"]:
            print(profile_text(row["name"], row["profile"]))
    print(f"\n{targets(rows)}")
    if options.picture:
        options.picture.write_text(picture(rows), encoding="utf-8")
    return 0 if all(row["step_ms"] for row in rows if row["name"] not in ("naive", "strongest plain")) else 1


if __name__ == "__main__":
    sys.exit(main())
