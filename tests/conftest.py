"""Shared fixtures: a small parallel corpus, its tokenizer, a tiny model and store, made once a session."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ppa_fast.data.workers import available_cores

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from a hub
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Tiny models: a second thread gains nothing, and beside another process one that spins while it waits costs a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start: a wait without end.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A worker a core that this process may use: xdist by itself counts those of the machine, and whole ones only."""
    return min(available_cores(), 8)


@dataclass(frozen=True)
class Tiny:
    """Paths of the tiny corpus and what was made of it."""

    pairs: list[str]
    tokenizer: Path
    model: Path
    store: Path


def pseudo_text(seed: int, lines: int) -> dict[str, list[str]]:
    """Line-parallel pseudo text in "en", "de", "fr": each language has its own word for each of 60 meanings."""
    rng = random.Random(seed)
    syllables = {"en": "ka lo mi ne pu", "de": "schu fra gel bro wit", "fr": "eau lle que ais oir"}
    words = {
        code: [
            f"{rng.choice(parts.split())}{rng.choice(parts.split())}{i:02d}"[:-2] + chr(97 + i % 26) for i in range(60)
        ]
        for code, parts in syllables.items()
    }
    sentences = [[rng.randrange(60) for _ in range(rng.randint(1, 14))] for _ in range(lines)]
    return {code: [" ".join(words[code][m] for m in s) for s in sentences] for code in words}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    from ppa_fast.data.prepare import prepare
    from ppa_fast.data.wordpiece import train_wordpiece
    from ppa_fast.model.initialise import init_model

    folder = tmp_path_factory.mktemp("tiny")
    files = {}
    for code, lines in pseudo_text(0, 150).items():
        files[code] = folder / f"train.{code}"
        files[code].write_text("\n".join(lines) + "\n", encoding="utf-8")
    pairs = [f"en-de:{files['en']},{files['de']}", f"fr-en:{files['fr']},{files['en']}"]
    train_wordpiece(list(files.values()), folder / "tokenizer", vocab_size=200)
    init_model(folder / "model", str(folder / "tokenizer"), layers=2, hidden=32, heads=2, max_positions=64, seed=1)
    prepare(pairs, str(folder / "tokenizer"), folder / "store", max_tokens=30)
    return Tiny(pairs, folder / "tokenizer", folder / "model", folder / "store")


def write_config(
    path: Path,
    batch: int = 16,
    micro: int | None = None,
    stage: int = 0,
    bf16: bool = False,
    fp16: bool = False,
    offload: bool = False,
    sums: str = "fp32",
) -> Path:
    """A DeepSpeed file for tests; ``sums``: the type of the gradients' sums under ZeRO in 16 bits.

    At stage 3 biases stay whole, and the weights are cut in several sub-groups.
    """
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 100, "sub_group_size": 5000}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    values: dict[str, Any] = {"train_batch_size": batch, "zero_optimization": zero, "gradient_clipping": 1.0}
    if micro is not None:
        values["train_micro_batch_size_per_gpu"] = micro
    if bf16 or fp16:
        values["bf16" if bf16 else "fp16"] = {"enabled": True} if bf16 else {"enabled": True, "loss_scale": 256}
        if stage:
            values["data_types"] = {"grad_accum_dtype": sums}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
