"""Single environments: the Atari protocol against the raw emulator, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
from ale_py.roms import get_rom_path
from gymnasium import spaces

from stormlit.envs import ATARI_100K_GAMES, AtariSettings, EnvSettings, env_name, human_normalized, make_env
from stormlit.errors import EnvironmentSetupError

# Sizes of the minimal action sets, as the Arcade Learning Environment documents them.
MINIMAL_ACTIONS = {
    **dict.fromkeys(
        ["Alien", "BankHeist", "BattleZone", "Boxing", "ChopperCommand", "Frostbite", "Hero", "Jamesbond"], 18
    ),
    **dict.fromkeys(["Kangaroo", "Krull", "PrivateEye", "RoadRunner", "Seaquest"], 18),
    **dict.fromkeys(["Asterix", "CrazyClimber", "MsPacman"], 9),
    **dict.fromkeys(["DemonAttack", "Pong", "Qbert", "UpNDown"], 6),
    **{"Amidar": 10, "Assault": 7, "Breakout": 4, "Freeway": 3, "Gopher": 8, "KungFuMaster": 14},
}


@pytest.mark.parametrize(
    "game", ["Pong", *(pytest.param(game, marks=pytest.mark.slow) for game in ATARI_100K_GAMES if game != "Pong")]
)
def test_every_game_of_the_benchmark_plays(game: str) -> None:
    env = make_env(EnvSettings(game=game))
    assert env.observation_space == spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert env.action_space == spaces.Discrete(MINIMAL_ACTIONS[game])
    image, info = env.reset(seed=0)
    assert env.observation_space.contains(image) and info["life_lost"] is False
    image, reward, terminated, truncated, info = env.step(MINIMAL_ACTIONS[game] - 1)
    assert env.observation_space.contains(image) and isinstance(reward, float)
    assert (terminated, truncated) == (False, False)
    assert info["episode_frame_number"] == 4
    env.close()


# ---- the protocol against the emulator itself -------------------------------------------------------------------


def _emulator(rom: str, seed: int) -> tuple[ale_py.ALEInterface, list[ale_py.Action]]:
    """A raw emulator, without stickiness, seeded as Gymnasium's environment seeds its own."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", np.int32(np.random.SeedSequence(seed).generate_state(2)[1]))
    ale.loadROM(get_rom_path(rom))
    ale.reset_game()
    return ale, ale.getMinimalActionSet()


