"""Drawing windows of the replay buffer by how often they were used and how badly they were predicted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from small import assert_distributed_as, random_batch, small_world_model
from stormlit.cli.phases import prepared
from stormlit.config.compose import compose
from stormlit.registry import build
from stormlit.storm import loop
from stormlit.storm.replay import ReplayBuffer
from training import SMALL

NEVER = math.inf


@pytest.mark.parametrize(
    ("node", "uses", "loss", "weights"),
    [
        ("uniform", [0, 5, 9], [NEVER, 1, 2], [1, 1, 1]),
        ("least_used", [0, 1, 3], [NEVER, 1, 2], [1, 1 / 2, 1 / 4]),
        # exp(0), exp(-1), exp(-2) for 0, 10 and 20 uses, over their sum
        ({"name": "least_used", "form": "exponential"}, [0, 10, 20], [NEVER, 1, 2], [0.66524, 0.24473, 0.09003]),
        # 10,000 + 0.01^0.7; 4,900 + 1.01^0.7 for two uses; 10,000 * 0.7^40 + 8^0.7
        ("curious", [0, 2, 40], [NEVER, 1, 7.99], [10_000.03981, 4901.00699, 4.29347]),
        # 0.3 softmax(10, 9, 8) + 0.7 / 3
        ("worst_predicted", [0, 2, 3], [NEVER, 9, 8], [0.43291, 0.30675, 0.26034]),
    ],
)
def test_weights_by_hand(node: Any, uses: list[float], loss: list[float], weights: list[float]) -> None:
    given = torch.tensor([uses, loss], dtype=torch.float32)
    torch.testing.assert_close(build("sampler", node)(*given), torch.tensor(weights).float(), rtol=1e-4, atol=0)


def _buffer(sampler: Any, rows: int = 6, num_envs: int = 2, capacity: int = 6) -> ReplayBuffer:
    """Rewards count the steps: ``num_envs * row + environment``."""
    buffer = ReplayBuffer(capacity * num_envs, num_envs, (1, 1, 1), torch.device("cpu"), seed=0, sampler=sampler)
    _write(buffer, 0, rows)
    return buffer


def _write(buffer: ReplayBuffer, first: int, last: int) -> None:
    none, frames = np.zeros(buffer.num_envs, dtype=bool), np.zeros((buffer.num_envs, 1, 1, 1), dtype=np.uint8)
    for row in range(first, last):
        reward = np.arange(buffer.num_envs, dtype=np.float32) + buffer.num_envs * row
        buffer.append(frames, np.zeros(buffer.num_envs, dtype=np.int64), reward, none, none)


def _drawn(buffer: ReplayBuffer, count: int, length: int) -> tuple[Tensor, Tensor]:
    batch, drawn = buffer.draw(count, length)
    assert drawn is not None
    return batch.reward[:, 0].long(), drawn


def test_windows_are_drawn_in_proportion_to_their_weights_and_counted() -> None:
    buffer = _buffer("least_used")
    assert buffer.priorities is not None
    buffer.priorities.uses = torch.tensor([[0.0, 1.0], [3.0, 0.0], [7.0, 1.0], [0.0, 0.0], [9.0, 9.0], [9.0, 9.0]])
    before = buffer.priorities.uses.clone()
    first, _ = _drawn(buffer, 20_000, 3)  # windows of 3 of 6 rows begin in the first 4
    counts = first.bincount(minlength=8)
    weights = 1 / (1 + before[:4].flatten())
    assert_distributed_as(counts, weights / weights.sum())
    assert torch.equal(buffer.priorities.uses, before + torch.nn.functional.pad(counts, (0, 4)).view(6, 2))


def test_windows_across_the_end_of_the_storage_are_those_of_consecutive_steps() -> None:
    """A ring of 6 rows after 10: the oldest row is number 4, and a new step begins without uses or loss."""
    buffer = _buffer("least_used", rows=6)
    assert buffer.priorities is not None
    buffer.priorities.uses.fill_(5.0)
    _write(buffer, 6, 10)
    assert buffer.priorities.uses[:, 0].tolist() == [0.0, 0.0, 0.0, 0.0, 5.0, 5.0]
    batch, drawn = buffer.draw(200, 4)
    assert set(batch.reward[:, 0].int().tolist()) == {8, 9, 10, 11, 12, 13}
    assert (batch.reward.diff(dim=1) == 2).all()
    assert drawn is not None and torch.equal(drawn, batch.reward[:, 0].long() % 12)


def test_losses_come_back_to_their_windows() -> None:
    buffer = _buffer("curious")
    buffer.learned(torch.tensor([2, 5, 2, 7]), torch.tensor([1.0, 3.0, 4.0, math.nan]))
    assert buffer.priorities is not None
    assert buffer.priorities.loss.flatten().tolist() == [NEVER] * 2 + [4.0] + [NEVER] * 2 + [3.0] + [NEVER] * 6


def test_the_loss_of_a_window_is_what_was_not_foreseen() -> None:
    """Alone in its batch a window's is the mean over its steps, which the loss's own terms are too."""
    world_model = small_world_model(free_bits=0.0)
    world_model.reports_windows = True
    batch, told = random_batch(rows=3, starts=((1, 3),)), []
    latent = world_model.latent
    latent.sample = lambda distribution: distribution.exp().flatten(-2)  # without chance
    for rows in (slice(0, 3), slice(0, 1), slice(1, 2), slice(2, 3)):
        losses = world_model.losses(batch.map(lambda x, rows=rows: x[rows]))
        assert losses.windows is not None and not losses.windows.requires_grad
        told.append(losses.windows)
        expected = losses.metrics["kl"] + losses.terms["reward"] + losses.terms["continuation"]
    torch.testing.assert_close(told[-1], expected.detach().view(1))
    torch.testing.assert_close(told[0], torch.cat(told[1:]))


@pytest.mark.parametrize("sampler", ["curious", "least_used"])
def test_training_tells_the_buffer_what_it_drew_and_how_badly_it_was_predicted(sampler: str, tmp_path: Path) -> None:
    config = compose(["tiny"], [*SMALL[1:], f"run.dir={tmp_path}", f"replay.sampler={sampler}"])
    with prepared(config) as phases:
        priorities = phases.training.replay.priorities
        assert priorities is not None
        before, loss = priorities.uses.clone(), priorities.loss
        loop.fit_world_model(phases.training)
        drawn = priorities.uses - before
        assert drawn.sum() == config.loop.batch_size
        assert torch.equal(loss.isfinite(), (drawn > 0) & (sampler == "curious"))
