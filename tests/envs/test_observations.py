"""Images, vectors, and nests of both: how they are stored, read and learned from, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from observation_envs import SPACES, Level, settings
from small import BOTH, VECTORS, gradientless, random_batch, small_world_model
from stormlit.analysis.dream import dream, dream_errors
from stormlit.analysis.pictures import in_colours
from stormlit.data import Batch
from stormlit.envs import EnvSettings, env_facts, make_env
from stormlit.errors import EnvironmentContractError, EnvironmentSetupError
from stormlit.ops.spaces import read, split
from stormlit.spaces import ObservationSpace
from stormlit.storm.replay import ReplayBuffer

SEEN = {"vectors": VECTORS, "both": BOTH}


@pytest.fixture
def spoilt() -> Iterator[Callable[[spaces.Space[Any], Any], gymnasium.Env[Any, Any]]]:
    """Makes an environment whose first step returns something else than its space says."""

    def make(space: spaces.Space[Any], returned: Any) -> gymnasium.Env[Any, Any]:
        gymnasium.register("tests/Spoilt-v0", lambda: Level(space, lambda _: returned))
        env = make_env(EnvSettings(game=None, id="tests/Spoilt-v0", size=8))
        env.reset(seed=0)
        return env

    yield make
    gymnasium.registry.pop("tests/Spoilt-v0", None)


# ---- how they are stored


def test_a_space_counts_what_it_stores() -> None:
    both = ObservationSpace((2, 3, 1), (("place", 2), ("speed", 1)))
    assert (both.width, both.shape, both.dtype, both.nbytes) == (3, (18,), np.uint8, 18)
    assert both.names == ["place[0]", "place[1]", "speed"] and str(both) == "2x3x1 uint8 and 3 float32"
    vectors = ObservationSpace(None, both.vectors)
    assert (vectors.shape, vectors.dtype, vectors.nbytes, str(vectors)) == ((3,), np.float32, 12, "3 float32")
    image = ObservationSpace.of((2, 3, 1))
    assert (image.shape, image.dtype, image.nbytes, image.image_first) == ((2, 3, 1), np.uint8, 6, (1, 2, 3))


def test_what_is_joined_comes_apart_to_the_bit() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(256, size=(16, 16, 3), dtype=np.uint8)
    vector = np.array([np.pi, -np.float32(1e-40), 3e38], np.float32)
    stored = np.stack([BOTH.join(image, vector), BOTH.zeros()])[np.newaxis]
    seen = split(BOTH, torch.from_numpy(stored))
    assert seen.image is not None and seen.vector is not None
    assert np.array_equal(seen.image[0, 0].permute(1, 2, 0).numpy(), image) and not seen.image[0, 1].any()
    assert np.array_equal(seen.vector[0, 0].numpy(), vector)
    assert np.array_equal(BOTH.numbers(stored), seen.vector.numpy())


def test_networks_read_pixels_from_0_to_1_and_vectors_in_symlog() -> None:
    obs = torch.from_numpy(BOTH.join(np.full((16, 16, 3), 51, np.uint8), np.array([0, -1, 9], np.float32)))
    seen = read(BOTH, obs)
    assert seen.image is not None and seen.vector is not None
    torch.testing.assert_close(seen.image, torch.full((3, 16, 16), 0.2))
    torch.testing.assert_close(seen.vector, torch.tensor([0.0, -math.log(2), math.log(10)]))


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("Vector", ObservationSpace(None, (("observation", 3),))),
        ("Choice", ObservationSpace(None, (("observation", 4),))),
        ("Both", ObservationSpace((16, 16, 3), (("speed", 2),))),
        ("Nested", ObservationSpace((16, 16, 6), (("1", 5), ("2", 2), ("3", 1)))),
    ],
)
def test_every_space_becomes_an_image_and_vectors(name: str, space: ObservationSpace) -> None:
    assert env_facts(settings(name)).observation_space == space
    with closing(make_env(settings(name))) as env:
        obs, _ = env.reset(seed=0)
        assert env.observation_space.contains(obs) and obs.shape == space.shape and obs.dtype == space.dtype


def test_choices_are_one_hot_and_images_of_a_nest_lie_behind_one_another() -> None:
    with closing(make_env(settings("Nested"))) as env:
        env.reset(seed=0)
        level = env.get_wrapper_attr("_level")
        stored = env.step(np.int64(1))[0]
        level = (level + 0.13) % 1.0
        seen = split(env.get_wrapper_attr("stored_observations"), torch.from_numpy(stored))
    assert seen.image is not None and seen.vector is not None
    pair = [np.eye(2)[int(level * 2)], np.eye(3)[int(level * 3)]]
    assert np.allclose(seen.vector, np.concatenate([*pair, [level > 0.5] * 2, [level]]), atol=1e-6)
    near, far = int(level * 255), round(float(np.float32(level)) * 255)
    # A Dict's entries are in the order of their names.
    assert seen.image[:, 0, 0].tolist() == [far] * 3 + [near] * 3


def test_entries_can_be_chosen() -> None:
    facts = env_facts(settings("Nested", observations=["2", "0.near"]))
    assert facts.observation_space == ObservationSpace((16, 16, 3), (("2", 2),))
    with pytest.raises(EnvironmentSetupError, match=r"shows 0.far, 0.near, 1, 2, 3, and no '0.nea' of .*'0.near'"):
        make_env(settings("Nested", observations=["0.nea"]))


@pytest.mark.parametrize(
    ("space", "returned", "told"),
    [
        (SPACES["Vector"], np.array([0.0, np.nan, 0.0]), "nan at place 1, its space says -inf to inf"),
        (SPACES["Vector"], np.array([0.0, 0.0, np.inf]), "inf at place 2, its space says"),
        (SPACES["Vector"], np.zeros(4), r"float64 \(4,\), its space says float64 \(3,\)"),
        (SPACES["Choice"], 3, r"3, its space says Discrete\(4, start=-1\)"),
        (
            SPACES["Both"],
            {"picture": np.zeros((16, 16, 3), np.uint8), "speed": np.array([0.0, 9.5])},
            "9.5 at place 1, its space says -9.0 to 9.0, in 'speed'",
        ),
        (SPACES["Both"], {"picture": np.zeros((16, 16, 3), np.uint8)}, "dict that has no 'speed', in 'speed'"),
    ],
)
def test_what_is_outside_the_space_is_one_sentence(spoilt: Any, space: Any, returned: Any, told: str) -> None:
    with closing(spoilt(space, returned)) as env, pytest.raises(EnvironmentContractError) as refused:
        env.step(np.int64(0))
    sentence = rf"^env.id=tests/Spoilt-v0 returned {told}.* \(at step 1 of the episode with seed 0\)$"
    assert re.search(sentence, str(refused.value)), str(refused.value)


# ---- what is learned from them


@pytest.mark.parametrize("space", SEEN.values(), ids=SEEN)
@pytest.mark.parametrize("decoder_input", ["latent", "both"])
def test_gradients_reach_every_parameter(space: ObservationSpace, decoder_input: str) -> None:
    world_model = small_world_model(observations=space, decoder_input=decoder_input).train()
    losses = world_model.losses(random_batch(observations=space))
    losses.total.backward()
    assert gradientless(world_model) == []
    assert ("reconstruction" in losses.terms) is (space.image is not None)


def test_the_vectors_error_is_squared_in_symlog_and_summed_over_their_numbers() -> None:
    """With a decoder that always says 0, 1 and 0."""
    world_model = small_world_model(
        observations=VECTORS, vector_decoder={"name": "mlp", "num_layers": 0}, loss_scales={"vector_reconstruction": 7}
    )
    output = world_model.vector_decoder.layers.output
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    batch = random_batch(rows=1, length=2, observations=VECTORS)
    batch.obs.copy_(torch.tensor([[[0.0, math.e - 1, 0.0], [1.0, 0.0, -1.0]]]))
    losses = world_model.losses(batch)
    expected = (0.0 + math.log(2) ** 2 + 1.0 + math.log(2) ** 2) / 2
    assert float(losses.terms["vector_reconstruction"].detach()) == pytest.approx(expected, rel=1e-5)
    assert losses.scales["vector_reconstruction"] == 7


def test_harmony_weighs_both_reconstructions_alike() -> None:
    world_model = small_world_model(observations=BOTH, loss_balance="harmony")
    with torch.no_grad():
        world_model.harmony.log_scale.copy_(torch.tensor([math.log(2.0), 0.0, 0.0]))  # type: ignore[union-attr]
    scales = world_model.losses(random_batch(observations=BOTH)).scales
    for name in ("reconstruction", "vector_reconstruction"):
        assert float(torch.as_tensor(scales[name]).detach()) == pytest.approx(0.5)


@pytest.mark.parametrize("space", SEEN.values(), ids=SEEN)
def test_a_change_of_any_number_is_noticed(space: ObservationSpace) -> None:
    """By the posterior: every number of the vectors, and a pixel, reach it."""
    world_model = small_world_model(observations=space)
    batch = random_batch(rows=1, length=1, observations=space)
    before = world_model.posterior(batch.obs)
    places = range(space.width) if space.image is None else [3, 7, 11, 12 + 5]  # the highest byte of each number
    for place in places:
        changed = batch.obs.clone()
        if space.image is None:
            changed[..., place] += 1.0
        else:
            changed[..., place] ^= 128  # the sign of a number, or half of a pixel's range
        assert not torch.equal(world_model.posterior(changed), before)


@pytest.mark.parametrize("space", SEEN.values(), ids=SEEN)
def test_the_replay_buffer_gives_back_what_it_was_given(space: ObservationSpace) -> None:
    replay = ReplayBuffer(8, 2, space, torch.device("cpu"), seed=0)
    rows = random_batch(rows=2, length=4, observations=space)
    for step in range(4):
        flags = np.zeros(2, bool)
        replay.append(rows.obs[:, step], np.zeros(2, np.int64), np.zeros(2, np.float32), flags, flags)
    batch = replay.sample(3, 4)
    assert batch.obs.dtype == rows.obs.dtype
    assert all(any(torch.equal(window, row) for row in rows.obs) for window in batch.obs)
    assert torch.equal(Batch.cat(batch, batch).obs, torch.cat([batch.obs, batch.obs]))


@pytest.mark.parametrize("space", SEEN.values(), ids=SEEN)
def test_a_dream_holds_the_vectors_in_the_environments_own_units(space: ObservationSpace) -> None:
    world_model = small_world_model(observations=space)
    window = random_batch(rows=1, length=6, observations=space)
    seen = dream(world_model, window, context_length=3)
    assert seen.vector is not None and (seen.frames is None) is (space.image is None)
    numbers = split(space, window.obs).vector
    assert numbers is not None and np.array_equal(seen.vector.real, numbers[0].numpy())
    assert np.array_equal(seen.vector.imagined[:3], seen.vector.reconstructed[:3])
    assert seen.vector.imagined.shape == (6, space.width)
    errors = dream_errors(seen)
    real, reconstructed = (np.sign(x) * np.log1p(np.abs(x)) for x in (seen.vector.real, seen.vector.reconstructed))
    assert errors["error_reconstructed_vector"] == pytest.approx(float(((real - reconstructed) ** 2).mean()), rel=1e-4)
    assert {"error_imagined_vector"} <= errors.keys()


# ---- Images of any channels and values: what is stored of them, what is refused, and how they are drawn


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
