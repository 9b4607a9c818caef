"""Figures as inline SVG, whose colours are those of the page around them, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Stand-ins, replaced by the page's variables: Matplotlib has to be given real colours.
INK, RULE, MUTED = "#010101", "#020202", "#030303"
SERIES = [f"#0000{0xA0 + index:02x}" for index in range(8)]  # more variants than that are drawn one by one
VARIABLES = {INK: "--ink", RULE: "--rule", MUTED: "--muted"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
WIDTH, TEXT = 380, 11  # CSS pixels
ROW = 24
STYLE: Any = {
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

DOTTED: Any = {"color": MUTED, "linewidth": 1, "linestyle": (0, (2, 3)), "zorder": 0}
SMALL: Any = {"textcoords": "offset points", "color": MUTED, "fontsize": TEXT - 1}

Marks = Mapping[str, float | None] | None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a figure of rows.  colour: the variant's number, None for one that is not ours."""

    label: str
    colour: int | None
    value: float | None
    interval: tuple[float, float] | None = None
    dots: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """A curve.  x, y: (N,).  band: how far it reaches on either side, (N,), or from where to where, (2, N), or None."""

    colour: int
    x: np.ndarray
    y: np.ndarray
    band: np.ndarray | None = None
    dashed: bool = False


def rows_figure(rows: Sequence[Row], label: str, marks: Marks = None) -> str:
    """Rows from top to bottom: every dot, the value, and the interval as a bar.

    label: of the axis.  marks: named upright lines, such as that of random play; one that is None is not drawn.
    """
    shown = _known(marks)

    def draw(axes: Any) -> None:
        for y, row in enumerate(rows):
            colour = _colour(row.colour)
            if row.interval is not None:
                axes.plot(row.interval, [y, y], color=colour, linewidth=5, alpha=0.32, solid_capstyle="round")
            axes.plot(row.dots, np.full(len(row.dots), float(y)), "o", color=colour, markersize=4.5, alpha=0.75, mew=0)
            if row.value is not None:
                axes.plot([row.value] * 2, [y - 0.3, y + 0.3], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        for name, x in shown.items():
            axes.axvline(x, **DOTTED)
            axes.annotate(name, (x, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), ha="center", **SMALL)
        axes.set_xlabel(label)
        axes.grid(axis="x", color=RULE, linewidth=0.8)

    return _svg(draw, height=ROW * len(rows) + 58 + (14 if shown else 0))


def lines_figure(lines: Sequence[Line], x_label: str, y_label: str, marks: Marks = None) -> str:
    """Curves with bands.  marks: named level lines."""

    def draw(axes: Any) -> None:
        for line in lines:
            colour = _colour(line.colour)
            if line.band is not None:
                low, high = line.band if line.band.ndim == 2 else (line.y - line.band, line.y + line.band)
                axes.fill_between(line.x, low, high, color=colour, alpha=0.16, linewidth=0)
            style: Any = (0, (4, 3)) if line.dashed else "-"
            marker = "o" if len(line.x) == 1 else None
            axes.plot(line.x, line.y, color=colour, linewidth=1.8, linestyle=style, marker=marker, markersize=4)
        for name, y in _known(marks).items():
            axes.axhline(y, **DOTTED)
            axes.annotate(name, (1, y), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right", **SMALL)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(color=RULE, linewidth=0.8)
        axes.xaxis.set_major_formatter(_short_number)
        axes.yaxis.set_major_formatter(_short_number)

    return _svg(draw, height=250)


def _colour(index: int | None) -> str:
    return MUTED if index is None else SERIES[index % len(SERIES)]


def _known(marks: Marks) -> dict[str, float]:
    return {name: value for name, value in (marks or {}).items() if value is not None}


def _short_number(value: float, _: int) -> str:
    """2k, 0.5, -1"""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value / 1e3:.4g}k" if abs(value) >= 1e4 or (abs(value) >= 1e3 and value % 100 == 0) else f"{value:.4g}"


def _svg(draw: Callable[[Any], None], height: int) -> str:
    """The ``<svg>`` element alone of what is drawn, in the page's font and colours, without a size of its own."""
    from matplotlib import rc_context  # takes as long to import as a short training; without pyplot: no window
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"(font: [\d.]+px )[^;\"]*", r"\1var(--font)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    opening, rest = text.split(">", 1)
    return re.sub(r' (?:width|height|version|xmlns:xlink)="[^"]*"', "", opening) + ">" + rest.strip()
