"""Whole runs on the tiny settings: every part, every way to end, and what a run leaves behind.

The settings and helpers here serve the other tests that train.
"""

from __future__ import annotations

import json
import math
import operator
import shutil
from pathlib import Path

import pytest
import torch

from stormlit import registry
from stormlit.cli import main
from stormlit.config.components import PART_KEYS
from stormlit.config.compose import compose
from stormlit.runs.checkpoint import list_checkpoints
from stormlit.runs.directory import RunDirectory
from training import SMALL, differences, logged, newest, read, reseal, status, train


def poison(run: Path, module: str, prefix: str) -> None:
    """Set the weights of a part to NaN in the run's newest checkpoint."""
    checkpoint = newest(run)
    weights = read(checkpoint / "weights.pt")
    poisoned = [name for name in weights[module] if name.startswith(prefix) and name.endswith("weight")]
    assert poisoned
    for name in poisoned:
        weights[module][name].fill_(math.nan)
    torch.save(weights, checkpoint / "weights.pt")
    reseal(checkpoint)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"), "finished", "evaluation.baselines=[random, constant]")


def test_a_run_leaves_what_the_documentation_says(finished: Path) -> None:
    assert compose([str(finished / "config.yaml")]).run.name == "finished"
    assert [folder.name for folder in list_checkpoints(RunDirectory(finished))] == ["step-000000024", "step-000000048"]
    assert {file.suffix for file in (finished / "media").iterdir()} == {".mp4", ".png"}
    evaluation = json.loads((finished / "evaluation" / "step-000000048.json").read_text())
    assert len(evaluation["episodes"]) == 2
    assert status(finished) == "FINISHED"


def test_metrics_have_environment_steps_as_their_step(finished: Path) -> None:
    metrics = logged(finished)
    assert {step for step, _ in metrics} == {8, 16, 24, 32, 40, 48}
    assert metrics[24, "progress/world_model_updates"] == 0
    assert metrics[48, "progress/world_model_updates"] == metrics[48, "progress/agent_updates"] == 24
    assert metrics[48, "replay/env_steps"] == 48
    assert metrics[48, "progress/episodes"] == 48 // 7
    assert metrics[48, "episode/length"] == 7
    for key in ("world_model/loss/dyn", "world_model/loss/total", "agent/entropy", "agent/loss/policy"):
        assert (24, key) not in metrics
        assert math.isfinite(metrics[32, key])
    for key in ("eval/return", "eval/baseline/random", "eval/baseline/always LEFT", "dream/psnr_reconstructed"):
        assert (48, key) in metrics


def test_a_run_is_named_after_file_environment_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", *SMALL, f"run.dir={tmp_path}", "seed=3", "loop.warmup_steps=8", "loop.env_steps=9"]
    assert main(words) == 0
    assert main(words) == 0
    assert {run.name for run in tmp_path.iterdir()} == {"tiny-Catch-s3", "tiny-Catch-s3-2"}
    capsys.readouterr()
    assert main([*words, "run.name=tiny-Catch-s3"]) == 2
    assert f"resume {tmp_path / 'tiny-Catch-s3'}" in capsys.readouterr().err


def test_only_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    run = train(tmp_path, "kept", "checkpoint.every=6", "checkpoint.keep=3", "replay.capacity=20")
    steps = [folder.name for folder in list_checkpoints(RunDirectory(run))]
    assert steps == ["step-000000036", "step-000000042", "step-000000048"]
    # The oldest checkpoint holds rows 16 to 36, so segments that end before are gone.
    ends = sorted(int(file.stem.partition("-")[2]) for file in (run / "replay" / "0").iterdir())
    assert ends[0] > 16 and ends[-1] == 48


