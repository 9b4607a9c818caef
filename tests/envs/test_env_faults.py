"""Environments that raise, hang, exit and are killed: the episode is lost, the run goes on, and stops in good order."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_isolation import gone, pids

import stormlit.runs.after_step
import stormlit.storm.loop
from faulty_envs import ABSENT, EPISODE, FAULTY_STEP, faulty_episodes
from stormlit.analysis.evaluate import RandomPolicy, evaluate
from stormlit.cli import main
from stormlit.envs import EnvSettings, VectorEnv, episode_seed
from stormlit.errors import EnvironmentCrashError
from stormlit.runs.run import Run
from training import SMALL, fabric_run, logged, newest, read, resume, rows, sentences, status, train

# Where a fault happens, its name, and what is said about it.
FAULTS = [
    ("none", "Raise", "its step raised ZeroDivisionError: broken (faulty_envs.py, line"),
    ("process", "Raise", "its step raised ZeroDivisionError: broken (faulty_envs.py, line"),
    ("process", "Exit", "its process exited (7)"),
    ("process", "Kill", "its process was killed by SIGKILL"),
    ("process", "Hang", "it did not answer within the 2 seconds of env.step_timeout_seconds"),
]
TRAINED = ("env.size=16", "env.max_restarts=1000")  # how often is left to the seeds


def faulty(name: str, isolation: str = "none", **changes: Any) -> VectorEnv:
    limit = 2.0 if name == "Hang" else 0.0
    settings = EnvSettings(
        game=None,
        id=f"faulty_envs:{name}-v0",
        size=16,
        isolation=isolation,  # type: ignore[arg-type]
        step_timeout_seconds=limit,
        **changes,
    )
    envs = VectorEnv(settings, seed=0)
    envs.reset()
    return envs


@pytest.mark.parametrize(
    ("isolation", "name", "told"),
    [pytest.param(*fault, marks=[pytest.mark.slow] if {"Hang", "Exit"} & {*fault} else []) for fault in FAULTS],
)
def test_a_crash_ends_one_episode_of_one_environment(
    isolation: str, name: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    envs, sound = faulty(name, isolation, num_envs=2), VectorEnv(EnvSettings(None, "stormlit/Catch-v0", 16, 2), seed=0)
    sound.reset()
    played: list[list[bool]] = [[], []]  # for each environment and episode, whether it crashed
    for _ in range(24):
        step = envs.step(np.array([1, 1]))
        for episode in step.episodes:
            index, number = episode.env_index, len(played[episode.env_index])
            assert episode.seed == episode_seed(0, index, number)
            assert step.is_first[index] and episode.truncated == episode.crashed
            assert episode.length == (FAULTY_STEP - 1 if episode.crashed else EPISODE)
            if episode.crashed:
                assert not step.terminated[index] and step.reward[index] == 0.0 == episode.last_reward
            played[index].append(episode.crashed)
    assert played == [faulty_episodes(row, len(played[row])) for row in range(2)]
    crashes = sum(map(sum, played))
    assert crashes >= 1 and min(map(len, played)) >= 3
    assert envs.restarts == crashes == len(caplog.messages)
    assert told in caplog.text and f"{crashes} of at most env.max_restarts=20" in caplog.text
    envs.close()


def test_a_process_killed_from_outside_is_replaced() -> None:
    settings = EnvSettings(game=None, id="stormlit/Catch-v0", size=16, num_envs=2, isolation="process")
    envs = VectorEnv(settings, seed=0)
    envs.reset()
    before = pids(envs)
    envs.step(np.array([1, 1]))
    os.kill(before[0], signal.SIGKILL)
    step = envs.step(np.array([1, 1]))
    assert step.is_first.tolist() == [True, False] and envs.restarts == 1
    after = pids(envs)
    assert after[0] != before[0] and after[1] == before[1]
    assert gone(before[0])
    envs.close()


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_episodes_that_cannot_begin_are_passed_over(isolation: str) -> None:
    envs = faulty("Reset", isolation)
    seeds = [episode.seed for _ in range(4 * EPISODE) for episode in envs.step(np.array([1])).episodes]
    possible = [episode_seed(0, 0, index) for index, fails in enumerate(faulty_episodes(0, 20)) if not fails]
    assert seeds == possible[:4]
    # as many as lie before the episode that is running now
    assert envs.restarts == sum(faulty_episodes(0, envs.state_dict()["rows"][0]["episode_index"])) > 0
    envs.close()


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_too_many_crashes_stop_at_a_sound_state(isolation: str) -> None:
    envs = faulty("Always", isolation, max_restarts=2)
    steps = []
    while envs.failure is None:
        steps.append(envs.step(np.array([1])))
    assert [step.is_first.tolist() for step in steps] == [[False], [True]] * 3
    np.testing.assert_array_equal(envs.current_obs, steps[-2].obs)
    state = envs.state_dict()
    for _ in range(2):
        with pytest.raises(EnvironmentCrashError, match=r"^environment 0 \(Always\) crashed: .* env.max_restarts=2$"):
            envs.step(np.array([1]))
    envs.close()
    # Loaded, it begins the episode that nobody has seen.
    sound = EnvSettings(game=None, id="faulty_envs:Always-v0", size=16, max_restarts=2)
    restored = VectorEnv(sound, seed=0)
    restored.load_state_dict(state)
    assert restored.restarts == 2 and restored.failure is None
    (row,) = restored.state_dict()["rows"]
    assert (row["seed"], row["actions"]) == (episode_seed(0, 0, 3), [])


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_an_environment_that_cannot_be_made_again(
    isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ABSENT, str(tmp_path / "absent"))
    envs = faulty("Raise", isolation, max_restarts=4)
    (tmp_path / "absent").touch()
    while envs.failure is None:
        envs.step(np.array([1]))
    assert envs.restarts == 4
    assert "the emulator's files are gone" in str(envs.failure) or "its process exited (1)" in str(envs.failure)
    (tmp_path / "absent").unlink()
    state = envs.state_dict()
    restored = faulty("Raise", isolation, max_restarts=10)
    restored.load_state_dict(state)
    for _ in range(EPISODE):
        restored.step(np.array([1]))
    restored.close()


def test_a_crash_while_an_episode_is_played_again_is_survived(tmp_path: Path) -> None:
    """The machine, not the episode, is to blame: the same actions are tried again."""
    settings = EnvSettings(game=None, id="stormlit/Catch-v0", size=16, isolation="process")
    envs = VectorEnv(settings, seed=0)
    envs.reset()
    for action in (0, 2, 0):
        envs.step(np.array([action]))
    restored = VectorEnv(settings, seed=0)
    os.kill(pids(restored)[0], signal.SIGKILL)
    restored.load_state_dict(envs.state_dict())
    np.testing.assert_array_equal(restored.current_obs, envs.current_obs)
    assert restored.restarts == 1
    none_left = VectorEnv(EnvSettings(None, "stormlit/Catch-v0", 16, isolation="process", max_restarts=0), seed=0)
    os.kill(pids(none_left)[0], signal.SIGKILL)
    with pytest.raises(EnvironmentCrashError, match="killed by SIGKILL"):
        none_left.load_state_dict(envs.state_dict())
    for vector in (envs, restored, none_left):
        vector.close()


# ---- evaluation -------------------------------------------------------------------------------------------------


def played(max_restarts: int = 20, **how: Any) -> Any:
    settings = EnvSettings(game=None, id="faulty_envs:Raise-v0", size=16, max_restarts=max_restarts)
    return evaluate("random", lambda _: RandomPolicy(3, 0), settings, episodes=8, num_envs=3, seed=0, **how)


@pytest.mark.parametrize("selection", ["dealt", "first_to_end"])
def test_a_crashed_episode_is_not_an_evaluated_one(selection: str) -> None:
    result = played(selection=selection)
    assert [episode.length for episode in result.episodes] == [EPISODE] * 8
    assert not any(episode.crashed for episode in result.episodes) and set(result.returns) <= {1.0, -1.0}
    assert result.crashed == result.as_dict()["crashed"] > 0
    assert f"8 episodes, and {result.crashed} broken off by crashes, not counted" in result.summary()
    if selection == "dealt":
        assert [episode.env_index for episode in result.episodes] == [0, 1, 2, 0, 1, 2, 0, 1]


# ---- training ---------------------------------------------------------------------------------------------------


def test_training_goes_on_and_finishes(tmp_path: Path) -> None:
    run = train(tmp_path, "run", *TRAINED, "env.id=faulty_envs:Raise-v0")
    metrics, state = logged(run), read(newest(run) / "training-0.pt")
    restarts = state["collector"]["envs"]["restarts"]
    assert metrics[48, "progress/env_restarts"] == restarts > 0
    assert metrics[48, "progress/episodes"] > 48 // EPISODE
    # Lost episodes are no part of the returns.
    assert {value for (_, key), value in metrics.items() if key == "episode/length"} == {EPISODE}
    evaluation = json.loads((run / "evaluation" / "step-000000048.json").read_text())
    assert {episode["length"] for episode in evaluation["episodes"]} == {EPISODE}
    held = rows(run)
    crashed = ~held["terminated"][:-1, 0] & held["is_first"][1:, 0]
    assert crashed.sum() == restarts
    assert (held["reward"][:-1, 0][crashed] == 0.0).all()


def failing(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Train until the environments have failed; returns what was said."""
    command = ["train", *SMALL, f"run.dir={tmp_path}", "run.name=run", "checkpoint.every=1000", *words]
    assert main(command) == 3
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stormlit: error:")]
    assert status(tmp_path / "run") == "FAILED"
    assert f"the run is saved: go on with `stormlit resume {tmp_path / 'run'} env.max_restarts=N`" in told
    return told


