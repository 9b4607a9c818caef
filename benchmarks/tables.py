"""The tables of docs/performance.md, made from the JSON files in benchmarks/results/.

    python benchmarks/tables.py

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; what is around it stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stormlit.cli.phases import ACTING, AGENT, IMAGINATION, WHOLE, WORLD_MODEL
from stormlit.files import read_json

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
OURS = (WHOLE, WORLD_MODEL, IMAGINATION, AGENT, ACTING)
PARITY = ("fp32", "tf32", "bf16", "bf16 on the CPU")
Result = dict[str, Any]
Rows = list[list[str]]


def official(one: Result) -> Rows:
    """The released code's time divided by ours, and our milliseconds."""
    phases = [one["numbers"]["phases"][phase] for phase in (*OURS, "sample 16x64")]
    times = [f"{each['ratio']['median']:.2f} ({_milliseconds(each['stormlit_seconds'])})" for each in phases]
    return [[", ".join([one["settings"]["size"], *one["settings"]["overrides"]]), one["settings"]["precision"], *times]]


def bench(one: Result) -> Rows:
    """What ``stormlit bench`` measured, a row for each setting."""
    rows = []
    for setting in one["settings"]:
        phases = [setting["whole_step"], *(setting["phases"][phase] for phase in OURS[1:])]
        memory = [phase["memory_bytes"] or 0 for phase in setting["phases"].values()]
        rest = [f"{max(memory) / 2**20:,.0f} MiB", f"{len(one['not_compiled'])}, {one['cuda_graphs_skipped']}"]
        name = f"`{setting['name']}`, {setting['precision']}"
        rows.append([name, *(_milliseconds(phase["seconds"]) for phase in phases), *rest])
    return rows


def parity(one: Result) -> Rows:
    """The largest differences from float32 on the CPU, relative to the quantity's largest number."""
    ways = [one["numbers"].get(way, {}) for way in PARITY]
    return [[quantity, *(_difference(way.get(quantity)) for way in ways)] for quantity in one["numbers"]["fp32"]]


def train(one: Result) -> Rows:
    """A training, whether or not it is at its end."""
    pieces, played = one["numbers"]["pieces"], [f"{played['mean']:.2f}" for played in one["numbers"]["evaluation"]]
    minutes = f"{one['numbers']['seconds'] / 60:.1f}"
    return [[f"`{' '.join(one['settings']['words'])}`", f"{pieces[-1]['env_steps']:,}", minutes, *(played or ["-"])]]


TABLES: dict[str, tuple[list[str], Callable[[Result], Rows]]] = {
    "official": (["size", "precision", *OURS, "sample 16x64"], official),
    "bench": (["setting", *OURS, "memory at most", "not compiled, graphs skipped"], bench),
    "parity": (["quantity", *PARITY], parity),
    "train": (["run", "environment steps", "minutes", "mean return"], train),
}


def render(page: str, results: Sequence[Result]) -> str:
    """The page with each marked table made anew."""

    def table(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        columns, rows_of = TABLES[name]
        rows = [[*row, _made_with(one)] for one in results if one["step"] == name for row in rows_of(one)]
        lines = [[*columns, "made with"], ["---"] * (len(columns) + 1), *rows]
        return begin + ("".join(f"| {' | '.join(cells)} |\n" for cells in lines) if rows else "Not measured.\n") + end

    return MARKED.sub(table, page)


def _made_with(one: Result) -> str:
    made = one["made_with"]
    changed = "*" if made["git_dirty"] == "true" else ""
    versions = f"torch {made['version.torch']}, {made['threads']} threads"
    return f"{made['device']}, {made['git_commit'][:7]}{changed}, {versions}"


def _milliseconds(spread: dict[str, float]) -> str:
    number = 1e3 * spread["median"]
    return f"{number:,.0f} ms" if number >= 100 else f"{number:.3g} ms"


def _difference(found: dict[str, float] | None) -> str:
    return "-" if found is None else "NaN" if found["relative"] is None else f"{found['relative']:.1e}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(), [read_json(path) for path in sorted(RESULTS.glob("*.json"))]))
