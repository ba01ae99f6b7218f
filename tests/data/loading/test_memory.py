"""Memory of the data path: rows stay in the file, steps are not kept, and no permutation is stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ppa_fast.data.store.store import SCHEMA, StoreWriter, shard

SMALL, LARGE, CHUNK = 10_000, 1_000_000, 100_000
BATCH = 4096
STEPS = 244  # an epoch of the large store
LIMIT = 4 << 20  # a permutation of its rows would take 8 MB, the rows 64 MB

# Reads the store in a new process; prints its private memory (RssAnon) before opening, after 20 steps, and at the end.
READ = """
import json, sys
import pyarrow as pa
import torch
from ppa_fast.data.loading.batching import Batches
from ppa_fast.data.loading.packing import packer_for
from ppa_fast.data.loading.sampler import Sampler
from ppa_fast.data.store.store import Store

def private():
    lines = open("/proc/self/status", encoding="ascii").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024

path, batch, steps, keep = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "keep"
torch.set_num_threads(1)
pa.array([0]).to_numpy()  # imports pandas, where it is installed: 26 MB
found, kept = [private()], []
store = Store.open(path)
packer = packer_for(store, seed=3, mask_probability=0.15, input_shuffling=True)
batches = Batches(packer, Sampler(len(store), batch, 3), 512, 0, 1)
for step in range(steps):
    read = batches(step)
    if keep:
        kept.append(read)
    if step + 1 in (20, steps):
        found.append(private())
print(json.dumps(found))
"""


def write_store(path: Path, pairs: int) -> Path:
    """A store of pairs with four tokens per side."""
    with StoreWriter(path) as writer:
        for begin in range(0, pairs, CHUNK):
            rows = min(CHUNK, pairs - begin)
            ids = pa.array(np.arange(4 * rows, dtype=np.int32) % 90 + 5)
            side = pa.ListArray.from_arrays(
                pa.array(np.arange(rows + 1, dtype=np.int32) * 4), ids, SCHEMA.field("a").type
            )
            columns = [side, side, pa.array(np.arange(begin, begin + rows)), pa.array(np.zeros(rows, np.int16))]
            writer.add(pa.record_batch(columns, schema=SCHEMA))
        special = {"cls": 2, "sep": 3, "mask": 4, "pad": 0}
        writer.finish({"special_ids": special, "vocab_size": 100, "max_tokens": 126, "language_pairs": {}})
    return path


def private_memory(store: Path, steps: int, keep: str = "") -> list[int]:
    """Returns the private memory in bytes, minus that before opening the store: after 20 steps, and at the end."""
    command = [sys.executable, "-c", READ, str(store), str(BATCH), str(steps), keep]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, *after = json.loads(done.stdout)
    return [size - before for size in after]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc: private memory is not known")
    folder = tmp_path_factory.mktemp("stores")
    return write_store(folder / "small", SMALL), write_store(folder / "large", LARGE)


def test_private_memory_does_not_grow_with_the_store_or_over_an_epoch(stores: tuple[Path, Path]) -> None:
    small, large = (private_memory(store, STEPS) for store in stores)
    assert shard(stores[1], 0).stat().st_size > 10 * LIMIT
    assert large[-1] - small[-1] < LIMIT
    assert large[-1] - large[0] < LIMIT
    assert large[-1] < 4 * LIMIT  # the initial memory is small too: a step takes 0.5 MB


def test_the_measure_detects_kept_steps(stores: tuple[Path, Path]) -> None:
    """A loader that keeps its steps, 0.3 MB each, fails the test above within 60 steps."""
    early, late = private_memory(stores[1], 60, "keep")
    assert late - early > LIMIT
