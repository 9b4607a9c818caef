"""A tracker of plain files in the run's folder, for any spreadsheet or data frame and with nothing to install."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from stormlit.registry import register
from stormlit.tracking.base import RunStatus


@register("tracker", "csv")
class CsvTracker:
    """Writes ``metrics.csv`` (rows ``step,key,value``), ``params.json``, ``tags.json`` and ``artifacts/``.

    ``tags.json`` also holds the run's ``run_id``, ``name`` and ``status``. A run that is continued appends its rows,
    after rows of later steps, and torn ones, are removed: the file becomes that of an unbroken run.
    """

    def __init__(self, run_dir: Path, root: Path) -> None:
        self._run_dir = run_dir
        self._tags: dict[str, str] = {}
        self._file: BinaryIO | None = None
        self._unwritten = b""  # what a full disk has refused so far
        self._logged: set[tuple[int, str]] = set()  # before a resume, at the step the run goes on from

    def start(
        self,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        from_step: int | None = None,
    ) -> str:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        if run_id is None:
            self._write_json("params.json", params)
        self._tags = {**tags, "run_id": run_id or uuid.uuid4().hex, "name": name, "status": "RUNNING"}
        self._write_json("tags.json", self._tags)
        file = self._run_dir / "metrics.csv"
        if run_id is not None and from_step is not None and file.exists():
            self._forget_after(from_step, file)
        self._file = open(file, "ab" if run_id else "wb", buffering=0)  # noqa: SIM115 - open all run long
        if self._file.tell() == 0:
            self._write([["step", "key", "value"]])
        return self._tags["run_id"]

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        new = ((key, value) for key, value in metrics.items() if (step, key) not in self._logged)
        self._write([[step, key, float(value)] for key, value in new])

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file or folder to ``artifacts/<folder>/``; what lies in the run's folder already stays where it is."""
        if path.resolve().is_relative_to(self._run_dir.resolve()):
            return
        target = self._run_dir / "artifacts" / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copy2(path, target)

    def flush(self) -> None:
        self._write([])
        os.fsync(self._opened().fileno())

    def where_to_look(self) -> list[str]:
        return [f"metrics     {self._run_dir / 'metrics.csv'}"]

    def finish(self, status: RunStatus) -> None:
        try:
            self.flush()
            self._opened().close()
        finally:  # how it ended may fit on a disk that has no room for the last rows
            self._tags["status"] = status
            self._write_json("tags.json", self._tags)

    def _write(self, rows: list[list[Any]]) -> None:
        """Hand rows to the operating system, so that a killed process loses none.

        Raises ``OSError``; what the disk refuses is kept, and written by a later call.
        """
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._unwritten += text.getvalue().encode()
        file = self._opened()
        while self._unwritten:
            self._unwritten = self._unwritten[file.write(self._unwritten) :]

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError("the tracker has not been started")
        return self._file

    def _forget_after(self, step: int, file: Path) -> None:
        """Rewrite the file without what the run will log again, and remember what it has at ``step`` itself."""
        with file.open(newline="", encoding="utf-8", errors="replace") as old:
            rows = [row for row in csv.reader(old) if len(row) == 3 and row[0].isdigit() and int(row[0]) <= step]
        self._logged = {(step, key) for at, key, _ in rows if int(at) == step}
        text = io.StringIO(newline="")
        csv.writer(text).writerows([["step", "key", "value"], *rows])
        self._replace(file.name, text.getvalue())

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._replace(name, json.dumps(content, indent=2, default=str) + "\n")

    def _replace(self, name: str, text: str) -> None:
        temporary = self._run_dir / f".{name}.tmp"
        temporary.write_bytes(text.encode())
        os.replace(temporary, self._run_dir / name)
