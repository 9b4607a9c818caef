"""Episodes that do not follow from their seed: a run that goes on refuses them, or begins others there if asked to."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from faulty_envs import Spoilt
from stormlit.cli import main
from stormlit.envs import EnvSettings, VectorEnv, episode_seed
from stormlit.errors import IrreproducibleError
from stormlit.storm.collect import Collector
from training import SMALL, fabric_run, newest, resume, rows, sentences, status, train

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
