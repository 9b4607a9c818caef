"""How many threads a process computes with: the rule, its limits, and that a run keeps what it began with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import stormlit.runs.estimate as threads
import stormlit.runs.report as report
from stormlit.cli import main
from stormlit.config.compose import compose
from stormlit.runs.assembly import build_training
from stormlit.runs.device import make_fabric
from stormlit.runs.estimate import LIMIT, cores, gflop, most_threads, settle_threads, told_threads
from training import SMALL, newest, refusal, train


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine of four cores, without a limit from outside; afterwards as many threads compute as before."""
    before = torch.get_num_threads()
    monkeypatch.delenv(LIMIT, raising=False)
    for module in (threads, report):
        monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(threads, "AT_START", 4)
    yield
    torch.set_num_threads(before)


def settled(*words: str, processes: int = 1) -> tuple[int | str, int]:
    """``threads`` of the configuration that is kept, and how many compute."""
    torch.set_num_threads(1)
    config = compose(SMALL[:1], [*SMALL[1:], "tracking=none", *words])
    training = build_training(config, make_fabric(config))
    training.envs.close()
    kept = settle_threads(config, torch.device("cpu"), training.world_model, training.agent, processes)
    return kept.threads, torch.get_num_threads()


def test_one_thread_for_each_eight_billion_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled() == (1, 1)
    for work, expected in ((15.9, 1), (16.0, 2), (1e6, 4)):
        monkeypatch.setattr(threads, "gflop", lambda *_, work=work: work)
        assert settled() == (expected, expected)
    assert settled(processes=2) == (2, 2)  # each has its share
    assert settled("threads=3") == (3, 3)


@pytest.mark.parametrize(("limit", "expected"), [("2", 2), ("3,1", 3), ("16", 4), ("0", 4), ("many", 4)])
def test_the_environment_may_limit_them(limit: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, limit)
    assert most_threads() == expected


def test_more_than_there_are_is_kept_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with enough cores the run has its bits again."""
    assert settled("threads=9") == (9, 4)
    config = compose(SMALL[:1], ["threads=9"])
    assert told_threads(config) == ["threads=9: there are 4 cores, so that 4 compute"]
    monkeypatch.setenv(LIMIT, "1")
    assert told_threads(config) == [f"threads=9: {LIMIT} is 1, so that 1 computes"]
    assert told_threads(compose(SMALL[:1], [])) == []


def test_a_process_counts_the_cores_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    for quota, expected in (("150000 100000", 1), ("400000 100000", 3), ("max 100000", 3), ("50000 100000", 1)):
        monkeypatch.setattr(Path, "read_text", lambda _, quota=quota: quota)
        assert cores() == expected


def test_operations_grow_with_the_batch() -> None:
    words = [*SMALL[1:], "tracking=none"]
    training = build_training(config := compose(SMALL[:1], words), make_fabric(config))
    few = gflop(config, training.world_model, training.agent)
    words += [f"loop.batch_size={2 * config.loop.batch_size}"]
    words += [f"imagination.batch_size={2 * config.imagination.batch_size}"]
    many = gflop(compose(SMALL[:1], words), training.world_model, training.agent)
    assert few > 0 and many == pytest.approx(2 * few)
    training.envs.close()


def test_a_run_keeps_the_number_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "run", "loop.env_steps=12")
    told = capsys.readouterr().err
    assert "1 process, 1 thread on 4 cores" in told and "about a minute on this CPU" in told.splitlines()
    assert yaml.safe_load((newest(run) / "config.yaml").read_text())["threads"] == 1
    monkeypatch.setattr(threads, "GFLOP_A_THREAD", 1e-6)  # another version with another rule
    assert main(["resume", "run", f"run.dir={tmp_path}", "loop.env_steps=16"]) == 0
    assert yaml.safe_load((newest(run) / "config.yaml").read_text())["threads"] == 1
    monkeypatch.setenv(LIMIT, "1")
    assert main(["resume", "run", f"run.dir={tmp_path}", "loop.env_steps=20", "threads=2"]) == 0
    assert yaml.safe_load((newest(run) / "config.yaml").read_text())["threads"] == 2
    assert "threads=2: OMP_NUM_THREADS is 1, so that 1 computes" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["threads=many", "threads=0", "threads=1.5", "threads=-1"])
def test_other_words_are_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "train", *SMALL, word)
    assert sentence.startswith(f"{word} is ") and sentence.endswith("1 to 1024")
