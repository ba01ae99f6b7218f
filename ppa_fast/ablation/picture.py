"""The picture of an ablation's results, in SVG."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from ppa_fast.ablation.plan import BASELINE, ROWS
from ppa_fast.ablation.report import NOT_MEASURABLE, cell, columns_of

COLORS = {"english": "#b8bec8", "others": "#d9622b"}


def picture(results: dict[str, Any]) -> str:
    """An SVG: a block for each measurable evaluation, chance dashed; bars of its rows, with ± sd and seeds as dots."""
    evaluations = results["evaluations"]
    columns = columns_of(evaluations)
    blocks = {name: [figure for n, figure in columns if n == name] for name, _ in columns}
    left, full, bar, dark, light = 230, 470, 11, 'fill="#1f2430"', 'fill="#6a7280"'
    halo = 'stroke="#ffffff" stroke-width="4" paint-order="stroke"'
    parts, y = [], 84
    for name, figures in blocks.items():
        found = evaluations[name]
        heading = f"{name}: {found['metric']}, %"
        parts.append(f'<path d="M20 {y}h840" stroke="#e3e6eb"/>')
        parts.append(f'<text x="20" y="{y + 24}" font-size="14" font-weight="bold" {dark}>{escape(heading)}</text>')
        y += 38
        top = max(max(row[f]["seeds"]) for row in found["rows"].values() for f in figures if f in row)
        scale, first, labels = full / max(top, 1e-9), y, []
        for row, scores in found["rows"].items():
            parts.append(f'<text x="20" y="{y + 10}" {dark}>{escape(ROWS[row].title)}</text>')
            for figure in figures:
                score = scores[figure]
                middle, end = y + bar / 2, left + scale * score["mean"]
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="{bar}" fill="{COLORS[figure]}"/>'
                )
                if score["sd"] is not None:
                    reach = scale * score["sd"]
                    parts.append(f'<path d="M{end - reach:.1f} {middle}h{2 * reach:.1f}" stroke="#1f2430"/>')
                    dots = (f'<circle cx="{left + scale * v:.1f}" cy="{middle}" r="2" {dark}/>' for v in score["seeds"])
                    parts += dots
                furthest = left + scale * max(score["seeds"] + [score["mean"] + (score["sd"] or 0)])
                labels.append(f'<text x="{furthest + 8:.1f}" y="{y + 10}" {light} {halo}>{escape(cell(score))}</text>')
                y += bar + 3
            y += 6
        if "chance" in found:
            x = left + scale * found["chance"]
            parts.append(f'<path d="M{x:.1f} {first - 4}V{y - 4}" stroke="#1f2430" stroke-dasharray="3 3"/>')
        parts += labels  # over the line
        y += 10
    at, legend = left, []
    for figure, label in (("english", "English"), ("others", "mean over the other languages")):
        legend.append(f'<rect x="{at}" y="58" width="12" height="12" fill="{COLORS[figure]}"/>')
        legend.append(f'<text x="{at + 18}" y="68" {dark}>{label}</text>')
        at += 90
    hidden = [name for name, found in evaluations.items() if not found["measurable"]]
    foot = [
        f'<text x="20" y="{y + 16 * i}" {light}>{escape(name)}: {NOT_MEASURABLE}</text>'
        for i, name in enumerate(hidden, 1)
    ]
    height = y + 16 * len(foot) + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" width="880" height="{height}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="12">',
            f'<rect width="880" height="{height}" fill="#ffffff"/>',
            f'<text x="20" y="30" font-size="18" font-weight="bold" {dark}>Ablation of the alignment</text>',
            f'<text x="20" y="48" {light}>mean over seeds, line: ± sd, dots: seeds, dashed: chance in English; '
            f'in brackets: against "{ROWS[BASELINE].title}"</text>',
            *legend,
            *parts,
            *foot,
            "</svg>",
            "",
        ]
    )