def _resized(frame: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(("frame_skip", "max_pool", "size"), [(4, True, 64), (3, False, 32), (1, True, 64)])
def test_protocol_equals_a_hand_computation_on_the_raw_emulator(frame_skip: int, max_pool: bool, size: int) -> None:
    atari = AtariSettings(frame_skip=frame_skip, max_pool=max_pool)
    env = make_env(EnvSettings(game="MsPacman", size=size, atari=atari))
    ale, action_set = _emulator("ms_pacman", seed=3)
    image, _ = env.reset(seed=3)
    np.testing.assert_array_equal(image, _resized(ale.getScreenRGB(), size))
    rewards, flickered = 0.0, 0
    for action in np.random.default_rng(0).integers(9, size=600 // frame_skip):
        frames, expected_reward = [], 0.0
        for _ in range(frame_skip):
            expected_reward += ale.act(action_set[action])
            frames.append(ale.getScreenRGB())
        expected = np.maximum(frames[-2], frames[-1]) if max_pool and frame_skip > 1 else frames[-1]
        flickered += int((expected != frames[-1]).any())
        image, reward, *_ = env.step(int(action))
        np.testing.assert_array_equal(image, _resized(expected, size))
        assert reward == expected_reward
        rewards += reward
    assert rewards > 0
    assert (flickered > 0) == (max_pool and frame_skip > 1)  # the maximum made a difference wherever it was taken


def _stream(settings: EnvSettings, seed: int, actions: list[int]) -> tuple[bytes, list[float]]:
    env = make_env(settings)
    frames, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        image, reward, *_ = env.step(action)
        frames.append(image)
        rewards.append(reward)
    return b"".join(frame.tobytes() for frame in frames), rewards


@pytest.mark.parametrize("sticky_actions", [0.0, 0.25])
def test_seed_and_actions_determine_the_stream(sticky_actions: float) -> None:
    settings = EnvSettings(game="MsPacman", atari=AtariSettings(sticky_actions=sticky_actions))
    actions = np.random.default_rng(1).integers(9, size=150).tolist()
    stream = _stream(settings, 7, actions)
    assert stream == _stream(settings, 7, actions)
    assert (stream == _stream(settings, 8, actions)) == (sticky_actions == 0.0)


def test_noops_at_reset_are_drawn_from_the_seed() -> None:
    env = make_env(EnvSettings(game="Pong", atari=AtariSettings(noop_max=3)))
    drawn = [env.reset(seed=seed)[1]["episode_frame_number"] for seed in range(12)]
    assert set(drawn) == {1, 2, 3}
    assert env.reset(seed=3)[1]["episode_frame_number"] == drawn[3]


def test_noops_that_end_the_episode_start_it_again() -> None:
    env = make_env(EnvSettings(game="Pong", atari=AtariSettings(noop_max=8, max_frames=3)))
    for seed in range(5):
        assert env.reset(seed=seed)[1]["episode_frame_number"] < 3


def test_full_action_space() -> None:
    env = make_env(EnvSettings(game="Pong", atari=AtariSettings(full_action_space=True)))
    assert env.action_space == spaces.Discrete(18)


def test_an_ale_id_follows_the_same_protocol_as_the_game() -> None:
    actions = [0, 1, 2, 3] * 10
    by_id = EnvSettings(game=None, id="ALE/Breakout-v5")
    assert _stream(by_id, 0, actions) == _stream(EnvSettings(game="Breakout"), 0, actions)


@pytest.mark.parametrize("action", [-1, 4, 1.5, 10**6])
@pytest.mark.timeout(20)
def test_unknown_action_is_refused_before_the_emulator_sees_it(action: Any) -> None:
    env = make_env(EnvSettings(game="Breakout"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"outside the action space Discrete\(4\)"):
        env.step(action)
    assert env.step(0)[4]["episode_frame_number"] == 4


def test_human_normalized_by_hand() -> None:
    assert human_normalized("Pong", -20.7) == 0.0
    assert human_normalized("Pong", 14.6) == 1.0
    assert human_normalized("MsPacman", 6951.6) == 1.0
    assert human_normalized("Breakout", 16.1) == pytest.approx(0.5)  # half-way between 1.7 and 30.5
    assert human_normalized("Freeway", -29.6) == pytest.approx(-1.0)
    assert human_normalized("Tetris", 1.0) is None


# ---- any other Gymnasium environment ----------------------------------------------------------------------------


class Blank(gymnasium.Env[Any, Any]):
    """An environment with given spaces; observation t is filled with 10 * t."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        image = np.full(self.observation_space.shape, 10 * self.steps, self.observation_space.dtype)
        return image, 0.0, False, False, {"life_lost": self.steps == 2}


@pytest.fixture
def blank() -> Iterator[Any]:
    """A function that registers ``Blank`` with given spaces and returns the settings that choose it."""

    def registered(observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None) -> EnvSettings:
        gymnasium.register("tests/Blank-v0", lambda: Blank(observation_space, action_space or spaces.Discrete(3)))
        return EnvSettings(game=None, id="tests/Blank-v0", size=16)

    yield registered
    gymnasium.registry.pop("tests/Blank-v0", None)


@pytest.mark.parametrize("shape", [(20, 30, 3), (20, 30, 1), (20, 30), (16, 16, 3), (8, 8, 1)])
@pytest.mark.parametrize("columns", [None, 24])
def test_image_environments_of_any_shape_become_rgb_of_the_size_asked_for(
    blank: Any, shape: tuple[int, ...], columns: int | None
) -> None:
    env = make_env(replace(blank(spaces.Box(0, 255, shape, np.uint8)), columns=columns))
    image, info = env.reset(seed=0)
    asked_for = (16, columns or 16, 3)
    assert env.observation_space.contains(image) and env.observation_space.shape == asked_for
    assert info["life_lost"] is False
    image, *_, info = env.step(0)
    assert image.shape == asked_for and (image == 10).all()
    assert info["life_lost"] is False
    *_, info = env.step(0)
    assert info["life_lost"] is True  # the environment's own word is kept


def _refusal(settings: EnvSettings) -> str:
    with pytest.raises(EnvironmentSetupError) as refused:
        make_env(settings)
    message = str(refused.value)
    assert message and "\n" not in message
    return message


IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("observations", "actions", "found"),
    [
        (spaces.Box(-1, 1, (0,), np.float32), None, "has Box float32 (0,) observations; supported are uint8 images"),
        (spaces.Discrete(2**17), None, "has Discrete observations; supported are uint8 images"),
        (spaces.Text(4), None, "has Text observations; supported are uint8 images"),
        (spaces.Graph(spaces.Discrete(2), None), None, "has Graph observations; supported are uint8 images"),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), None, "has Box uint8 (3, 8, 8) observations"),
        (
            spaces.Dict({"mission": spaces.Text(4), "seen": IMAGE}),
            None,
            "has Text observations in 'mission'; supported",
        ),
        (spaces.Dict({}), None, "has an empty Dict as its observations; supported are"),
        (IMAGE, spaces.Box(-np.inf, 1, (2,)), "has unbounded Box float32 (2,) actions; supported are Discrete, "),
        (IMAGE, spaces.Box(0, 9, (2,), np.int64), "has Box int64 (2,) actions"),
        (IMAGE, spaces.Dict({"a": spaces.Discrete(2)}), "has Dict actions"),
    ],
)
def test_unsupported_spaces_are_refused(blank: Any, observations: Any, actions: Any, found: str) -> None:
    message = _refusal(blank(observations, actions))
    assert message.startswith("env.id=tests/Blank-v0 has ")
    assert found in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (EnvSettings(game="MsPackman"), ["env.game=MsPackman", "'MsPacman'", "CamelCase"]),
        (EnvSettings(game=None, id="stormlit/Cach-v0"), ["env.id=stormlit/Cach-v0", "'stormlit/Catch-v0'"]),
        (EnvSettings(game=None, id="a:b:c"), ["env.id=a:b:c"]),
        (EnvSettings(game=None, id="no_such_module:Any-v0"), ["env.id=no_such_module:Any-v0", "no_such_module"]),
        (EnvSettings(game=None, id="CartPole-v1", observations=["pole"]), ["CartPole-v1 shows one thing", "a Dict"]),
        (EnvSettings(game="Pong", id="stormlit/Catch-v0"), ["env.game=Pong", "env.id=stormlit/Catch-v0"]),
        (EnvSettings(game=None), ["env.game", "env.id"]),
        (EnvSettings(size=7), ["env.size=7", "at least 8"]),
        (EnvSettings(atari=AtariSettings(noop_max=-1)), ["env.atari.noop_max=-1", "at least 0"]),
        (EnvSettings(atari=AtariSettings(sticky_actions=1.1)), ["env.atari.sticky_actions=1.1", "0 to 1"]),
        # type: ignore[arg-type]
        (
            EnvSettings(game="Backgammon", atari=AtariSettings(noop_max=1)),
            ["env.atari.noop_max=1", "full_action_space"],
        ),
    ],
)
def test_bad_settings_are_refused_by_key(settings: EnvSettings, words: list[str]) -> None:
    message = _refusal(settings)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (EnvSettings(game="Pong"), "Pong"),
        (EnvSettings(game=None, id="ALE/UpNDown-v5"), "UpNDown"),
        (EnvSettings(game=None, id="some.module:space/My-Game-v12"), "My-Game"),
        (EnvSettings(game=None, id="CartPole"), "CartPole"),
    ],
)
def test_env_name(settings: EnvSettings, name: str) -> None:
    assert env_name(settings) == name
