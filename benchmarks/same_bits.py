"""Whether two versions of the code train to the same bits: weights, replay rows and metrics of five short runs each.

    git worktree add ../before COMMIT
    python benchmarks/same_bits.py ../before .

One thread; each run takes one to three minutes. At 2b712ff and before, latents had a sparse form and encoders a frozen
one, which round otherwise: ``git -C ../before apply benchmarks/dense_forms.patch`` switches them off there.
"""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

COMMON = ["tracking=csv", "run.dir=runs", "evaluation.episodes=2", "evaluation.baselines=[]", "threads=1"]
SHORT = [*COMMON, "loop.env_steps=400", "loop.warmup_steps=200"]
REDUCED = [
    *(f"world_model.{word}" for word in ("hidden_dim=32", "sequence_model.num_heads=2", "latent.groups=8")),
    *(f"world_model.{word}" for word in ("latent.classes=8", "encoder.stem_channels=4", "decoder.stem_channels=4")),
    *("agent.hidden_dim=32", "imagination.batch_size=16", "env.atari.max_frames=400", "evaluation.num_envs=1"),
    *(f"loop.{word}" for word in ("batch_size=2", "batch_length=16", "warmup_steps=100", "env_steps=160")),
    "loop.media_every_env_steps=0",
]
DEMONSTRATED = ["demonstrations.path=played.npz", "demonstrations.batch_size=4"]
COMMANDS = (
    ["train", "tiny", "run.name=tiny", *SHORT],
    ["train", "quickstart", "run.name=quickstart", *COMMON, "loop.env_steps=1500"],
    ["train", "official", "env.game=Pong", "run.name=official", *COMMON, *REDUCED],
    ["demos", "record", "runs/tiny", "-o", "played.npz", "--steps", "300"],
    [
        "train",
        "tiny",
        "run.name=demonstrations",
        *SHORT,
        "demonstrations.path=played.npz",
        "demonstrations.batch_size=4",
    ],
    ["train", "tiny", "run.name=resumed", *SHORT, "loop.env_steps=300"],
    ["resume", "runs/resumed", "loop.env_steps=400"],
)


def train(tree: Path, folder: Path) -> None:
    """Run all commands with the package of a checkout, in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve() / "src"), "OMP_NUM_THREADS": "1"}
    for command in COMMANDS:
        subprocess.run([sys.executable, "-m", "stormlit", *command], env=environment, cwd=folder, check=True)


def digests(run: Path) -> dict[str, str]:
    """Of the newest checkpoint's weights, of the replay rows and of the logged metrics, but for speeds."""
    checkpoint = max((run / "checkpoints").glob("step-*"))
    rows = [np.load(file) for file in sorted((run / "replay").rglob("*.npz"))]
    with (run / "metrics.csv").open() as file:
        metrics = sorted((row["step"], row["key"], row["value"]) for row in csv.DictReader(file))
    return {
        "weights": _digest(torch.load(checkpoint / "weights.pt", weights_only=True)),
        "replay": _digest([dict(stored) for stored in rows]),
        "metrics": _digest([row for row in metrics if not row[1].startswith("throughput")]),
    }


def _digest(tree: Any) -> str:
    found = hashlib.sha256()

    def read(node: Any, key: str) -> None:
        if isinstance(node, dict):
            for name in sorted(node, key=str):
                read(node[name], f"{key}.{name}")
        elif isinstance(node, (list, tuple)):
            for index, inner in enumerate(node):
                read(inner, f"{key}.{index}")
        else:
            array = node.contiguous().numpy() if isinstance(node, torch.Tensor) else np.asarray(node)
            found.update(key.encode() + np.ascontiguousarray(array).tobytes())

    read(tree, "")
    return found.hexdigest()[:12]


def main() -> None:
    trees = [Path(word) for word in sys.argv[1:]]
    found = []
    for tree in trees:
        with tempfile.TemporaryDirectory() as folder:
            train(tree, Path(folder))
            runs = sorted(path for path in Path(folder, "runs").iterdir() if (path / "checkpoints").is_dir())
            found.append({run.name: digests(run) for run in runs})
    for name in found[0]:
        for what, before in found[0][name].items():
            same = all(each[name][what] == before for each in found)
            print(f"{name:<15} {what:<8} {before} {'same' if same else 'differs'}")
    sys.exit(any(each != found[0] for each in found))


if __name__ == "__main__":
    main()
