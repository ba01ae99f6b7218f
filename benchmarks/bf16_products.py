"""Compares training with bf16 and with fp32 matrix products: loss curves on real text, and their spread over seeds.

    python benchmarks/bf16_products.py DATA_DIR [--out runs/bf16_products] [--steps 300] [--seeds 3] [--json FILE]

DATA_DIR and the model are those of real_text.py; the settings are the paper's recipe. Each seed is trained with fp32
and with bf16 products. This works on any CPU; without AMX or AVX512-BF16, bf16 products are slow, but the results are
the same. Interrupted runs are resumed. The figures are mean losses of each sixth of the steps: bf16 minus fp32 with the
same seed, and the standard deviation of fp32 over the seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import torch
from measuring import exit_status
from real_text import SIZES, find_data, random_encoder, split_all, tokenizer_files, write_pairs

from ppa_fast.data.store.prepare import prepare
from ppa_fast.settings import Settings
from ppa_fast.training.json_lines import read_lines
from ppa_fast.training.trainer import train

PARTS = 6
# Keys of random weights drift fast at first: with momentum 0.9 the contrast learned to tell new keys from old ones, not
# translations from other sentences.
SETTINGS: dict[str, Any] = {"pooling": "mean", "learning_rate": 1.5e-3, "queue_size": 1024, "momentum": 0.995}
LOSSES = ("loss", "loss_tlm", "loss_moco")


def make(data: Path, out: Path) -> None:
    """Creates text, tokenizer, model and store of real_text.py in ``out``; existing ones are kept."""
    text = out / "text"
    text.mkdir(parents=True, exist_ok=True)
    nli, _ = find_data(data)
    specs = {code: write_pairs(text, "train", code, s.train) for code, s in split_all(nli, SIZES["rows"]).items()}
    random_encoder(out / "model", tokenizer_files(text, specs))
    if not (out / "store" / "manifest.json").is_file():
        prepare(list(specs.values()), str(out / "tokenizer"), out / "store", max_tokens=SIZES["max-tokens"])


def curve(out: Path, seed: int, steps: int, bf16: bool) -> dict[str, list[float]]:
    """Returns the mean losses of each part of the steps of one run, which is trained or resumed."""
    name = f"{'bf16' if bf16 else 'fp32'}-{seed}"
    config = {"train_batch_size": 128, "gradient_clipping": 1.0, "zero_optimization": {"stage": 0}}
    path = out / f"{name}.json"
    path.write_text(json.dumps(config if bf16 else config | {"bf16": {"enabled": False}}), encoding="utf-8")
    settings = Settings(
        model=str(out / "model"),
        data=[str(out / "store")],
        output=str(out / name),
        deepspeed_config=str(path),
        seed=seed,
        steps=steps,
        log_every=1,
        save_every=50,
        keep=1,
        **SETTINGS,
    )
    with mock.patch("ppa_fast.training.preflight.has_fast_bf16", return_value=True):
        train(settings)
    lines, size = read_lines(out / name / "metrics.jsonl"), steps // PARTS
    return {key: [mean(line[key] for line in lines[i * size : (i + 1) * size]) for i in range(PARTS)] for key in LOSSES}


def compare(curves: dict[str, list[dict[str, list[float]]]]) -> list[dict[str, Any]]:
    """Returns a row for each loss and part of the steps."""
    rows = []
    for key in LOSSES:
        for part in range(PARTS):
            fp32, bf16 = ([c[key][part] for c in curves[name]] for name in ("fp32", "bf16"))
            row = {"loss": key, "part": part + 1, "fp32": mean(fp32), "sd_over_seeds": stdev(fp32)}
            rows.append(row | {"bf16_minus_fp32": [b - f for f, b in zip(fp32, bf16, strict=True)]})
    return rows


def run(options: argparse.Namespace) -> None:
    """Trains or resumes all runs, and prints and writes the comparison; raises UserError for invalid input."""
    make(options.data, options.out)
    curves = {
        name: [curve(options.out, seed, options.steps, name == "bf16") for seed in range(options.seeds)]
        for name in ("fp32", "bf16")
    }
    rows = compare(curves)
    print(f"{'loss':<10} {'steps':>9} {'fp32':>8} {'sd of seeds':>12}  bf16 - fp32, by seed")
    for row in rows:
        size = options.steps // PARTS
        steps = f"{(row['part'] - 1) * size + 1}-{row['part'] * size}"
        differences = " ".join(f"{each:+.4f}" for each in row["bf16_minus_fp32"])
        print(f"{row['loss']:<10} {steps:>9} {row['fp32']:>8.4f} {row['sd_over_seeds']:>12.4f}  {differences}")
    if options.json:
        options.json.write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status, 2 for invalid input."""
    parser = argparse.ArgumentParser(description="bf16 products against fp32: see the head of this file.")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder that holds nli/ and tatoeba/")
    parser.add_argument("--out", type=Path, default=Path("runs/bf16_products"))
    parser.add_argument("--steps", type=int, default=300, help="a multiple of 6 (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="two at least (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(argv)
    if options.seeds < 2 or options.steps < PARTS or options.steps % PARTS:
        parser.error(f"found {options.seeds} seeds and {options.steps} steps, expected 2 or more and a multiple of 6")
    torch.set_num_threads(1)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
