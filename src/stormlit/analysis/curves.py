"""The vectors of a dream as curves over its steps: real, reconstructed and imagined."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stormlit.analysis.dream import Views
from stormlit.files import write_atomically

MOST_CURVES = 16
COLUMNS = 2


def write_curves(path: Path, vector: Views, names: Sequence[str], context_length: int) -> Path:
    """Draw each of the first sixteen numbers over the steps of a dream, as PNG; returns ``path``.

    vector: (T, V).  names: of the V numbers.  context_length: steps before the dream, which are shaded.
    Raises ``OSError`` for what the disk refuses.
    """
    from matplotlib.figure import Figure  # takes as long to import as a short training; without pyplot: no window

    length, width = vector.real.shape
    shown = min(width, MOST_CURVES)
    rows = -(-shown // COLUMNS)
    figure = Figure(figsize=(11, 1 + 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False)
    steps = np.arange(length)
    for index, axes in enumerate(grid.flat):
        if index >= shown:
            axes.set_axis_off()
            continue
        axes.axvspan(-0.5, context_length - 0.5, color="0.9", label="context")
        axes.plot(steps, vector.real[:, index], color="black", label="real")
        axes.plot(steps, vector.reconstructed[:, index], "--", color="tab:blue", label="reconstructed")
        dreamt = slice(context_length, None)
        axes.plot(steps[dreamt], vector.imagined[dreamt, index], color="tab:orange", label="imagined")
        axes.set_title(names[index], fontsize=9)
        axes.grid(alpha=0.3)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    if shown < width:
        figure.suptitle(f"the first {shown} of {width} numbers")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    write_atomically(path, image.getvalue())
    return path
