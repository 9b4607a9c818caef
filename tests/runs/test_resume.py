"""A run that is broken off and resumed ends exactly as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import stormlit.storm.loop
from conftest import RunStormlit
from stormlit.cli import main
from stormlit.runs.directory import RunDirectory
from stormlit.storm.training import Training
from training import SMALL, assert_same_run, interrupted, logged, newest, read, resume, status, train

VARIANTS = {
    "plain": (),
    "ring wrapped, two environments, drawn by loss": (
        "replay.capacity=20",
        "env.num_envs=2",
        "checkpoint.every=10",
        "replay.sampler=curious",
    ),
    "fractions of updates": (
        "loop.world_model_updates_per_env_step=0.3",
        "loop.agent_updates_per_env_step=0.7",
        "env.num_envs=3",
    ),
    "gru carried along, resnet, prior": (
        "world_model.sequence_model=gru",
        "player.memory=carried",
        "world_model.encoder=resnet",
        "world_model.encoder.stem_channels=4",
        "imagination.start=prior",
    ),
    "separate tokens, codes, patches": (
        "world_model.encoder=patches",
        "world_model.latent=vq",
        "world_model.latent.codes=8",
        "world_model.tokens=separate",
        "world_model.decoder_input=both",
        "world_model.reward_loss=hl_gauss",
        "world_model.loss_balance=harmony",
        "world_model.objectives=[contrastive]",
    ),
    "gaussian, decoded from memory": (
        "world_model.latent=gaussian",
        "world_model.decoder_input=hidden",
        "world_model.reward_loss=squared",
    ),
    "pixels of an odd size, wrapped": (
        "env.id=env_words:Drawn-v0",
        "env.kwargs.rows=12",
        "env.render_pixels=true",
        "env.wrappers=[env_words:Negative]",
        "env.size=21",
    ),
    "five channels of bools": ("env.id=env_words:Channels-v0", "env.channels=as_is", "env.size=10", "env.columns=15"),
    "bfloat16": ("precision=bf16-mixed",),
    "overlapping": ("loop.overlap=true",),
    "looked at while training, mamba2 carried along": (
        "evaluation.every_env_steps=16",
        "loop.media_every_env_steps=16",
        "world_model.sequence_model=mamba2",
        "player.memory=carried",
    ),
}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[] if name.startswith(("ring", "over")) else pytest.mark.slow) for name in VARIANTS],
)
def test_two_halves_are_one_whole(variant: str, tmp_path: Path) -> None:
    words = VARIANTS[variant]
    unbroken = train(tmp_path / "a", "run", *words, "loop.env_steps=56")
    resumed = train(tmp_path / "b", "run", *words, "loop.env_steps=32")
    torch.rand(17)  # another process would stand elsewhere
    resume(resumed, 56)
    assert_same_run(unbroken, resumed)


@pytest.mark.parametrize(
    "half", [42, pytest.param(41, marks=pytest.mark.slow), pytest.param(43, marks=pytest.mark.slow)]
)
def test_a_run_may_end_anywhere(half: int, tmp_path: Path) -> None:
    """In the middle of an episode, at its end (42 = 6 x 7 steps of Catch), and between two logs."""
    unbroken = train(tmp_path / "a", "run", "loop.env_steps=60")
    resumed = train(tmp_path / "b", "run", f"loop.env_steps={half}")
    resume(resumed, 60)
    assert_same_run(unbroken, resumed)


@pytest.mark.slow
def test_a_run_may_end_in_its_random_start(tmp_path: Path) -> None:
    unbroken = train(tmp_path / "a", "run", "loop.warmup_steps=30", "checkpoint.every=10")
    resumed = tmp_path / "b" / "run"
    interrupted(tmp_path / "b", at=12, words=("loop.warmup_steps=30", "checkpoint.every=10"))
    assert newest(resumed).name == "step-000000010"
    resume(resumed, 48)
    assert_same_run(unbroken, resumed)


def test_what_others_draw_from_numpy_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect = stormlit.storm.loop.collect

    def collect_and_draw(training: Training) -> None:
        collect(training)
        training.metrics.add("test", {"drawn": np.random.random()})

    monkeypatch.setattr(stormlit.storm.loop, "collect", collect_and_draw)
    unbroken = train(tmp_path / "a", "run", "loop.env_steps=40")
    resumed = train(tmp_path / "b", "run", "loop.env_steps=27")
    np.random.seed(17)  # another process would stand elsewhere
    resume(resumed, 40)
    assert_same_run(unbroken, resumed)
    assert len({value for (_, key), value in logged(unbroken).items() if key == "test/drawn"}) == 5


def test_an_interrupted_run_goes_on_from_its_newest_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = train(tmp_path / "a", "run", "checkpoint.every=14")
    resumed = tmp_path / "b" / "run"
    capsys.readouterr()
    interrupted(tmp_path / "b", at=37, words=("checkpoint.every=14",))
    assert "interrupted" in capsys.readouterr().err
    assert status(resumed) == "KILLED"
    assert newest(resumed).name == "step-000000028"
    resume(resumed, 48)
    assert_same_run(unbroken, resumed)


@pytest.mark.slow
def test_many_small_steps_are_one_large_one(tmp_path: Path) -> None:
    unbroken = train(tmp_path / "a", "run", "loop.env_steps=46")
    resumed = train(tmp_path / "b", "run", "loop.env_steps=30")
    for env_steps in (33, 34, 35, 42, 46):
        resume(resumed, env_steps)
    assert_same_run(unbroken, resumed)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["resume", "run", f"run.dir={tmp_path}"]) == 0
    assert "loop.env_steps" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_an_older_checkpoint_starts_another_future(tmp_path: Path) -> None:
    """Going back to it must end as the first time, and the run must be resumable afterwards."""
    run = train(tmp_path / "b", "run", "checkpoint.every=10", "checkpoint.keep=5", "loop.env_steps=40")
    older = run / "checkpoints" / "step-000000020"
    assert main(["resume", str(older), "loop.env_steps=32"]) == 0
    assert newest(run).name == "step-000000032"
    resume(run, 40)
    unbroken = train(tmp_path / "a", "run", "checkpoint.every=10", "loop.env_steps=40")
    assert_same_run(unbroken, run)


def test_a_run_keeps_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "run")
    capsys.readouterr()
    assert main(["resume", "run", f"run.dir={tmp_path}", "loop.env_steps=56", "seed=7"]) == 2
    assert capsys.readouterr().err.endswith("seed=7: a run goes on with the seed that it began with, 0\n")
    assert newest(run).name == "step-000000048"


def test_the_same_run_can_be_tuned_on_the_way(tmp_path: Path) -> None:
    run = train(tmp_path, "run")
    resume(run, 56, "agent.optimizer.learning_rate=1e-5", "evaluation.episodes=3", "checkpoint.keep=1")
    assert logged(run)[56, "progress/agent_updates"] == 32
    assert len(list(RunDirectory(run).checkpoints.iterdir())) == 1
    state = read(newest(run) / "training-0.pt")["agent_learner"]["optimizer"]
    assert {group["lr"] for group in state["param_groups"]} == {1e-5}
    # What was changed is what goes on from here.
    assert "learning_rate: 1.0e-05" in (run / "config.yaml").read_text()


BREAKOUT = (
    "env.game=Breakout",
    "env.size=32",
    "env.atari.sticky_actions=0.25",
    "env.atari.noop_max=10",
    "env.num_envs=2",
    "replay.capacity=60",
    "loop.warmup_steps=60",
    "checkpoint.every=30",
    "evaluation.episodes=1",
    "env.max_episode_steps=70",
)


@pytest.mark.slow
def test_an_atari_game_with_sticky_actions_resumes_exactly(tmp_path: Path) -> None:
    unbroken = train(tmp_path / "a", "run", *BREAKOUT, "loop.env_steps=240")
    resumed = train(tmp_path / "b", "run", *BREAKOUT, "loop.env_steps=130")
    resume(resumed, 240)
    assert_same_run(unbroken, resumed)
    assert logged(unbroken)[240, "progress/episodes"] >= 2


@pytest.mark.slow
def test_another_process_goes_on_exactly(run_stormlit: RunStormlit, tmp_path: Path) -> None:
    unbroken = train(tmp_path / "a", "run", "loop.env_steps=60")
    words = ["run.name=run", f"run.dir={tmp_path / 'b'}"]
    assert run_stormlit("train", *SMALL, *words, "loop.env_steps=35").returncode == 0
    ended = run_stormlit("resume", str(tmp_path / "b" / "run"), "loop.env_steps=60")
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    assert_same_run(unbroken, tmp_path / "b" / "run")


@pytest.mark.slow
def test_a_killed_process_loses_nothing_but_the_steps_since_its_checkpoint(tmp_path: Path) -> None:
    words = ("loop.env_steps=120", "checkpoint.every=2", "checkpoint.keep=2")
    unbroken = train(tmp_path / "a", "run", *words)
    command = [sys.executable, "-m", "stormlit", "train", *SMALL, *words, f"run.dir={tmp_path / 'b'}", "run.name=run"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    run = tmp_path / "b" / "run"
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-00000006*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert status(run) == "RUNNING"
    resume(run, 120)
    assert_same_run(unbroken, run)
