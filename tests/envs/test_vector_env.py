"""N environments together: what ends an episode, what follows it, and the exact state."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from faulty_envs import Spoilt
from stormlit.cli import main
from stormlit.data import EnvStep
from stormlit.envs import AtariSettings, EnvSettings, VectorEnv, episode_seed
from stormlit.envs.catch import Catch
from stormlit.errors import CheckpointError, IrreproducibleError
from stormlit.storm.collect import Collector
from training import SMALL, fabric_run, newest, resume, rows, sentences, status, train


class Counter(gymnasium.Env[Any, Any]):
    """Shows the number of steps since reset, plus 100 if the seed is odd; every reward is 2.5.

    Action 1 terminates, 2 truncates, 3 does both, 4 loses a life, 5 loses a life and truncates.
    """

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(6)
        self.value = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.value = 100 * (seed % 2)
        return self._image(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.value += 1
        return self._image(), 2.5, action in (1, 3), action in (2, 3, 5), {"life_lost": action in (4, 5)}

    def _image(self) -> np.ndarray:
        return np.full((8, 8, 3), self.value, np.uint8)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("tests/Counter-v0", Counter)
    yield
    gymnasium.registry.pop("tests/Counter-v0")


CATCH = EnvSettings(game=None, id="stormlit/Catch-v0", num_envs=2)
COUNTER = EnvSettings(game=None, id="tests/Counter-v0", size=8, num_envs=2)


def _counter(**changes: Any) -> VectorEnv:
    env = VectorEnv(EnvSettings(game=None, id="tests/Counter-v0", size=8, num_envs=2, **changes), seed=0)
    env.reset()
    return env


def _first_value(env_index: int, episode_index: int) -> int:
    return 100 * (episode_seed(0, env_index, episode_index) % 2)


def _values(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_shapes_types_and_attributes() -> None:
    env = VectorEnv(CATCH, seed=1)
    assert (env.num_envs, env.obs_shape, env.num_actions) == (2, (64, 64, 3), 3)
    assert env.action_meanings == ["LEFT", "NOOP", "RIGHT"]
    assert VectorEnv(COUNTER, seed=1).action_meanings == ["0", "1", "2", "3", "4", "5"]
    first = env.reset()
    np.testing.assert_array_equal(first, env.current_obs)
    step = env.step(np.array([0, 2]))
    np.testing.assert_array_equal(step.obs, env.current_obs)
    for images in (first, step.obs):
        assert (images.shape, images.dtype) == ((2, 64, 64, 3), np.uint8)
    assert (step.reward.shape, step.reward.dtype) == ((2,), np.float32)
    for flags in (step.terminated, step.is_first):
        assert (flags.shape, flags.dtype) == ((2,), np.bool_)
    env.close()


def test_ended_environment_is_reset() -> None:
    env = _counter()
    env.step(np.array([0, 0]))
    step = env.step(np.array([0, 1]))
    assert _values(step.obs) == [_first_value(0, 0) + 2, _first_value(1, 1)]
    assert step.terminated.tolist() == [False, True]
    assert step.is_first.tolist() == [False, True]
    (episode,) = step.episodes
    assert (episode.env_index, episode.seed) == (1, episode_seed(0, 1, 0))
    assert (episode.episode_return, episode.length, episode.truncated) == (5.0, 2, False)
    step = env.step(np.array([0, 0]))
    assert _values(step.obs) == [_first_value(0, 0) + 3, _first_value(1, 1) + 1]
    assert not step.is_first.any() and not step.episodes


@pytest.mark.parametrize(
    ("action", "life_loss_terminates", "terminated", "truncated", "is_first"),
    [
        (1, True, True, False, True),  # an end of the environment itself
        (2, True, False, True, True),  # a truncation is no termination
        (3, True, True, False, True),  # both at once: the end counts
        (4, True, True, False, False),  # a lost life ends nothing but the return
        (4, False, False, False, False),
        (5, True, True, True, True),  # a lost life on the step of a truncation
        (5, False, False, True, True),
    ],
)
def test_what_ends_an_episode(
    action: int, life_loss_terminates: bool, terminated: bool, truncated: bool, is_first: bool
) -> None:
    env = _counter(life_loss_terminates=life_loss_terminates)
    step = env.step(np.array([action, 0]))
    assert (step.terminated[0], step.is_first[0]) == (terminated, is_first)
    assert [episode.truncated for episode in step.episodes] == ([truncated] if is_first else [])
    assert not (step.terminated[1] or step.is_first[1])


def test_rewards_are_transformed_and_returns_are_raw() -> None:
    env = _counter(reward_transform="sign")
    env.step(np.array([0, 0]))
    step = env.step(np.array([1, 0]))
    assert step.reward.tolist() == [1.0, 1.0]
    assert step.episodes[0].episode_return == 5.0
    assert _counter().step(np.array([0, 0])).reward.tolist() == [2.5, 2.5]


def test_max_episode_steps_truncates_every_episode() -> None:
    env = _counter(max_episode_steps=3)
    steps = [env.step(np.array([0, 0])) for _ in range(7)]
    assert [step.is_first.all() for step in steps] == [False, False, True, False, False, True, False]
    assert all(episode.truncated for step in steps for episode in step.episodes)
    assert not any(step.terminated.any() for step in steps)


def test_every_episode_has_a_new_seed() -> None:
    env = _counter()
    seeds = [episode.seed for _ in range(50) for episode in env.step(np.array([1, 1])).episodes]
    assert seeds == [episode_seed(0, index, episode) for episode in range(50) for index in range(2)]
    assert len(set(seeds)) == 100


def test_episode_seeds_are_distinct_and_fit_an_emulator() -> None:
    seeds = {episode_seed(s, env, episode) for s in range(10) for env in range(10) for episode in range(50)}
    assert len(seeds) == 5000
    assert min(seeds) >= 0
    assert 2**30 < max(seeds) < 2**31


def test_offset_moves_the_environments_along() -> None:
    both = VectorEnv(CATCH, seed=3)
    second = VectorEnv(EnvSettings(game=None, id="stormlit/Catch-v0"), seed=3, env_index_offset=1)
    np.testing.assert_array_equal(both.reset()[1:], second.reset())
    for _ in range(7):
        step, last = both.step(np.array([1, 1])), second.step(np.array([1]))
    assert [episode.seed for episode in step.episodes] == [episode_seed(3, 0, 0), episode_seed(3, 1, 0)]
    assert [(episode.env_index, episode.seed) for episode in last.episodes] == [(0, episode_seed(3, 1, 0))]


def test_reset_goes_on_to_the_next_episode() -> None:
    env = _counter()
    env.reset()
    assert [episode.seed for episode in env.step(np.array([1, 1])).episodes] == [
        episode_seed(0, 0, 1),
        episode_seed(0, 1, 1),
    ]


def test_steps_do_not_share_memory() -> None:
    env = _counter()
    step = env.step(np.array([0, 0]))
    kept = step.obs.copy()
    env.current_obs[:] = 7
    env.step(np.array([0, 0]))
    np.testing.assert_array_equal(step.obs, kept)


# ---- exact state ------------------------------------------------------------------------------------------------


def _assert_equal_steps(first: EnvStep, second: EnvStep) -> None:
    for name in ("obs", "reward", "terminated", "is_first"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert first.episodes == second.episodes


STICKY = AtariSettings(sticky_actions=0.25, noop_max=10)


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        (CATCH, 10, 40),
        (CATCH, 0, 10),
        (EnvSettings(game="Breakout", num_envs=2, atari=STICKY), 260, 260),
        (EnvSettings(game="MsPacman", num_envs=2, max_episode_steps=70, atari=STICKY), 100, 60),
    ],
    ids=["catch", "catch at its first frame", "breakout", "ms pacman with a step limit"],
)
def test_a_restored_state_goes_on_bit_identically(settings: EnvSettings, before: int, after: int) -> None:
    env = VectorEnv(settings, seed=4)
    env.reset()
    actions = np.random.default_rng(0).integers(env.num_actions, size=(before + after, 2))
    ended = sum(len(env.step(action).episodes) for action in actions[:before])
    state = pickle.loads(pickle.dumps(env.state_dict()))
    restored = VectorEnv(settings, seed=4)
    restored.load_state_dict(state)
    np.testing.assert_array_equal(restored.current_obs, env.current_obs)
    assert restored.state_dict() == state
    ended_after = 0
    for action in actions[before:]:
        step = env.step(action)
        _assert_equal_steps(step, restored.step(action))
        ended_after += len(step.episodes)
    assert ended_after >= 2 and (ended >= 2 or before == 0)


@pytest.mark.parametrize(("key", "value"), [("obs_crc32", 1), ("episode_return", 99.0), ("actions", [1] * 7)])
def test_a_state_that_the_replay_does_not_reach_is_refused(key: str, value: Any) -> None:
    env = VectorEnv(CATCH, seed=0)
    env.reset()
    env.step(np.array([0, 0]))
    state = env.state_dict()
    state["rows"][1][key] = value
    with pytest.raises(CheckpointError, match=r"^Catch is not reproducible from its seed: .*$"):
        env.load_state_dict(state)


@pytest.mark.parametrize("other", [COUNTER, EnvSettings(game=None, id="stormlit/Catch-v0", num_envs=3)])
def test_state_of_another_environment_is_refused(other: EnvSettings) -> None:
    env = VectorEnv(CATCH, seed=0)
    env.reset()
    with pytest.raises(CheckpointError, match=r"^the checkpoint holds 2 x Catch where the configuration has \d x \w+$"):
        VectorEnv(other, seed=0).load_state_dict(env.state_dict())


def test_an_environment_that_cannot_be_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = VectorEnv(CATCH, seed=0)
    envs.reset()

    def refuse(_: object) -> None:
        raise RuntimeError("the display is gone")

    monkeypatch.setattr(Catch, "close", refuse)
    envs.close()


# ---- Episodes that do not follow from their seed: a run that goes on refuses them, or begins others there if asked to


EPISODE = 7  # steps of Catch
LEAKY = EnvSettings(game=None, id="faulty_envs:Leaky-v0", size=16, num_envs=2)


def test_a_new_episode_begins_where_the_old_one_cannot_be_played_again(caplog: pytest.LogCaptureFixture) -> None:
    with (
        closing(VectorEnv(LEAKY, seed=0)) as envs,
        closing(VectorEnv(LEAKY, seed=0)) as others,
        closing(VectorEnv(replace(LEAKY, irreproducible="restart"), seed=0)) as restarting,
    ):
        envs.reset()
        for _ in range(3):
            envs.step(np.array([1, 1]))
        assert others.load_state_dict(envs.state_dict()).tolist() == [False, False]  # first episodes
        assert np.array_equal(others.current_obs, envs.current_obs)
        for _ in range(EPISODE):
            envs.step(np.array([1, 1]))
        told = r"Leaky is not reproducible .*; env\.irreproducible=restart goes on"
        with (
            closing(VectorEnv(LEAKY, seed=0)) as refusing,
            pytest.raises(IrreproducibleError, match=told),
        ):
            refusing.load_state_dict(envs.state_dict())
        assert restarting.load_state_dict(envs.state_dict()).tolist() == [True, True]
        assert "a new one begins" in caplog.text
        assert [row["episode_index"] for row in restarting.state_dict()["rows"]] == [2, 2]
        assert [row["seed"] for row in restarting.state_dict()["rows"]] == [episode_seed(0, row, 2) for row in (0, 1)]
        ends = [restarting.step(np.array([0, 2])).episodes for _ in range(EPISODE)][-1]
        assert [(end.length, end.crashed) for end in ends] == [(EPISODE, False)] * 2


def test_an_episode_that_crashes_whenever_it_is_played_again_is_irreproducible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And does not use up all restarts: three are enough to tell it from a crash by chance."""
    settings = EnvSettings(**{**vars(LEAKY), "id": "faulty_envs:Spoilt-v0", "num_envs": 1})
    restarting = EnvSettings(**{**vars(settings), "irreproducible": "restart"})
    with (
        closing(VectorEnv(settings, seed=0)) as envs,
        closing(VectorEnv(settings, seed=0)) as refusing,
        closing(VectorEnv(restarting, seed=0)) as others,
    ):
        envs.reset()
        for _ in range(5):
            envs.step(np.array([1]))
        monkeypatch.setattr(Spoilt, "spoilt", True)
        with pytest.raises(IrreproducibleError, match=r"env\.irreproducible=restart goes on"):
            refusing.load_state_dict(envs.state_dict())
        assert others.load_state_dict(envs.state_dict()).tolist() == [True]
        assert others.state_dict()["restarts"] == 3
        monkeypatch.setattr(Spoilt, "spoilt", False)
        assert [others.step(np.array([1])).episodes for _ in range(EPISODE)][-1][0].length == EPISODE


