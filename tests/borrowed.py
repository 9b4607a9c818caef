"""A Python that has PyTorch, Lightning, TorchMetrics and a few named distributions, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

THERE = ("torch", "lightning", "torchmetrics")


def borrowed_python(folder: Path, carried: Sequence[str]) -> Path:
    """Make an environment with ``THERE``, the distributions carried along, and what these need; links, no copies."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in _closure([*THERE, *carried]):
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())
    return folder / "bin" / "python"


def _closure(names: Sequence[str]) -> set[str]:
    """The distributions and all that they require, without extras."""
    needed: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name not in needed:
            needed.add(name)
            required = [Requirement(line) for line in metadata.requires(name) or []]
            waiting += [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return needed
