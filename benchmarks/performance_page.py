"""The tables of docs/performance.md, made from the JSON files in benchmarks/results/.

    python benchmarks/performance_page.py [--check]

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; what is around them stays as it is.
--check changes nothing, and fails where the page is not what the files make.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import performance_tables
from protocol_results import FOLDER, Result, ResultError, read_all

from stormlit.errors import StormlitError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def render(page: str, results: list[Result]) -> str:
    """The page with each marked table made anew; raises ``ResultError`` for a mark that names no table."""

    def table(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        if name not in performance_tables.TABLES:
            raise ResultError(f"table '{name}' of the page: expected one of {', '.join(performance_tables.TABLES)}")
        columns, rows = performance_tables.TABLES[name](results)
        lines = [columns, ["---"] * len(columns), *rows]
        return begin + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + end

    return MARKED.sub(table, page)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell whether the page is up to date")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(words)
    try:
        page = given.page.read_text()
        made = render(page, read_all(given.results))
    except StormlitError as error:
        print(f"performance_page: error: {error}", file=sys.stderr)
        return error.exit_code
    if given.check and made != page:
        print(f"{given.page.name} is not what the results make: run benchmarks/performance_page.py", file=sys.stderr)
        return 1
    if not given.check:
        given.page.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