def test_too_many_crashes_end_in_a_checkpoint_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("env.id=faulty_envs:Raise-v0", "env.size=16")
    told = failing(tmp_path, capsys, *words, "env.max_restarts=2")
    assert "environment 0 (Raise) crashed: its step raised ZeroDivisionError: broken" in told
    # Saved after the very step: what was stored is what an unbroken run has stored.
    run = tmp_path / "run"
    steps = int(newest(run).name.removeprefix("step-"))
    assert read(newest(run) / "training-0.pt")["replay"]["total_rows"] == steps < 48
    resume(run, 48, "env.max_restarts=1000")
    unbroken = train(tmp_path / "unbroken", "run", *words, "env.max_restarts=1000")
    held, held_too = rows(unbroken), rows(run)
    assert held["number"].tolist() == held_too["number"].tolist()
    upto = held["number"] < steps
    assert all(np.array_equal(held[name][upto], held_too[name][upto]) for name in held)
    # Nor does the stop change what comes after it; only the last crash was not followed by a restart.
    assert all(np.array_equal(held[name], held_too[name]) for name in held)
    restarts = [read(newest(r) / "training-0.pt")["collector"]["envs"]["restarts"] for r in (unbroken, run)]
    assert restarts[0] == restarts[1] + 1


def test_an_evaluation_that_fails_while_training_saves_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Run) -> None:
        raise EnvironmentCrashError("environment 1 (Catch) crashed")

    monkeypatch.setattr(stormlit.runs.after_step, "evaluate_agent", fail)
    told = failing(tmp_path, capsys, "evaluation.every_env_steps=10")
    assert "environment 1 (Catch) crashed" in told
    assert newest(tmp_path / "run").name == "step-000000010"
    monkeypatch.undo()
    resume(tmp_path / "run", 48)


@pytest.mark.slow
def test_the_environments_of_one_process_stop_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_crash = [faulty_episodes(row, 20).index(True) for row in range(2)]
    assert first_crash[0] != first_crash[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    words = ["env.id=faulty_envs:Raise-v0", "env.size=16", "env.max_restarts=0", "loop.env_steps=400"]
    places = [f"run.dir={tmp_path}", "run.name=run"]
    ended = fabric_run(2, ["train", *SMALL, *words, *places], "--strategy", "ddp")
    assert ended.returncode != 0
    # The launcher's summary, which ends with the first failure, has the sentence of the process that knows the cause.
    assert "environment 0 (Raise) crashed" in sentences(ended)[-1]
    # Two steps at a time, one of each process.
    steps = 2 * (EPISODE * min(first_crash) + FAULTY_STEP)
    assert newest(tmp_path / "run").name == f"step-{steps:09d}"
    words = ["env.max_restarts=1000", f"loop.env_steps={steps + 20}", f"run.dir={tmp_path}"]
    assert fabric_run(2, ["resume", "run", *words], "--strategy", "ddp").returncode == 0
    assert status(tmp_path / "run") == "FINISHED"
