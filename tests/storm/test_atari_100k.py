"""The paper's networks start, train and save on every game of the benchmark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stormlit.cli import main
from stormlit.envs import ATARI_100K_GAMES
from stormlit.runs.checkpoint import list_checkpoints, verify
from stormlit.runs.directory import RunDirectory


@pytest.mark.parametrize(
    "game", ["Pong", *(pytest.param(game, marks=pytest.mark.slow) for game in ATARI_100K_GAMES if game != "Pong")]
)
def test_the_paper_s_settings_start_train_and_save(game: str, tmp_path: Path) -> None:
    small_batches = ["loop.batch_size=2", "loop.batch_length=8", "imagination.batch_size=4"]
    short = ["loop.env_steps=6", "evaluation.episodes=1", "env.max_episode_steps=10", "tracking=none"]
    words = ["train", "storm", f"env.game={game}", *small_batches, *short, f"run.dir={tmp_path}", "run.name=game"]
    assert main(words) == 0

    run = RunDirectory(tmp_path / "game")
    assert verify(list_checkpoints(run)[-1]).manifest["env_steps"] == 6
    assert list(run.media.glob("dream-*")) and list(run.evaluation.glob("*.json"))
    shutil.rmtree(tmp_path / "game")  # 220 MB each
