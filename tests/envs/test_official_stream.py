"""The environment stream of ``configs/official.yaml`` against the public pipeline, built from Gymnasium's pieces.

The pipeline (weipu-zhang/STORM, train.py and env_wrapper.py): the ``-v5`` environment one emulator frame at a time,
every reset with the same seed, four frames an action of which the last two are merged by their maximum, Gymnasium's
resize to 64 x 64, and a lost life wherever the number of lives falls.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from stormlit.config.compose import compose
from stormlit.envs import VectorEnv

SEED = 5


class FourFrames(gymnasium.Wrapper[np.ndarray, int, np.ndarray, int]):
    """One action for four emulator frames or until the episode ends."""

    frames_seen: int

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frames, rewards, over = [], [], False
        while len(frames) < 4 and not over:
            frame, reward, terminated, truncated, info = self.env.step(action)
            frames.append(frame)
            rewards.append(reward)
            over = terminated or truncated
        self.frames_seen = len(frames)
        return np.max(frames[-2:], axis=0), sum(rewards), terminated, truncated, info


class PublicPipeline:
    """What it makes of actions: the next frame to act on, reward, termination (or lost life), and whether it ended."""

    def __init__(self, game: str, **options: Any) -> None:
        # Nothing said of sticky actions and the longest episode: the -v5 environments have 0.25 and 108,000 frames.
        raw = gymnasium.make(f"ALE/{game}-v5", full_action_space=False, frameskip=1, **options)
        self.skipping = FourFrames(raw)
        self.env = gymnasium.wrappers.ResizeObservation(self.skipping, (64, 64))
        self.lives = 0

    def reset(self) -> np.ndarray:
        frame, info = self.env.reset(seed=SEED)
        self.lives = info["lives"]
        return frame

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        final_frame, reward, terminated, truncated, info = self.env.step(action)
        life_lost, self.lives = info["lives"] < self.lives, info["lives"]
        over = terminated or truncated
        return self.reset() if over else final_frame, reward, terminated or life_lost, over


def compare(game: str, episodes: int, words: tuple[str, ...] = (), **options: Any) -> tuple[set[int], int]:
    """Play the same random actions in both until so many episodes have ended.

    Returns how many emulator frames the episodes' last steps had, and how many lives were lost.
    """
    ours = VectorEnv(compose(["official"], [f"env.game={game}", *words]).env, seed=SEED)
    theirs, random = PublicPipeline(game, **options), np.random.default_rng(0)
    assert np.array_equal(ours.reset()[0], theirs.reset())
    last_steps, lost, ended = set(), 0, 0
    while ended < episodes:
        action = random.integers(ours.num_actions)
        step = ours.step(np.array([action]))
        frame, reward, terminated, over = theirs.step(int(action))
        assert step.obs[0].tobytes() == frame.tobytes()
        assert (step.reward[0], step.terminated[0], step.is_first[0]) == (np.float32(reward), terminated, over)
        lost += terminated and not over
        if over:
            ended += 1
            last_steps.add(theirs.skipping.frames_seen)
    ours.close()
    return last_steps, lost


def test_the_stream_is_the_public_one_byte_for_byte() -> None:
    _, lost = compare("Breakout", episodes=3)
    assert lost == 3 * 4


@pytest.mark.parametrize("frames", [21, 22])
def test_an_end_inside_a_step_is_the_public_one(frames: int) -> None:
    """Episodes truncated after one and after two frames of their last step."""
    last_steps, _ = compare(
        "Pong", episodes=3, words=(f"env.atari.max_frames={frames}",), max_num_frames_per_episode=frames
    )
    assert last_steps == {(frames - 1) % 4 + 1}


@pytest.mark.slow
@pytest.mark.parametrize("game", ["Boxing", "Freeway", "MsPacman", "Pong", "RoadRunner", "UpNDown"])
def test_the_streams_of_other_games_are_public_ones_too(game: str) -> None:
    compare(game, episodes=3)
