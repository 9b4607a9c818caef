"""Environments that break Gymnasium's interface or their own spaces, never end, or go past the Atari protocol."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from edge_envs import EPISODE, MEANINGS
from stormlit.analysis.evaluate import ConstantPolicy, evaluate, evaluate_baselines
from stormlit.cli import main
from stormlit.demonstrations import record
from stormlit.envs import AtariSettings, EnvSettings, VectorEnv, env_facts, episode_seed, make_env
from stormlit.envs.vector import _warn_once
from stormlit.errors import EnvironmentContractError, EnvironmentSetupError
from stormlit.files import write_json
from stormlit.spaces import ActionSpace, ObservationSpace
from training import SMALL, newest, read, status

FIRST_SEED = episode_seed(0, 0, 0)
AT_RESET = f"(at the reset of the episode with seed {FIRST_SEED})"
SAYS = "its space says uint8 (16, 16, 3)"


def at_step(number: int) -> str:
    return f"(at step {number} of the episode with seed {FIRST_SEED})"


# What an environment returns at its first reset or step, and what is said about it.
BREACHES = {
    "Float": f"float32 (16, 16, 3), {SAYS} {AT_RESET}",
    "Long": f"int64 (16, 16, 3), {SAYS} {at_step(1)}",
    "List": f"list, {SAYS} {AT_RESET}",
    "ChannelsFirst": f"uint8 (3, 16, 16), {SAYS} {AT_RESET}",
    "OldReset": f"uint8 (16, 16, 3) from reset, where Gymnasium expects (observation, info) {AT_RESET}",
    "NoInfo": f"None as info, not a dictionary {AT_RESET}",
    "NoReward": f"None as the reward, not a number {at_step(1)}",
    "RewardArray": f"float64 (1,) as the reward, not a number {at_step(1)}",
    "ArrayEnd": f"truncated as bool (1,), not as a bool {at_step(1)}",
}
# The same, at a later step.
LATER = {
    "Grows": f"uint8 (20, 20, 3), {SAYS} {at_step(3)}",
    "TooDark": f"pixels from 7 to 7, its space says 10 to 200 {at_step(2)}",
    "NanReward": f"the reward nan, which is not a finite float32 {at_step(4)}",
    "HugeReward": f"the reward -1e+39, which is not a finite float32 {at_step(4)}",
}
# Exceptions that come again when it is tried again.
BROKEN = {
    "Seedless": "its reset raised TypeError: Seedless.reset() got an unexpected keyword argument 'seed'",
    "FourValues": "its step raised ValueError: not enough values to unpack (expected 5, got 4)",
    "Fails": "its step raised LookupError: nothing there (edge_envs.py, line ",
}


def edge(name: str, **changes: Any) -> EnvSettings:
    return EnvSettings(game=None, id=f"edge_envs:{name}-v0", size=16, **changes)


def play(settings: EnvSettings, steps: int = 2 * EPISODE) -> VectorEnv:
    envs = VectorEnv(settings, seed=0)
    envs.reset()
    for _ in range(steps):
        envs.step(np.zeros(envs.num_envs, np.int64))
    return envs


@pytest.mark.parametrize("name", ["Perfect", "Narrow", "RewardNumpy", "RewardZeroDim"])
def test_what_keeps_its_word_is_played(name: str) -> None:
    envs = VectorEnv(edge(name), seed=0)
    envs.reset()
    steps = [envs.step(np.array([0])) for _ in range(EPISODE)]
    assert [step.reward.tolist() for step in steps] == [[1.0]] * EPISODE and steps[-1].terminated.all()
    assert envs.restarts == 0


@pytest.mark.parametrize("name", [*BREACHES, *LATER])
def test_a_breach_is_named_at_once(name: str) -> None:
    told = f"edge_envs:{name}-v0 returned {(BREACHES | LATER)[name]}"
    with pytest.raises(EnvironmentSetupError, match=re.escape(told)) as refused:
        play(edge(name))
    assert refused.value.exit_code == 2 and isinstance(refused.value, EnvironmentContractError)


@pytest.mark.parametrize("name", BROKEN)
def test_what_fails_alike_from_the_first_is_no_chance_crash(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EnvironmentContractError) as refused:
        play(edge(name))
    told = str(refused.value)
    assert told.startswith(f"env.id=edge_envs:{name}-v0 cannot be played: {BROKEN[name]}")
    assert told.endswith("and the same when it was tried again")
    assert len(caplog.messages) == 1  # one restart, to try it again


def test_a_fault_after_steps_that_worked_is_a_crash() -> None:
    envs = play(edge("FailsLater"))
    assert envs.restarts == EPISODE and envs.failure is None


@pytest.mark.parametrize("name", ["Float", "NanReward", "Seedless"])
def test_a_breach_in_a_process_of_its_own_is_told_alike(name: str) -> None:
    said = []
    for isolation in ("none", "process"):
        with pytest.raises(EnvironmentContractError) as refused:
            play(edge(name, isolation=isolation, num_envs=2))
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_only_environments_that_never_worked_raise_at_once() -> None:
    """Of the others the step is complete, so that a run can be saved, and the state goes on with the next episode."""
    envs = play(edge("NanReward"), steps=3)
    step = envs.step(np.array([0]))
    (episode,) = step.episodes
    assert episode.crashed and step.reward.tolist() == [0.0] and (episode.length, episode.episode_return) == (3, 3.0)
    assert isinstance(envs.failure, EnvironmentContractError)
    restored = VectorEnv(edge("Perfect"), seed=0)
    restored.load_state_dict({**envs.state_dict(), "environment": "Perfect"})
    (row,) = restored.state_dict()["rows"]
    assert (row["episode_index"], row["seed"], row["actions"]) == (1, episode_seed(0, 0, 1), [])


def test_a_reward_that_is_not_finite_while_an_episode_is_played_again() -> None:
    """A checkpoint of before such rewards were refused: the reward is to blame, not the seed."""
    envs = play(edge("Perfect"), steps=5)
    (row,) = envs.state_dict()["rows"]
    state = {"environment": "NanReward", "rows": [{**row, "episode_return": math.nan}], "restarts": 0}
    with pytest.raises(EnvironmentContractError, match=re.escape(LATER["NanReward"])):
        VectorEnv(edge("NanReward"), seed=0).load_state_dict(state)


def test_one_rule_for_evaluations_and_demonstrations() -> None:
    with pytest.raises(EnvironmentContractError, match="returned the reward nan, which is not a finite float32"):
        evaluate("still", lambda _: ConstantPolicy(0), edge("NanReward"), episodes=2, num_envs=1, seed=0)
    with pytest.raises(EnvironmentContractError, match="returned the reward nan, which is not a finite float32"):
        record(edge("NanReward"), ConstantPolicy(0), steps=10, seed=0)


def train(tmp_path: Path, *words: str) -> int:
    return main(["train", *SMALL, f"run.dir={tmp_path}", "run.name=run", "env.size=16", *words])


def test_training_is_saved_before_it_ends_with_the_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "env.id=edge_envs:NanReward-v0", "checkpoint.every=1000") == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stormlit: error:")]
    assert LATER["NanReward"] in told and "the run is saved: go on with `stormlit resume " in told
    assert "max_restarts" not in told and status(tmp_path / "run") == "FAILED"
    held = read(newest(tmp_path / "run") / "training-0.pt")
    assert held["replay"]["total_rows"] == held["progress"]["env_steps"] == 4


def test_training_leaves_no_run_of_an_environment_that_never_worked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "env.id=edge_envs:FourValues-v0") == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stormlit: error:")]
    assert "edge_envs:FourValues-v0" in told and "saved" not in told
    assert not list(tmp_path.glob("run/checkpoints/step-*"))


def test_files_of_json_hold_json(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    write_json(file, {"mean": math.nan, "returns": [1.5, math.inf, {"least": (-math.inf, 2)}], "flag": True})
    expected = {"mean": None, "returns": [1.5, None, {"least": [None, 2]}], "flag": True}
    assert json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(word)) == expected


# ---- names of actions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Perfect", *MEANINGS])
def test_actions_have_their_names_or_their_numbers(name: str) -> None:
    expected = {"Arrows": ["\u2190", "\u2191", "\u2192"], "Named": ["LEFT", "NOOP", "RIGHT"]}
    facts = env_facts(edge(name))
    assert facts == (ObservationSpace.of((16, 16, 3)), ActionSpace.of(3), expected.get(name, ["0", "1", "2"]), True)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("Named", ["always LEFT", "always NOOP", "always RIGHT"]),
        ("Arrows", ["always 0 \u2190", "always 1 \u2191", "always 2 \u2192"]),
        ("Fewer", ["always 0", "always 1", "always 2"]),
    ],
)
def test_every_constant_baseline_keeps_a_name_of_its_own(name: str, names: list[str]) -> None:
    results = evaluate_baselines(["constant"], edge(name), episodes=1, num_envs=1, seed=0)
    assert [result.policy for result in results] == names
    assert len({re.sub(r"[^\w ./:-]", "_", result.policy) for result in results}) == 3  # as a tracker keeps them


# ---- episodes that do not end -----------------------------------------------------------------------------------


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    _warn_once.cache_clear()
    return caplog


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        (edge("Endless"), True),
        (edge("Endless", max_episode_steps=9), False),
        (edge("Perfect"), False),
        (EnvSettings(game="Pong", size=16), False),
        (EnvSettings(game=None, id="stormlit/Catch-v0", size=16), False),
    ],
)
def test_no_time_limit_is_said_once(settings: EnvSettings, warned: bool, warnings: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        VectorEnv(settings, seed=0).close()
    assert len(warnings.messages) == warned
    assert all("has no time limit" in line and "env.max_episode_steps=N" in line for line in warnings.messages)


def test_an_evaluated_episode_is_cut_off_and_said_to_be() -> None:
    def still(num_envs: int) -> ConstantPolicy:
        return ConstantPolicy(0)

    play_four = {"episodes": 4, "num_envs": 2, "seed": 0}
    cut = evaluate("still", still, edge("Perfect"), max_steps_per_episode=EPISODE - 1, **play_four)  # type: ignore[arg-type]
    whole = evaluate("still", still, edge("Perfect"), max_steps_per_episode=EPISODE, **play_four)  # type: ignore[arg-type]
    own = edge("Perfect", max_episode_steps=2)
    shorter = evaluate("still", still, own, max_steps_per_episode=EPISODE, **play_four)  # type: ignore[arg-type]
    assert [result.truncated for result in (cut, whole, shorter)] == [4, 0, 4]
    assert [result.episodes[0].length for result in (cut, whole, shorter)] == [EPISODE - 1, EPISODE, 2]
    assert "4 episodes, 4 of them truncated" in cut.summary() and "truncated" not in whole.summary()
    assert cut.as_dict()["truncated"] == 4 and cut.as_dict()["episodes"][0]["truncated"] is True


# ---- one way to an Atari game -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("Pong", "Pong"),
        ("Pong-v4", "Pong"),
        ("PongNoFrameskip-v4", "Pong"),
        ("ale_py:ALE/Pong-v5", "Pong"),
        ("UpNDownNoFrameskip-v0", "UpNDown"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Gymnasium's, of old versions
def test_an_id_that_bypasses_the_protocol_is_led_to_the_game(name: str, game: str) -> None:
    told = f"^env.id={name} is an Atari game without the protocol of env.atari: choose it with env.game={game}$"
    with pytest.raises(EnvironmentSetupError, match=told):
        make_env(EnvSettings(game=None, id=name))


def test_what_others_build_from_a_game_is_theirs() -> None:
    gymnasium.register("tests/OwnPong-v0", lambda: gymnasium.make("ALE/Pong-v5", frameskip=2))
    try:
        assert make_env(EnvSettings(game=None, id="tests/OwnPong-v0")).reset(seed=0)[0].shape == (64, 64, 3)
    finally:
        gymnasium.registry.pop("tests/OwnPong-v0")


def test_atari_settings_without_effect_are_named(warnings: pytest.LogCaptureFixture) -> None:
    atari = AtariSettings(frame_skip=2, sticky_actions=0.25)
    VectorEnv(EnvSettings(game=None, id="stormlit/Catch-v0", size=16, atari=atari), seed=0)
    assert warnings.messages == [
        f"env.atari.{setting} has no effect: env.id=stormlit/Catch-v0 is no game of env.game"
        for setting in ("frame_skip=2", "sticky_actions=0.25")
    ]
    warnings.clear()
    VectorEnv(EnvSettings(game=None, id="ALE/Pong-v5", size=16, atari=atari), seed=0)
    assert warnings.messages == []


# ---- what cannot be made ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry_point", "told"),
    [
        (lambda: {}["rom"], "cannot be made: KeyError: 'rom' \\(test_edges.py, line "),
        (gymnasium.Env, "has no observations; supported are uint8 images"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(entry_point: Any, told: str) -> None:
    gymnasium.register("tests/Unmade-v0", entry_point)
    try:
        with pytest.raises(EnvironmentSetupError, match=f"^env.id=tests/Unmade-v0 {told}"):
            make_env(EnvSettings(game=None, id="tests/Unmade-v0"))
    finally:
        gymnasium.registry.pop("tests/Unmade-v0")
