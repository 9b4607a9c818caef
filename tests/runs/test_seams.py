"""What goes on between processes, and between a run and the one that goes on from it."""

from __future__ import annotations

import datetime
import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stormlit.cli import main
from stormlit.runs.device import wait_for_all
from training import SMALL, newest, refusal


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


def test_the_random_start_of_a_run_stays_as_it_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "tracking=none", f"run.dir={tmp_path}", "run.name=run"]) == 0
    before = (newest(tmp_path / "run") / "config.yaml").read_text()
    words = ["resume", "run", f"run.dir={tmp_path}", "loop.env_steps=60"]
    assert "the random start is settled when a run begins" in refusal(capsys, *words, "loop.warmup_steps=5")
    assert (newest(tmp_path / "run") / "config.yaml").read_text() == before
