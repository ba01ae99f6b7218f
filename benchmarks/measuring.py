"""Measures competitors alternately, on a CPU or a GPU, each with its own clock, memory and speed limits."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppa_fast.errors import UserError
from ppa_fast.files import write_text

Run = Callable[[], Any]

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "int32"}
COMPETITORS = ("eager", "compile", "ours")


def exit_status(work: Run) -> int:
    """Runs the work of a benchmark; returns 0, or 2 after one line on stderr for input that cannot be used."""
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class Machine:
    """The measurements of a device."""

    device: torch.device
    name: str
    counts_device = False  # peak() measures the memory of the device, not of the host
    matrix: int  # rows of the square matrices whose product gives the arithmetic ceiling

    def __init__(self) -> None:
        self.rates: dict[torch.dtype, float] = {}

    def warm_up(self, run: Run) -> None:
        """Must run before :meth:`times` of this call."""
        raise NotImplementedError

    def times(self, run: Run, host: bool) -> tuple[float, float]:
        """Seconds of one call with cold caches, and of the next, with warm caches. ``host``: includes the work of the
        host, on devices where only the device is timed otherwise."""
        raise NotImplementedError

    def once(self, run: Run) -> float:
        """Seconds of a call, for the ceilings."""
        raise NotImplementedError

    def latency(self, run: Run) -> float | None:
        """Seconds from a call on an idle device until its work is complete; None if :meth:`times` measures the same."""
        return None

    def replayed(self, run: Run) -> float | None:
        """Seconds of a call in a CUDA graph of many calls, with warm caches; None if it cannot be captured."""
        return None

    @staticmethod
    def held() -> int | None:
        """Bytes allocated now; None if unknown."""
        raise NotImplementedError

    @staticmethod
    def peak(run: Run) -> int | None:
        """Peak bytes of a call, results included, beyond those allocated before; None if unknown."""
        raise NotImplementedError

    @staticmethod
    def release() -> None:
        """Returns unused memory to the system."""
        raise NotImplementedError

    def bandwidth(self) -> float:
        """Bytes/s read and written."""
        raise NotImplementedError

    def rate(self, dtype: torch.dtype) -> float:
        """Floating-point operations/s of a matrix product of random numbers."""
        if dtype not in self.rates:
            a, b = (torch.randn(self.matrix, self.matrix, device=self.device).to(dtype) for _ in range(2))
            self.rates[dtype] = 2 * self.matrix**3 / min(self.once(lambda: a @ b) for _ in range(10))
        return self.rates[dtype]


class Cpu(Machine):
    """Uses the wall clock; memory is the resident pages of the process, accurate to 0.1 MB."""

    device = torch.device("cpu")

    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.name = processor()
        self.matrix = 512 if quick else 2048
        self._copied = 2**25 if quick else 2**28
        self._flushed = torch.ones(_last_level_cache() // 4 * (1 if quick else 4))  # zeros could all be in one page

    def warm_up(self, run: Run) -> None:
        run()

    def times(self, run: Run, host: bool) -> tuple[float, float]:
        self._flushed.sum()  # read and not written, so that no call has to write it back
        return _wall(run), _wall(run)

    def once(self, run: Run) -> float:
        return _wall(run)

    @staticmethod
    def held() -> int | None:
        Cpu.release()  # freed memory of the process would hide the memory of a call
        try:
            return _status("VmRSS")
        except (OSError, KeyError):
            return None

    @staticmethod
    def release() -> None:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    @staticmethod
    def peak(run: Run) -> int | None:
        before = Cpu.held()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
        except OSError:
            before = None
        run()
        return None if before is None else max(0, _status("VmHWM") - before)

    def bandwidth(self) -> float:
        """The bandwidth of a copy, or of an update in place if higher: a CPU reads a cache line before it writes it."""
        source = torch.ones(self._copied // 4)
        target = torch.empty_like(source)
        runs: list[Run] = [lambda: target.copy_(source), lambda: source.mul_(1.0)]
        return 2 * self._copied / min(_wall(run) for run in runs * 10)


class Cuda(Machine):
    r"""Uses CUDA events; memory is that of torch's allocator.

    A call is queued behind reads of a buffer that empty the L2 cache, as many as the host needs time to issue it. The
    events then time the device and not the launches, which :meth:`latency` includes.
    """

    device = torch.device("cuda")
    counts_device = True

    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.name = torch.cuda.get_device_name()
        self.matrix, self._copied = (2048, 2**28) if quick else (8192, 2**32)
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self._flushed = torch.ones(max(4 * cache, 2**30) // 4, device=self.device)
        self._flush = min(
            self.once(self._flushed.sum) for _ in range(1000)
        )  # half a second, until the clock frequencies have risen
        self._issue: dict[Run, float] = {}

    def warm_up(self, run: Run) -> None:
        run()
        torch.cuda.synchronize()
        self._issue[run] = _wall(run)
        torch.cuda.synchronize()

    def times(self, run: Run, host: bool) -> tuple[float, float]:
        if host:
            self._flushed.sum()
            return self.latency(run), self.latency(run)
        for _ in range(min(100, 1 + math.ceil(3 * self._issue[run] / self._flush))):
            self._flushed.sum()
        begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        begin.record()
        run()
        middle.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(middle) / 1e3, middle.elapsed_time(end) / 1e3

    def once(self, run: Run) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def latency(self, run: Run) -> float:
        torch.cuda.synchronize()
        return _wall(lambda: (run(), torch.cuda.synchronize()))

    def replayed(self, run: Run, calls: int = 20) -> float | None:
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(graph):
                for _ in range(calls):
                    run()
        except RuntimeError:
            return None
        graph.replay()
        return median(self.once(graph.replay) for _ in range(20)) / calls

    @staticmethod
    def held() -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    @staticmethod
    def release() -> None:
        gc.collect()
        torch.cuda.empty_cache()

    @staticmethod
    def peak(run: Run) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def bandwidth(self) -> float:
        """The bandwidth of a copy."""
        source = torch.ones(self._copied // 4, device=self.device)
        target = torch.empty_like(source)
        return 2 * self._copied / min(self.once(lambda: target.copy_(source)) for _ in range(10))


MACHINES: dict[str, type[Cpu] | type[Cuda]] = {"cpu": Cpu, "cuda": Cuda}


def _wall(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _last_level_cache() -> int:
    """Returns bytes; 32 MB if Linux does not report it."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max([int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units] or [2**25])


