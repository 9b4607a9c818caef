"""``stormlit report``: the page, its text as Markdown, and its numbers as CSV."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from stormlit import __version__
from stormlit.errors import ConfigError
from stormlit.files import write_atomically
from stormlit.reports.find_runs import gather, grid_base, one_of_each
from stormlit.reports.sections import Figure, Table, sections, summary
from stormlit.reports.statistics import aggregates
from stormlit.reports.table import Comparison, compare

PAGE, TEXT, SCORES, AGGREGATED = "report.html", "report.md", "scores.csv", "aggregates.csv"
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?( ?(±|of) ?[\d.e+-]+)?( \[.*\])?|-")


def write_report(
    references: Sequence[str], root: Path, output: Path, base: str | None = None, scale: Sequence[str] = ()
) -> list[Path]:
    """Report on runs, groups and experiments into the folder ``output``; returns the files, the page first.

    base, scale: see ``compare``.  Raises ``ConfigError`` for what cannot be compared or written.
    """
    comparison = compare(gather(references, root), base, scale, grid_base(references, root))
    page, text = _pages(comparison, one_of_each(references, shown=lambda reference: Path(reference).name))
    contents = {PAGE: page, TEXT: text, SCORES: _scores(comparison), AGGREGATED: _aggregates(comparison)}
    try:
        for name, content in contents.items():
            write_atomically(output / name, content.encode())
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot write there ({error.strerror or error})") from error
    return [output / name for name in contents]


def _pages(comparison: Comparison, title: str) -> list[str]:
    """One HTML page that needs nothing from elsewhere, and Markdown of all but its figures."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("stormlit.reports", ""),
        autoescape=lambda name: name != "page.md.j2",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "prose": lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))),
        "inline": _inline,
        "data_url": lambda file, kind: f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}",
        "columns_of_text": _columns_of_text,
    }
    told = {
        "title": title,
        "summary": summary(comparison),
        "variants": comparison.variants,
        "sections": sections(comparison),
        "version": __version__,
    }
    return [templates.get_template(name).render(told) for name in ("page.html.j2", "page.md.j2")]


def _inline(figure: Figure, key: str) -> Markup:
    """The figure's SVG, with names that no other of the page has."""
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", figure.svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.caption)}"', 1))


def _columns_of_text(table: Table) -> list[bool]:
    """For each column, whether something else than numbers stands in it."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.header)
    return [not all(_NUMBER.fullmatch(cell) for cell in column) for column in columns]


def _scores(comparison: Comparison) -> str:
    header = ["environment", "variant", "seed", "return", "scaled", "episodes", "env_steps", "run", "commit"]
    rows: list[list[object]] = []
    for run in comparison.runs:
        scale, result = comparison.scales.get(run.task), run.result
        rows.append([
            run.task, run.variant, run.seed, run.score, scale(run.score) if scale else "",
            len(result.evaluation["agent"]), result.env_steps, result.run["name"],
            result.provenance.get("commit") or "",
        ])  # fmt: skip
    return _csv(header, rows)


def _aggregates(comparison: Comparison) -> str:
    rows = [
        [variant, name, found.value, *(found.interval or ("", ""))]
        for variant in (comparison.variants if comparison.scales else ())
        for name, found in aggregates(comparison.normalised(variant)).items()
        if found is not None
    ]
    return _csv(["variant", "statistic", "value", "low", "high"], rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
