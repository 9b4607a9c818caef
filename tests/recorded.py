"""Demonstrations small enough for a test, and the official format written from them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from stormlit.analysis.evaluate import RandomPolicy
from stormlit.demonstrations import Demonstration, Origin, record
from stormlit.envs import EnvSettings

CATCH = EnvSettings(game=None, id="stormlit/Catch-v0", size=16)


def catch(steps: int = 40, seed: int = 0) -> Demonstration:
    """Random play in Catch, 7 steps an episode."""
    return record(CATCH, RandomPolicy(3, seed), steps=steps, seed=seed)


def counted(steps: int, first: int = 0, size: int = 16, **changes: Any) -> Demonstration:
    """A demonstration in which every field spells the step's number; an episode ends with every tenth."""
    number = np.arange(first, first + steps)
    obs = np.zeros((steps, size, size, 3), np.uint8)
    obs[:, :, :, 0], obs[:, :, :, 1] = (number % 256)[:, None, None], (number // 256)[:, None, None]
    fields: dict[str, Any] = {
        "obs": obs,
        "action": number % 3,
        "reward": (number - 5).astype(np.float32),
        "terminated": number % 10 == 9,
        "truncated": number % 20 == 14,
        "life_lost": number % 10 == 3,
        "origin": Origin(),
    }
    return Demonstration(**{**fields, **changes})


def as_official(demonstration: Demonstration) -> dict[str, np.ndarray]:
    """The same play as the published files have it: each frame beside the action that led to it.

    The first frame was led to by an action of no importance; ``truncated`` is lost.
    """
    nothing = np.zeros(1, np.int64)
    return {
        "action": np.concatenate([nothing, demonstration.action[:-1]]),
        "reward": np.concatenate([nothing, demonstration.reward[:-1].astype(np.int64)]),
        "done": np.concatenate([[False], demonstration.terminated[:-1]]),
        "life_loss": np.concatenate([[False], demonstration.life_lost[:-1]]),
        "obs": demonstration.obs,
    }


def write_pickle(file: Path, content: object, protocol: int = 4) -> Path:
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return file


# A folder with Freeway.pkl, MsPacman.pkl and Pong.pkl, the trajectories published with STORM.
OFFICIAL = "STORMLIT_OFFICIAL_DEMONSTRATIONS"
