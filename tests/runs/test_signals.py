"""Signals stop a training after the step, with a checkpoint that goes on exactly; handlers come back afterwards."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import stormlit.runs.after_step
import stormlit.runs.snapshot
import stormlit.runs.train
import stormlit.storm.loop
from faulty_envs import EPISODE, FAULTY_STEP, faulty_episodes
from stormlit.cli import main
from stormlit.errors import SaveError
from stormlit.runs.run import Run
from stormlit.runs.signals import STOPPING, Stopped, StopSignals
from stormlit.storm.training import Training
from training import SMALL, assert_same_run, logged, newest, read, resume, rows, status, train

RAISE = ("env.id=faulty_envs:Raise-v0", "env.size=16", "env.max_restarts=0")


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in STOPPING]


def stopped(root: Path, at: int, *numbers: int, words: tuple[str, ...] = ()) -> int:
    """Train, with signals coming in the middle of the step after ``at`` environment steps; returns the exit code."""
    improve = stormlit.storm.loop.fit_world_model

    def signalled(training: Training) -> None:
        if training.progress.env_steps == at:
            for number in numbers:
                os.kill(os.getpid(), number)
        improve(training)

    before = handlers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stormlit.storm.loop, "fit_world_model", signalled)
        code = main(["train", *SMALL, f"run.dir={root}", "run.name=run", *words])
    assert handlers() == before
    return code


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_ends_the_step_saves_and_goes_on_exactly(
    number: signal.Signals,
    unbroken: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capsys.readouterr()
    assert stopped(tmp_path / "b", 37, number) == 128 + number
    told = capsys.readouterr().err
    assert f"stopped by {number.name} after step 37" in told
    run = tmp_path / "b" / "run"
    assert newest(run).name == "step-000000037" and status(run) == "KILLED"
    monkeypatch.chdir("/")
    assert main(shlex.split(told.rpartition("go on with `")[2].rpartition("`")[0])[1:]) == 0  # as it is printed
    assert_same_run(unbroken(), run)


def test_a_second_interrupt_stops_at_once(
    unbroken: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(tmp_path / "b", 37, signal.SIGINT, signal.SIGINT) == 130
    assert "stormlit: interrupted" in capsys.readouterr().err
    run = tmp_path / "b" / "run"
    assert newest(run).name == "step-000000024" and status(run) == "KILLED"
    resume(run, 48)
    assert_same_run(unbroken(), run)


def test_a_second_interrupt_while_saving_harms_no_checkpoint(
    unbroken: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., object] = stormlit.runs.snapshot.CheckpointWriter.add_tensors

    def interrupted(writer: stormlit.runs.snapshot.CheckpointWriter, *arguments: object, **facts: object) -> object:
        if writer.env_steps == 37:
            os.kill(os.getpid(), signal.SIGINT)
        return original(writer, *arguments, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.runs.snapshot.CheckpointWriter, "add_tensors", interrupted)
        assert stopped(tmp_path / "b", 37, signal.SIGINT) == 130
    run = tmp_path / "b" / "run"
    assert newest(run).name == "step-000000024"
    resume(run, 48)
    assert_same_run(unbroken(), run)


def test_a_signal_in_the_last_evaluation_does_not_wait_for_it(
    unbroken: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.runs.train, "evaluate_agent", signalled)
        assert main(["train", *SMALL, f"run.dir={tmp_path / 'b'}", "run.name=run"]) == 128 + signal.SIGUSR1
    run = tmp_path / "b" / "run"
    assert status(run) == "KILLED" and newest(run).name == "step-000000048"
    assert not list(run.glob("evaluation/*"))
    resume(run, 48)
    assert_same_run(unbroken(), run)


@pytest.mark.slow
def test_an_evaluation_on_the_way_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = stormlit.runs.after_step.evaluate_agent

    def signalled(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        evaluate(run)

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.runs.after_step, "evaluate_agent", signalled)
        words = ["evaluation.every_env_steps=30", f"run.dir={tmp_path}", "run.name=run"]
        assert main(["train", *SMALL, *words]) == 143
    assert newest(tmp_path / "run").name == "step-000000030"
    assert (30, "eval/return") in logged(tmp_path / "run")


def test_the_context_itself() -> None:
    before = handlers()
    with StopSignals() as signals:
        assert signals.received == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)  # which does not hurry it
        assert signals.received == signal.SIGTERM
        with pytest.raises(Stopped, match="SIGTERM") as stop, signals.at_once():
            raise AssertionError("it came before")
        assert stop.value.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_the_clock_saves_without_changing_anything(unbroken: Callable[..., Path], tmp_path: Path) -> None:
    """At every step, since even the shortest one takes longer than this."""
    words = ("checkpoint.every_minutes=1e-9", "checkpoint.keep=100", "loop.env_steps=40")
    run = train(tmp_path / "b", "run", *words)
    assert len(list((run / "checkpoints").iterdir())) == 40
    resume(run, 48, "checkpoint.every_minutes=0")
    assert_same_run(unbroken(), run)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_while_an_object_is_collected_is_not_lost() -> None:
    """Python drops what is raised there; the end of the block raises it again."""

    class Collected:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # where the handler runs

    reached = False
    with pytest.raises(Stopped) as stopped, StopSignals() as signals, signals.at_once():
        Collected()  # nobody holds it
        reached = True
    assert reached and stopped.value.exit_code == 128 + signal.SIGTERM


def first_fault() -> int:
    """The environment step, counted from 1, at which the first episode of ``faulty_envs`` fails."""
    return EPISODE * faulty_episodes(0, 20).index(True) + FAULTY_STEP


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
def test_a_signal_while_an_environment_hangs_stops_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, fault = stormlit.storm.loop.collect, first_fault()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))

    def signalled(training: Training) -> None:
        if training.progress.env_steps == fault - 1:
            timer.start()
        collect(training)

    words = ["env.id=faulty_envs:Hang-v0", "env.size=16", "env.isolation=process", "env.step_timeout_seconds=2"]
    with monkeypatch.context() as patch:
        patch.setattr(stormlit.storm.loop, "collect", signalled)
        assert main(["train", *SMALL, *words, f"run.dir={tmp_path}", "run.name=run"]) == 143
    run = tmp_path / "run"
    assert newest(run).name == f"step-{fault:09d}" and status(run) == "KILLED"
    assert read(newest(run) / "training-0.pt")["collector"]["envs"]["restarts"] == 1
    assert rows(run)["number"].tolist() == list(range(fault))


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