def test_a_last_reward_held_back_for_a_lost_episode_is_no_other_s() -> None:
    """``loop.training_return=without_last_reward`` adds it to the next return, here to nobody's."""
    settings = EnvSettings(**{**vars(LEAKY), "irreproducible": "restart"})
    player: Any = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
    replay: Any = SimpleNamespace(append=lambda *row: None)
    with closing(VectorEnv(settings, seed=0)) as envs, closing(VectorEnv(settings, seed=0)) as others:
        one, two = (Collector(e, player, replay, seed=0, returns="without_last_reward") for e in (envs, others))
        for _ in range(2 * EPISODE + 2):
            one.step(np.array([1, 1]))  # stays, and no edge makes two paddles one
        assert 0.0 not in one.held_back
        two.load_state_dict(one.state_dict())
        assert two.is_first.tolist() == [True, True] and two.held_back == [0.0, 0.0]


def test_a_run_says_how_it_goes_on_and_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "run", "env.id=faulty_envs:Leaky-v0", "env.size=16", "loop.env_steps=32")
    capsys.readouterr()
    assert main(["resume", "run", f"run.dir={tmp_path}", "loop.env_steps=56"]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert told.startswith("stormlit: error: ") and "env.irreproducible=restart" in told
    before = rows(run)
    resume(run, 56, "env.irreproducible=restart")
    held = rows(run)
    assert all(np.array_equal(held[name][:32], before[name]) for name in before)
    # The row after the broken episode is first of another, and the broken one has no end.
    assert held["is_first"][32, 0] and not before["is_first"][-1, 0] and not before["terminated"][-1, 0]
    begun = np.flatnonzero(held["is_first"][:, 0])
    assert begun.tolist() == [*range(0, 32, EPISODE), *range(32, 56, EPISODE)]


@pytest.mark.slow
def test_what_one_process_refuses_leaves_no_trace_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    words = ["env.id=faulty_envs:LeakyElsewhere-v0", "env.size=16", "checkpoint.every=16", "checkpoint.keep=3"]
    places = [f"run.dir={tmp_path}", "run.name=run"]
    assert fabric_run(2, ["train", *SMALL, *words, *places], "--strategy", "ddp").returncode == 0
    run = tmp_path / "run"
    kept = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "lock"}
    middle = run / "checkpoints" / "step-000000032"
    again = ["resume", str(middle), "loop.env_steps=64"]
    refused = fabric_run(2, again, "--strategy", "ddp")
    assert refused.returncode != 0 and "env.irreproducible=restart goes on" in sentences(refused)[-1]
    assert kept == {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "lock"}
    assert fabric_run(2, [*again, "env.irreproducible=restart"], "--strategy", "ddp").returncode == 0
    assert newest(run).name == "step-000000064" and status(run) == "FINISHED"
