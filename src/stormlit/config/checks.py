"""Values that have the right type but make no sense, and pairs of values that do not fit together."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from stormlit.config.schema import KEYS, Config
from stormlit.envs.settings import check_settings
from stormlit.errors import ConfigError, nearest
from stormlit.registry import check_values, leaves, names, part_class

# What the trackers of all runs keep in run.dir, SQLite's files beside a database among them.
MLFLOW_FILES = ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal", ".mlflow.lock", "artifacts")
LONGEST_NAME = 200  # bytes; most file systems take 255, and files are written beside it under longer names
BASELINES = ("random", "constant")


def check_ranges(config: Config) -> None:
    """Raise ``ConfigError`` for the first value out of range, or the first pair of values that contradict."""
    check_settings(config.env)
    check_values(KEYS, dict(leaves(dataclasses.asdict(config))))
    if config.replay.capacity < config.loop.batch_length * config.env.num_envs:
        raise ConfigError(
            f"replay.capacity={config.replay.capacity} cannot hold one window: expected at least loop.batch_length x "
            f"env.num_envs = {config.loop.batch_length * config.env.num_envs}"
        )
    if config.imagination.start == "posterior" and config.imagination.context_length < 2:
        raise ConfigError("imagination.context_length must be at least 2 with imagination.start=posterior")
    for baseline in config.evaluation.baselines:
        if baseline not in BASELINES:
            raise ConfigError(
                f"evaluation.baselines: no baseline is called '{baseline}'{nearest(baseline, BASELINES)}; "
                f"choose from {', '.join(BASELINES)}"
            )
    if config.run.name in MLFLOW_FILES:
        raise ConfigError(
            f"run.name={config.run.name} is what MLflow's own files in run.dir are called: choose another"
        )
    if config.run.name is not None and not re.fullmatch(r"[\w][\w.+-]*", config.run.name):
        raise ConfigError(
            f"run.name='{config.run.name}' names a folder: use letters, digits, '_', '.', '+' and '-', "
            "and begin with a letter or a digit"
        )
    if config.run.name is not None and len(config.run.name.encode()) > LONGEST_NAME:
        raise ConfigError(
            f"run.name={config.run.name} has {len(config.run.name.encode())} bytes: a folder's name has at most "
            f"{LONGEST_NAME}"
        )
    check_windows_fit(config, config.world_model.sequence_model.get("max_length"))
    _check_carried_memory(config)
    _check_demonstration_files(config.demonstrations.path)


def check_windows_fit(config: Config, longest: int | None) -> None:
    """Raise ``ConfigError`` for a window of more steps than the sequence model can read; None: any."""
    if longest is None:
        return
    for keys, needed in (
        ("loop.batch_length", config.loop.batch_length),
        ("player.context_length", config.player.context_length),
        (
            "imagination.context_length + imagination.horizon",
            config.imagination.context_length + config.imagination.horizon,
        ),
    ):
        if needed > longest:
            raise ConfigError(
                f"{keys}={needed} is longer than world_model.sequence_model.max_length={longest}, "
                "the number of positions the sequence model has"
            )


def _check_carried_memory(config: Config) -> None:
    """Raise ``ConfigError`` for a memory to be carried along by what has none, or beside a window that is read anew."""
    if config.player.memory != "carried":
        return
    name = config.world_model.sequence_model["name"]
    carrying = [other for other in {*names("sequence_model"), name} if _carries(other)]
    if name not in carrying:
        raise ConfigError(
            f"player.memory=carried needs a sequence model that steps on for ever, which world_model.sequence_model="
            f"{name} does not: choose from {', '.join(sorted(carrying))}, or player.memory=window"
        )
    if config.player.context == "frames":
        raise ConfigError(
            "player.context=frames draws the latents of a window anew at every step, and player.memory=carried has no "
            "window: give one of the two"
        )


def _carries(name: str) -> bool:
    return getattr(part_class("sequence_model", name), "carries", False)


def _check_demonstration_files(path: Any) -> None:
    files = path if isinstance(path, list) else [path]
    if path is not None and not (files and all(isinstance(file, str) and file for file in files)):
        raise ConfigError(
            f"demonstrations.path={path} is neither a file nor a list of files: expected null, FILE or [FILE,FILE]"
        )
