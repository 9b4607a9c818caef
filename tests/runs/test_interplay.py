"""Faults that come together, or at moments when nobody looks: a signal and a crash, an end and a kill, two commands."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import stormlit.runs.after_step
import stormlit.runs.train
import stormlit.storm.loop
from faulty_envs import EPISODE, FAULTY_STEP, faulty_episodes
from stormlit.cli import main
from stormlit.errors import SaveError
from stormlit.runs.run import Run
from stormlit.storm.training import Training
from training import SMALL, logged, newest, refusal, resume, status, train

SHORT = ("loop.warmup_steps=8", "loop.env_steps=24", "checkpoint.every=8", "evaluation.episodes=1")
RAISE = ("env.id=faulty_envs:Raise-v0", "env.size=16", "env.max_restarts=0")


def again(root: Path, *words: str) -> list[str]:
    return ["train", *SMALL, *SHORT, "resume=auto", f"run.dir={root}", "run.name=run", *words]


def first_fault() -> int:
    """The environment step, counted from 1, at which the first episode of ``faulty_envs`` fails."""
    return EPISODE * faulty_episodes(0, 20).index(True) + FAULTY_STEP


# ---- the end of a run -------------------------------------------------------------------------------------------


def test_a_run_stopped_among_its_baselines_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluation.every_env_steps=24", "evaluation.baselines=[random]")

    def stop(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.runs.train, "run_baselines", stop)
        assert main(again(tmp_path, *words)) == 143
    run = tmp_path / "run"
    assert status(run) == "KILLED" and list(run.glob("evaluation/step-000000024.json"))
    capsys.readouterr()
    assert main(again(tmp_path, *words)) == 0
    assert "random" in capsys.readouterr().out
    assert status(run) == "FINISHED" and (24, "eval/baseline/random") in logged(run)
    assert main(again(tmp_path, *words)) == 0
    assert "has taken all its 24 environment steps" in capsys.readouterr().out


def test_the_evaluation_of_another_future_does_not_finish_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tmp_path, "run", *SHORT)

    def killed(run: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.runs.train, "evaluate_agent", killed)
        assert main(["resume", str(run / "checkpoints" / "step-000000016"), "agent.gamma=0.5"]) == 130
    assert newest(run).name == "step-000000024" and not (run / "evaluation" / "step-000000024.json").exists()
    assert status(run) == "KILLED"
    resume(run, 24)


# ---- two commands at once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_that_another_process_trained_meanwhile_is_left_alone(
    resumed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if resumed:
        train(tmp_path, "run", *SHORT, "resume=auto")
    build = stormlit.runs.train.build_training

    def another_was_first(*arguments: Any) -> Training:
        monkeypatch.setattr(stormlit.runs.train, "build_training", build)
        assert main(again(tmp_path, "loop.env_steps=30")) == 0
        capsys.readouterr()
        return build(*arguments)

    monkeypatch.setattr(stormlit.runs.train, "build_training", another_was_first)
    sentence = refusal(capsys, *again(tmp_path, "loop.env_steps=32"))
    assert "another process has trained that run" in sentence and f"stormlit resume {tmp_path / 'run'}" in sentence
    assert newest(tmp_path / "run").name == "step-000000030" and status(tmp_path / "run") == "FINISHED"
    assert main(again(tmp_path, "loop.env_steps=32")) == 0


# ---- environments, signals and disks ----------------------------------------------------------------------------


def test_environments_fail_on_a_disk_that_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Run) -> Path:
        raise SaveError("the checkpoint could not be written") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stormlit.runs.after_step, "save_snapshot", full)
    assert main(["train", *SMALL, *RAISE, f"run.dir={tmp_path}", "run.name=run"]) == 3
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stormlit: error:")]
    assert "environment 0 (Raise) crashed" in told and "besides, the checkpoint could not be written" in told
    assert "is saved" not in told and status(tmp_path / "run") == "FAILED"


def test_environments_that_fail_outweigh_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is asked to stop comes back, which would not help this one."""
    collect, fault = stormlit.storm.loop.collect, first_fault()

    def signalled(training: Training) -> None:
        if training.progress.env_steps == fault - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        collect(training)

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.storm.loop, "collect", signalled)
        assert main(["train", *SMALL, *RAISE, f"run.dir={tmp_path}", "run.name=run"]) == 3
    run = tmp_path / "run"
    assert newest(run).name == f"step-{fault:09d}" and status(run) == "FAILED"
    resume(run, 48, "env.max_restarts=1000")


@pytest.mark.slow
def test_control_c_reaches_the_run_and_not_its_environments(tmp_path: Path) -> None:
    words = ["env.num_envs=2", "env.isolation=process", "loop.env_steps=100000", "checkpoint.every=10"]
    command = [sys.executable, "-m", "stormlit", "train", *SMALL, *words, f"run.dir={tmp_path}", "run.name=run"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoints/step-*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    told = (tmp_path / "log").read_text()
    assert "SIGINT: saving after this step" in told and "stopped by SIGINT" in told and "crashed" not in told
    assert status(tmp_path / "run") == "KILLED"
