"""Measures how fast text becomes a store, and whether memory grows with the text.

    python benchmarks/prepare.py [--pairs N] [--rounds N] [--memory-pairs N ...] [--workers N]
                                 [--text SPEC --tokenizer NAME] [--json FILE] [--folder DIR]

speed   pairs/s of ``prepare``, from the text files to the complete store, with loading the tokenizer and starting the
        processes; and of ``Tokenizer.encode_batch`` on the same texts in memory, without storing the ids, on the same
        number of cores. The two run alternately. Each round gives the ratio of the times, and the ratio of the CPU
        times, which depends less on other work on the machine.
memory  the largest private memory (RssAnon) of prepare and its processes together, on corpora of several sizes

The text consists of random words. It is written to DIR, and removed. Sentence lengths are log-normal with median 16
words; 20 million pairs take 6 GB, mostly for the store. SPEC is a ``--pairs`` argument; it also needs --tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit

WORDS, MEDIAN_WORDS, SPREAD = 20_000, 16, 0.5
BLOCK = 50_000  # generated pairs; larger corpora repeat them
ROOT = Path(__file__).resolve().parent.parent
TEXTS_A_CALL = 10_000  # per call of encode_batch, whose results take 100 MB
TARGET_RATIO, TARGET_BYTES = 0.85, 1.5e9

PREPARE = (
    "from ppa_fast.data.store.prepare import prepare; prepare([{spec!r}], {tokenizer!r}, {out!r}, workers={workers})"
)


def sentences(seed: int, count: int) -> list[str]:
    """Random words of 2 to 12 letters, with the frequencies of text (Zipf)."""
    rng = random.Random(seed)
    letters = "eeeettaaooiinnsshhrrddlucmfwygpbvkäöüé"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 12))) for _ in range(WORDS)]
    weights = [1 / (rank + 3) for rank in range(WORDS)]
    lengths = [max(1, round(MEDIAN_WORDS * math.exp(SPREAD * rng.gauss(0, 1)))) for _ in range(count)]
    drawn = iter(rng.choices(words, weights, k=sum(lengths)))
    return [" ".join(next(drawn) for _ in range(length)).capitalize() + "." for length in lengths]


def write_text(folder: Path, pairs: int, packed: bool) -> str:
    """Writes a corpus, compressed with gzip if ``packed``; returns its specification."""
    paths = [folder / f"text.{code}{'.gz' * packed}" for code in ("en", "de")]
    for seed, path in enumerate(paths):
        lines = [f"{line}\n".encode() for line in sentences(seed, min(pairs, BLOCK))]
        whole, rest = (
            gzip.compress(b"".join(part), 1) if packed else b"".join(part) for part in (lines, lines[: pairs % BLOCK])
        )
        with path.open("wb") as file:
            for _ in range(pairs // BLOCK):
                file.write(whole)
            file.write(rest)
    return f"en-de:{paths[0]},{paths[1]}"


def train_tokenizer(folder: Path) -> str:
    from ppa_fast.data.store.wordpiece import train_wordpiece

    for seed in (0, 1):
        (folder / f"vocabulary.{seed}").write_text("\n".join(sentences(seed, 5_000)), encoding="utf-8")
    train_wordpiece([folder / "vocabulary.0", folder / "vocabulary.1"], folder / "tokenizer")
    return str(folder / "tokenizer")


def speed_row(spec: str, tokenizer: str, folder: Path, workers: int, rounds: int) -> dict[str, Any]:
    from ppa_fast.data.reading.corpus import Pair, parse_pairs
    from ppa_fast.data.store.prepare import prepare
    from ppa_fast.data.store.tokenize import load_tokenizer

    pairs = [item for item in parse_pairs(spec).read() if isinstance(item, Pair)]
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    backend = load_tokenizer(tokenizer).backend_tokenizer

    def encode() -> None:
        for texts in sides:
            for first in range(0, len(texts), TEXTS_A_CALL):
                backend.encode_batch(texts[first : first + TEXTS_A_CALL], add_special_tokens=False)

    def prepared() -> None:
        prepare([spec], tokenizer, folder / "store", workers=workers)
        shutil.rmtree(folder / "store")

    backend.encode_batch(sides[0][:TEXTS_A_CALL])  # starts the threads
    times = np.array(
        [(*seconds(encode), *seconds(prepared)) for _ in range(rounds)]
    )  # wall, CPU (prepare); wall, CPU (encode_batch)
    rates, ratios = len(pairs) / np.median(times, 0), times[:, :2] / times[:, 2:]
    row = {"part": "speed", "pairs": len(pairs), "workers": workers, "rounds": rounds}
    row |= {"encode_batch_pairs_per_s": rates[0], "prepare_pairs_per_s": rates[2]}
    row |= {"ratio": np.median(ratios[:, 0]), "ratios": sorted(ratios[:, 0])}
    return row | {"cpu_ratio": np.median(ratios[:, 1]), "cpu_ratios": sorted(ratios[:, 1])}


def seconds(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds of a call by the wall clock, and CPU seconds of this process and of its finished child processes."""
    wall, before = time.perf_counter(), os.times()
    run()
    after = os.times()
    return time.perf_counter() - wall, sum(after[:4]) - sum(before[:4])


