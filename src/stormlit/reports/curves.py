"""Learning curves over several seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stormlit.reports.table import Cell, Comparison

BINS = 20  # of the training's episodes, where nothing was evaluated on the way


@dataclass(frozen=True, slots=True)
class Curve:
    """steps, mean: (N,).  error: (N,), the standard error over seeds, None for a single seed."""

    steps: np.ndarray
    mean: np.ndarray
    error: np.ndarray | None


def learning_curves(comparison: Comparison, task: str) -> tuple[dict[str, Curve], str]:
    """Curve of each variant, and what it is made of: evaluations on the way where every run has several, else the
    training's own episodes.
    """
    cells = {variant: comparison.of(variant, task) for variant in comparison.variants}
    evaluated = all(len(cell.result.curve) > 1 for group in cells.values() for cell in group)
    of = _evaluations if evaluated else _training
    found = {variant: curve for variant, group in cells.items() if (curve := _over_seeds([of(cell) for cell in group]))}
    return found, "evaluations on the way" if evaluated else "episodes of the training"


def _over_seeds(points: list[dict[int, float]]) -> Curve | None:
    """At the steps that all seeds have."""
    steps = sorted(set.intersection(*(set(each) for each in points))) if points else []
    if not steps:
        return None
    values = np.array([[each[step] for step in steps] for each in points])
    error = np.std(values, axis=0, ddof=1) / len(points) ** 0.5 if len(points) > 1 else None
    return Curve(np.array(steps), values.mean(axis=0), error)


def _evaluations(cell: Cell) -> dict[int, float]:
    """Mean return at each step; an evaluation with a return that is no number is left out."""
    return {
        step: float(np.mean([value for value in returns if value is not None]))
        for step, returns in cell.result.curve
        if returns and None not in returns
    }


def _training(cell: Cell) -> dict[int, float]:
    """Mean return of the episodes that ended in each twentieth of the budget, at its end."""
    width = max(cell.result.env_steps_wanted / BINS, 1)
    found: dict[int, list[float]] = {}
    for step, value in cell.result.returns:
        if value is not None:
            found.setdefault(round(width * max(-(-step // width), 1)), []).append(value)
    return {step: float(np.mean(values)) for step, values in found.items()}
