"""The small JSON files in ``benchmarks/results/``: what is in them, how they are written, read and told apart.

    {"schema": 1, "step": ..., "what": ..., "quick": false, "made_with": {...}, "command": "...",
     "settings": {...}, "numbers": {...}}

``made_with`` is what stormlit tags its runs with (device, commit, versions), threads and cores. No file names a path, a
host or a user.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stormlit.cli.bench.report import SCHEMA
from stormlit.errors import CheckpointError, StormlitError, nearest
from stormlit.files import read_json, write_json
from stormlit.tracking import run_tags

Result = dict[str, Any]
FOLDER = Path(__file__).resolve().parent / "results"
KEYS = {"schema", "step", "what", "quick", "made_with", "command", "settings", "numbers"}
STEPS = ("parity", "bench", "official", "processes", "train")
# A result holds for as long as these are the same.
SAME = ("git_commit", "git_dirty", "device", "version.torch", "threads")


class ResultError(StormlitError):
    """A results file that is not one, or that contradicts another."""


def made_with(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Device, commit, versions, threads.  commit: what to say where the source is outside a git checkout."""
    tags = run_tags(device)
    if tags["git_commit"] == "unknown":
        tags["git_commit"] = commit or "unknown"
    else:
        tags["git_dirty"] = _dirty()
    return {**tags, "threads": torch.get_num_threads(), "cpu_cores": os.cpu_count()}


def _dirty() -> str:
    """Whether anything differs from the commit that can change a number, unlike the results themselves."""
    paths = ["src", "configs", "benchmarks", ":!benchmarks/results"]
    command = ["git", "status", "--porcelain", "--untracked-files=no", "--", *paths]
    changes = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=True).stdout
    return "true" if changes.strip() else "false"


def file_name(device: str, step: str, what: str | None, quick: bool) -> str:
    """``<device>-<step>[-<what>].json``.  device: as in ``made_with``, such as "cuda (NVIDIA H100)"."""
    named = re.fullmatch(r"cuda \((.*)\)", device)
    model = re.sub(r"[^a-z0-9]+", "-", named[1].lower()).strip("-") if named else device.split()[0]
    return "-".join([model, *(["quick"] if quick else []), step, *([what] if what else [])]) + ".json"


def result(
    step: str,
    what: str | None,
    *,
    quick: bool,
    made_with: dict[str, Any],
    command: str,
    settings: dict[str, Any],
    numbers: dict[str, Any],
) -> Result:
    """What a results file holds."""
    return {
        "schema": SCHEMA,
        "step": step,
        "what": what,
        "quick": quick,
        "made_with": made_with,
        "command": command,
        "settings": settings,
        "numbers": numbers,
    }


def save(folder: Path, content: Result) -> Path:
    """Write a result in one step, under the name it has; returns the file."""
    name = file_name(content["made_with"]["device"], content["step"], content["what"], content["quick"])
    write_json(folder / name, content)
    return folder / name


def read(path: Path) -> Result:
    """A result, or what ``stormlit bench --json`` wrote as one; raises ``ResultError`` for anything else."""
    try:
        content = read_json(path)
    except CheckpointError as error:
        raise ResultError(str(error)) from None
    if content.get("schema") != SCHEMA:
        found = content.get("schema", "none")
        raise ResultError(f"{path}: schema {found}, expected {SCHEMA}: make it again with this version, or delete it")
    if content.get("step") not in STEPS:
        step = str(content.get("step"))
        raise ResultError(f"{path}: step '{step}'{nearest(step, STEPS)}, expected one of {', '.join(STEPS)}")
    if content["step"] == "bench" and "numbers" not in content:
        content = _of_bench(content)
    if missing := KEYS - content.keys():
        raise ResultError(f"{path}: expected the key '{min(missing)}', which is missing: make it again, or delete it")
    return content


def read_all(folder: Path) -> list[Result]:
    """Every result of a folder but quick ones, which measure nothing; in the order of the files' names."""
    results = [read(path) for path in sorted(folder.glob("*.json"))]
    return [one for one in results if not one["quick"]]


def _of_bench(report: dict[str, Any]) -> Result:
    return result(
        "bench",
        None,
        quick=False,
        made_with=report["made_with"],
        command=report["command"],
        settings={"rounds": report["rounds"]},
        numbers=bench_numbers(report),
    )


def bench_numbers(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of ``stormlit bench --json`` without the operations' names and the whole configurations."""
    settings = []
    for setting in report["settings"]:
        phases = {
            phase: {key: value for key, value in numbers.items() if key != "operations_by_name"}
            for phase, numbers in setting["phases"].items()
        }
        kept = {key: setting[key] for key in ("name", "precision", "whole_step")}
        settings.append({**kept, "sizes": _sizes(setting["config"]), "phases": phases})
    return {"peak_memory": report["peak_memory"], "settings": settings, "ratios": report["ratios"]}


def _sizes(config: dict[str, Any]) -> str:
    """Of the updates, as "16x64, 1024x(8+16)"."""
    loop, imagined = config["loop"], config["imagination"]
    rollouts = f"{imagined['batch_size']}x({imagined['context_length']}+{imagined['horizon']})"
    return f"{loop['batch_size']}x{loop['batch_length']}, {rollouts}"


def is_current(path: Path, made_with: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a file holds the result of these settings, on the same device, with the same code."""
    if not path.is_file():
        return False
    found = read(path)
    return found["settings"] == settings and all(found["made_with"].get(key) == made_with.get(key) for key in SAME)


def without_paths(words: Sequence[str]) -> list[str]:
    """Words of a command as they may be published: of paths only their last parts."""
    shown = []
    for word in words:
        key, equals, value = word.partition("=") if "=" in word else ("", "", word)
        is_path = value.startswith(("/", "~", ".")) or value.endswith((".yaml", ".yml"))
        shown.append(f"{key}{equals}{Path(value).name}" if is_path else word)
    return shown
