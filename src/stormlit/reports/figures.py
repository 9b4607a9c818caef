"""Figures as inline SVG, whose colours are those of the page around them, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stormlit.reports.statistics import Interval

# Stand-ins, replaced by the page's variables: Matplotlib has to be given real colours.
INK, RULE, MUTED = "#010101", "#020202", "#030303"
VARIABLES = {INK: "var(--ink)", RULE: "var(--rule)", MUTED: "var(--muted)"}
SERIES = 8  # colours; more variants than that are drawn one by one
WIDTH, TEXT = 380, 11  # CSS pixels
ROW = 24


def series(index: int | None) -> str:
    """The colour of a variant; None: of what is not ours."""
    return MUTED if index is None else f"#0000{0xA0 + index % SERIES:02x}"


VARIABLES |= {series(index): f"var(--series-{index})" for index in range(SERIES)}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a figure of rows.  colour: the variant's number, None for one that is not ours."""

    label: str
    colour: int | None
    value: float | None
    interval: Interval | None = None
    dots: Sequence[float] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Line:
    """A curve with a band.  x, y: (N,).  low, high: (N,), or None for no band."""

    colour: int | None
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dashed: bool = False


def rows_figure(rows: Sequence[Row], label: str, marks: Mapping[str, float] | None = None) -> str:
    """Rows from top to bottom: every dot, the value, and the interval as a bar.

    label: of the axis.  marks: named upright lines, such as that of random play.
    """
    with _axes(height=ROW * len(rows) + 58 + (14 if marks else 0)) as (axes, svg):
        for y, row in enumerate(rows):
            colour = series(row.colour)
            if row.interval is not None:
                axes.plot(row.interval, [y, y], color=colour, linewidth=5, alpha=0.32, solid_capstyle="round")
            axes.plot(row.dots, np.full(len(row.dots), float(y)), "o", color=colour, markersize=4.5, alpha=0.75, mew=0)
            if row.value is not None:
                axes.plot([row.value] * 2, [y - 0.3, y + 0.3], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        for name, x in (marks or {}).items():
            axes.axvline(x, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
            axes.annotate(
                name,
                (x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                fontsize=TEXT - 1,
            )
        axes.set_xlabel(label)
        axes.grid(axis="x", color=RULE, linewidth=0.8)
    return svg[0]


def lines_figure(
    lines: Sequence[Line], x_label: str, y_label: str, marks: Mapping[str, float] | None = None, title: str = ""
) -> str:
    """Curves with bands.  marks: named level lines."""
    with _axes(height=250) as (axes, svg):
        for line in lines:
            colour = series(line.colour)
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
            style: Any = (0, (4, 3)) if line.dashed else "-"
            marker = "o" if len(line.x) == 1 else None
            axes.plot(line.x, line.y, color=colour, linewidth=1.8, linestyle=style, marker=marker, markersize=4)
        for name, y in (marks or {}).items():
            axes.axhline(y, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
            axes.annotate(
                name,
                (1, y),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                color=MUTED,
                fontsize=TEXT - 1,
            )
        if title:
            axes.set_title(title, fontsize=TEXT, color=INK, loc="left")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(color=RULE, linewidth=0.8)
        axes.xaxis.set_major_formatter(_short_number)
        axes.yaxis.set_major_formatter(_short_number)
    return svg[0]


def _short_number(value: float, _: int) -> str:
    """2k, 0.5, -1"""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value / 1e3:.4g}k" if abs(value) >= 1e4 or (abs(value) >= 1e3 and value % 100 == 0) else f"{value:.4g}"


@contextmanager
def _axes(height: int) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw into; the list has the finished SVG after the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "stormlit",
        "font.size": TEXT,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": RULE,
        "xtick.color": MUTED,
        "ytick.color": RULE,
        "ytick.labelcolor": INK,
        "axes.unicode_minus": True,
        "axes.axisbelow": True,
    }
    with rc_context(settings):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        svg: list[str] = []
        yield axes, svg
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    svg.append(_inline(text.getvalue()))


def _inline(text: str) -> str:
    """The ``<svg>`` element alone, in the page's font and colours, without a size of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"(font: [\d.]+px )[^;\"]*", r"\1var(--font)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    opening, rest = text.split(">", 1)
    return re.sub(r' (?:width|height|version|xmlns:xlink)="[^"]*"', "", opening) + ">" + rest.strip()


def with_own_names(svg: str, prefix: str) -> str:
    """The figure with names that no other of a page has."""
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
