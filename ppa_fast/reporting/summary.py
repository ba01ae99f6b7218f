"""A sentence about each run, and the table of key figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppa_fast.model.families import FAMILIES
from ppa_fast.reporting.run import Run, differing_settings
from ppa_fast.settings import objectives

LOSSES = {"loss": "total loss", "loss_tlm": "TLM loss", "loss_moco": "MoCo loss", "queue_top1": "MoCo top-1"}
LOSSES |= {"loss_symmetric": "symmetric loss", "in_batch_top1": "in-batch top-1"}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def sentence(run: Run) -> str:
    """Describes the model, data, objectives and hardware of a run in one sentence, as far as known."""
    settings, store, config = run.settings, run.store, run.config
    kind = config.get("model_type", "")
    family = FAMILIES[kind].name if kind in FAMILIES else kind
    size = ""
    if {"num_hidden_layers", "hidden_size", "vocab_size"} <= config.keys():
        size = f" ({config['num_hidden_layers']} layers × {config['hidden_size']}, vocabulary {config['vocab_size']:,})"
    text = f"The {family} encoder {settings['model']}{size}".replace("  ", " ")
    if pairs := store.get("pairs"):
        text += f", aligned with {sum(pairs.values()):,} sentence pairs of {_count(len(pairs), 'language pair')}"
        text += f" ({', '.join(store['languages'])})" if store.get("languages") else ""
    text += f" by {objectives(settings)}"
    if run.steps:
        text += f"; {_count(run.steps, 'step')}"
        text += f" of {_count(store['batch'], 'pair')}" if "batch" in store else ""
    last = run.metrics[-1] if run.metrics else {}
    if "device" in last:
        text += f" on {last['device']}"
    if last.get("world_size", 1) > 1:
        text += f" in {last['world_size']} ranks"
    if not run.steps or run.step < run.steps:
        text += f". The logs end at step {run.step:,}: the run is in progress or was stopped"
    return f"{text}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def at_a_glance(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The rows of the first table: a name and one value per run. With several runs, includes differing settings."""

    def line(name: str, values: list[str]) -> None:
        if any(values):
            lines.append((name, [value or "–" for value in values]))

    def figures(name: str, of: Any, form: str) -> None:
        values = [of(run) for run in runs]
        line(name, ["" if value is None else form.format(value) for value in values])

    lines: list[tuple[str, list[str]]] = []
    line("steps done", [f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "") for run in runs])
    before = [run.before_after() for run in runs]
    line("retrieval before", [_percent(both[0]["mean"]) if both else "" for both in before])
    sizes = [sum(pair["n"] for pair in run.evaluations[-1]["pairs"].values()) if run.evaluations else 0 for run in runs]
    line("evaluation pairs", [f"{size:,}" if size else "" for size in sizes])
    line("retrieval, last", [_percent(run.evaluations[-1]["mean"]) if run.evaluations else "" for run in runs])
    best = [max(run.evaluations, key=lambda record: record["mean"], default=None) for run in runs]
    if any(record and record is not run.evaluations[-1] for record, run in zip(best, runs, strict=True)):
        line("retrieval, best", [_percent(record["mean"]) if record else "" for record in best])
        line("best at step", [f"{record['step']:,}" if record else "" for record in best])
    for name, title in LOSSES.items():
        figures(title, lambda run, name=name: run.recent(name), "{:.3f}")
    figures("pairs/s (median)", lambda run: run.median("pairs_per_s"), "{:,.0f}")
    figures("tokens/s (median)", lambda run: run.median("tokens_per_s"), "{:,.0f}")
    figures("MFU (median)", lambda run: run.median("mfu"), "{:.1%}")
    figures("peak memory, rank 0", lambda run: run.recent("memory_gib"), "{:.2f} GiB")
    line("skipped steps", [f"{run.metrics[-1].get('skipped', 0):,}" if run.metrics else "" for run in runs])
    if len(runs) > 1:
        for name in differing_settings(list(runs)):
            line(name, [str(run.settings.get(name, "")) for run in runs])
    return lines
