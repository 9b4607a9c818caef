"""What a run was made with: the code's commit, the device and the versions of the libraries."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

DISTRIBUTIONS = ("stormlit", "torch", "lightning", "gymnasium", "ale-py", "mlflow")


def run_tags(device: torch.device) -> dict[str, str]:
    """Tags that tell what a run on ``device`` was made with.

    Keys: ``git_commit`` and ``git_dirty`` ("true" or "false") of stormlit's source tree, both "unknown" outside a git
    checkout; ``device``; ``version.python`` and ``version.<library>`` for each of ``DISTRIBUTIONS`` that is installed.
    """
    on_gpu = device.type == "cuda"
    model = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    tags = {"device": f"{device.type} ({model})", "version.python": platform.python_version()}
    tags |= _git_tags(Path(__file__))
    for distribution in DISTRIBUTIONS:
        try:
            tags[f"version.{distribution.replace('-', '_')}"] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return tags


def _git_tags(source: Path) -> dict[str, str]:
    """Commit and dirty flag of the repository that tracks the file ``source``."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy can lie inside somebody else's repository, whose commit would mislead.
        git("ls-files", "--error-unmatch", source.name)
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": "true" if changes else "false"}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": "unknown", "git_dirty": "unknown"}
