"""Small runs, and what tests ask of any run: how it is begun, read, resumed, refused and compared with another."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stormlit.storm.loop
from stormlit.analysis.evaluate import ConstantPolicy, Policy
from stormlit.cli import main
from stormlit.cli.lightning_command import FABRIC_ENTRY
from stormlit.config.components import PART_KEYS
from stormlit.runs.checkpoint import list_checkpoints
from stormlit.runs.directory import RunDirectory
from stormlit.storm.training import Training

# A run of about a second: 24 random steps, then 24 updates of each module.
SMALL = (
    "tiny",
    "tracking=csv",
    "env.num_envs=1",
    "world_model.hidden_dim=16",
    "world_model.encoder.stem_channels=4",
    "world_model.decoder.stem_channels=4",
    "world_model.latent.groups=4",
    "world_model.latent.classes=4",
    "world_model.sequence_model.max_length=16",
    "agent.hidden_dim=16",
    "imagination.batch_size=8",
    "imagination.horizon=3",
    "loop.warmup_steps=24",
    "loop.env_steps=48",
    "loop.batch_size=4",
    "loop.batch_length=8",
    "loop.world_model_updates_per_env_step=1",
    "loop.agent_updates_per_env_step=1",
    "loop.log_every_env_steps=8",
    "loop.media_every_env_steps=0",
    "checkpoint.every=24",
    "evaluation.episodes=2",
    "evaluation.num_envs=2",
    "evaluation.baselines=[]",
)


def train(root: Path, name: str, *words: str) -> Path:
    """Train a small run in this process, which must succeed; returns its folder."""
    assert main(["train", *small(*words), f"run.dir={root}", f"run.name={name}"]) == 0
    return root / name


def small(*words: str) -> list[str]:
    """``SMALL`` with further words; a part that they name anew is spared the options of the one before."""
    renamed = tuple(f"{key}." for key in PART_KEYS if any(word.startswith(f"{key}=") for word in words))
    return [*(word for word in SMALL if not word.startswith(renamed or ("\0",))), *words]


def logged(run: Path) -> dict[tuple[int, str], float]:
    """Every metric of a run by step and key; each must be there once."""
    with (run / "metrics.csv").open() as file:
        rows = [((int(row["step"]), row["key"]), float(row["value"])) for row in csv.DictReader(file)]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def status(run: Path) -> str:
    return json.loads((run / "tags.json").read_text())["status"]


def newest(run: Path) -> Path:
    return list_checkpoints(RunDirectory(run))[-1]


def read(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def differences(first: Any, second: Any, where: str = "") -> Iterator[str]:
    """Paths at which two nested states differ in any bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            yield f"{where}: keys {first.keys() ^ second.keys()}"
            return
        for key in first:
            yield from differences(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        for index, pair in enumerate(zip(first, second, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if first.dtype != second.dtype or not torch.equal(first, second):
            yield where
    elif first != second:
        yield where


def reseal(checkpoint: Path) -> None:
    """Make all checksums agree with the files again, as somebody who tampers with a checkpoint would."""
    for file in checkpoint.glob("replay-*.json"):
        index = json.loads(file.read_text())
        for segment in index["segments"]:
            name = f"{segment['first']:012d}-{segment['end']:012d}.npz"
            content = (checkpoint.parents[1] / "replay" / file.stem.removeprefix("replay-") / name).read_bytes()
            segment.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        file.write_text(json.dumps(index))
    file = checkpoint / "manifest.json"
    manifest = json.loads(file.read_text())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**manifest, "sha256": digest}))


def rows(run: Path) -> dict[str, np.ndarray]:
    """The rows that the newest checkpoint's replay buffer holds, with their numbers."""
    checkpoint = newest(run)
    total = read(checkpoint / "training-0.pt")["replay"]["total_rows"]
    first = json.loads((checkpoint / "replay-0.json").read_text())["first_row"]
    parts: dict[str, list[np.ndarray]] = {}
    for segment in sorted((run / "replay" / "0").iterdir()):
        start, end = map(int, segment.stem.split("-"))
        numbers = np.arange(start, end)
        kept = (numbers >= first) & (numbers < total)
        with np.load(segment) as arrays:
            for name, array in {**arrays, "number": numbers}.items():
                parts.setdefault(name, []).append(array[kept])
    held = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    assert held["number"].tolist() == list(range(first, total))
    return held


def assert_same_run(unbroken: Path, resumed: Path) -> None:
    first, second = newest(unbroken), newest(resumed)
    assert first.name == second.name
    for name in ("weights.pt", "training-0.pt"):
        assert list(differences(read(first / name), read(second / name))) == []
    held, held_too = rows(unbroken), rows(resumed)
    assert all(np.array_equal(held[name], held_too[name]) for name in held)
    metrics, metrics_too = logged(unbroken), logged(resumed)
    unequal = {
        place: (value, metrics_too.get(place))
        for place, value in metrics.items()
        if not place[1].startswith("throughput/") and metrics_too.get(place) != value
    }
    assert unequal == {}


def resume(run: Path, env_steps: int, *words: str) -> None:
    before = json.loads((run / "run.json").read_text())
    assert main(["resume", run.name, f"run.dir={run.parent}", f"loop.env_steps={env_steps}", *words]) == 0
    assert json.loads((run / "run.json").read_text()) == before
    assert json.loads((run / "tags.json").read_text())["run_id"] == before["run_id"]
    assert status(run) == "FINISHED"


def interrupted(root: Path, at: int, words: tuple[str, ...] = ()) -> None:
    """Train until somebody presses Ctrl-C after ``at`` environment steps."""
    collect = stormlit.storm.loop.collect

    def collect_or_stop(training: Training) -> None:
        if training.progress.env_steps >= at:
            raise KeyboardInterrupt
        collect(training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stormlit.storm.loop, "collect", collect_or_stop)
        assert main(["train", *SMALL, f"run.dir={root}", "run.name=run", *words]) == 130


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must be refused; returns its one sentence."""
    capsys.readouterr()
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("stormlit: error: ")
    return lines[0].removeprefix("stormlit: error: ")


def refused_training(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> str:
    """The same for a training, of which no trace may be left."""
    sentence = refusal(capsys, "train", *SMALL, f"run.dir={root / 'runs'}", *words)
    assert not (root / "runs").exists()
    return sentence


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fabric_run(
    devices: int, words: Iterable[str], *options: str, script: Path = FABRIC_ENTRY
) -> subprocess.CompletedProcess[str]:
    """``fabric run`` with so many CPU processes of a script, the one that ``stormlit script`` prints."""
    fabric = Path(sys.executable).with_name("fabric")
    launch = [str(fabric), "run", "--accelerator", "cpu", "--devices", str(devices), "--main-port", str(free_port())]
    return on_one_thread([*launch, *options, str(script), *words])


def on_one_thread(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Another number of threads would add in another order, and two runs could not be compared bit for bit."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def sentences(ended: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in ended.stderr.splitlines() if "stormlit: error:" in line]


def measured(result: Any) -> dict[str, Any]:
    """All that two runs of one configuration have in common."""
    kept = ("seed", "task", "env_steps", "config_hash", "differences", "returns", "curve", "evaluation", "world_model")
    return {name: getattr(result, name) for name in kept}


def still(num_envs: int) -> Policy:
    return ConstantPolicy(0)
