"""Measures how fast pairs come from a store to the step, and whether memory grows with the store.

    python benchmarks/data_path.py [--json FILE] [--step-json ROWS.json] [--folder DIR] [--quick]

loader   the work of the trainer on the host for a global step (the sampler's draw, the packer, ``PairBatch``), and the
         same with ``assemble``, which runs on the GPU if there is one; one thread, file in the page cache
cold     the loader on the large store, after its pages were dropped from the page cache
memory   private memory (RssAnon) of two ranks on a small store and on one that is a hundred times larger: before the
         store is opened (step 0), after the first steps and after the last step
ranks    CPU time of the loader of one rank, by the number of ranks: every rank divides the complete global step
sampler  speed and peak memory of draws spread over the order of ten billion pairs

The stores are generated in DIR, 3 GB at most at a time, and removed. README.md in this folder explains the JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from measuring import Cpu, commit, spread
from report import number

from ppa_fast.data.loading import packing
from ppa_fast.data.loading.batching import Batches, PairBatch
from ppa_fast.data.loading.sampler import Sampler
from ppa_fast.data.store.store import ROWS_PER_BATCH, SCHEMA, Store, StoreWriter, shard
from ppa_fast.ops.assemble import AssembledBatch, assemble

ROOT = Path(__file__).resolve().parent.parent
SPECIAL = {"pad": 0, "cls": 2, "sep": 3, "mask": 4}
VOCABULARY, LONGEST, SPREAD = 119_547, 126, 0.5
DRAWS: dict[str, Any] = {"seed": 7, "mask_probability": 0.15, "input_shuffling": True}
MEDIANS = {"short": 8, "bitext": 24, "long": 64}  # tokens per sentence; 24 is the median of real bitext
MICRO_BATCH = 64
RANKS = 2
TARGET = 20  # multiples of the fastest step


def generate(path: Path, pairs: int, tokens: float, seed: int = 0) -> None:
    """Writes a store of ``pairs`` pairs of random ids, one record batch at a time. Every pair has its own group.
    Lengths are log-normal with median ``tokens`` and sigma 0.5, from 1 to 126."""
    rng = np.random.default_rng(seed)

    def side(rows: int) -> pa.Array:
        lengths = np.rint(tokens * np.exp(SPREAD * rng.standard_normal(rows))).clip(1, LONGEST).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = rng.integers(5, VOCABULARY, offsets[-1], np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids), type=SCHEMA.field("a").type)

    with StoreWriter(path) as writer:
        for begin in range(0, pairs, ROWS_PER_BATCH):
            rows = min(ROWS_PER_BATCH, pairs - begin)
            groups, kind = np.arange(begin, begin + rows), np.zeros(rows, np.int16)
            columns = [side(rows), side(rows), pa.array(groups), pa.array(kind)]
            writer.add(pa.record_batch(columns, schema=SCHEMA))
        other = {"vocab_size": VOCABULARY, "max_tokens": LONGEST, "language_pairs": {"en-de": {}}}
        writer.finish({"special_ids": SPECIAL, **other})


def loader(store: Store, batch: int, rank: int = 0, world_size: int = 1) -> Batches:
    """The trainer's data path over a store."""
    micro = min(MICRO_BATCH, batch // world_size)
    sampler = Sampler(len(store), batch, DRAWS["seed"])
    return Batches(packing.packer_for(store, **DRAWS), sampler, micro, rank, world_size)


def assembled(batch: PairBatch) -> AssembledBatch:
    rows = (batch.a_tokens, batch.a_offsets, batch.b_tokens, batch.b_offsets, batch.pair_ids, batch.epochs)
    cls, sep, mask = (SPECIAL[name] for name in ("cls", "sep", "mask"))
    return assemble(*rows, batch.layout, cls=cls, sep=sep, mask=mask, vocab_size=VOCABULARY, **DRAWS)


# --- speed -----------------------------------------------------------------------------------------------------------


def loader_rows(folder: Path, pairs: int, sizes: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Measures each length and batch. The batches run alternately, and each step reads new pairs."""
    rows = []
    for name, tokens in MEDIANS.items():
        generate(folder / name, pairs, tokens)
        store = Store.open(folder / name)
        paths = {batch: loader(store, batch) for batch in sizes}
        times: dict[int, list[tuple[float, ...]]] = {batch: [] for batch in sizes}
        begin, step = time.perf_counter(), 0
        while step < 4 or time.perf_counter() - begin < seconds:
            for batch, path in paths.items():
                marks = [time.perf_counter()]
                path.sampler.draw(step)
                marks.append(time.perf_counter())
                batches = path(step)
                marks.append(time.perf_counter())
                for each in batches:
                    assembled(each)
                marks.append(time.perf_counter())
                if step > 0:  # the first one warms up
                    times[batch].append(tuple(np.diff(marks)))
            step += 1
        for batch, measured in times.items():
            draw, load, assembling = ([1e3 * x for x in part] for part in zip(*measured, strict=True))
            both = [x + y for x, y in zip(load, assembling, strict=True)]
            row = {"part": "loader", "sentences": name, "median_tokens": tokens, "batch": batch, "steps": len(load)}
            row |= {"pairs_per_s": 1e3 * batch / median(load), "assembled_pairs_per_s": 1e3 * batch / median(both)}
            rows.append(row | {"load_ms": median(load), "draw_ms": median(draw), "spread": spread(load)})
        del store, paths, path
        shutil.rmtree(folder / name)
    return rows


def resident(file: Path) -> float:
    """Returns the share of a file's pages that are in the page cache. Raises OSError if Linux does not report it."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        begin = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(begin), ctypes.c_size_t(len(mapped)), pages)
        del begin  # otherwise the mapping could not be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return float((np.array(pages, np.uint8) & 1).mean())


def cold_row(path: Path, batch: int, steps: int) -> dict[str, Any]:
    r"""Measures the loader's first steps on an open store whose pages were dropped from the page cache.

    Opening makes Linux read ahead a large part of the file within milliseconds, so the pages are dropped after opening,
    repeatedly while reads are in progress. ``resident``, ``resident_after``: the share of the file in the page cache at
    the first and after the last step; ``major_faults``: how often a step waited for the disk. Caches below the disk,
    such as those of a host, are not known.
    """
    batches = loader(Store.open(path), batch)
    for _ in range(20):
        with shard(path, 0).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        share = resident(shard(path, 0))
        if share < 0.02:
            break
        time.sleep(0.5)
    faults, begin = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, time.perf_counter()
    for step in range(steps):
        batches(step)
    passed = time.perf_counter() - begin
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    row = {"part": "cold", "sentences": "bitext", "median_tokens": MEDIANS["bitext"], "batch": batch, "steps": steps}
    row |= {"resident": share, "resident_after": resident(shard(path, 0)), "major_faults": faults / steps}
    return row | {"pairs_per_s": steps * batch / passed, "load_ms": 1e3 * passed / steps}


def ranks_row(path: Path, batch: int, world_size: int, steps: int) -> dict[str, Any]:
    """Measures the loader of one of many ranks, in CPU seconds of its thread. Every rank divides the complete global
    step (``batch`` pairs) and gathers its own part. The minimum of ``steps``, after one warm-up step."""
    batches = loader(Store.open(path), batch, 0, world_size)
    times = []
    for step in range(steps + 1):
        begin = time.thread_time()
        batches(step)
        times.append(time.thread_time() - begin)
    return {"part": "ranks", "batch": batch, "world_size": world_size, "cpu_ms": 1e3 * min(times[1:])}


# --- memory ----------------------------------------------------------------------------------------------------------


def private_memory() -> int:
    """Returns the bytes of this process that no file backs (RssAnon)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024


def rank_memory(to: Connection, path: Path, rank: int, batch: int, marks: Sequence[int]) -> None:
    """A rank: sends its private memory before it opens the store, and after each number of steps in the marks."""
    torch.set_num_threads(1)
    found = [private_memory()]
    batches = loader(Store.open(path), batch, rank, RANKS)
    for step in range(marks[-1]):
        for each in batches(step):
            assembled(each)
        if step + 1 in marks:
            found.append(private_memory())
    to.send(found)


def memory_by_steps(path: Path, batch: int, marks: Sequence[int]) -> list[int]:
    """Returns the private memory of :data:`RANKS` new processes together, in bytes: before they open the store, and
    after each number of steps in the marks (ascending). Each rank reads its part of every step of ``batch`` pairs.
    Raises EOFError if a process exits early."""
    spawn = multiprocessing.get_context("spawn")
    running = []
    for rank in range(RANKS):
        receive, send = spawn.Pipe(duplex=False)
        process = spawn.Process(target=rank_memory, args=(send, path, rank, batch, marks))
        process.start()
        send.close()  # so that the pipe closes when the process exits
        running.append((process, receive))
    found = [receive.recv() for _, receive in running]
    for process, _ in running:
        process.join()
    return [sum(column) for column in zip(*found, strict=True)]


def memory_row(path: Path, batch: int, marks: Sequence[int]) -> dict[str, Any]:
    begin, store = time.perf_counter(), Store.open(path)
    after = dict(zip([0, *marks], memory_by_steps(path, batch, marks), strict=True))
    row = {"part": "memory", "pairs": len(store), "store_bytes": shard(path, 0).stat().st_size, "batch": batch}
    return row | {"ranks": RANKS, "private_bytes": after, "seconds": time.perf_counter() - begin}


def sampler_row(pairs: int, batch: int, draws: int) -> dict[str, Any]:
    """Measures draws spread over an epoch: pairs/s, and the maximum bytes of a draw."""
    sampler = Sampler(pairs, batch, DRAWS["seed"])
    draws = min(draws, pairs // batch)  # no step twice
    steps = np.linspace(0, pairs // batch - 1, draws).astype(np.int64)
    times, drawn = [], []
    for step in steps.tolist():
        begin = time.perf_counter()
        drawn.append(sampler.draw(step)[0])
        times.append(1e3 * (time.perf_counter() - begin))
    tracemalloc.start()
    for step in steps[:: max(1, draws // 20)].tolist():
        sampler.draw(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = np.concatenate(drawn)
    if len(np.unique(rows)) < len(rows) or rows.min() < 0 or rows.max() >= pairs:
        raise RuntimeError(f"sampler: the draws of one epoch of {pairs:,} pairs are not distinct rows")
    row = {"part": "sampler", "pairs": pairs, "batch": batch, "draws": draws, "peak_bytes": peak}
    return row | {"pairs_per_s": 1e3 * batch / median(times), "draw_ms": median(times), "spread": spread(times)}


# --- main ------------------------------------------------------------------------------------------------------------


def fastest_step(file: Path) -> float:
    """Returns the largest ``pairs_per_s`` of the rows of benchmarks/step.py. Raises ValueError for an invalid file."""
    try:
        return max(float(row["pairs_per_s"]) for row in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected rows of benchmarks/step.py with pairs_per_s ({error!r})") from error


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns one line per row, by part, in 120 columns."""
    lines = [f"{'loader':<8}{'batch':>7}{'pairs/s':>12}{'+ assemble':>12}{'ms':>8}{'draw':>8}{'±%':>5}{'× step':>9}"]
    for row in (row for row in rows if row["part"] == "loader"):
        speeds = f"{row['pairs_per_s']:>12,.0f}{row['assembled_pairs_per_s']:>12,.0f}"
        times = f"{number(row['load_ms']):>8}{number(row['draw_ms']):>8}{100 * row['spread']:>5.0f}"
        ratio = number(row["times_step"]) if row["times_step"] else "–"
        lines.append(f"{row['sentences']:<8}{row['batch']:>7,}{speeds}{times}{ratio:>9}")
    for row in rows:
        match row["part"]:
            case "cold":
                lines.append(
                    f"cold, batch {row['batch']:,}: {row['pairs_per_s']:,.0f} pairs/s, "
                    f"{number(row['major_faults'])} waits for the disk a step, "
                    f"{100 * row['resident']:.0f} % of the file in the page cache at first"
                )
            case "memory":
                before, *after = ((n, f"{size / 1e6:.1f} MB") for n, size in row["private_bytes"].items())
                steps = ", ".join(f"{size} after {n:,}" for n, size in after)
                store = f"{row['pairs']:,} pairs ({row['store_bytes'] / 1e6:,.0f} MB)"
                lines.append(f"memory, {row['ranks']} ranks, {store}: {before[1]} before, {steps} steps")
            case "ranks":
                lines.append(
                    f"{row['world_size']} ranks, batch {row['batch']:,}: {number(row['cpu_ms'])} ms of CPU a rank"
                )
            case "sampler":
                lines.append(
                    f"sampler, {row['pairs']:,} pairs, batch {row['batch']:,}: {row['pairs_per_s']:,.0f} pairs/s, "
                    f"{row['peak_bytes'] / 1e6:.2f} MB at most"
                )
    return "\n".join(lines)


def targets(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the targets of the data path and the measured values."""
    facts = []
    ratios = {f"{row['sentences']}, batch {row['batch']:,}": row["times_step"] for row in rows if "times_step" in row}
    if all(ratios.values()):
        worst = min(ratios, key=lambda name: ratios[name])
        facts.append(f"loader: at least {number(ratios[worst])}× the fastest step ({worst}; target {TARGET}×)")
    small, large = (row for row in rows if row["part"] == "memory")
    first, *_, last = list(large["private_bytes"].values())[1:]
    more = last - list(small["private_bytes"].values())[-1]
    each = more / (large["pairs"] - small["pairs"]) / large["ranks"]
    facts.append(
        f"private memory: {more / 1e6:+.1f} MB for the larger store ({each:.2f} bytes per pair and rank), "
        f"{(last - first) / 1e6:+.1f} MB over its steps (target: +0)"
    )
    return "\n".join(facts)


def run(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Measures all parts and prints the progress; returns the rows."""
    begin = time.monotonic()

    def report(text: str) -> None:
        print(f"{time.monotonic() - begin:4.0f} s  {text}", flush=True)

    sizes, seconds = ([32, 128], 0.2) if quick else ([32, 256, 1024, 4096], 8.0)
    small, large = (2_000, 20_000) if quick else (100_000, 10_000_000)
    marks, batch = ((5, 20), 64) if quick else ((20, 200, 1000), 256)
    worlds = ((64, 4), (128, 8)) if quick else ((1024, 8), (8192, 64), (16_384, 64), (131_072, 512))
    report("loader")
    rows = loader_rows(folder, small if quick else 5 * small, sizes, seconds)
    for pairs in (small, large):
        report(f"generating {pairs:,} pairs")
        store = folder / f"store{pairs}"
        generate(store, pairs, MEDIANS["bitext"])
        if pairs == large:
            report("cold")
            rows.append(cold_row(store, batch, marks[0]))
        report("memory")
        rows.append(memory_row(store, batch, marks))
        if pairs == large:
            report("ranks")
            rows += [ranks_row(store, *sizes, steps=5) for sizes in worlds]
        shutil.rmtree(store)
    report("sampler")
    rows += [sampler_row(pairs, batch, 20 if quick else 1000) for pairs in (100_000, 10**10)]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of the data path: see the head of this file.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, a list")
    parser.add_argument("--step-json", type=Path, metavar="FILE", help="rows of benchmarks/step.py, to compare with")
    parser.add_argument("--folder", type=Path, help="where the stores are generated (default: a temporary folder)")
    parser.add_argument("--quick", action="store_true", help="small stores, few steps: does it run?")
    options = parser.parse_args(argv)
    fastest = None
    if options.step_json:
        try:
            fastest = fastest_step(options.step_json)
        except ValueError as error:
            parser.error(f"--step-json: {error}")
    torch.set_num_threads(1)
    about: dict[str, Any] = {
        "device_name": Cpu(quick=True).name,
        "threads": 1,
        "torch": torch.__version__,
        "commit": commit(ROOT),
    }
    about |= {"packer": "reference" if packing.WHY_NOT_NATIVE else "native", "step_pairs_per_s": fastest}
    print(f"{about['device_name']} · 1 thread · torch {torch.__version__} · commit {(about['commit'] or '?')[:12]}")
    if packing.WHY_NOT_NATIVE:
        print(f"the packer is the NumPy one: {packing.WHY_NOT_NATIVE}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = run(Path(folder), options.quick)
    for row in rows:
        if row["part"] == "loader":
            row["times_step"] = row["pairs_per_s"] / fastest if fastest else None
    rows = [row | about for row in rows]
    print(f"\n{table(rows)}\n\n{targets(rows)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
