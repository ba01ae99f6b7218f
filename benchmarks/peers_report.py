"""Formats the results of peers.py: tables and a picture."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

SETS = {"held_out": "held-out rows", "tatoeba": "Tatoeba"}
Results = dict[str, dict[str, dict[str, Any]]]
"""The runs by competitor and seed."""


def time_to(points: list[dict[str, float]], name: str, score: float) -> float | None:
    """Seconds until P@1 on evaluation set ``name`` reaches ``score``, linear between points; None if it never does."""
    for before, after in pairwise(points):
        if after[name] >= score:
            share = (score - before[name]) / (after[name] - before[name]) if after[name] > before[name] else 0
            return before["seconds"] + max(0.0, share) * (after["seconds"] - before["seconds"])
    return None


def _best_peer(results: Results) -> dict[str, dict[str, Any]]:
    """The runs of the peer with the highest P@1 on held-out rows; empty without a peer."""
    peers = [runs for name, runs in results.items() if not name.startswith("ours")]
    return max(peers, key=lambda runs: median(run["points"][-1]["held_out"] for run in runs.values()), default={})


def _time_to_peer(runs: dict[str, dict[str, Any]], peer: dict[str, dict[str, Any]], name: str) -> str:
    """The time to the peer's final P@1 as a share of its time, and in parentheses without the store; seed by seed."""
    ratios = []
    for seed in runs.keys() & peer.keys():
        points, last = runs[seed]["points"], peer[seed]["points"][-1]
        reached = time_to(points, name, last[name])
        if reached is None:
            return "not reached"
        store = points[0]["seconds"]  # before the first step
        ratios.append((reached / last["seconds"], (reached - store) / last["seconds"]))
    if not ratios:
        return "–"
    whole, training = (f"{median(column):.2f}×" for column in zip(*ratios, strict=True))
    return whole if whole == training else f"{whole} ({training})"


def _spread(values: list[float], form: str) -> str:
    low, high = (format(f(values), form) for f in (min, max))
    middle = format(median(values), form)
    return middle if len(values) == 1 or low == high else f"{middle} ({low} to {high})"


def markdown(results: Results, speed: dict[str, Any]) -> str:
    """The tables: final scores and times to the best peer's final scores (in parentheses without the store), then speed
    and memory. Medians over the seeds, with the range."""
    lines = ["| trained by | P@1 held-out | P@1 Tatoeba | seconds | time to the best peer's P@1: held-out | Tatoeba |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    peer = _best_peer(results)
    for name, runs in results.items():
        last = [run["points"][-1] for run in runs.values()]
        cells = [_spread([point[key] for point in last], ".1f") for key in SETS]
        cells.append(_spread([point["seconds"] for point in last], ".0f"))
        cells += [_time_to_peer(runs, peer, key) for key in SETS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| trained by | pairs/s | peak memory, MiB |", "|---|---:|---:|"]
    for name, result in speed.items():
        lines.append(f"| {name} | {result['pairs_per_s']:.0f} | {result['peak_bytes'] / 2**20:.0f} |")
    first = next(iter(next(iter(results.values())).values()))["points"][0]
    told = ", ".join(f"{first[key]:.1f} on {title}" for key, title in SETS.items())
    return f"P@1 before training: {told}. Seeds: {max(map(len, results.values()))}.\n\n" + "\n".join(lines) + "\n"


def picture(results: Results, path: Path) -> None:
    """P@1 over seconds, a line a seed."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, (key, title) in zip(figure.subplots(1, 2), SETS.items(), strict=True):
        for number, (name, runs) in enumerate(results.items()):
            for index, run in enumerate(runs.values()):
                x, y = ([point[of] for point in run["points"]] for of in ("seconds", key))
                axes.plot(x, y, color=f"C{number}", marker=".", label=None if index else name)
        axes.set(title=title, xlabel="seconds of one core", ylabel="retrieval P@1, %")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path)


def report(folder: Path, setting: str) -> None:
    """Reads ``speed.json`` and ``seed-*.json`` of ``folder``; writes ``SETTING.md``, ``.svg`` and ``.json`` there."""
    speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    results: Results = {}
    for file in sorted(folder.glob("seed-*.json")):
        for name, run in json.loads(file.read_text(encoding="utf-8")).items():
            results.setdefault(name, {})[file.stem.removeprefix("seed-")] = run
    if not results:
        return
    (folder / f"{setting}.json").write_text(json.dumps({"speed": speed, "runs": results}, indent=1), encoding="utf-8")
    table = markdown(results, speed)
    (folder / f"{setting}.md").write_text(table, encoding="utf-8")
    picture(results, folder / f"{setting}.svg")
    print(f"\n{table}\n{folder / setting}.md, .json, .svg")