def private_bytes(root: int) -> int:
    """RssAnon of a process and all its descendants together."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = dict(line.split(":", 1) for line in (entry / "status").read_text("utf-8").splitlines())
            except (OSError, ValueError):  # the process has exited
                continue
            parents[int(entry.name)] = int(status["PPid"])
            sizes[int(entry.name)] = int(status.get("RssAnon", "0").split()[0]) * 1024
    found = {root}
    for _ in range(3):  # children, grandchildren
        found |= {process for process, parent in parents.items() if parent in found}
    return sum(sizes.get(process, 0) for process in found)


def memory_row(spec: str, tokenizer: str, folder: Path, workers: int, pairs: int) -> dict[str, Any]:
    begin, peak = time.perf_counter(), 0
    code = PREPARE.format(spec=spec, tokenizer=tokenizer, out=str(folder / "store"), workers=workers)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, private_bytes(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f"prepare ended with status {process.returncode}")
    size = sum(path.stat().st_size for path in (folder / "store").iterdir())
    shutil.rmtree(folder / "store")
    row = {"part": "memory", "pairs": pairs, "workers": workers, "private_bytes": peak, "store_bytes": size}
    return row | {"seconds": time.perf_counter() - begin}


def table(row: dict[str, Any]) -> str:
    if row["part"] == "speed":
        ratios = f"{row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f} in {row['rounds']} rounds"
        return (
            f"speed, {row['pairs']:,} pairs, {row['workers']} cores: encode_batch "
            f"{row['encode_batch_pairs_per_s']:,.0f} pairs/s, prepare {row['prepare_pairs_per_s']:,.0f} pairs/s, "
            f"ratio {row['ratio']:.2f} ({ratios}; target {TARGET_RATIO}), of the CPU time {row['cpu_ratio']:.2f}"
        )
    return (
        f"memory, {row['pairs']:,} pairs, {row['workers']} workers: {row['private_bytes'] / 1e6:,.0f} MB at most "
        f"(target {TARGET_BYTES / 1e6:,.0f}), {row['seconds']:,.0f} s, store {row['store_bytes'] / 1e6:,.0f} MB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000, metavar="N", help="for the speed; 0: leave it out")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--memory-pairs", type=int, nargs="*", default=[500_000, 2_000_000], metavar="N")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--text", metavar="SPEC", help="real text for the speed")
    parser.add_argument("--tokenizer", help="(default: one that is trained on random words)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="(default: a temporary one)")
    options = parser.parse_args(arguments)
    if options.text and not options.tokenizer:
        parser.error("--text: expected --tokenizer with it")
    os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(options.workers)}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        tokenizer = options.tokenizer or train_tokenizer(folder)
        if options.pairs:
            spec = options.text or write_text(folder, options.pairs, packed=False)
            rows.append(speed_row(spec, tokenizer, folder, options.workers, options.rounds))
        for pairs in options.memory_pairs:
            spec = write_text(folder, pairs, packed=True)
            rows.append(memory_row(spec, tokenizer, folder, options.workers, pairs))
    print("\n".join(map(table, rows)))
    if options.json:
        options.json.write_text(
            json.dumps([row | {"commit": commit(ROOT)} for row in rows], indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
