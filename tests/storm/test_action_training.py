"""Every kind of action through a whole run: training, resuming, baselines, evaluation, dreams, demonstrations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import stormlit
from action_envs import settings
from stormlit.cli import main
from stormlit.demonstrations import check_fits, read_demonstration
from stormlit.envs import env_facts
from stormlit.errors import DemonstrationError
from training import assert_same_run, logged, resume, rows, train

ENVS = ("Started", "Multi", "Binary", "Box")


def of(env: str) -> tuple[str, str]:
    return f"env.id=action_envs:{env}-v0", "env.game=null"


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS)
def test_two_halves_are_one_whole_which_is_evaluated_and_dreamt_with(env: str, tmp_path: Path) -> None:
    words = (*of(env), "env.num_envs=2", "evaluation.baselines=[random,constant]", "loop.media_every_env_steps=24")
    unbroken = train(tmp_path / "a", "run", *words, "loop.env_steps=56")
    resumed = train(tmp_path / "b", "run", *words, "loop.env_steps=32")
    torch.rand(17)  # another process would stand elsewhere
    resume(resumed, 56)
    assert_same_run(unbroken, resumed)
    space = stormlit.load("run", run_dir=str(unbroken.parent)).agent.action_space
    actions = rows(unbroken)["action"]
    assert actions.dtype == space.dtype and actions.shape[2:] == space.shape
    assert space.first_outside(actions.reshape(-1, *space.shape)) is None and len(np.unique(actions)) > 1
    for verb in (["eval"], ["dream", "--output", str(tmp_path / "dream.gif")]):
        assert main([*verb, "run", f"run.dir={unbroken.parent}"]) == 0
    assert any("always" in key for _, key in logged(unbroken))


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS)
def test_recorded_play_is_trained_with(env: str, tmp_path: Path) -> None:
    file = tmp_path / "played.npz"
    assert main(["demos", "record", "random", "-o", str(file), "--steps", "60", *of(env), "env.size=16"]) == 0
    assert main(["demos", "info", str(file)]) == 0
    mixed = ("demonstrations.batch_size=2", "demonstrations.imagination_batch_size=2")
    train(tmp_path, "run", *of(env), f"demonstrations.path={file}", *mixed)
    recorded, other = read_demonstration(file), settings("BoxScalar" if env != "Box" else "Multi")
    recorded.origin.env_id = None
    recorded.origin.action_meanings = None
    with pytest.raises(DemonstrationError, match="'action' is"):
        check_fits(file, recorded, other, env_facts(other))