def _status(key: str) -> int:
    """Returns the bytes of this key of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[key].split()[0]) * 1024


@dataclass(frozen=True)
class Competitor:
    """``run`` does the complete work and returns the results; ``error`` compares them with the correct ones."""

    run: Run
    error: Callable[[Any], float]
    host: bool = False  # timed by the wall clock on CUDA too, because it runs mostly on the host


@dataclass
class Case:
    """The definition of a row: an operation with a shape. ``bytes`` and ``flop`` are the minimum."""

    op: str
    shape: str
    dtype: torch.dtype
    bytes: int
    flop: int
    competitors: dict[str, Competitor]  # all or some of COMPETITORS; "reference" if eager is not the reference
    exact: bool = False  # the result is exact
    smaller: Run | None = None  # our peak memory at a quarter of the size, which it must not depend on
    pairs: int | None = None  # items of which the number per second is reported
    notes: list[str] = field(default_factory=list)


def relative(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest ‖found − truth‖ / ‖truth‖ of several tensors, in fp64; infinite for NaN."""
    errors = [((f.double() - t).norm() / t.norm().clamp_min(1e-300)).item() for f, t in zip(found, truth, strict=True)]
    return max(math.inf if math.isnan(error) else error for error in errors)


def unequal(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest share of different elements of several tensors; 1 for another shape."""
    pairs = list(zip(found, truth, strict=True))
    if any(f.shape != t.shape for f, t in pairs):
        return 1.0
    return max((f != t).sum().item() / max(1, t.numel()) for f, t in pairs)


def measure(machine: Machine, case: Case, bandwidth: float, seconds: float) -> dict[str, Any]:
    """Checks and times the competitors of a case. One that fails or is wrong is left out, and the notes give the
    reason."""
    errors, notes = {}, list(case.notes)
    for name, competitor in case.competitors.items():
        try:
            errors[name] = competitor.error(competitor.run())
        except Exception as error:  # torch.compile raises errors of many types
            notes.append(f"{name} failed: {describe(error)}")
    fit = {}
    for name, error in errors.items():
        # The project's rule compares with plain PyTorch in the same precision, which must be accurate too.
        allowed = 0.0 if case.exact else min(0.05, 3 * errors.get("eager", 0.01)) + 1e-5
        if error <= allowed:
            fit[name] = case.competitors[name]
        else:
            notes.append(f"{name} is wrong: error {error:.2g}, at most {allowed:.2g} was allowed")

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in fit}
    for competitor in fit.values():
        machine.warm_up(competitor.run)
    begin, order, rounds = time.perf_counter(), list(fit), 0
    while fit and (rounds < 3 or (rounds < 200 and time.perf_counter() - begin < seconds)):
        for name in order:
            times[name].append(machine.times(fit[name].run, fit[name].host))
        order.append(order.pop(0))  # so that no competitor always follows the same one
        rounds += 1
    cold = {name: [1e3 * first for first, _ in both] for name, both in times.items()}
    warm = {name: [1e3 * second for _, second in both] for name, both in times.items()}
    peaks = {name: None if c.host and machine.counts_device else machine.peak(c.run) for name, c in fit.items()}
    rate = machine.rate(case.dtype) if case.flop else None

    row: dict[str, Any] = {"op": case.op, "shape": case.shape, "dtype": NAMES[case.dtype]}
    row["floor_ms"] = 1e3 * max(case.bytes / bandwidth, case.flop / rate if rate else 0.0)
    row |= {f"{name}_ms": median(cold[name]) if name in cold else None for name in COMPETITORS}
    row |= {"peak_bytes": peaks.get("ours"), "error": errors.get("ours")}
    row |= {"warm_ms": {name: median(x) for name, x in warm.items()}}
    row |= {"spread": {name: spread(x) for name, x in cold.items()}}
    row |= {"ratio": ratios(cold), "warm_ratio": ratios(warm), "peaks": peaks, "errors": errors, "rounds": rounds}
    row |= {"bytes": case.bytes, "flop": case.flop, "notes": notes}
    if "reference" in cold:
        row["reference_ms"] = median(cold["reference"])
    if "ours" in fit:
        ours = fit["ours"].run
        row["latency_ms"] = _milliseconds(machine.latency(ours))
        row["replayed_ms"] = _milliseconds(machine.replayed(ours)) if row["ours_ms"] < 0.2 else None
        row["smaller_peak_bytes"] = machine.peak(case.smaller) if case.smaller else None
        row["pairs_per_s"] = 1e3 * case.pairs / row["ours_ms"] if case.pairs else None
    return row


def describe(error: Exception) -> str:
    """Returns a one-line description of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def spread(times: Sequence[float]) -> float:
    """Half the distance between the quartiles, over the median."""
    low, high = np.percentile(times, [25, 75])
    return float(high - low) / 2 / median(times)


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """For each competitor, the median over the rounds of its time over ours."""
    ours = times.get("ours", [])
    others = {name: x for name, x in times.items() if name != "ours" and ours}
    return {name: median(a / b for a, b in zip(x, ours, strict=True)) for name, x in others.items()}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def write_rows(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces the JSON file at ``path`` atomically (None: no file). Raises UserError, naming the file, if it cannot be
    written."""
    if path:
        write_text(path, json.dumps(rows, indent=1) + "\n")


def commit(root: Path) -> str | None:
    """PPA_FAST_COMMIT, else the commit of git, with ``-dirty`` if tracked files are changed; None if unknown."""
    if named := os.environ.get("PPA_FAST_COMMIT"):
        return named
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
