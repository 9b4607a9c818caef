"""Curves as PNG files: the returns of a run, the vectors of a dream, and a diagnosis.

Matplotlib is imported where it is used, as that takes as long as a short training; without pyplot there is no window.
Every function returns the path, and raises ``OSError`` for what the disk refuses.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stormlit.analysis.dream import Views
from stormlit.analysis.evaluate import RANDOM, Evaluation
from stormlit.files import write_atomically

MOST_CURVES = 16  # numbers of a dream's vectors, in two columns
MOST_POINTS = 5000  # episodes drawn as points; the running mean is of all of them


def plot_returns(
    path: Path,
    env_steps: int,
    returns: Sequence[tuple[int, float]],
    results: Sequence[Evaluation],
    on_the_way: Sequence[tuple[int, float]] = (),
) -> Path:
    """Draw the returns of training's episodes and of the evaluations.

    env_steps: where the last evaluations took place.  returns: environment steps at its end, and return, of each
    episode.  results: the agent's evaluation, then the baselines', of which random play and the best constant action
    are drawn.  on_the_way: environment steps and mean of the agent's earlier evaluations.
    """
    from matplotlib.figure import Figure

    agent, *baselines = results
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes: Any = figure.add_subplot()
    if returns:
        steps, values = np.array(returns).T
        window, means = running_mean(values)
        shown = slice(None, None, -(-len(values) // MOST_POINTS))
        axes.plot(steps[shown], values[shown], ".", color="tab:blue", alpha=0.25, label="episodes of the training")
        axes.plot(steps, means, color="tab:blue", label=f"mean of the last {window}")
    chance = [(baseline, "--") for baseline in baselines if baseline.policy == RANDOM]
    constant = [baseline for baseline in baselines if baseline.policy != RANDOM]
    best = [(max(constant, key=lambda each: each.mean), ":")] if constant else []
    for baseline, style in chance + best:
        axes.axhline(baseline.mean, linestyle=style, color="0.35", label=f"{baseline.policy}: {baseline.mean:.4g}")
    label = f"agent, {len(agent.returns)} episodes at the end: {agent.mean:.4g} +- {agent.standard_error:.3g}"
    if on_the_way:
        points = zip(*on_the_way, (env_steps, agent.mean), strict=True)
        axes.plot(*points, "d-", color="tab:red", alpha=0.6, label="agent, evaluated on the way")
    axes.errorbar(env_steps, agent.mean, agent.standard_error, fmt="D", capsize=5, color="tab:red", label=label)
    axes.set(title=f"{agent.game}: return of each episode", xlabel="environment steps", ylabel="return")
    axes.set_xlim(0, env_steps * 1.03)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return _saved(figure, path)


def running_mean(values: np.ndarray) -> tuple[int, np.ndarray]:
    """How many values are averaged, a twentieth of them but at least five, and the mean of as many up to each one.

    The first means are of the fewer values that there are.

    >>> running_mean(np.array([0.0, 2.0, 4.0, 6.0, 8.0, 15.0]))
    (5, array([0., 1., 2., 3., 4., 7.]))
    """
    window = max(5, len(values) // 20)
    sums = np.concatenate([[0.0], values.cumsum()])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return window, (sums[last] - sums[first]) / (last - first)


def write_curves(path: Path, vector: Views, names: Sequence[str], context_length: int) -> Path:
    """Draw each of the first sixteen numbers over the steps of a dream: real, reconstructed and imagined.

    vector: (T, V).  names: of the V numbers.  context_length: steps before the dream, which are shaded.
    """
    from matplotlib.figure import Figure

    length, width = vector.real.shape
    shown = min(width, MOST_CURVES)
    rows = -(-shown // 2)
    figure = Figure(figsize=(11, 1 + 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, squeeze=False)
    steps, dreamt = np.arange(length), slice(context_length, None)
    for index, axes in enumerate(grid.flat):
        if index >= shown:
            axes.set_axis_off()
            continue
        axes.axvspan(-0.5, context_length - 0.5, color="0.9", label="context")
        axes.plot(steps, vector.real[:, index], color="black", label="real")
        axes.plot(steps, vector.reconstructed[:, index], "--", color="tab:blue", label="reconstructed")
        axes.plot(steps[dreamt], vector.imagined[dreamt, index], color="tab:orange", label="imagined")
        axes.set_title(names[index], fontsize=9)
        axes.grid(alpha=0.3)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    if shown < width:
        figure.suptitle(f"the first {shown} of {width} numbers")
    return _saved(figure, path, dpi=100)


def plot_diagnosis(path: Path, found: dict[str, Any]) -> Path:
    """Draw four panels: open-loop error, ends, values, and returns inside and outside the dream."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    _open_loop(axes[0, 0], found["open_loop"])
    _calibration(axes[0, 1], found["end"]["calibration"], "P(end): predicted and how often it came", (0.0, 1.0))
    bins = found["value"].get("calibration", [])
    ends = [part[key] for part in bins for key in ("predicted", "real")] or [0.0, 1.0]
    _calibration(axes[1, 0], bins, "value: predicted and returned", (min(ends), max(ends)))
    returns = found["dream_return"]
    means, errors = (
        [returns[name][key] or 0.0 for name in ("inside", "outside")] for key in ("mean", "standard_error")
    )
    bars = axes[1, 1]
    bars.bar(["inside the dream", "outside"], means, yerr=errors, color=["tab:blue", "0.6"], capsize=6, width=0.5)
    bars.axhline(0.0, color="0.7", linewidth=1)
    bars.set(title=f"the policy's discounted return over {returns['horizon']} steps, {returns['contexts']} states")
    figure.suptitle(f"{found['run']}, {found['checkpoint']}, {found['steps']:,} new steps")
    return _saved(figure, path)


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
    """Bins of predictions beside what came, each as large as its share, and the line on which the two are equal."""
    predicted, real, count = ([part[key] for part in bins] for key in ("predicted", "real", "count"))
    axes.plot(ends, ends, color="0.7", linewidth=1)
    axes.scatter(predicted, real, s=[20 + 180 * each / max(count) for each in count], alpha=0.7)
    axes.set(title=title, xlabel="predicted", ylabel="real")


def _saved(figure: Any, path: Path, dpi: int = 110) -> Path:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    write_atomically(path, image.getvalue())
    return path
