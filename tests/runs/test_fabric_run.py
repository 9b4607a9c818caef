"""``fabric run`` starts one process or several; together they are one run with one set of weights."""

from __future__ import annotations

import contextlib
import datetime
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stormlit.cli import main
from stormlit.cli.lightning_command import FABRIC_ENTRY
from stormlit.errors import ConfigError
from stormlit.runs.assembly import per_process
from stormlit.runs.device import wait_for_all
from training import SMALL, differences, fabric_run, free_port, logged, newest, on_one_thread, read, sentences, status


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    root = tmp_path_factory.mktemp("two")
    ended = fabric_run(2, ["train", *SMALL, f"run.dir={root}", "run.name=two"], "--strategy", "ddp")
    assert ended.returncode == 0, ended.stderr
    assert "Catch, 48 environment steps" in ended.stdout and ended.stdout.count("checkpoint ") == 1
    return root / "two"


def test_the_script_is_a_file_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["script"]) == 0
    assert Path(capsys.readouterr().out.strip()).samefile(FABRIC_ENTRY)


def test_two_processes_are_one_run(two: Path) -> None:
    assert [path.name for path in two.parent.iterdir()] == ["two"]
    assert status(two) == "FINISHED"
    with (two / "metrics.csv").open() as file:
        steps = [line.split(",")[0] for line in file if "progress/world_model_updates" in line]
    assert steps == sorted(set(steps), key=int)  # logged by one process only
    checkpoint = newest(two)
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {"weights.pt", "training-0.pt", "training-1.pt", "replay-0.json", "replay-1.json"}
    assert len([name for name in names if name.startswith("weights")]) == 1
    assert set(json.loads((checkpoint / "manifest.json").read_text())["files"]) == names - {"manifest.json"}
    # 48 steps are 24 in each process; one update of both follows each of the 24 steps after the random start.
    metrics = logged(two)
    assert metrics[48, "progress/world_model_updates"] == 24
    states = [read(checkpoint / f"training-{process}.pt") for process in (0, 1)]
    assert states[0]["replay"]["total_rows"] == 24
    for learner in ("world_model_learner", "agent_learner"):
        # The moments of Adam are the sums of all gradients so far: equal only where every gradient was.
        assert list(differences(states[0][learner], states[1][learner])) == []
    assert states[0]["collector"] != states[1]["collector"]
    assert not torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])


def test_two_processes_go_on_exactly(two: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(two, tmp_path / "two"))
    shutil.rmtree(newest(run))  # as if they had been killed before
    assert newest(run).name == "step-000000024"
    ended = fabric_run(2, ["resume", str(run)], "--strategy", "ddp")
    assert ended.returncode == 0, ended.stderr
    for name in ("weights.pt", "training-0.pt", "training-1.pt"):
        assert list(differences(read(newest(two) / name), read(newest(run) / name))) == []


