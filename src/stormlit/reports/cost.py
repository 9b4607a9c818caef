"""The sections of a report on everything but scores: dreams, cost, configuration, and the runs themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stormlit.reports.caveats import spread
from stormlit.reports.document import Film, Section, Table
from stormlit.reports.find_runs import one_of_each
from stormlit.reports.table import Cell, Comparison, learned

LARGEST_FILM = 1_500_000  # bytes; a larger one gives way to the dream's picture
MEDIA_TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}


def dreams(comparison: Comparison) -> Section | None:
    """The last dream of one run of each variant."""
    section = Section(
        "dreams",
        "Dreams",
        ["What really happened, what the world model makes of each frame, and what it imagines without seeing any: one "
         "run of each variant."],
    )  # fmt: skip
    for variant in comparison.variants:
        films = [film for cell in comparison.all_cells if cell.variant == variant and (film := _last_dream(cell))]
        section.films += films[:1]
    return section if section.films else None


def _last_dream(cell: Cell) -> Film | None:
    for suffix, media_type in MEDIA_TYPES.items():
        files = sorted((cell.folder / "media").glob(f"dream-[0-9]*{suffix}"))
        if files and files[-1].stat().st_size <= LARGEST_FILM:
            caption = f"{cell.variant}: {cell.task}, seed {cell.seed}, step {_step(files[-1]):,}"
            picture = files[-1].with_suffix(".png")
            poster = picture.read_bytes() if suffix == ".mp4" and picture.is_file() else b""
            return Film(files[-1].read_bytes(), media_type, caption, poster)
    return None


def _step(file: Path) -> int:
    return int(file.stem.partition("-")[2])


def cost(comparison: Comparison) -> Section:
    """Hours, speed, memory and device of each variant."""
    rows = []
    for task in comparison.tasks:
        for variant in comparison.variants:
            if cells := comparison.of(variant, task):
                told = {key: [cell.result.cost.get(key) for cell in cells] for key in
                        ("wall_seconds", "env_steps_per_second", "peak_memory_bytes")}  # fmt: skip
                devices = [f"{cell.result.provenance.get('device')} ({cell.result.provenance.get('precision')})"
                           for cell in cells]  # fmt: skip
                rows.append([
                    task, variant, _mean(told["wall_seconds"], 1 / 3600), _mean(told["env_steps_per_second"]),
                    _mean(told["peak_memory_bytes"], 2**-30), one_of_each(devices),
                ])  # fmt: skip
    hours = sum(cell.result.cost.get("wall_seconds") or 0.0 for cell in comparison.all_cells) / 3600
    header = ["environment", "variant", "hours a run", "steps a second", "peak memory (GiB)", "device"]
    lead = f"All runs together took {hours:.3g} hours. Times of runs that shared a machine are longer than alone."
    return Section("cost", "Cost", [lead], tables=[Table(header, rows)])


def _mean(values: list[Any], unit: float = 1.0) -> str:
    known = [value * unit for value in values if value is not None]
    return spread(np.array(known)) if known else "-"


def configuration(comparison: Comparison) -> Section:
    """What each variant changes against the base."""
    section = Section("configuration", "Differences in configuration")
    first = {variant: next(cell for cell in comparison.all_cells if cell.variant == variant)
             for variant in comparison.variants if any(c.variant == variant for c in comparison.all_cells)}  # fmt: skip
    if comparison.base not in first:
        return section
    base, rows = learned(first[comparison.base].result), []
    for variant in comparison.others:
        now = learned(first[variant].result) if variant in first else {}
        rows += [
            [variant, key, json.dumps(base[key]) if key in base else "-", json.dumps(now[key]) if key in now else "-"]
            for key in dict.fromkeys([*now, *base])
            if now and base.get(key, ...) != now.get(key, ...)
        ]
    if rows:
        section.tables.append(Table(["variant", "key", comparison.base, "variant's"], rows))
    default = first[comparison.base].result.differences
    section.tables.append(Table(
        ["key", "default", comparison.base],
        [[key, json.dumps(before), json.dumps(now)] for key, (before, now) in default.items()],
        f"What '{comparison.base}' changes against the default configuration",
    ))  # fmt: skip
    return section


def runs(comparison: Comparison) -> Section:
    """Where every number comes from."""
    rows = [
        [
            cell.result.run["name"], cell.variant, cell.task, str(cell.seed), f"{cell.score:.4g}",
            f"{cell.result.env_steps:,}", str(cell.result.provenance.get("commit") or "-")[:10]
            + ("*" if cell.result.provenance.get("dirty") else ""), cell.result.config_hash[:10],
        ]
        for cell in comparison.all_cells
    ]  # fmt: skip
    rows += [
        [name, "-", "-", "-", "not finished", f"{steps:,}", "-", "-"] for name, steps in comparison.unfinished.items()
    ]
    rows += [[name, "-", "-", "-", "no number", "-", "-", "-"] for name in comparison.not_finite]
    header = ["run", "variant", "environment", "seed", "return", "steps", "commit", "configuration"]
    return Section("runs", "Runs", ["A star marks a commit with changes that were not committed."],
                   tables=[Table(header, rows)])  # fmt: skip
