"""Images of any channels and values: what is stored of them, what is refused, and how they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from stormlit.analysis.pictures import in_colours
from stormlit.envs import EnvSettings, make_env
from stormlit.errors import EnvironmentContractError, EnvironmentSetupError


class Shown(gymnasium.Env):
    """One image, always."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Box, image: np.ndarray) -> None:
        self.observation_space, self.image = space, image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return self.image, {}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    gymnasium.register("tests/Shown-v0", Shown)
    yield
    gymnasium.registry.pop("tests/Shown-v0")


def shown(space: spaces.Box, image: np.ndarray, **settings: Any) -> np.ndarray:
    """The stored form of an image of 8 x 8."""
    kwargs = {"space": space, "image": image}
    env = make_env(EnvSettings(game=None, id="tests/Shown-v0", kwargs=kwargs, size=8, **settings))
    stored = env.reset(seed=0)[0]
    assert env.observation_space.contains(stored)
    return stored


def full(value: Any, channels: int, dtype: Any) -> np.ndarray:
    return np.full((8, 8, channels), value, dtype)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "value", "stored"),
    [
        (0.0, 1.0, np.float32, 0.5, 128),  # 127.5, to even
        (-1.0, 3.0, np.float64, 0.0, 64),  # a quarter of 255 is 63.75
        (0, 1, np.bool_, True, 255),
        (-10, 10, np.int32, -10, 0),
    ],
)
def test_a_bounded_range_is_stretched_over_the_pixels(
    low: float, high: float, dtype: Any, value: Any, stored: int
) -> None:
    space = spaces.Box(low, high, (8, 8, 3), dtype)
    assert (shown(space, full(value, 3, dtype)) == stored).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_any_number_of_channels_is_kept_if_asked(channels: int) -> None:
    image = np.random.default_rng(0).integers(256, size=(8, 8, channels), dtype=np.uint8)
    space = spaces.Box(0, 255, image.shape, np.uint8)
    assert np.array_equal(shown(space, image, channels="as_is"), image)


def test_grey_gets_three_channels_unless_asked() -> None:
    image = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
    space = spaces.Box(0, 255, (8, 8), np.uint8)
    assert np.array_equal(shown(space, image), image[..., np.newaxis].repeat(3, axis=2))
    assert np.array_equal(shown(space, image, channels="as_is"), image[..., np.newaxis])


def test_symbols_are_not_taken_for_brightness_without_a_word() -> None:
    space, image = spaces.Box(0, 10, (8, 8, 3), np.uint8), full(4, 3, np.uint8)
    with pytest.raises(EnvironmentSetupError, match=r"^env.id=tests/Shown-v0 .* end at 10, .* env.values=stretched"):
        shown(space, image)
    assert (shown(space, image, values="stretched") == 102).all()  # 4 / 10 of 255
    assert (shown(space, image, values="as_is") == 4).all()


@pytest.mark.parametrize(
    ("space", "words", "told"),
    [
        (spaces.Box(0, 255, (8, 8, 4), np.uint8), {}, "env.channels=as_is takes"),
        (spaces.Box(-np.inf, 1, (8, 8, 3), np.float32), {}, "supported are uint8 images"),
        (spaces.Box(3, 3, (8, 8, 3), np.float32), {}, "all of them are 3"),
        (spaces.Box(0, 1, (8, 8, 3), np.float32), {"values": "as_is"}, "leave env.values=auto"),
    ],
)
def test_what_is_no_image_is_one_sentence(space: spaces.Box, words: dict[str, Any], told: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=rf"^env.id=tests/Shown-v0 has Box .*{told}"):
        shown(space, full(3, 3, space.dtype), **words)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, -0.1])
def test_a_value_outside_the_space_is_refused(value: float) -> None:
    with pytest.raises(EnvironmentContractError, match=r"env.id=tests/Shown-v0 returned pixels from"):
        shown(spaces.Box(0, 1, (8, 8, 3), np.float32), full(value, 3, np.float32))


def test_channels_have_hues_in_pictures() -> None:
    """Grey stays grey; of four channels the first is red and the third its opposite, dark where little is lit."""
    grey = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    assert np.array_equal(in_colours(grey), grey.repeat(3, axis=-1))
    frames = np.zeros((1, 1, 3, 4), np.uint8)
    frames[0, 0, 0, 0], frames[0, 0, 1, 2] = 255, 100
    assert in_colours(frames)[0, 0].tolist() == [[255, 0, 0], [0, 100, 100], [0, 0, 0]]
