"""Folders of finished runs with the returns that a test wants, as training leaves them but for the checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stormlit.config.compose import compose, to_tree
from stormlit.config.schema import Config
from stormlit.envs import env_id, env_name, is_atari
from stormlit.files import write_json
from stormlit.runs.result import Result, config_hash, differences, protocol


@functools.cache
def _configured(*words: str) -> tuple[Config, dict[str, Any], str, dict[str, tuple[Any, Any]]]:
    """A configuration, as a tree, its hash, and its differences; the first word is its name."""
    made = compose(words[:1], words[1:])
    return made, to_tree(made), config_hash(made), differences(compose(), made)


def fake_result(
    name: str,
    returns: Sequence[float | None],
    *words: str,
    variant: str = "",
    random: Sequence[float] = (-1.0, 0.0),
    group: str = "",
    config: str = "tiny",
    **changes: Any,
) -> Result:
    """A result whose last evaluation has ``returns``; the curve rises to their mean.  words: of the configuration."""
    made, tree, digest, differences = _configured(config, *(word for word in words if not word.startswith("seed=")))
    seed = int(next((word.partition("=")[2] for word in words if word.startswith("seed=")), 0))
    budget = made.loop.env_steps
    numbers = [value for value in returns if value is not None] or [0.0]
    random_mean = float(np.mean(random))
    curve: list[Any] = [
        (budget * part // 5, [random_mean + (value - random_mean) * (part / 5) ** 0.5 for value in numbers])
        for part in range(1, 5)
    ]
    fields: dict[str, Any] = {
        "run": {"name": name, "group": group, "variant": variant, "tags": {}},
        "task": {
            "env_id": env_id(made.env),
            "game": env_name(made.env) if is_atari(made.env) else None,
            "name": env_name(made.env),
            "protocol": protocol(made),
        },
        "seed": seed,
        "env_steps": budget,
        "env_steps_wanted": budget,
        "config": {**tree, "seed": seed},
        "config_hash": digest,
        "differences": differences,
        "provenance": {
            "version": "0.1.0",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "device": "cpu",
            "precision": "32-true",
            "threads": 1,
            "processes": 1,
            "torch": "2.13.0",
            "started": "2026-11-25T10:00:00+00:00",
            "finished": "2026-11-25T10:05:00+00:00",
        },
        "cost": {"wall_seconds": 300.0 + 10 * seed, "env_steps_per_second": 16.0, "peak_memory_bytes": 2**29},
        "returns": [(step, random_mean) for step in range(10, budget, 10)],
        "curve": [*curve, (budget, list(returns))],
        "evaluation": {"agent": list(returns), "random": list(random)},
        "world_model": {"world_model/kl": 1.5},
    }
    return Result(**{**fields, **changes})


def write_run(root: Path, result: Result) -> Path:
    """The run's folder, under the name that the result has."""
    folder = root / result.run["name"]
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"name": folder.name, "run_id": f"id-{folder.name}"})
    result.write(folder)
    return folder
