"""From settings to one Gymnasium environment that shows square RGB images and takes discrete actions."""

from __future__ import annotations

from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

import stormlit.envs.catch  # noqa: F401  registers stormlit/Catch-v0
from stormlit.envs.atari import NOOP, AtariProtocol, ale_games
from stormlit.envs.settings import EnvSettings, check_settings, env_id, env_key
from stormlit.errors import EnvironmentSetupError, nearest

cv2.setNumThreads(1)  # frames are small: a thread pool costs more than it gives, and fights with torch for the cores


def make_env(settings: EnvSettings) -> gymnasium.Env[np.ndarray, int]:
    """Make one environment.

    Observations are (size, size, 3) uint8, actions ``Discrete`` from 0, ``info["life_lost"]`` is always there: an
    environment's own entry, or False. A step raises ``ValueError`` for an action outside the space. Environments other
    than ALE games keep their own time limit, if they have one; ``max_episode_steps`` comes on top.

    Raises ``EnvironmentSetupError`` for an unknown environment, a value out of range, and an environment whose
    observations are not images or whose actions are not discrete.
    """
    check_settings(settings)
    if settings.game and settings.game not in ale_games():
        raise EnvironmentSetupError(
            f"env.game={settings.game} is not an Atari game{nearest(settings.game, ale_games())}; "
            f"any game of the Arcade Learning Environment is allowed, in CamelCase such as MsPacman"
        )
    name = env_id(settings)
    env = _make_atari(name, settings) if name.startswith("ALE/") else _make_registered(name, settings)
    try:
        _check_spaces(env, settings)
    except EnvironmentSetupError:
        env.close()
        raise
    image_env = SquareImage(env, settings.size)
    if settings.max_episode_steps is None:
        return image_env
    return gymnasium.wrappers.TimeLimit(image_env, settings.max_episode_steps)


class SquareImage(gymnasium.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Images resized by area to (size, size, 3) uint8, with grey ones replicated to three channels; checked actions.

    The action is checked here because an emulator does not: some hang forever on an action they do not know.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, int], size: int) -> None:
        super().__init__(env)
        self._size = size
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        image, info = self.env.reset(seed=seed, options=options)
        return self._resize(image), {"life_lost": False, **info}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside the action space {self.action_space}")
        image, reward, terminated, truncated, info = self.env.step(action)
        return self._resize(image), float(reward), terminated, truncated, {"life_lost": False, **info}

    def _resize(self, image: np.ndarray) -> np.ndarray:
        return square_image(image, self._size)


def square_image(image: np.ndarray, size: int) -> np.ndarray:
    """(Y, X, 3), (Y, X, 1) or (Y, X) uint8, resized by area to (size, size, 3), grey replicated."""
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    resized = resized.reshape(size, size, -1)  # OpenCV drops a single channel
    return resized if resized.shape[2] == 3 else resized.repeat(3, axis=2)


def _make_atari(name: str, settings: EnvSettings) -> gymnasium.Env[np.ndarray, int]:
    atari = settings.atari
    env = _make_registered(
        name,
        settings,
        frameskip=1,
        repeat_action_probability=atari.sticky_actions,
        full_action_space=atari.full_action_space,
        max_num_frames_per_episode=atari.max_frames,
    )
    if atari.noop_max and env.get_wrapper_attr("get_action_meanings")()[NOOP] != "NOOP":
        env.close()
        raise EnvironmentSetupError(
            f"env.atari.noop_max={atari.noop_max} needs a NOOP action, which {env_key(settings)} lacks; set it to 0 or "
            f"env.atari.full_action_space=true"
        )
    return AtariProtocol(env, atari.frame_skip, atari.max_pool, atari.noop_max)


def _make_registered(name: str, settings: EnvSettings, **options: Any) -> gymnasium.Env[np.ndarray, int]:
    """``gymnasium.make`` with its refusals told in one sentence; ``options`` go to the environment's constructor."""
    try:
        return gymnasium.make(name, disable_env_checker=True, **options)
    except gymnasium.error.UnregisteredEnv as error:
        raise EnvironmentSetupError(
            f"{env_key(settings)} is not a registered Gymnasium environment{nearest(name, gymnasium.registry)}"
        ) from error
    # A malformed id, a missing module or dependency, or a constructor that wants arguments.
    except (gymnasium.error.Error, ImportError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise EnvironmentSetupError(f"{env_key(settings)} cannot be made: {reason}") from error


def _check_spaces(env: gymnasium.Env[Any, Any], settings: EnvSettings) -> None:
    observations, actions = env.observation_space, env.action_space
    if not _is_image(observations):
        raise EnvironmentSetupError(
            f"{env_key(settings)} has {_describe(observations)} observations; supported are uint8 images of shape "
            f"(Y, X, 3), (Y, X, 1) or (Y, X)"
        )
    if not isinstance(actions, spaces.Discrete) or actions.start != 0:
        raise EnvironmentSetupError(
            f"{env_key(settings)} has {_describe(actions)} actions; supported are Discrete actions that start at 0"
        )


def _is_image(space: spaces.Space[Any]) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[2] in (1, 3))


def _describe(space: spaces.Space[Any]) -> str:
    """Type, dtype and shape on one line; the representation of a large Box spans several."""
    if isinstance(space, spaces.Box):
        return f"Box {space.dtype} {space.shape}"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n}, start={space.start})"
    return type(space).__name__
