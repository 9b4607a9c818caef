"""Values that have the right type but make no sense, and pairs of values that do not fit together."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from stormlit.config.schema import Config
from stormlit.errors import ConfigError, nearest

# What the trackers of all runs keep in run.dir, SQLite's files beside a database among them.
MLFLOW_FILES = ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal", ".mlflow.lock", "artifacts")

# key, smallest value, largest value
RANGES: tuple[tuple[str, float, float], ...] = (
    ("seed", 0, 2**31 - 1),
    ("replay.capacity", 1, 10**9),
    ("demonstrations.batch_size", 0, 10**6),
    ("demonstrations.imagination_batch_size", 0, 10**7),
    ("world_model.hidden_dim", 1, 10**5),
    ("world_model.free_bits", 0, 1e12),
    ("world_model.reward_bins", 3, 10**5),
    ("world_model.optimizer.learning_rate", 0, 10),
    ("world_model.optimizer.eps", 0, 1),
    ("world_model.optimizer.clip_norm", 1e-12, 1e12),
    ("agent.hidden_dim", 1, 10**5),
    ("agent.gamma", 0, 1),
    ("agent.lambda_", 0, 1),
    ("agent.slow_critic_decay", 0, 1),
    ("agent.value_bins", 3, 10**5),
    ("agent.optimizer.learning_rate", 0, 10),
    ("agent.optimizer.eps", 0, 1),
    ("agent.optimizer.clip_norm", 1e-12, 1e12),
    ("agent.return_normalizer.decay", 0, 1),
    ("agent.return_normalizer.low", 0, 100),
    ("agent.return_normalizer.high", 0, 100),
    ("agent.return_normalizer.minimum", 1e-12, 1e12),
    ("imagination.batch_size", 1, 10**7),
    ("imagination.horizon", 1, 10**5),
    ("imagination.context_length", 1, 10**5),
    ("player.context_length", 1, 10**5),
    ("loop.env_steps", 1, 10**12),
    ("loop.warmup_steps", 0, 10**12),
    ("loop.batch_size", 1, 10**6),
    ("loop.batch_length", 2, 10**6),
    ("loop.world_model_updates_per_env_step", 0, 1000),
    ("loop.agent_updates_per_env_step", 0, 1000),
    ("loop.log_every_env_steps", 1, 10**12),
    ("loop.media_every_env_steps", 0, 10**12),
    ("loop.max_nonfinite_updates", 0, 10**9),
    ("evaluation.episodes", 1, 10**6),
    ("evaluation.num_envs", 1, 10**4),
    ("evaluation.every_env_steps", 0, 10**12),
    ("checkpoint.every", 1, 10**12),
    ("checkpoint.every_minutes", 0, 10**9),
    ("checkpoint.keep", 1, 10**6),
)
# key of the smaller value, key of the larger one
ORDERED: tuple[tuple[str, str], ...] = (
    ("world_model.reward_low", "world_model.reward_high"),
    ("agent.value_low", "agent.value_high"),
    ("agent.return_normalizer.low", "agent.return_normalizer.high"),
)
BASELINES = ("random", "constant")


def check_ranges(config: Config) -> None:
    """Raise ``ConfigError`` for the first value out of range, or the first pair of values that contradict."""
    for key, low, high in RANGES:
        value = _value(config, key)
        if not low <= value <= high:
            raise ConfigError(f"{key}={value} is out of range: expected {low:g} to {high:g}")
    for key, number in _numbers(dataclasses.asdict(config), ""):
        if not math.isfinite(number):
            raise ConfigError(f"{key}={number} is not a finite number")
    for smaller, larger in ORDERED:
        if _value(config, smaller) >= _value(config, larger):
            raise ConfigError(
                f"{smaller}={_value(config, smaller)} must be smaller than {larger}={_value(config, larger)}"
            )
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
    _check_window_fits(config)
    _check_demonstration_files(config.demonstrations.path)


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _numbers(tree: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """Every float of nested mappings with its key."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", value


def _check_window_fits(config: Config) -> None:
    longest = config.world_model.sequence_model.get("max_length")
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


def _check_demonstration_files(path: Any) -> None:
    files = path if isinstance(path, list) else [path]
    if path is not None and not (files and all(isinstance(file, str) and file for file in files)):
        raise ConfigError(
            f"demonstrations.path={path} is neither a file nor a list of files: expected null, FILE or [FILE,FILE]"
        )
