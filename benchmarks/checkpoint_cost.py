"""What a periodic checkpoint costs once the replay buffer is full: seconds and bytes, at the paper's sizes.

    python benchmarks/checkpoint_cost.py [CONFIG|KEY=VALUE ...]      # storm by default

Fills the buffer with noise, which no file system can compress, saves once (all rows), then three times after
``checkpoint.every`` further rows each, and prints how long a save took, with every file synced to the disk, and what is
on it afterwards.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from stormlit.config.compose import compose
from stormlit.runs.assembly import build_training
from stormlit.runs.device import make_fabric
from stormlit.runs.directory import RunDirectory
from stormlit.runs.run import Run
from stormlit.runs.snapshot import save_snapshot
from stormlit.storm.loop import fit_world_model, improve_agent
from stormlit.storm.training import Training
from stormlit.tracking import NoneTracker


def fill(training: Training, rows: int) -> None:
    """Append rows of noise, and count the steps."""
    noise = np.random.default_rng(training.progress.env_steps)
    envs, shape = training.envs.num_envs, training.envs.obs_shape
    for _ in range(rows):
        obs = noise.integers(0, 256, (envs, *shape), dtype=np.uint8)
        training.replay.append(obs, np.zeros(envs), np.zeros(envs), np.zeros(envs, bool), np.zeros(envs, bool))
    training.progress.env_steps += rows * envs


def main() -> None:
    words = sys.argv[1:]
    files = [word for word in words if "=" not in word] or ["storm"]
    # One small update, so that the optimisers have the moments they save.
    small = ["env.game=Pong", "loop.batch_size=1", "imagination.batch_size=1"]
    config = compose(files, [*small, *(word for word in words if "=" in word)])
    with tempfile.TemporaryDirectory(dir=".") as folder:
        directory = RunDirectory(Path(folder) / "run")
        training = build_training(config, make_fabric(config))
        run = Run(config, directory, training, NoneTracker(directory.path, directory.root))
        fill(training, training.replay.row_capacity)
        fit_world_model(training)
        improve_agent(training)
        every = config.checkpoint.every // training.envs.num_envs
        for name in ("all rows", *(f"{every:,} rows more" for _ in range(3))):
            if name != "all rows":
                fill(training, every)
            before, begun = set(directory.path.rglob("*")), time.perf_counter()
            save_snapshot(run)
            seconds = time.perf_counter() - begun
            held = {path: path.stat().st_size for path in directory.path.rglob("*") if path.is_file()}
            written = sum(size for path, size in held.items() if path not in before) / 1e6
            print(f"{name}: {seconds:.2f} s, {written:.1f} MB written, {sum(held.values()) / 1e9:.3f} GB on disk")
        training.envs.close()


if __name__ == "__main__":
    main()
