"""No. 16 of docs/deviations.md: what becomes of the timing and of the lost lives of the official pickles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recorded import write_pickle
from stormlit.config.compose import compose
from stormlit.envs import VectorEnv
from stormlit.runs.assembly import build_demonstrations
from stormlit.runs.device import make_fabric


@pytest.mark.parametrize(
    ("timing", "frames", "actions", "rewards"),
    [
        ("aligned", [0, 1, 3, 4], [1, 2, 2, 0], [5, 0, 7, 0]),  # an episode ends on frame 2
        ("as_published", [0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 2, 0], [0, 5, 0, 0, 7, 0]),
    ],
)
@pytest.mark.parametrize("life_losses", ["as_env", "ignored"])
def test_published_demonstrations_are_aligned_or_as_they_are(
    timing: str, frames: list[int], actions: list[int], rewards: list[int], life_losses: str, tmp_path: Path
) -> None:
    """Six frames, the first led to by nothing; action 1 led to frame 1 and a reward of 5, action 2 to 4 and 7."""
    number = np.arange(6)
    published = {
        "obs": np.broadcast_to(number.astype(np.uint8)[:, None, None, None], (6, 16, 16, 3)).copy(),
        "action": np.array([0, 1, 2, 0, 2, 0]),
        "reward": np.array([0, 5, 0, 0, 7, 0]),
        "done": number == 2,
        "life_loss": number == 4,
    }
    file = write_pickle(tmp_path / "six.pkl", published)
    words = [f"demonstrations.{key}" for key in (f"path={file}", f"timing={timing}", f"life_losses={life_losses}")]
    words += ["env.id=stormlit/Catch-v0", "env.size=16", "loop.batch_length=2", "imagination.context_length=2"]
    config = compose(["storm"], words)
    buffer = build_demonstrations(config, make_fabric(config), VectorEnv(config.env, seed=0), torch.device("cpu"))
    assert buffer is not None and buffer.steps == len(frames)
    rows = buffer.storage.read(0, buffer.steps)
    assert rows.obs[:, 0, 0, 0, 0].tolist() == frames
    assert rows.action[:, 0].tolist() == actions and rows.reward[:, 0].tolist() == rewards
    ends = {"aligned": [1], "as_published": [2]}[timing]  # beside the action that ended the episode
    lost = {"aligned": [2], "as_published": [4]}[timing] if life_losses == "as_env" else []
    assert rows.terminated[:, 0].nonzero().flatten().tolist() == ends + lost
    assert rows.is_first[:, 0].nonzero().flatten().tolist() == [0, ends[0] + 1]
