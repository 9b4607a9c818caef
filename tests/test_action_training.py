"""Every kind of action through a whole run: training, resuming, evaluating, dreaming, demonstrations, benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import stormlit
from stormlit.cli import main
from test_resume import rows
from test_training_run import logged, train

ENVS = ("Started", "Multi", "Binary", "Box")
CONTINUOUS = ("env.id=action_envs:Box-v0", "env.game=null")


def of(env: str) -> tuple[str, str]:
    return f"env.id=action_envs:{env}-v0", "env.game=null"


@pytest.mark.parametrize("env", ENVS)
def test_a_run_trains_is_resumed_bit_for_bit_evaluated_and_dreamt_with(
    env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two environments, random start, baselines and a dream at the end among it."""
    words = (*of(env), "env.num_envs=2", "evaluation.baselines=[random,constant]", "loop.media_every_env_steps=24")
    unbroken = train(tmp_path, "unbroken", *words)
    train(tmp_path, "resumed", *words, "loop.env_steps=30", "loop.warmup_steps=24")
    assert main(["resume", "resumed", f"run.dir={tmp_path}", "loop.env_steps=48"]) == 0
    assert logged(unbroken)
    held, held_too = rows(unbroken), rows(tmp_path / "resumed")
    for name in ("obs", "action"):
        assert np.array_equal(held[name], held_too[name])
    trained = stormlit.load("unbroken", run_dir=str(tmp_path))
    assert held["action"].dtype == trained.agent.action_space.dtype
    assert held["action"].shape[2:] == trained.agent.action_space.shape
    assert len(np.unique(held["action"].reshape(-1))) > 1
    capsys.readouterr()
    assert main(["eval", "unbroken", f"run.dir={tmp_path}"]) == 0
    assert main(["dream", "unbroken", f"run.dir={tmp_path}", "--output", str(tmp_path / "dream.gif")]) == 0
