"""What an environment returns: checked against Gymnasium's interface and its own spaces, and shown as square images."""

from __future__ import annotations

from typing import Any, NoReturn

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from stormlit.errors import EnvironmentContractError

cv2.setNumThreads(1)  # frames are small: a thread pool costs more than it gives, and fights with torch for the cores

BOOLS = (bool, np.bool_)
UINT8 = np.dtype(np.uint8)
SYMBOLS_BELOW = 128  # a picture whose brightest pixel is darker than half is rare
SUPPORTED = "uint8 images of shape (Y, X, 3), (Y, X, 1) or (Y, X), and bounded ones of another type"
LARGEST_REWARD = float(np.finfo(np.float32).max)  # what is learned from is float32


class SquareImage(gymnasium.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Images resized by area to (size, size, C) uint8; C is 3 where grey ones are replicated to three channels.

    env: with images that ``image_problem`` finds nothing wrong with.  name: the key that chose it, for error messages.
    channels, values: see ``EnvSettings``.
    A step raises ``ValueError`` for an action outside the space, before the environment sees it: some emulators hang
    for ever on an action they do not know.
    Raises ``EnvironmentContractError`` when the environment returns what it must not: another number of values, an
    observation outside its space, a reward that is not a finite number, an end that is not a bool, no info dictionary.
    """

    def __init__(
        self, env: gymnasium.Env[np.ndarray, int], size: int, name: str, channels: str = "rgb", values: str = "auto"
    ) -> None:
        super().__init__(env)
        self._size, self._name = size, name
        self._seed: int | None = None
        self._steps = 0
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        self._shape, self._dtype = space.shape, space.dtype
        self._stretched = is_stretched(space, values)
        self._low, self._high = float(space.low.min()), float(space.high.max())
        kept = 1 if len(space.shape) == 2 else space.shape[2]
        self._channels = 3 if channels == "rgb" else kept
        # The type says as much, and no pixel has to be looked at.
        self._full_range = space.dtype == UINT8 and not space.low.any() and bool((space.high == 255).all())
        self.observation_space = spaces.Box(0, 255, (size, size, self._channels), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._seed, self._steps = seed, 0
        returned = self.env.reset(seed=seed, options=options)
        if not isinstance(returned, tuple) or len(returned) != 2:
            self._refuse(f"{_describe(returned)} from reset, where Gymnasium expects (observation, info)")
        image, info = returned
        return self._checked_image(image), self._checked_info(info)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside the action space {self.action_space}")
        returned: Any = self.env.step(action)
        self._steps += 1
        if not isinstance(returned, tuple) or len(returned) != 5:
            self._refuse(
                f"{_describe(returned)} from step, where Gymnasium expects (observation, reward, terminated, "
                f"truncated, info)"
            )
        image, reward, terminated, truncated, info = returned
        if not (isinstance(terminated, BOOLS) and isinstance(truncated, BOOLS)):
            word, value = ("truncated", truncated) if isinstance(terminated, BOOLS) else ("terminated", terminated)
            self._refuse(f"{word} as {_describe(value)}, not as a bool")
        return (
            self._checked_image(image),
            self._checked_reward(reward),
            bool(terminated),
            bool(truncated),
            self._checked_info(info),
        )

    def _checked_image(self, image: np.ndarray) -> np.ndarray:
        if not isinstance(image, np.ndarray) or image.dtype != self._dtype or image.shape != self._shape:
            self._refuse(f"{_describe(image)}, its space says {self._dtype} {self._shape}")
        if not self._full_range and not self.env.observation_space.contains(image):
            space = self.env.observation_space
            assert isinstance(space, spaces.Box)
            self._refuse(
                f"pixels from {image.min()} to {image.max()}, its space says {space.low.min()} to {space.high.max()}"
            )
        if self._stretched:  # resized before it is rounded
            image = (image.astype(np.float32) - self._low) * (255.0 / (self._high - self._low))
        return square_image(image, self._size, self._channels)

    def _checked_reward(self, reward: Any) -> float:
        try:
            value = reward if type(reward) is float else self._number(reward)
        except (TypeError, ValueError, OverflowError):
            self._refuse(f"{_describe(reward)} as the reward, not a number")
        if not -LARGEST_REWARD <= value <= LARGEST_REWARD:
            self._refuse(f"the reward {value}, which is not a finite float32")
        return value

    @staticmethod
    def _number(reward: Any) -> float:
        if isinstance(reward, str | bytes) or np.ndim(reward):
            raise TypeError
        return float(reward)

    def _checked_info(self, info: Any) -> dict[str, Any]:
        if not isinstance(info, dict):
            self._refuse(f"{_describe(info)} as info, not a dictionary")
        return {"life_lost": False, **info}

    def _refuse(self, what: str) -> NoReturn:
        where = f"at step {self._steps} of" if self._steps else "at the reset of"
        raise EnvironmentContractError(f"{self._name} returned {what} ({where} the episode with seed {self._seed})")


def square_image(image: np.ndarray, size: int, channels: int = 3) -> np.ndarray:
    """(Y, X, channels), (Y, X, 1) or (Y, X), uint8 or float32 in [0, 255], resized by area to (size, size, channels).

    Returns uint8; a single channel is replicated.
    """
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    resized = resized.reshape(size, size, -1)  # OpenCV drops a single channel
    if resized.dtype != UINT8:
        resized = resized.round().clip(0, 255).astype(np.uint8)
    return resized if resized.shape[2] == channels else resized.repeat(channels, axis=2)


def is_stretched(space: spaces.Box, values: str) -> bool:
    """Whether the space's range is stretched to 0 to 255.  values: see ``EnvSettings``."""
    return values == "stretched" or (values == "auto" and space.dtype != UINT8)


def image_problem(space: spaces.Space[Any] | None, channels: str, values: str) -> str:
    """What keeps a space from being shown as images, as the end of a sentence about it; empty where nothing does.

    channels, values: see ``EnvSettings``.
    """
    if not isinstance(space, spaces.Box) or 0 in space.shape or len(space.shape) not in (2, 3):
        return f"supported are {SUPPORTED}"
    if space.dtype.kind not in "buif" or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        return f"supported are {SUPPORTED}"
    if len(space.shape) == 3 and channels == "rgb" and space.shape[2] not in (1, 3):
        return f"supported are {SUPPORTED}; env.channels=as_is takes (Y, X, C) with any number of channels"
    low, high = float(space.low.min()), float(space.high.max())
    if is_stretched(space, values):
        return "" if low < high else f"all of them are {low:g}: there is nothing to see"
    if space.dtype != UINT8:
        return "only uint8 can be taken as brightness: leave env.values=auto, which stretches their range"
    if values == "auto" and high < SYMBOLS_BELOW:
        return (
            f"their values end at {high:g}, which may be symbols rather than brightness: env.values=stretched spreads "
            f"them over 0 to 255, env.values=as_is takes them as they are"
        )
    return ""


def _describe(value: Any) -> str:
    """Type and shape, as short as they tell what is wrong."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if value is None:
        return "None"
    return f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__
