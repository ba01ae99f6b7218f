"""Shared fixtures: a small parallel corpus, its tokenizer, a tiny model and a store, created once per session."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ppa_fast.data.store.workers import available_cores

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads from a hub
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# For tiny models a second thread gains nothing, and a thread that spins while it waits occupies a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# fp32 products also on CPUs with fast bf16, so that a test has the same result on every machine.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
# Background processes of a shell ignore SIGINT, and so would the processes of the tests, which would then never exit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker per core that this process may use. xdist itself counts the cores of the machine."""
    return min(available_cores(), 8)


FIGURE = "figure of the summary"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds to a count that the summary at the end of the tests shows, if the test passes."""

    def add(name: str, count: int = 1) -> None:
        request.node.user_properties.append((FIGURE, (name, count)))

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the figures of docs/reliability.md: what the tests that passed have met."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", ()):
        for name, value in report.user_properties:
            if name == FIGURE and report.when == "call":
                counts[value[0]] += value[1]
    if counts:
        terminalreporter.section("reliability")
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:>8,} {name}")


@dataclass(frozen=True)
class Tiny:
    """Paths of the tiny corpus and of the files made from it."""

    pairs: list[str]
    tokenizer: Path
    model: Path
    store: Path


def pseudo_text(seed: int, lines: int) -> dict[str, list[str]]:
    """Line-parallel pseudo text in "en", "de", "fr". Each language has its own word for each of 60 meanings."""
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
    from ppa_fast.data.store.prepare import prepare
    from ppa_fast.data.store.wordpiece import train_wordpiece
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
    """Writes a DeepSpeed file for tests. ``sums``: the type in which 16-bit ZeRO sums the gradients. At stage 3 biases
    are not partitioned, and the weights are split into several sub-groups."""
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 100, "sub_group_size": 5000}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    values: dict[str, Any] = {"train_batch_size": batch, "zero_optimization": zero, "gradient_clipping": 1.0}
    values["bf16"] = {"enabled": bf16}  # stated, because a file without it may use bf16 products on some CPUs
    if micro is not None:
        values["train_micro_batch_size_per_gpu"] = micro
    if fp16:
        values["fp16"] = {"enabled": True, "loss_scale": 256}
    if (bf16 or fp16) and stage:
        values["data_types"] = {"grad_accum_dtype": sums}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
