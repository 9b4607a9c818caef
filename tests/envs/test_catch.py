"""Catch: its rules, its picture, and the two returns its documentation promises."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from stormlit.envs.catch import BALL_COLOUR, BEST_RETURN, GRID, PADDLE_COLOUR, RANDOM_RETURN, Catch

LEFT, STAY, RIGHT = 0, 1, 2


def _columns(image: np.ndarray) -> tuple[int, int]:
    """Columns of the ball and the paddle, found by colour in a frame of 8 x 8 pixel cells."""
    cells = image[::8, ::8]
    ball = int(np.argwhere((cells == BALL_COLOUR).all(axis=-1))[0, 1])
    paddle = np.argwhere((cells == PADDLE_COLOUR).all(axis=-1))
    return ball, int(paddle[0, 1]) if len(paddle) else ball


def test_following_the_ball_by_its_pixels_always_catches_it() -> None:
    env = gymnasium.make("stormlit/Catch-v0")
    for seed in range(200):
        image, _ = env.reset(seed=seed)
        rewards, terminated = [], False
        while not terminated:
            ball, paddle = _columns(image)
            image, reward, terminated, truncated, _ = env.step(STAY + np.sign(ball - paddle))
            rewards.append(reward)
            assert not truncated
        assert rewards == [0.0] * 6 + [BEST_RETURN]


def test_random_actions_return_what_the_documentation_says() -> None:
    env = gymnasium.make("stormlit/Catch-v0").unwrapped
    generator = np.random.default_rng(0)
    returns = []
    for seed in range(2000):
        env.reset(seed=seed)
        returns.append(sum(float(env.step(int(action))[1]) for action in generator.integers(3, size=GRID - 1)))
    assert set(returns) == {-1.0, 1.0}
    assert np.mean(returns) == pytest.approx(RANDOM_RETURN, abs=0.1)


def test_walls_hold_the_paddle() -> None:
    env = gymnasium.make("stormlit/Catch-v0")
    for action, wall in [(LEFT, 0), (RIGHT, GRID - 1)]:
        for seed in range(20):
            env.reset(seed=seed)
            for _ in range(GRID - 1):
                image, reward, *_ = env.step(action)
            ball, paddle = _columns(image)
            assert paddle == wall
            assert (reward == 1.0) == (ball == wall)


def test_picture_is_two_solid_blocks() -> None:
    env = gymnasium.make("stormlit/Catch-v0", cell=3)
    image, _ = env.reset(seed=0)
    assert image.shape == env.observation_space.shape == (24, 24, 3)
    assert image.dtype == np.uint8
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    assert {tuple(int(c) for c in colour): int(n) for colour, n in zip(colours, counts, strict=True)} == {
        (0, 0, 0): 24 * 24 - 18,
        BALL_COLOUR: 9,
        PADDLE_COLOUR: 9,
    }


def test_gymnasium_accepts_it() -> None:
    check_env(gymnasium.make("stormlit/Catch-v0").unwrapped, skip_render_check=True)
    check_env(gymnasium.make("stormlit/Catch-v0", continuous=True).unwrapped, skip_render_check=True)


def test_the_ball_can_be_two_numbers_beside_a_picture_without_it() -> None:
    whole, apart = Catch(cell=1), Catch(cell=1, ball_as_numbers=True)
    image, _ = whole.reset(seed=3)
    seen, _ = apart.reset(seed=3)
    for _ in range(6):
        assert apart.observation_space.contains(seen)
        row, column = seen["ball"].astype(int)
        assert image[row, column].tolist() == list(BALL_COLOUR) and not seen["image"][row, column].any()
        image[row, column] = 0
        assert np.array_equal(image, seen["image"])
        (image, *_), (seen, *_) = whole.step(0), apart.step(0)


def test_a_continuous_paddle_catches_from_half_a_column_away_and_is_drawn_where_it_stands() -> None:
    env = Catch(cell=4, continuous=True)
    rewards = {}
    for beside in (0.0, 0.5, 0.52, -0.48, -1.0):
        for seed in range(20):
            env.reset(seed=seed)
            for _ in range(GRID - 1):
                distance = env._ball_column + beside - env._paddle_column
                reward = env.step(np.array([np.clip(distance, -1.0, 1.0)], np.float32))[1]
            if abs(env._paddle_column - env._ball_column - beside) < 1e-3:  # no wall in the way
                rewards.setdefault(beside, set()).add(reward)
    assert rewards == {0.0: {1.0}, 0.5: {1.0}, 0.52: {-1.0}, -0.48: {1.0}, -1.0: {-1.0}}
    env._ball_row, env._paddle_column = 0, 2.375  # nine and a half pixels from the left
    row = env._image()[-1, :, 2].astype(int)
    assert row[8:15].tolist() == [0, 128, 255, 255, 255, 128, 0] and row.sum() == 4 * 255 + 1


def test_random_continuous_actions_catch_one_ball_in_eight_or_so() -> None:
    env = Catch(cell=1, continuous=True)
    env.action_space.seed(0)
    returns = []
    for seed in range(500):
        env.reset(seed=seed)
        returns.append(sum(env.step(env.action_space.sample())[1] for _ in range(GRID - 1)))
    assert np.mean(returns) == pytest.approx(RANDOM_RETURN, abs=0.1)
