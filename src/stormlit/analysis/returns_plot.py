"""The returns of a run over its environment steps, beside what needs no learning, as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stormlit.analysis.evaluate import RANDOM, Evaluation
from stormlit.files import write_atomically

MOST_POINTS = 5000  # episodes drawn as points; the running mean is of all of them


def plot_returns(
    path: Path,
    env_steps: int,
    returns: Sequence[tuple[int, float]],
    results: Sequence[Evaluation],
    on_the_way: Sequence[tuple[int, float]] = (),
) -> Path:
    """Draw the returns of training's episodes and of the evaluations as PNG; returns ``path``.

    env_steps: where the last evaluations took place.  returns: environment steps at its end, and return, of each
    episode.  results: the agent's evaluation, then the baselines', of which random play and the best constant action
    are drawn.  on_the_way: environment steps and mean of the agent's earlier evaluations.
    Raises ``OSError`` for what the disk refuses.
    """
    from matplotlib.figure import Figure  # takes as long to import as a short training; without pyplot: no window

    agent, *baselines = results
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    if returns:
        _draw_episodes(axes, np.array(returns))
    for baseline, style in _lines(baselines):
        axes.axhline(baseline.mean, linestyle=style, color="0.35", label=f"{baseline.policy}: {baseline.mean:.4g}")
    label = f"agent, {len(agent.returns)} episodes at the end: {agent.mean:.4g} +- {agent.standard_error:.3g}"
    if on_the_way:
        axes.plot(
            *zip(*on_the_way, (env_steps, agent.mean), strict=True),
            "d-",
            color="tab:red",
            alpha=0.6,
            label="agent, evaluated on the way",
        )
    axes.errorbar(env_steps, agent.mean, agent.standard_error, fmt="D", capsize=5, color="tab:red", label=label)
    axes.set(title=f"{agent.game}: return of each episode", xlabel="environment steps", ylabel="return")
    axes.set_xlim(0, env_steps * 1.03)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_atomically(path, image.getvalue())
    return path


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


def _draw_episodes(axes: object, points: np.ndarray) -> None:
    steps, values = points.T
    window, means = running_mean(values)
    shown = slice(None, None, -(-len(values) // MOST_POINTS))
    axes.plot(steps[shown], values[shown], ".", color="tab:blue", alpha=0.25, label="episodes of the training")  # type: ignore[attr-defined]
    axes.plot(steps, means, color="tab:blue", label=f"mean of the last {window}")  # type: ignore[attr-defined]


def _lines(baselines: Sequence[Evaluation]) -> list[tuple[Evaluation, str]]:
    """Random play and the best constant action, where they were played, with the line's style."""
    chance = [(baseline, "--") for baseline in baselines if baseline.policy == RANDOM]
    constant = [baseline for baseline in baselines if baseline.policy != RANDOM]
    return chance + [(best, ":") for best in constant if best is max(constant, key=lambda each: each.mean)]