def test_the_same_seed_trains_the_same_weights_and_the_report_says_what_came_out(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = train(tmp_path, "again", "evaluation.baselines=[random, constant]")
    captured = capsys.readouterr()
    for told in ("Catch", "agent", "random", "always LEFT", "always RIGHT", str(again), str(newest(again)), ".mp4"):
        assert told in captured.out
    assert "Traceback" not in captured.err
    other = train(tmp_path, "other", "seed=1", "loop.env_steps=25")
    weights = read(newest(finished) / "weights.pt")
    assert not list(differences(weights, read(newest(again) / "weights.pt")))
    assert list(differences(weights, read(newest(other) / "weights.pt")))


@pytest.mark.slow
def test_looking_at_a_run_does_not_change_it(finished: Path, tmp_path: Path) -> None:
    looked_at = train(
        tmp_path,
        "looked-at",
        "loop.media_every_env_steps=16",
        "evaluation.every_env_steps=16",
        "loop.log_every_env_steps=5",
        "checkpoint.every=7",
    )
    assert not list(differences(read(newest(finished) / "weights.pt"), read(newest(looked_at) / "weights.pt")))
    assert (32, "eval/return") in logged(looked_at)


SWAPS = [
    f"{key}={name}"
    for key, kind in PART_KEYS.items()
    if kind in ("encoder", "decoder", "latent", "sequence_model", "agent_state", "head")
    for name in registry.names(kind)
    if name != operator.attrgetter(key)(compose(["tiny"]))["name"]  # which every other test trains
]


@pytest.mark.parametrize("word", SWAPS)
def test_every_part_trains_after_one_word(word: str, tmp_path: Path) -> None:
    key, _, name = word.partition("=")
    # A part of another name comes with the paper's sizes.
    narrow = [f"{key}.stem_channels=4"] if "stem_channels" in registry.schema(PART_KEYS[key], name) else []
    budget = ["loop.env_steps=24", "loop.warmup_steps=12", "evaluation.episodes=1"]
    metrics = logged(train(tmp_path, "swapped", word, *narrow, *budget))
    assert metrics[24, "progress/agent_updates"] == 12
    assert metrics[24, "world_model/skipped"] == metrics[24, "agent/skipped"] == 0.0
    assert math.isfinite(metrics[24, "world_model/loss/total"]) and math.isfinite(metrics[24, "agent/loss/total"])


def test_the_step_size_follows_the_run(tmp_path: Path) -> None:
    """Over the last half of 48 steps: half of 1e-3 after 36, nothing at the end; the agent's stays."""
    words = ("world_model.optimizer.decay=0.5", "world_model.optimizer.learning_rate=1e-3", "checkpoint.keep=9")
    run = train(tmp_path, "run", *words, "checkpoint.every=12")
    sizes: dict[str, list[float]] = {"world_model_learner": [], "agent_learner": []}
    for checkpoint in list_checkpoints(RunDirectory(run))[-2:]:
        for name, seen in sizes.items():
            (group,) = read(checkpoint / "training-0.pt")[name]["optimizer"]["param_groups"]
            seen.append(group["lr"])
    assert sizes["world_model_learner"] == pytest.approx([5e-4, 0.0])
    assert len(set(sizes["agent_learner"])) == 1 and sizes["agent_learner"][0] > 0


def test_bfloat16_trains_on_the_cpu(tmp_path: Path) -> None:
    run = train(tmp_path, "bf16", "precision=bf16-mixed", "loop.env_steps=36")
    losses = {key: value for (_, key), value in logged(run).items() if "/loss/" in key}
    assert losses and all(math.isfinite(value) for value in losses.values())
    assert {tensor.dtype for tensor in read(newest(run) / "weights.pt")["agent"].values()} <= {
        torch.float32,
        torch.bool,
        torch.int64,
    }


@pytest.mark.parametrize(("module", "prefix"), [("world_model", "encoder"), ("agent", "critic")])
def test_training_stops_when_losses_stay_non_finite(
    module: str, prefix: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "poisoned"))
    checkpoint = newest(run)
    poison(run, module, prefix)
    poisoned = read(checkpoint / "weights.pt")
    capsys.readouterr()
    words = [f"run.dir={tmp_path}", "loop.env_steps=90", "loop.max_nonfinite_updates=5", "checkpoint.every=1000"]
    assert main(["resume", "poisoned", *words]) == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stormlit: error:")]
    assert len(errors) == 1
    assert module in errors[0] and "loop.max_nonfinite_updates" in errors[0]
    assert status(run) == "FAILED"
    assert newest(run) == checkpoint
    assert not [name for name in differences(poisoned, read(checkpoint / "weights.pt")) if prefix not in name]


def test_a_few_non_finite_losses_are_counted_and_survived(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "few"))
    poison(run, "world_model", "decoder")
    before = read(newest(run) / "weights.pt")["world_model"]
    words = [f"run.dir={tmp_path}", "loop.env_steps=56", "loop.agent_updates_per_env_step=0"]
    words += ["evaluation.baselines=[]", "loop.max_nonfinite_updates=8"]
    assert main(["resume", "few", *words]) == 0
    metrics = logged(run)
    assert metrics[56, "world_model/skipped"] == 1.0
    assert metrics[56, "progress/nonfinite_updates"] == 8.0
    after = read(newest(run) / "weights.pt")["world_model"]
    unequal = [name for name in before if not torch.equal(before[name].nan_to_num(7.0), after[name].nan_to_num(7.0))]
    assert unequal == []
    assert status(run) == "FINISHED"
