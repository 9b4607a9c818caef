"""Puts together the result of a run that has come to its end."""

from __future__ import annotations

import datetime
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stormlit import __version__
from stormlit.analysis.evaluate import Evaluation
from stormlit.config.compose import to_tree
from stormlit.envs import env_id, env_name, is_atari
from stormlit.errors import CheckpointError
from stormlit.files import read_json
from stormlit.runs.directory import RunDirectory
from stormlit.runs.result import Result, config_hash, differences_from_default, protocol
from stormlit.runs.run import Run

VARIANT = "variant"  # the tag by which a run knows its place in a grid


def result_of(run: Run, results: Sequence[Evaluation]) -> Result:
    """results: of the last evaluation, the agent's first."""
    config, seconds = run.config, run.wall_seconds
    tags = dict(run.tracker.tags)
    name = env_name(config.env)
    return Result(
        run={
            "name": run.directory.name,
            "group": run.tracker.group or "",
            "variant": tags.get(VARIANT, ""),
            "tags": tags,
        },
        task={
            "env_id": env_id(config.env),
            "game": name if is_atari(config.env) else None,
            "name": name,
            "protocol": protocol(config),
        },
        seed=config.seed,
        env_steps=run.env_steps,
        env_steps_wanted=config.loop.env_steps,
        config=to_tree(config),
        config_hash=config_hash(config),
        differences=differences_from_default(config),
        provenance=_provenance(run),
        cost={
            "wall_seconds": seconds,
            "env_steps_per_second": run.env_steps / max(seconds, 1e-9),
            "peak_memory_bytes": peak_memory(run.training.fabric.device),
        },
        returns=[(step, value) for step, value in run.training.returns],
        curve=_curve(run),
        evaluation={_policy(result.policy): [float(value) for value in result.returns] for result in results},
        world_model=dict(run.latest_metrics),
    )


def _provenance(run: Run) -> dict[str, Any]:
    fabric, tags = run.training.fabric, run.tags
    return {
        "version": __version__,
        "commit": None if tags.get("git_commit", "unknown") == "unknown" else tags["git_commit"],
        "dirty": {"true": True, "false": False}.get(tags.get("git_dirty", "")),
        "device": tags.get("device", str(fabric.device)),
        "precision": fabric.strategy.precision.precision,
        "threads": torch.get_num_threads(),
        "processes": fabric.world_size,
        "torch": torch.__version__,
        "started": run.started,
        "finished": now(),
    }


def now() -> str:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def peak_memory(device: torch.device) -> int:
    """Of the GPU, or of this process on a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _curve(run: Run) -> list[tuple[int, list[float | None]]]:
    """The evaluations on the way, as their files have them, and the one of this step."""
    points = dict(evaluations(run.directory, run.env_steps))
    if run.latest_evaluation is not None:
        points[run.env_steps] = [float(value) for value in run.latest_evaluation.returns]
    return sorted(points.items())


def evaluations(directory: RunDirectory, env_steps: int) -> list[tuple[int, list[float | None]]]:
    """Environment steps and returns of the evaluations that a run has on the disk, up to ``env_steps``."""
    found = []
    for file in sorted(directory.evaluation.glob("step-?????????.json")):
        step = step_of(file)
        try:
            episodes = read_json(file)["episodes"] if step <= env_steps else None
        except (CheckpointError, KeyError):  # one point less
            continue
        if isinstance(episodes, list):
            found.append((step, [episode.get("episode_return") for episode in episodes]))
    return found


def step_of(file: Path) -> int:
    """The environment steps in the name of a file ``step-000001000.json`` or a folder ``step-000001000``."""
    return int(file.stem.rpartition("-")[2])


def _policy(name: str) -> str:
    return f"constant/{name.removeprefix('always ')}" if name.startswith("always ") else name