@pytest.mark.slow
def test_fewer_processes_are_refused(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = status(two), (two / "metrics.csv").read_bytes()
    assert main(["resume", str(two), "loop.env_steps=60"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "2 processes" in error
    assert (status(two), (two / "metrics.csv").read_bytes()) == before


@pytest.mark.slow
def test_more_processes_are_refused_by_all_of_them(tmp_path: Path) -> None:
    assert main(["train", *SMALL, f"run.dir={tmp_path}", "run.name=one"]) == 0
    run = tmp_path / "one"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ended = fabric_run(2, ["resume", str(run), "loop.env_steps=60"], "--strategy", "ddp")
    assert ended.returncode != 0
    told = sentences(ended)
    assert told and all("1 process" in sentence and "2" in sentence for sentence in told)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_wrong_word_is_told_once_and_last() -> None:
    """`fabric run` ends the launcher's own summary with it; `lightning run` shows nothing else."""
    ended = fabric_run(2, ["train", "tniy"], "--strategy", "ddp")
    *_, last, border = ended.stderr.splitlines()
    assert ended.stderr.count("stormlit: error:") == 1 and "did you mean 'tiny'" in last and set(border) == {"="}
    lightning = [sys.executable, "-c", "from stormlit.cli.lightning_command import main; raise SystemExit(main())"]
    launch = ["run", "--accelerator", "cpu", "--devices", "2", "--main-port", str(free_port()), "--strategy", "ddp"]
    ended = on_one_thread([*lightning, *launch, "stormlit", "train", "tniy"])
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert len(sentences(ended)) == 1 and ended.stderr.splitlines()[-1] == sentences(ended)[0]


def test_what_cannot_be_shared_is_refused() -> None:
    assert per_process(6, 2, "loop.batch_size") == 3
    with pytest.raises(ConfigError, match=r"loop\.batch_size=5 .* 2 processes"):
        per_process(5, 2, "loop.batch_size")


@pytest.mark.parametrize(
    ("option", "given", "word"),
    [("precision", "bf16-mixed", "precision=32-true"), ("accelerator", "cuda", "accelerator=cpu")],
)
def test_two_places_may_not_contradict(
    option: str,
    given: str,
    word: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LT_CLI_USED", "1")
    monkeypatch.setenv(f"LT_{option.upper()}", given)
    assert main(["train", *SMALL, f"run.dir={tmp_path}", word]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and word in error and f"--{option} {given}" in error


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return [child for child, parent in parents.items() if parent == process]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    fabric = Path(sys.executable).with_name("fabric")
    launch = [str(fabric), "run", "--accelerator", "cpu", "--devices", "2", "--main-port", str(free_port())]
    words = ["train", *SMALL, f"run.dir={tmp_path}", "run.name=two", "loop.env_steps=2000", "checkpoint.every=4"]
    log = (tmp_path / "log").open("w")
    with (
        log,
        subprocess.Popen(
            [*launch, "--strategy", "ddp", str(FABRIC_ENTRY), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as launcher,
    ):
        run = tmp_path / "two"
        deadline = time.monotonic() + 120
        while not list(run.glob("checkpoints/step-*")) or newest(run).name < "step-000000028":
            assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        os.kill(max(children(launcher.pid)), signal.SIGUSR1)
        assert launcher.wait(timeout=120) != 0
    assert status(run) == "KILLED"
    assert "stopped by" in (tmp_path / "log").read_text()
    stopped = int(newest(run).name.removeprefix("step-"))
    assert stopped < 2000
    ended = fabric_run(2, ["resume", str(run), f"loop.env_steps={stopped + 8}"], "--strategy", "ddp")
    assert ended.returncode == 0, ended.stderr
    again = [*SMALL, f"run.dir={tmp_path / 'unbroken'}", "run.name=two", f"loop.env_steps={stopped + 8}"]
    ended = fabric_run(2, ["train", *again, "checkpoint.every=4"], "--strategy", "ddp")
    assert ended.returncode == 0, ended.stderr
    unbroken = newest(tmp_path / "unbroken" / "two")
    assert unbroken.name == newest(run).name
    for name in ("weights.pt", "training-0.pt", "training-1.pt"):
        assert list(differences(read(unbroken / name), read(newest(run) / name))) == []


def _evaluate_for_long(rank: int, store: str, told: Any) -> None:
    limit = datetime.timedelta(seconds=2)
    torch.distributed.init_process_group("gloo", f"file://{store}", limit, rank=rank, world_size=2)
    if rank == 0:
        time.sleep(4)
    wait_for_all(SimpleNamespace(world_size=2))  # type: ignore[arg-type]
    together = torch.ones(1)
    torch.distributed.all_reduce(together)
    told.put(float(together))
    torch.distributed.destroy_process_group()


def test_processes_wait_for_an_evaluation_longer_than_a_collective_does(tmp_path: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    told = spawning.Queue()
    processes = [
        spawning.Process(target=_evaluate_for_long, args=(rank, str(tmp_path / "store"), told)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [told.get(timeout=10) for _ in processes] == [2.0, 2.0]
