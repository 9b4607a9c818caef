"""A diagnosis as one picture: open-loop error, ends, values, and returns inside and outside the dream."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from stormlit.files import write_atomically


def plot_diagnosis(path: Path, found: dict[str, Any]) -> Path:
    """Draw four panels as PNG; returns ``path``.  Raises ``OSError`` for what the disk refuses."""
    from matplotlib.figure import Figure  # without pyplot: no window

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    _open_loop(axes[0, 0], found["open_loop"])
    _calibration(axes[0, 1], found["end"]["calibration"], "P(end): predicted and how often it came", (0.0, 1.0))
    bins = found["value"].get("calibration", [])
    ends = [part[key] for part in bins for key in ("predicted", "real")] or [0.0, 1.0]
    _calibration(axes[1, 0], bins, "value: predicted and returned", (min(ends), max(ends)))
    _returns(axes[1, 1], found["dream_return"])
    figure.suptitle(f"{found['run']}, {found['checkpoint']}, {found['steps']:,} new steps")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_atomically(path, image.getvalue())
    return path


def _open_loop(axes: Any, loop: dict[str, Any]) -> None:
    for name, style in (("imagined", "-"), ("repeated", "--"), ("reconstructed", ":")):
        for ending, colour in (("", "tab:blue"), ("_moving", "tab:orange")):
            if f"{name}{ending}" in loop:
                values = [float("nan") if value is None else value for value in loop[f"{name}{ending}"]]
                label = f"{name}, {'moving' if ending else 'all'} pixels"
                axes.plot(loop["horizon"][: len(values)], values, style, color=colour, label=label)
    axes.set(title="squared error of frames", xlabel="steps since a real frame", yscale="log")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=8)


def _calibration(axes: Any, bins: list[dict[str, Any]], title: str, ends: tuple[float, float]) -> None:
    most = max((part["count"] for part in bins), default=1)
    axes.plot(ends, ends, color="0.7", linewidth=1)
    axes.scatter(
        [part["predicted"] for part in bins],
        [part["real"] for part in bins],
        s=[20 + 180 * part["count"] / most for part in bins],
        alpha=0.7,
    )
    axes.set(title=title, xlabel="predicted", ylabel="real")


def _returns(axes: Any, returns: dict[str, Any]) -> None:
    names = ("inside", "outside")
    means = [returns[name]["mean"] or 0.0 for name in names]
    errors = [returns[name]["standard_error"] or 0.0 for name in names]
    axes.bar(["inside the dream", "outside"], means, yerr=errors, color=["tab:blue", "0.6"], capsize=6, width=0.5)
    axes.axhline(0.0, color="0.7", linewidth=1)
    axes.set(title=f"the policy's discounted return over {returns['horizon']} steps, {returns['contexts']} states")
