"""What came out of a finished run, as one file of data: ``result.json`` in the run's folder.

Whatever compares runs reads it from there, and needs neither checkpoints nor a tracker.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stormlit import __version__
from stormlit.analysis.evaluate import Evaluation
from stormlit.config.compose import compose, to_tree
from stormlit.config.schema import Config, keys_of
from stormlit.envs import env_id, env_name, is_atari
from stormlit.errors import CheckpointError
from stormlit.files import read_json, write_json
from stormlit.registry import leaves
from stormlit.runs.directory import RunDirectory
from stormlit.runs.run import Run

FORMAT = 1
FILE = "result.json"
VARIANT = "variant"  # the tag by which a run knows its place in a grid

# Where a run is, who watches it, and which of equal runs it is: sections of the configuration.
NOT_WHAT_WAS_ASKED = {key.partition(".")[0] for key in keys_of("place", "start", "seed", "threads")}
# How an environment is shown to the agent, and where it runs, do not change what an episode is worth.
NOT_PROTOCOL = {key.removeprefix("env.") for key in keys_of("view", "operation") if key.startswith("env.")}


@dataclass(frozen=True)
class Result:
    """A finished run in built-in types; numbers that are not finite are None.

    run: ``name``, ``group`` and ``variant`` (empty where there is none), ``tags``.
    task: ``env_id``, ``game`` (an Atari game's name, or None), ``name`` as shown, and ``protocol``: the settings that
    must be equal for scores to be comparable.
    env_steps, env_steps_wanted: taken, and the budget; they differ where several environments overshoot it.
    config: the resolved configuration.  config_hash: SHA-256 of it, without ``NOT_WHAT_WAS_ASKED``.
    differences: key -> (default, value) for what is not as in the default configuration.
    provenance: ``version``, ``commit`` and ``dirty`` (None outside a git checkout), ``device``, ``precision``,
    ``threads``, ``processes``, ``torch``, ``started`` and ``finished`` (ISO 8601, UTC).
    cost: ``wall_seconds`` of all parts of the run together, without what was lost after a last checkpoint and done
    again; ``env_steps_per_second`` over them; ``peak_memory_bytes`` of the GPU, or of this process on a CPU.
    returns: (environment step, return) of each training episode.
    curve: (environment step, returns of the episodes) of each evaluation, the last one included.
    evaluation: returns of the last evaluation's episodes, of "agent", "random" and "constant/ACTION".
    world_model: the last means of the world model's metrics.
    """

    run: dict[str, Any]
    task: dict[str, Any]
    seed: int
    env_steps: int
    env_steps_wanted: int
    config: dict[str, Any]
    config_hash: str
    differences: dict[str, tuple[Any, Any]]
    provenance: dict[str, Any]
    cost: dict[str, Any]
    returns: list[tuple[int, float | None]]
    curve: list[tuple[int, list[float | None]]]
    evaluation: dict[str, list[float | None]]
    world_model: dict[str, float | None]
    format: int = FORMAT

    def write(self, folder: Path) -> Path:
        """Write ``result.json`` into a run's folder, in one step; returns its path."""
        write_json(folder / FILE, dataclasses.asdict(self))
        return folder / FILE


def read(folder: Path) -> Result | None:
    """The result in a run's folder, None where there is none.

    Raises ``CheckpointError`` for a file that is damaged, or newer than this code.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    content = read_json(file)
    kinds = {"int": int, "str": str, "list": list, "dict": dict}
    fields = {field.name: kinds[str(field.type).partition("[")[0]] for field in dataclasses.fields(Result)}
    missing = [name for name, kind in fields.items() if not isinstance(content.get(name), kind)]
    if missing:
        raise CheckpointError(f"{file} is damaged: {' and '.join(missing)} is missing")
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"{file} has format {content['format']}, this stormlit reads up to {FORMAT}: upgrade stormlit"
        )
    values = {name: content[name] for name in fields}
    for name in ("returns", "curve"):
        values[name] = [(step, value) for step, value in values[name]]
    values["differences"] = {key: (default, value) for key, (default, value) in values["differences"].items()}
    return Result(**values)


def asked(config: Config) -> dict[str, Any]:
    """What a configuration asks to be learned: all of it but ``NOT_WHAT_WAS_ASKED``."""
    return {name: value for name, value in to_tree(config).items() if name not in NOT_WHAT_WAS_ASKED}


def config_hash(config: Config) -> str:
    """SHA-256 of what a configuration asks for, in hexadecimal; equal for runs that differ only in their seed."""
    return hashlib.sha256(json.dumps(asked(config), sort_keys=True).encode()).hexdigest()


def differences(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """The keys in which what is asked for differs, with both values; None where a part has no such option."""
    old, new = dict(leaves(asked(before))), dict(leaves(asked(now)))

    def is_replaced(key: str) -> bool:
        """Whether another part has taken the place of the key's: its name is the change, its own options say how."""
        name = f"{key.rpartition('.')[0]}.name"
        return old.get(name) != new.get(name)

    gone = {key for key in old if key not in new and not is_replaced(key)}
    return {
        key: (old.get(key), new.get(key)) for key in [*new, *sorted(gone)] if key in gone or old.get(key) != new[key]
    }


def protocol(config: Config) -> dict[str, Any]:
    """What has to be equal for two scores to be comparable."""
    env = {name: value for name, value in to_tree(config)["env"].items() if name not in NOT_PROTOCOL}
    evaluation = config.evaluation
    return {
        "env": env,
        "evaluation": {
            name: getattr(evaluation, name) for name in ("episodes", "selection", "greedy", "max_steps_per_episode")
        },
        "env_steps": config.loop.env_steps,
    }


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
        differences=differences(compose(), config),
        provenance=_provenance(run),
        cost={
            "wall_seconds": seconds,
            "env_steps_per_second": run.env_steps / max(seconds, 1e-9),
            "peak_memory_bytes": peak_memory(run.training.fabric.device)[1],
        },
        returns=list(run.training.returns),
        curve=evaluations(run.directory, run.env_steps),
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
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def peak_memory(device: torch.device) -> tuple[str, int]:
    """What is measured, and the most bytes of it that this process has taken so far."""
    if device.type == "cuda":
        return "allocated on the GPU", torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return "resident set of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
