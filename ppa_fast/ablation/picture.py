"""An SVG chart of an ablation's results."""

from __future__ import annotations

import io
from typing import Any

from ppa_fast.ablation.plan import BASELINE, ROWS
from ppa_fast.ablation.report import NOT_MEASURABLE, cell, columns_of
from ppa_fast.errors import needs_extra

with needs_extra("report"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

COLORS = {"english": "#b8bec8", "others": "#d9622b"}
LABELS = {"english": "English", "others": "mean over the other languages"}
BASE, BAR = ROWS[BASELINE].title, 0.4
DARK, LIGHT = "#1f2430", "#6a7280"
STYLE: Any = {
    "svg.fonttype": "none",  # keep text as text
    "svg.hashsalt": "ablation",  # reproducible output
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "ytick.major.size": 0,
    "text.parse_math": False,  # names contain file names
}


def picture(results: dict[str, Any]) -> str:
    """The figure of :func:`draw` as an SVG document."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        draw(results).savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def draw(results: dict[str, Any]) -> Figure:
    """Draws one chart per measurable evaluation: a bar per row with ± sd, dots for seeds, a dashed line for chance."""
    evaluations = results["evaluations"]
    blocks: dict[str, list[str]] = {}
    for name, column in columns_of(evaluations):
        blocks.setdefault(name, []).append(column)
    hidden = [f"{name}: {NOT_MEASURABLE}" for name, found in evaluations.items() if not found["measurable"]]
    heights = [len(evaluations[name]["rows"]) * (len(columns) + 0.2) for name, columns in blocks.items()]
    figure = Figure(figsize=(9, 1.2 + 0.17 * sum(heights) + 0.6 * len(heights)), layout="constrained")
    about = f'mean over seeds, line: ± sd, dots: seeds, dashed: chance in English; in brackets: against "{BASE}"'
    figure.suptitle(f"Ablation of the alignment\n{about}", ha="left", x=0.01, fontsize=10)
    figure.supxlabel("\n".join(hidden), ha="left", x=0.01, fontsize=9, color=LIGHT)
    handles = [Patch(color=COLORS[column], label=LABELS[column]) for column in COLORS]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False)
    grid = figure.subplots(max(1, len(blocks)), 1, squeeze=False, height_ratios=heights or None)
    for axes, (name, columns) in zip(grid[:, 0], blocks.items(), strict=False):
        found = evaluations[name]
        axes.set_title(f"{name}: {found['metric']}, %", loc="left", fontweight="bold", fontsize=9)
        for number, scores in enumerate(found["rows"].values()):
            for place, column in enumerate(columns):
                y = number + (place - (len(columns) - 1) / 2) * BAR
                _bar(axes, y, scores[column], COLORS[column])
        axes.set_yticks(range(len(found["rows"])), [ROWS[row].title for row in found["rows"]])
        axes.set_ylim(len(found["rows"]) - 0.5, -0.5)
        if "chance" in found:
            axes.axvline(found["chance"], color=DARK, linewidth=1, linestyle=(0, (3, 3)))
    return figure


def _bar(axes: Axes, y: float, score: dict[str, Any], color: str) -> None:
    """Draws a mean with its standard deviation, its seeds and a label."""
    axes.barh(y, score["mean"], 0.9 * BAR, color=color)
    if score["sd"] is not None:
        axes.errorbar(score["mean"], y, xerr=score["sd"], color=DARK, linewidth=1)
        axes.plot(score["seeds"], [y] * len(score["seeds"]), ".", color=DARK, markersize=3)
    end = max([*score["seeds"], score["mean"] + (score["sd"] or 0)])
    text = axes.annotate(cell(score), (end, y), (6, 0), textcoords="offset points", va="center", fontsize=8)
    text.set(color=LIGHT, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # readable on the chance line
