"""The section of a report on the world models themselves, of the runs that ``stormlit diagnose`` has measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from stormlit.reports.caveats import spread
from stormlit.reports.document import Figure, Section, Table
from stormlit.reports.figures import Line, lines_figure
from stormlit.reports.sections import together_or_apart
from stormlit.reports.table import Comparison
from stormlit.runs.diagnose import newest_diagnosis

# Column -> where it stands in a diagnosis.
COLUMNS = {
    "reward precision": ("reward", "precision"),
    "reward recall": ("reward", "recall"),
    "end recall": ("end", "recall"),
    "Brier score of ends": ("end", "brier_score"),
    "KL (nats)": ("latent", "kl"),
    "codes used": ("latent", "codes_used"),
    "value bias": ("value", "bias"),
    "value correlation": ("value", "correlation"),
    "return dreamt": ("dream_return", "inside", "mean"),
    "return got": ("dream_return", "outside", "mean"),
}


def world_models(comparison: Comparison) -> Section | None:
    """Means over the runs of each variant that have a diagnosis; None where no run has one."""
    section = Section(
        "world-models",
        "World models",
        [
            "Measured by `stormlit diagnose` on new steps of each run's own policy, so that variants are not measured "
            "on the same data. Open-loop error: frames imagined without seeing any, against repeating the last frame "
            "seen (dashed). Return: of the policy over the horizon of imagination, discounted, inside its dream and "
            "outside.",
            "Numbers are means over runs, ± their standard error.",
        ],
    )
    rows, measured, runs = [], 0, 0
    for task in comparison.tasks:
        lines: dict[str, list[Line]] = {}
        for index, variant in enumerate(comparison.variants):
            cells = comparison.of(variant, task)
            found = [diagnosis for cell in cells if (diagnosis := newest_diagnosis(cell.folder))]
            measured, runs = measured + len(found), runs + len(cells)
            if found:
                told = [_mean([_at(each, path) for each in found]) for path in COLUMNS.values()]
                rows.append([task, variant, str(len(found)), *told])
                lines[variant] = [_curve(index, found, "imagined"), _curve(index, found, "repeated", dashed=True)]
        section.figures += [
            Figure(lines_figure(drawn, "steps since a real frame", "squared error of frames"), caption)
            for drawn, caption in together_or_apart(comparison, lines, f"{task}, open-loop error")
        ]
    if not rows:
        return None
    if measured < runs:
        section.notes = [f"{measured} of {runs} runs have been diagnosed."]
    section.tables.append(Table(["environment", "variant", "runs", *COLUMNS], rows))
    return section


def _at(found: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return spread(np.array(known)) if known else "-"


def _curve(index: int, found: list[dict[str, Any]], name: str, dashed: bool = False) -> Line:
    """Over the horizon that all runs reach; the band is the standard error."""
    reach = min(len(each["open_loop"]["horizon"]) for each in found)
    values = np.array([each["open_loop"][name][:reach] for each in found])
    average, low, high = values.mean(axis=0), None, None
    if len(found) > 1 and not dashed:
        error = np.std(values, axis=0, ddof=1) / len(found) ** 0.5
        low, high = average - error, average + error
    return Line(index, np.arange(1, reach + 1), average, low, high, dashed)
