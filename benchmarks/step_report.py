"""Formats the results of step.py: a table, a table of parts, the targets, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from report import heading as machine
from report import number
from steps import PARTS

Row = dict[str, Any]

COLUMNS = (
    ("step", "ms", 8),
    ("±", "%", 4),
    ("pairs", "/s", 8),
    ("tokens", "/s", 9),
    ("flop", "T", 7),
    ("MFU", "%", 6),
    ("peak", "GB", 6),
    ("naive", "×", 6),
    ("plain", "×", 6),
    ("error", "", 7),
)
COLORS = ("#7d9cc4", "#9fb8a3", "#4f7cac", "#d9622b", "#c9a227", "#38527a", "#8b6fae", "#b8bec8")  # as PARTS
UNKNOWN = "#6a7280"


def heading(about: Row) -> str:
    """Describes the measurement and the machine."""
    rates = ", ".join(f"{name} {rate / 1e12:,.3g}" for name, rate in about["measured_rates"].items())
    source = "as its vendor states" if about["ceiling_stated"] else "the highest measured"
    return (
        f"{machine(about)}\n"
        f"{about['model']}, {about['pairs']} pairs, K = {about['queue']:,}; {about['lengths']}\n"
        f"matrix products, TFLOP/s: {rates}; MFU is of {about['ceiling'] / 1e12:,.3g}, {source}"
    )


def table(rows: Sequence[Row]) -> str:
    """Returns one line per row in 100 columns."""
    lines = [_line("", [name for name, _, _ in COLUMNS]), _line("", [unit for _, unit, _ in COLUMNS])]
    lines.append("─" * len(lines[0]))
    for row in rows:
        done = row["performed_flop"]
        values = [row["step_ms"], row["spread"] and 100 * row["spread"], row["pairs_per_s"], row["tokens_per_s"]]
        values += [done and done / 1e12, row["mfu"] and 100 * row["mfu"]]
        values += [row["peak_bytes"] and row["peak_bytes"] / 1e9, row["speedup"], row["over_plain"]]
        error = "–" if row["error"] is None else f"{row['error']:.0e}"
        lines.append(_line(row["name"], [*map(_rounded, values), error]))
    return "\n".join(lines)


def _rounded(value: float | None) -> str:
    return f"{value:,.0f}" if value and value >= 100 else number(value)


def _line(name: str, cells: Sequence[str]) -> str:
    padded = (f"{cell:>{width}}" for cell, (_, _, width) in zip(cells, COLUMNS, strict=True))
    return f"{name:<16}" + " ".join(padded)


def shares(rows: Sequence[Row]) -> str:
    """Returns the parts of each row's step in % of it; the rest is the time between the parts."""
    lines = [f"{'% of the step':<16}" + " ".join(f"{part:>13}" for part in PARTS)]
    for row in rows:
        if row["parts_ms"]:
            cells = (f"{100 * row['parts_ms'][part] / row['step_ms']:>13.1f}" for part in PARTS)
            lines.append(f"{row['name']:<16}" + " ".join(cells))
    return "\n".join(lines)


def targets(rows: Sequence[Row]) -> str:
    """Returns the targets of the trainer's step and the measured values, one line per row."""
    # Users run this row, even if another row is faster.
    return "\n".join(_facts(row) for row in rows if row["micro_batch"] and row["step_ms"])


def _facts(row: Row) -> str:
    naive, plain = {"small": (5, 2), "mbert-base": (8, 1.5), "xlmr-base": (None, 2)}.get(row["model"], (None, None))
    said = []
    for key, against, target in (("speedup", "naive", naive), ("over_plain", "strongest plain", plain)):
        if row[key]:
            said.append(f"{row[key]:.2f} times the {against} step" + (f" (target {target})" if target else ""))
    if row["device"] == "cuda" and (pairs := {"mbert-base": 7000, "xlmr-base": 5000}.get(row["model"])):
        said.append(f"{row['pairs_per_s']:,.0f} pairs/s (target {pairs:,})")
        said.append(f"MFU {100 * row['mfu']:.1f} % (target 40)")
    if row["overhead"] is not None:
        target = " (target 3)" if row["device"] == "cuda" else ""
        said.append(f"{100 * row['overhead']:+.1f} % of the step without DeepSpeed{target}")
    return f"the trainer's step, micro-batch {row['micro_batch']}: " + "; ".join(said)


def compared(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of one model from several runs. Ratios that a run lacks are computed between runs, from the
    median times of the steps."""
    times = {row["name"]: row["step_ms"] for row in rows if row["step_ms"]}
    out = []
    for row in rows:
        mine, added = row["step_ms"], {}
        if mine:
            for key, name in (("speedup", "naive"), ("over_plain", "strongest plain")):
                if row[key] is None and name in times:
                    added[key] = times[name] / mine
        out.append(row | added)
    return out


def picture(rows: Sequence[Row]) -> str:
    """Returns an SVG: one bar per row, as long as its step, in the colours of its parts."""
    rows = [row for row in rows if row["step_ms"]]
    left, full, top, pitch = 150, 560, 96, 40
    height = top + pitch * len(rows) + 60
    dark, light = 'fill="#1f2430"', 'fill="#6a7280"'
    title, about = (heading(rows[0]).splitlines()[i] for i in (0, 1)) if rows else ("", "")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" width="880" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="880" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="30" font-size="18" font-weight="bold" {dark}>Time of a training step, by part</text>',
        f'<text x="20" y="50" {light}>{escape(title)}</text>',
        f'<text x="20" y="68" {light}>{escape(about)}</text>',
    ]
    scale = full / max((row["step_ms"] for row in rows), default=1.0)
    for i, row in enumerate(rows):
        y, x = top + pitch * i, float(left)
        parts.append(f'<text x="20" y="{y + 16}" font-weight="bold" {dark}>{escape(row["name"])}</text>')
        width = scale * row["step_ms"]
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="24" fill="{UNKNOWN}"/>')
        for part, color in zip(PARTS, COLORS, strict=True):
            length = scale * row["parts_ms"].get(part, 0.0)
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="24" fill="{color}"/>')
            x += length
        said = f"{_rounded(row['step_ms'])} ms" + (f" · {row['speedup']:.1f}×" if row["speedup"] else "")
        parts.append(f'<text x="{left + width + 8:.1f}" y="{y + 16}" {dark}>{said}</text>')
    at, y = 20, height - 40
    for part, color in [*zip(PARTS, COLORS, strict=True), ("not told apart", UNKNOWN)]:
        parts.append(f'<rect x="{at}" y="{y}" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{at + 16}" y="{y + 10}" font-size="11" {dark}>{part}</text>')
        at += 32 + round(5.6 * len(part))
    parts.append(f'<text x="20" y="{height - 10}" {light}>×: the naive step over this one, median over rounds.</text>')
    return "\n".join([*parts, "</svg>", ""])
