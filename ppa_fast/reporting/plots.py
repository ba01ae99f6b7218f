"""The figures of the page, drawn by matplotlib and coloured by the page's style sheet.

Figures are drawn in placeholder colours, which are replaced by CSS variables, so that one drawing works in light and
dark mode. Text remains text, in the page's font. Figures are ``WIDTH`` points wide, so that their text is readable on a
phone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ppa_fast.errors import needs_extra
from ppa_fast.reporting.vectors import Projection

with needs_extra("report"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

WIDTH = 340  # points; a figure has 328 pixels on a phone that is 360 pixels wide
COLORS = 10  # colours in the style sheet; further series reuse them with other dashes and markers
POINTS = 400  # maximum number of points of a curve; longer curves are averaged in equal parts
DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
MARKS = "os^D"
SHAPES = "●■▲◆"  # MARKS as text

INK, MUTED, GRID, BEFORE = "#000001", "#000002", "#000003", "#000004"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", BEFORE: "--before"}
_TIP = "tip:"  # prefix of an artist's gid; the rest becomes a tooltip
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "text.parse_math": False,  # labels contain file names
    "lines.linewidth": 1.6,
}


def series_color(number: int) -> str:
    """The placeholder colour of a series: ``var(--s0)`` … in the page."""
    return f"#0001{number % COLORS:02x}"


@dataclass(frozen=True)
class Picture:
    """A figure of the page: ``svg`` is an SVG element for HTML, ``caption`` is plain text."""

    svg: str
    caption: str


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an SVG element with a title and a description. ``name`` prefixes its ids to make them unique."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for child in [*root.iter(f"{{{_SVG}}}defs"), *root]:
        for style in child.findall(f"{{{_SVG}}}style"):  # it would apply to the complete page
            child.remove(style)
    for element in root.iter():
        own = element.attrib.pop("id", "")
        if own.startswith(_TIP):
            tip = ElementTree.Element(f"{{{_SVG}}}title")
            tip.text = own.removeprefix(_TIP)
            element.insert(0, tip)
        elif own:
            element.attrib["id"] = f"{name}-{own}"
        for key, value in element.attrib.items():
            if key == f"{{{_XLINK}}}href":
                element.attrib[key] = value.replace("#", f"#{name}-")
            elif "url(#" in value:
                element.attrib[key] = value.replace("url(#", f"url(#{name}-")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(0, element)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    svg = ElementTree.tostring(root, encoding="unicode")
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return re.sub(r"#0001([0-9a-f]{2})", lambda found: f"var(--s{int(found[1], 16)})", svg)


def _downsampled(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Averages a curve to at most ``POINTS`` points; a part without finite values becomes NaN, a gap."""
    if len(x) <= POINTS:
        return np.array(x), np.array(y)
    means = []
    for part in np.array_split(np.array([x, y], dtype=float), POINTS, axis=1):
        finite = part[1][~np.isnan(part[1])]
        means.append((part[0].mean(), finite.mean() if len(finite) else math.nan))
    xs, ys = zip(*means, strict=True)
    return np.array(xs), np.array(ys)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plot(axes: Axes, number: int, tip: str, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    xs, ys = _downsampled(x, y)
    mark = {"marker": "o", "markersize": 3} if len(xs) < 12 else {}
    options = {"color": series_color(number), "linestyle": DASHES[number // COLORS % len(DASHES)], **mark, **style}
    axes.plot(xs, ys, gid=_TIP + tip, **options)


def _steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def curves(
    name: str, title: str, unit: str, runs: Sequence[tuple[int, str, tuple[list[int], list[float]]]], from_zero: bool
) -> Picture | None:
    """A metric over steps, with one line per run, given as (number, name, curve). None if no run has values."""
    shown = [(number, run, curve) for number, run, curve in runs if curve[0]]
    if not shown:
        return None
    summaries = []
    with _figure(200) as figure:
        axes = figure.add_subplot()
        for number, run, (x, y) in shown:
            _plot(axes, number, run, x, y)
            finite = [(step, value) for step, value in zip(x, y, strict=True) if not math.isnan(value)]
            first, last = finite[0], finite[-1]
            summaries.append(f"{run}: {_number(first[1])} at step {first[0]:,}, {_number(last[1])} at step {last[0]:,}")
        _steps(axes)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")  # enough digits to distinguish the ticks
        if from_zero:
            axes.set_ylim(bottom=0)
        caption = f"{title}, {unit}" if unit else title
        return Picture(_svg(figure, name, caption, f"{'; '.join(summaries)}."), caption)


def retrieval_curves(name: str, pairs: dict[str, tuple[list[int], list[float]]], colors: dict[str, int]) -> Picture:
    """Precision at 1 over steps, with one line per language pair in its colour, and the mean in the text colour."""
    steps = sorted({step for x, _ in pairs.values() for step in x})
    by_step = {pair: dict(zip(*curve, strict=True)) for pair, curve in pairs.items()}
    means = [np.mean([100 * found[step] for found in by_step.values() if step in found]) for step in steps]
    with _figure(250) as figure:
        axes = figure.add_subplot()
        for pair, (x, y) in pairs.items():
            _plot(axes, colors[pair], pair, x, [100 * value for value in y], linewidth=1.1)
        axes.plot(steps, means, color=INK, linewidth=2, gid=f"{_TIP}mean")
        axes.set_ylim(0, 100)
        _steps(axes)
        summary = (
            f"Mean over {len(pairs)} language pairs: {means[0]:.1f} % at step {steps[0]:,}, {means[-1]:.1f} % at step"
        )
        caption = "Retrieval over steps, precision at 1 in %; the thick line is the mean"
        return Picture(_svg(figure, name, caption, f"{summary} {steps[-1]:,}."), caption)


def retrieval_bars(name: str, before: dict[str, float], after: dict[str, float], step: int) -> Picture:
    """Shares before training and after it, at ``step``, as two bars per key, in the given order."""
    names = list(after)
    with _figure(40 + 27 * len(names)) as figure:
        axes = figure.add_subplot()
        at = np.arange(len(names))
        for offset, shares, color in ((-0.2, before, BEFORE), (0.2, after, series_color(0))):
            values = [100 * shares[key] for key in names]
            axes.barh(at + offset, values, 0.36, color=color)
            for y, value in zip(at + offset, values, strict=True):
                axes.text(value + 1, y, f"{value:.1f}", va="center", fontsize=8.5, color=MUTED)
        axes.set_yticks(at, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 25))
        axes.grid(visible=False, axis="y")
        summary = "; ".join(f"{key}: {100 * before[key]:.1f} before, {100 * after[key]:.1f} after" for key in names)
        caption = f"Retrieval before (grey) and at step {step:,}, precision at 1 in %"
        return Picture(_svg(figure, name, caption, f"{summary}."), caption)


def vector_map(
    name: str, when: str, projection: Projection, pairs: Sequence[tuple[str, str]], colors: dict[str, int | None]
) -> Picture:
    """Sentences as points in their language's colour (None: hollow, in the text colour), lines between translations."""
    with _figure(WIDTH) as figure:
        axes = figure.add_subplot()
        for (a, b), (points_a, points_b) in zip(pairs, projection.points, strict=True):
            color = colors[b] if colors[b] is not None else colors[a]
            for one, other in zip(points_a.tolist(), points_b.tolist(), strict=True):
                line = series_color(color or 0)
                axes.plot(*zip(one, other, strict=True), color=line, linewidth=0.7, alpha=0.45, zorder=1)
            for code, points in ((a, points_a), (b, points_b)):
                number = colors[code]
                look: dict[str, Any] = {"s": 16, "linewidths": 1, "facecolors": "none", "edgecolors": INK, "zorder": 3}
                if number is not None:
                    mark = MARKS[number // COLORS % len(MARKS)]
                    look = {"s": 13, "color": series_color(number), "linewidths": 0, "zorder": 2, "marker": mark}
                axes.scatter(*points.T.numpy(), gid=_TIP + code, **look)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        for side in ("top", "right"):
            axes.spines[side].set_visible(True)
        shown = sum(len(a) for a, _ in projection.points)
        share = f"{100 * projection.explained:.0f} % of the variance"
        summary = (
            f"{shown} translation pairs of {len(pairs)} language pairs by the first two principal components, {share}."
        )
        return Picture(_svg(figure, name, f"Sentence vectors {when}", summary), f"{when}: {share}")
