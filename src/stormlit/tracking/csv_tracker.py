"""A tracker of plain files in the run's folder, for any spreadsheet or data frame and with nothing to install."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stormlit.files import write_atomically, write_json
from stormlit.registry import register
from stormlit.tracking.base import Params, RunStatus, Tags, Tracker
from stormlit.tracking.journal import Journal

HEADER = ["step", "key", "value"]


@register("tracker", "csv")
class CsvTracker(Tracker):
    """Writes ``metrics.csv`` (rows ``step,key,value``), ``params.json``, ``tags.json`` and ``artifacts/``.

    ``tags.json`` also holds the run's ``run_id``, ``name`` and ``status``. A run that is continued appends its rows,
    after rows of later steps, and torn ones, are removed: the file becomes that of an unbroken run. ``log`` and
    ``flush`` raise ``OSError`` for a full disk, and write what it has refused in a later call.

    When to use: where nothing but files is wanted.
    """

    # Made by ``start``. What is logged was so before a resume, at the step the run goes on from.
    _journal: Journal
    _tags: dict[str, str]
    _logged: set[tuple[int, str]]

    def start(
        self, *, name: str, params: Params, tags: Tags, run_id: str | None = None, from_step: int | None = None
    ) -> str:
        file = self.run_dir / "metrics.csv"
        if run_id is None:
            write_json(self.run_dir / "params.json", params)
            file.unlink(missing_ok=True)
        run_id = super().start(name=name, params=params, tags=tags, run_id=run_id)
        self._tags = {**tags, "run_id": run_id, "name": name, "status": "RUNNING"}
        write_json(self.run_dir / "tags.json", self._tags)
        self._logged = _forget_after(from_step, file) if from_step is not None and file.exists() else set()
        self._journal = Journal(file)
        if self._journal.size == 0:
            self._journal.write(_lines([HEADER]))
        return run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        rows = ([step, key, float(value)] for key, value in metrics.items() if (step, key) not in self._logged)
        self._journal.write(_lines(rows))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file or folder to ``artifacts/<folder>/``; what lies in the run's folder already stays where it is."""
        if path.resolve().is_relative_to(self.run_dir.resolve()):
            return
        target = self.run_dir / "artifacts" / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copy2(path, target)

    def flush(self) -> None:
        self._journal.sync()

    def where_to_look(self) -> list[str]:
        return [f"metrics     {self.run_dir / 'metrics.csv'}"]

    def finish(self, status: RunStatus) -> None:
        try:
            self.flush()
        finally:  # how it ended may fit on a disk that has no room for the last rows
            self._journal.close()
            self._tags["status"] = status
            write_json(self.run_dir / "tags.json", self._tags)


def _forget_after(step: int, file: Path) -> set[tuple[int, str]]:
    """Rewrite the file without what the run will log again; returns what it has at ``step`` itself."""
    with file.open(newline="", encoding="utf-8", errors="replace") as old:
        rows = [row for row in csv.reader(old) if len(row) == 3 and row[0].isdigit() and int(row[0]) <= step]
    write_atomically(file, _lines([HEADER, *rows]))
    return {(step, key) for at, key, _ in rows if int(at) == step}


def _lines(rows: Iterable[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
