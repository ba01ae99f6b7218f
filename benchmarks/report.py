"""Formats the results of kernels.py: a table, the targets, a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

Row = dict[str, Any]

COLUMNS = (
    ("floor", "ms", 7),
    ("eager", "ms", 7),
    ("compile", "ms", 7),
    ("ours", "ms", 7),
    ("±", "%", 3),
    ("eager", "/ours", 6),
    ("comp.", "/ours", 6),
    ("floor", "%", 5),
    ("peak", "MB", 7),
    ("error", "", 6),
)
COLORS = {"eager": "#b8bec8", "compile": "#7d9cc4", "ours": "#d9622b"}
LABELS = {"eager": "eager", "compile": "torch.compile", "ours": "ours"}
FOOT = "eager: PyTorch; for assemble transformers' collators, for pack NumPy. ×: times ours, median over the rounds."


def heading(about: Row) -> str:
    """The machine, torch and the commit."""
    threads = f" · {about['threads']} threads" if about["device"] == "cpu" else ""
    return f"{about['device_name']}{threads} · torch {about['torch']} · commit {(about['commit'] or 'unknown')[:12]}"


def ceilings(about: Row) -> str:
    """The measured rates of a copy and of a large matrix product."""
    measured = about["ceilings"]
    products = ", ".join(f"{name} {rate / 1e12:,.3g} TFLOP/s" for name, rate in measured["flop_per_s"].items())
    return f"ceilings: bandwidth {measured['bytes_per_s'] / 1e9:,.0f} GB/s; matrix product {products}"


def number(value: float | None) -> str:
    """Three significant digits without an exponent; "–" for None."""
    if value is None:
        return "–"
    places = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, min(places, 5))}f}"


def table(rows: Sequence[Row]) -> str:
    """Returns two lines per row, with cold and with warm caches, in 120 columns."""

    def line(names: Sequence[str], cells: Sequence[str]) -> str:
        left = f"{names[0]:<14} {names[1]:<28} {names[2]:<5}"
        right = (f"{cell:>{width}}" for cell, (_, _, width) in zip(cells, COLUMNS, strict=True))
        return " ".join([left, *right]).rstrip()

    head = line(["op", "shape", "dtype"], [name for name, _, _ in COLUMNS])
    lines = [head, line(["", "", ""], [unit for _, unit, _ in COLUMNS]), "─" * len(head)]
    for row in rows:
        times = [number(row[f"{name}_ms"]) for name in ("floor", *LABELS)]
        ratios = [number(row["ratio"].get(name)) for name in ("eager", "compile")]
        spread = number(100 * row["spread"]["ours"]).split(".")[0] if row["ours_ms"] else "–"
        floor = f"{100 * row['floor_ms'] / row['ours_ms']:.0f}" if row["ours_ms"] else "–"
        peak = "–" if row["peak_bytes"] is None else number(row["peak_bytes"] / 1e6)
        error = "–" if row["error"] is None else f"{row['error']:.0e}" if row["error"] else "0"
        lines.append(line([row["op"], row["shape"], row["dtype"]], [*times, spread, *ratios, floor, peak, error]))
        warm = [number(row["warm_ms"].get(name)) for name in LABELS]
        ratios = [number(row["warm_ratio"].get(name)) for name in ("eager", "compile")]
        lines.append(line(["", "  warm", ""], ["", *warm, "", *ratios, "", "", ""]))
    return "\n".join(lines)


def notes(rows: Sequence[Row]) -> str:
    """Returns the notes of the rows, each once."""
    said = dict.fromkeys(f"{row['op']}: {note}" for row in rows for note in row["notes"])
    return "\n".join(textwrap.fill(note, 120, subsequent_indent="  ") for note in said)


def targets(rows: Sequence[Row]) -> str:
    """Returns the targets of the operations and the measured values, if measured."""
    return "\n".join(f"{row['op']} {row['shape']}: {fact}" for row in rows if row["ours_ms"] for fact in _facts(row))


def _facts(row: Row) -> list[str]:
    cuda, wide = row["device"] == "cuda", "D=128" not in row["shape"]
    eager, compiled = (number(row["ratio"].get(name)) for name in ("eager", "compile"))
    floor = 100 * row["floor_ms"] / row["ours_ms"]
    match row["op"]:
        case "assemble" if cuda:
            return [f"{1e3 * row['ours_ms']:.1f} µs{_graph_time(row)} (target at most 10 µs at 1,024 pairs)"]
        case "assemble":
            return [f"{eager}× the collators (target 20× at 256 pairs)"]
        case "infonce":
            peaks = [number(x and x / 1e6) for x in (row["peak_bytes"], row["smaller_peak_bytes"])]
            memory = f"{peaks[0]} MB of extra memory, {peaks[1]} MB at a quarter of K (target: does not grow with K)"
            if not cuda:
                return [f"{eager}× eager (target 1×: no slower)", memory]
            speed = f"{eager}× eager (target {2 if wide else 3}×), {compiled}× torch.compile"
            speed += "" if wide else " (target 1.5×)"
            return [speed, f"{100 / floor:.2f} times the floor (target at most 2)", memory]
        case "ema_":
            bandwidth = f"{floor:.0f} % of the bandwidth"
            return [f"{bandwidth} (target 85 %)" if cuda else f"{eager}× _foreach_lerp_ and the copy (target 1.2×)"]
        case "masked_lm_loss" if "logits" in row["shape"] and cuda:
            return [f"{floor:.0f} % of the bandwidth (target 80 %)"]
        case "pack":
            return [f"{row['pairs_per_s']:,.0f} pairs/s a core (target 200,000)"]
    return []


def _graph_time(row: Row) -> str:
    return f", {1e3 * row['replayed_ms']:.1f} µs in a CUDA graph" if row["replayed_ms"] else ""


def picture(rows: Sequence[Row], title: str) -> str:
    """Returns an SVG: for each row one bar per competitor, the longest one at full width, and the floor as a line."""
    rows = [row for row in rows if row["floor_ms"]]  # without rows that failed before the measurement
    left, full, bar, group, top = 270, 400, 16, 68, 84
    height = top + group * len(rows) + 40
    dark, light = 'fill="#1f2430"', 'fill="#6a7280"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" width="880" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="880" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="30" font-size="18" font-weight="bold" {dark}>Time of a call, caches cold</text>',
        f'<text x="20" y="50" {light}>{escape(title)}</text>',
    ]
    at = left
    for name, label in LABELS.items():
        parts.append(f'<rect x="{at}" y="62" width="12" height="12" fill="{COLORS[name]}"/>')
        parts.append(f'<text x="{at + 18}" y="72" {dark}>{label}</text>')
        at += 42 + 7 * len(label)
    parts.append(f'<path d="M{at} 60v16" stroke="#1f2430" stroke-width="2"/>')
    parts.append(f'<text x="{at + 9}" y="72" {dark}>floor</text>')
    for i, row in enumerate(rows):
        y = top + group * i
        times = {name: row[f"{name}_ms"] for name in LABELS if row[f"{name}_ms"]}
        scale = full / max([row["floor_ms"], *times.values()])
        parts.append(f'<path d="M20 {y}h840" stroke="#e3e6eb"/>')
        parts.append(f'<text x="20" y="{y + 28}" font-size="14" font-weight="bold" {dark}>{row["op"]}</text>')
        parts.append(f'<text x="20" y="{y + 46}" {light}>{escape(row["shape"])} {row["dtype"]}</text>')
        x = left + scale * row["floor_ms"]
        for j, name in enumerate(LABELS):
            begin = y + 8 + (bar + 2) * j
            width = max(1.0, scale * times[name]) if name in times else 0.0
            label = f"{number(times[name])} ms" if name in times else "not measured"
            if name != "ours" and name in row["ratio"]:
                label += f" · {number(row['ratio'][name])}×"
            style = light if name != "ours" else f'{dark} font-weight="bold"'
            after = (
                left + width + (14 if 0 <= x - left - width < 10 else 8)
            )  # so that the line of the floor does not cover it
            parts.append(f'<rect x="{left}" y="{begin}" width="{width:.1f}" height="{bar}" fill="{COLORS[name]}"/>')
            parts.append(f'<text x="{after:.1f}" y="{begin + 12}" {style}>{label}</text>')
        parts.append(f'<path d="M{x:.1f} {y + 5}v{3 * bar + 10}" stroke="#1f2430" stroke-width="2"/>')
    parts.append(
        f'<path d="M20 {height - 40}h840" stroke="#e3e6eb"/><text x="20" y="{height - 16}" {light}>{FOOT}</text>'
    )
    return "\n".join([*parts, "</svg>", ""])
