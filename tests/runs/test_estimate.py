"""What is told before a training begins: how long it takes, and that it fits; and running out of memory on the way."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stormlit.runs.train
import stormlit.storm.loop
from stormlit.cli import main
from stormlit.config.compose import compose
from stormlit.runs.assembly import build_training
from stormlit.runs.device import keep_freed_memory, make_fabric
from stormlit.runs.estimate import gflop, seconds_per_env_step, time_to_come
from stormlit.runs.run import Run
from stormlit.storm.replay import Windows
from stormlit.storm.training import Training
from training import SMALL, assert_same_run, differences, newest, read, refusal, resume, status, train


def test_the_rehearsal_leaves_no_trace() -> None:
    training = build_training(config := compose(SMALL[:1], [*SMALL[1:], "tracking=none"]), make_fabric(config))
    modules = (training.world_model, training.agent)
    weights = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
    state = training.state_dict()
    random = torch.get_rng_state()
    assert seconds_per_env_step(config, training) > 0 and gflop(config, *modules) > 0
    assert torch.equal(random, torch.get_rng_state())
    assert list(differences(weights, [module.state_dict() for module in modules])) == []
    assert list(differences(state, training.state_dict())) == []
    assert all(parameter.grad is None for module in modules for parameter in module.parameters())
    training.envs.close()


def test_a_long_training_hears_of_a_smaller_one() -> None:
    """A billion steps take hours on any machine, a hundred minutes at most."""
    for steps, expected in (
        (10**9, r"^about [\d.]+ (hours|days) .*`stormlit train quickstart`"),
        (100, r"^about (a|\d+) minutes? on this CPU$"),
    ):
        words = [*SMALL[1:], "tracking=none", f"loop.env_steps={steps}"]
        training = build_training(config := compose(SMALL[:1], words), make_fabric(config))
        assert re.search(expected, time_to_come(config, training))
        training.envs.close()


def test_a_part_that_cannot_be_copied_has_no_estimate() -> None:
    training = build_training(config := compose(SMALL[:1], [*SMALL[1:], "tracking=none"]), make_fabric(config))
    training.world_model.encoder.lock = threading.Lock()
    assert time_to_come(config, training) is None
    training.envs.close()


def test_modules_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "train", *SMALL, "world_model.hidden_dim=100000", f"run.dir={tmp_path}")
    assert sentence.startswith("the modules do not fit into memory (") and "lower world_model.hidden_dim" in sentence


def test_a_checkpoint_of_the_last_step_is_not_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(run: Run) -> None:
        torch.rand(17)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.runs.train, "evaluate_agent", too_much)
        assert main(["train", *SMALL, f"run.dir={tmp_path / 'b'}", "run.name=run"]) == 3
    assert "the last checkpoint is kept" in capsys.readouterr().err
    resume(tmp_path / "b" / "run", 56)
    assert_same_run(train(tmp_path / "a", "run", "loop.env_steps=56"), tmp_path / "b" / "run")


@pytest.mark.parametrize("word", ["loop.batch_size=1000000", "imagination.batch_size=10000000"])
def test_what_cannot_fit_is_refused_before_anything_is_left(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refusal(capsys, "train", *SMALL, "env.size=64", f"run.dir={tmp_path}", word)
    assert sentence.startswith(f"{word} needs at least ") and "GiB" in sentence and "lower it" in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [(), pytest.param(("loop.overlap=true", "env.isolation=process"), marks=pytest.mark.slow)]
)
def test_running_out_of_memory_saves_and_says_what_to_lower(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second case environments are in the middle of a step, which they end."""
    overlap, size = bool(words), ("env.size=64", *words)
    collect = stormlit.storm.loop.collect

    def ask_for_too_much(training: Training) -> None:
        collect(training)
        if training.progress.env_steps == 37:  # five million windows of 8 frames of 12 kB
            training.experience.batch = Windows(5 * 10**6, 0, 8)

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.storm.loop, "collect", ask_for_too_much)
        assert main(["train", *SMALL, *size, f"run.dir={tmp_path / 'b'}", "run.name=run"]) == 3
    told = capsys.readouterr().err.splitlines()[-1]
    run = tmp_path / "b" / "run"
    assert told.startswith(f"stormlit: error: out of memory at step {37 + overlap} (") and "the run is saved" in told
    assert "lower loop.batch_size" in told and f"stormlit resume {run} loop.batch_size=N" in told
    assert newest(run).name == f"step-{37 + overlap:09d}" and status(run) == "FAILED"
    cut_short = train(tmp_path / "a", "run", *size, f"loop.env_steps={37 + overlap}")
    saved, expected = (read(newest(each) / "training-0.pt")["collector"] for each in (run, cut_short))
    assert list(differences(saved, expected)) == [] and saved["player"]
    resume(run, 48)


def test_variables_of_a_job_with_several_tasks_do_not_concern_one_process(
    unbroken: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = unbroken()
    for name, value in {"NTASKS": "2", "JOB_NAME": "sweep", "PROCID": "1", "LOCALID": "1", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert_same_run(expected, train(tmp_path / "b", "run"))
    assert main(["eval", str(tmp_path / "b" / "run"), "evaluation.episodes=1"]) == 0


FAULTS = """
import resource, sys, torch
from stormlit.runs.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(15):
    torch.ones(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_a_tensor_in_place_of_another_maps_no_new_pages() -> None:
    """Page faults of 20 tensors of 48 MB, each freed at once: 20 x 11,719 pages, or next to none."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("default", "keep")
    }
    assert faults["keep"] < faults["default"] / 4, faults
