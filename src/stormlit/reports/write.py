"""``stormlit report``: the page, its text as Markdown, and its numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from stormlit.errors import ConfigError, counted
from stormlit.files import write_atomically
from stormlit.reports import cost, sections
from stormlit.reports.document import Document
from stormlit.reports.find_runs import gather, grid_base, one_of_each
from stormlit.reports.literature import aggregates
from stormlit.reports.page import as_html, as_markdown
from stormlit.reports.table import Comparison, compare
from stormlit.reports.world_models import world_models

PAGE, TEXT, SCORES, AGGREGATED = "report.html", "report.md", "scores.csv", "aggregates.csv"


def write_report(
    references: Sequence[str], root: Path, output: Path, base: str | None = None, scale: Sequence[str] = ()
) -> list[Path]:
    """Report on runs, groups and experiments into the folder ``output``; returns the files, the page first.

    base, scale: see ``compare``.  Raises ``ConfigError`` for what cannot be compared or written.
    """
    comparison = compare(gather(references, root), base, scale, grid_base(references, root))
    page = document(comparison, one_of_each(references, shown=lambda reference: Path(reference).name))
    contents = {
        PAGE: as_html(page),
        TEXT: as_markdown(page),
        SCORES: _csv(_score_rows(comparison)),
        AGGREGATED: _csv(_aggregate_rows(comparison)),
    }
    try:
        for name, content in contents.items():
            write_atomically(output / name, content.encode())
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot write there ({error.strerror or error})") from error
    return [output / name for name in contents]


def document(comparison: Comparison, name: str) -> Document:
    """Everything that a report says."""
    found = [
        sections.conclusions(comparison),
        sections.environments(comparison),
        sections.over_environments(comparison),
        sections.profiles(comparison),
        sections.differences(comparison),
        sections.curves(comparison),
        sections.literature(comparison),
        world_models(comparison),
        cost.dreams(comparison),
        cost.cost(comparison),
        cost.configuration(comparison),
        cost.runs(comparison),
    ]
    return Document(name, _summary(comparison), comparison.variants, [section for section in found if section])


def _summary(comparison: Comparison) -> str:
    cells = comparison.all_cells
    seeds = {cell.seed for cell in cells}
    budgets = sorted({cell.result.env_steps_wanted for cell in cells})
    parts = [
        counted(len(comparison.variants), "variant"),
        counted(len(comparison.tasks), "environment") + f" ({one_of_each(comparison.tasks[:6])}"
        + (f" and {len(comparison.tasks) - 6} more)" if len(comparison.tasks) > 6 else ")"),
        counted(len(seeds), "seed"),
        f"{one_of_each(budgets, '{:,}'.format)} environment steps",
    ]  # fmt: skip
    partial = f" {counted(len(comparison.unfinished), 'run')} not finished." if comparison.unfinished else ""
    return f"{counted(len(cells), 'run')}: {', '.join(parts)}. The base is '{comparison.base}'.{partial}"


def _score_rows(comparison: Comparison) -> list[list[object]]:
    header: list[object] = [
        "environment",
        "variant",
        "seed",
        "return",
        "scaled",
        "episodes",
        "env_steps",
        "run",
        "commit",
    ]
    rows: list[list[object]] = [header]
    for cell in comparison.all_cells:
        scale = comparison.scales.get(cell.task)
        scaled = (cell.score - scale.zero) / (scale.one - scale.zero) if scale else ""
        rows.append([
            cell.task, cell.variant, cell.seed, cell.score, scaled, len(cell.result.evaluation["agent"]),
            cell.result.env_steps, cell.result.run["name"], cell.result.provenance.get("commit") or "",
        ])  # fmt: skip
    return rows


def _aggregate_rows(comparison: Comparison) -> list[list[object]]:
    rows: list[list[object]] = [["variant", "statistic", "value", "low", "high"]]
    for variant in comparison.variants if comparison.scales else ():
        for name, found in aggregates(comparison.normalised(variant)).items():
            if found is not None:
                low, high = found.interval or ("", "")
                rows.append([variant, name, found.value, low, high])
    return rows


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
