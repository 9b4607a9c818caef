"""A run that is broken off and resumed ends exactly as one that was not."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import stormlit.storm.loop
from stormlit.cli.verbs import _parser, _split, main
from stormlit.config.compose import compose, to_tree
from stormlit.registry import leaves
from stormlit.runs.allowed_changes import MAY_CHANGE
from stormlit.runs.directory import RunDirectory
from stormlit.storm.training import Training
from training import SMALL, assert_same_run, interrupted, logged, newest, read, refusal, resume, status, train

VARIANTS = {
    "ring wrapped, two environments, drawn by loss": (
        "replay.capacity=20",
        "env.num_envs=2",
        "checkpoint.every=10",
        "replay.sampler=curious",
    ),
    "overlapping": ("loop.overlap=true",),
    "fractions of updates": (
        "loop.world_model_updates_per_env_step=0.3",
        "loop.agent_updates_per_env_step=0.7",
        "env.num_envs=3",
    ),
    "gru carried along, prior": (
        "world_model.sequence_model=gru",
        "player.memory=carried",
        "imagination.start=prior",
    ),
    "separate tokens, codes, learned weights": (
        "world_model.latent=vq",
        "world_model.latent.codes=8",
        "world_model.tokens=separate",
        "world_model.loss_balance=harmony",
        "world_model.objectives=[contrastive]",
    ),
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


def test_many_small_steps_are_one_large_one(unbroken: Callable[..., Path], tmp_path: Path) -> None:
    """Ended in the middle of an episode, at its end (42 = 6 x 7 steps of Catch), and between two logs."""
    resumed = train(tmp_path, "run", "loop.env_steps=30")
    for env_steps in (33, 34, 42, 48):
        resume(resumed, env_steps)
    assert_same_run(unbroken(), resumed)


def test_a_run_keeps_its_seed_and_its_random_start(
    unbroken: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["resume", str(unbroken()), "loop.env_steps=56"]
    before = (newest(unbroken()) / "config.yaml").read_text()
    assert refusal(capsys, *words, "seed=7") == "seed=7: a run goes on with the seed that it began with, 0"
    assert "the random start is settled when a run begins" in refusal(capsys, *words, "loop.warmup_steps=5")
    assert (newest(unbroken()) / "config.yaml").read_text() == before


def test_the_same_run_can_be_tuned_on_the_way(tmp_path: Path) -> None:
    run = train(tmp_path, "run")
    resume(run, 56, "agent.optimizer.learning_rate=1e-5", "evaluation.episodes=3", "checkpoint.keep=1")
    assert logged(run)[56, "progress/agent_updates"] == 32
    assert len(list(RunDirectory(run).checkpoints.iterdir())) == 1
    state = read(newest(run) / "training-0.pt")["agent_learner"]["optimizer"]
    assert {group["lr"] for group in state["param_groups"]} == {1e-5}
    # What was changed is what goes on from here.
    assert "learning_rate: 1.0e-05" in (run / "config.yaml").read_text()


def test_a_killed_process_loses_nothing_but_the_steps_since_its_checkpoint(tmp_path: Path) -> None:
    words = ("loop.env_steps=80", "checkpoint.every=6")
    unbroken = train(tmp_path / "a", "run", *words)
    command = [sys.executable, "-m", "stormlit", "train", *SMALL, *words, f"run.dir={tmp_path / 'b'}", "run.name=run"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    run = tmp_path / "b" / "run"
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-00000003*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert status(run) == "RUNNING"
    resume(run, 80)
    assert_same_run(unbroken, run)


# ---- resume=auto: one command that starts a run, goes on with it, or finds that nothing is left to do ----

SHORT = ("loop.warmup_steps=8", "loop.env_steps=24", "checkpoint.every=8", "evaluation.episodes=1")
RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"


def again(root: Path, *words: str) -> list[str]:
    return ["train", *SMALL, *SHORT, "resume=auto", f"run.dir={root}", *words]


def test_one_command_starts_goes_on_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("resume=auto", "world_model.optimizer.decay=0.5")
    unbroken = train(tmp_path / "a", "run", *SHORT, *words)
    interrupted(tmp_path / "b", at=19, words=(*SHORT, *words))
    run = tmp_path / "b" / "run"
    assert newest(run).name == "step-000000016"
    assert main(again(run.parent, "run.name=run", *words)) == 0
    assert_same_run(unbroken, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(again(run.parent, "run.name=run", *words)) == 0
    captured = capsys.readouterr()
    assert "has taken all its 24 environment steps" in captured.out and captured.err == ""
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_without_a_name_is_found_by_its_own(tmp_path: Path) -> None:
    for budget in (9, 10, 10):
        assert main(again(tmp_path, f"loop.env_steps={budget}")) == 0
    assert [run.name for run in tmp_path.iterdir()] == ["tiny-Catch-s0"]
    assert newest(tmp_path / "tiny-Catch-s0").name == "step-000000010"


def test_what_may_change_on_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "run", *SHORT)
    for words, told in (
        (["agent.gamma=0.9"], "agent.gamma=0.9 is 0.985"),
        (["seed=1", "agent.gamma=0.9"], "seed=1 is 0"),
        (["world_model.sequence_model=gru"], "world_model.sequence_model.name=gru is transformer"),
        (["loop.env_steps=20"], "loop.env_steps=20 is less than the 24"),
    ):
        # A part of another name drops the options of the one before, which SMALL sets.
        base = [
            word for word in again(tmp_path, "run.name=run") if "sequence_model." not in word or "gru" not in str(words)
        ]
        sentence = refusal(capsys, *base, *words)
        assert sentence.startswith("resume=auto: ") and told in sentence and "'run'" in sentence
    assert newest(run).name == "step-000000024" and status(run) == "FINISHED"
    words = ["loop.env_steps=26", "checkpoint.keep=1", "evaluation.greedy=false", "loop.log_every_env_steps=5"]
    assert main(again(tmp_path, "run.name=run", *words)) == 0
    assert newest(run).name == "step-000000026"


def test_the_keys_that_may_change_exist_and_are_documented() -> None:
    keys = [key for key, _ in leaves(to_tree(compose()))]
    text = RELIABILITY.read_text()
    for prefix in MAY_CHANGE:
        assert any(key.startswith(prefix) for key in keys)
        group = prefix if prefix == "tracking" else prefix.partition(".")[0]
        assert f"`{group}.*`" in text or f"`{prefix}`" in text


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "run", *SHORT)
    for folder in (run / "checkpoints").iterdir():
        (folder / "weights.pt").write_bytes(b"")
    assert "no usable checkpoint" in refusal(capsys, *again(tmp_path, "run.name=run", "loop.env_steps=30"))


def test_the_job_script_is_a_script_whose_commands_parse(tmp_path: Path) -> None:
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", RELIABILITY.read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "#SBATCH --requeue" in script and "#SBATCH --signal=" in script
    (line,) = (line for line in script.replace("\\\n", " ").splitlines() if "stormlit train" in line)
    words = shlex.split(line.partition("stormlit ")[2].partition("&")[0])
    config = compose(*_split(_parser().parse_args(words).words))
    assert config.resume == "auto" and config.run.name is not None
    # Run with a stand-in for stormlit, it asks for another turn exactly when it was stopped by the warning.
    for code, requeued in ((0, False), (138, True), (143, True), (3, False)):
        called = tmp_path / f"called-{code}"
        tools = tmp_path / f"bin-{code}"
        tools.mkdir()
        for name, body in (("srun", f"exit {code}"), ("scontrol", f"echo $@ > {called}")):
            (tools / name).write_text(f"#!/bin/bash\n{body}\n")
            (tools / name).chmod(0o755)
        environment = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
        ended = subprocess.run(["bash"], input=script, text=True, env=environment, cwd=tmp_path, check=False)
        assert called.exists() == requeued
        assert ended.returncode == (0 if requeued else code)
        assert not requeued or json.loads(called.read_text().split()[-1]) == 7
