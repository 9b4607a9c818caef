"""The replay buffer, filled with counters so that every sampled value says where it came from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stormlit.runs.assembly
from small import assert_distributed_as
from stormlit.config.compose import compose
from stormlit.config.schema import ReplayPlacement
from stormlit.data import Batch
from stormlit.errors import ConfigError
from stormlit.registry import Option, settings
from stormlit.runs.assembly import build_replay
from stormlit.storm.replay import ReplayBuffer
from training import logged, train

OBS_SHAPE = (2, 3, 4)  # Y, X, C, all different


def _value(row: int, env: int) -> int:
    """A number that no other step written has."""
    return 10 * row + env


def _frame(value: int) -> np.ndarray:
    """A frame whose first two bytes spell the value, and whose others are different from each other."""
    pixels = np.arange(24, dtype=np.uint8)
    pixels[:2] = value % 256, value // 256
    return pixels.reshape(OBS_SHAPE)


def _write(replay: ReplayBuffer, first: int, last: int) -> None:
    """Rows ``first`` to ``last`` (excluded); an episode begins with every fifth row, one row later for every env."""
    for row in range(first, last):
        value = np.array([_value(row, env) for env in range(replay.num_envs)])
        terminated = np.array([(row - env) % 5 == 4 for env in range(replay.num_envs)])
        is_first = np.array([(row - env) % 5 == 0 for env in range(replay.num_envs)])
        obs = np.stack([_frame(v) for v in value])
        replay.append(obs, value * 3, value.astype(np.float32) / 2, terminated, is_first)


def _buffer(rows_written: int, capacity: int = 24, num_envs: int = 2, seed: int = 0) -> ReplayBuffer:
    replay = ReplayBuffer(capacity, num_envs, OBS_SHAPE, device=torch.device("cpu"), seed=seed)
    _write(replay, 0, rows_written)
    return replay


def _values(batch: Batch) -> torch.Tensor:
    """The counters (B, T) spelt in the frames."""
    return batch.obs[:, :, 0, 0, 0].long() + 256 * batch.obs[:, :, 1, 0, 0].long()


def _check_windows(batch: Batch, oldest: int, newest: int) -> None:
    """Consecutive rows of one environment within what is held, and every field of the same step."""
    values = _values(batch)
    rows, envs = values // 10, values % 10
    assert (rows.diff(dim=1) == 1).all() and (envs == envs[:, :1]).all()
    assert rows.min() >= oldest and rows.max() <= newest
    assert torch.equal(batch.action, values * 3)
    assert torch.equal(batch.reward, values / 2)
    assert torch.equal(batch.is_first, (rows - envs) % 5 == 0)
    assert torch.equal(batch.terminated, (rows - envs) % 5 == 4)


# Twelve rows fit: before, at and after the ring is full, at the seam, and after several rounds.


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 60), st.integers(1, 12))
def test_windows_are_consecutive_whatever_the_sizes(num_envs: int, capacity: int, written: int, length: int) -> None:
    replay = _buffer(written, capacity, num_envs)
    held = min(written, max(capacity // num_envs, 1))
    assert (replay.rows, replay.steps) == (held, held * num_envs)
    if length > held:
        with pytest.raises(ValueError, match=f"{length} steps is longer than the {held} rows"):
            replay.sample(4, length)
    else:
        _check_windows(replay.sample(64, length), oldest=written - held, newest=written - 1)


@pytest.mark.parametrize("written", [9, 31])
def test_every_window_is_equally_likely(written: int) -> None:
    replay, length, draws = _buffer(written), 4, 40_000
    first = _values(replay.sample(draws, length))[:, 0]
    oldest = max(0, written - 12)
    possible = [_value(row, env) for row in range(oldest, written - length + 1) for env in range(2)]
    counts = torch.tensor([int((first == value).sum()) for value in possible])
    assert counts.sum() == draws
    assert_distributed_as(counts, torch.full((len(possible),), 1 / len(possible)))


def test_types_and_layout() -> None:
    batch = _buffer(20).sample(7, 5)
    assert batch.obs.shape == (7, 5, 4, 2, 3) and batch.obs.dtype == torch.uint8
    assert batch.obs.permute(0, 1, 3, 4, 2).is_contiguous(), "frames are a channels-last view of what was gathered"
    dtypes = (torch.int64, torch.float32, torch.bool, torch.bool)
    for tensor, dtype in zip((batch.action, batch.reward, batch.terminated, batch.is_first), dtypes, strict=True):
        assert tensor.shape == (7, 5) and tensor.dtype == dtype


def test_a_batch_is_a_copy() -> None:
    replay = _buffer(12)
    batch = replay.sample(8, 4)
    before = _values(batch).clone()
    _write(replay, 12, 24)
    assert torch.equal(_values(batch), before)


def test_memory_is_bounded_and_known_beforehand() -> None:
    # Per step: Y X C bytes of frame, 8 of action, 4 of reward, 1 each of terminated and is_first.
    replay = _buffer(0, capacity=101, num_envs=2)
    expected = 50 * 2 * (2 * 3 * 4 + 8 + 4 + 1 + 1)
    assert replay.nbytes == expected
    _write(replay, 0, 130)
    assert (replay.nbytes, replay.rows, replay.steps) == (expected, 50, 100)


def test_draws_depend_on_the_seed_and_a_given_generator_leaves_them_alone() -> None:
    plain, same, other = _buffer(12), _buffer(12), _buffer(12, seed=1)
    same.sample(16, 3, torch.Generator().manual_seed(5))
    first = _values(plain.sample(16, 3))
    assert torch.equal(first, _values(same.sample(16, 3)))
    assert not torch.equal(first, _values(other.sample(16, 3)))
    looks = [_values(plain.sample(16, 3, torch.Generator().manual_seed(5))) for _ in range(2)]
    assert torch.equal(looks[0], looks[1])


@pytest.mark.parametrize(("start", "end"), [(18, 20), (30, 32), (25, 24)])
def test_reading_rows_that_are_not_held_is_refused(start: int, end: int) -> None:
    replay = _buffer(31)  # rows 19 to 30
    with pytest.raises(ValueError, match="not all in the buffer"):
        replay.read(start, end)


# ---- Nothing is learned from less than a window, and what the configuration says of the buffer reaches it


def test_no_update_comes_before_one_full_window(tmp_path: Path) -> None:
    """The contrastive objective compares a step with a later one, of which a window of one step has none."""
    run = train(tmp_path, "run", "world_model.objectives=[contrastive]", "loop.warmup_steps=0")
    updates = {step: value for (step, key), value in logged(run).items() if key == "progress/world_model_updates"}
    assert updates == {step: step - 7 for step in (8, 16, 24, 32, 40, 48)}  # windows of 8 steps


def processes(count: int) -> Any:
    return SimpleNamespace(world_size=count, global_rank=0, device=torch.device("cpu"))


def test_a_capacity_that_holds_no_window_in_each_process_is_refused() -> None:
    config = compose(["tiny"], ["replay.capacity=256", "env.num_envs=1", "loop.batch_length=16"])
    assert build_replay(config, processes(8), (8, 8, 3)).row_capacity == 32
    config.loop.batch_length = 64
    with pytest.raises(ConfigError, match=r"^replay.capacity=256 leaves 32 steps .* 8 processes, .* at least 512$"):
        build_replay(config, processes(8), (8, 8, 3))


class OwnBuffer(ReplayBuffer):
    def __init__(self, *given: Any, extra: Annotated[int, Option("of somebody else")] = 1) -> None:
        super().__init__(*given)
        self.extra = extra


def test_an_option_that_the_buffer_declares_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["tiny"])
    config.replay = settings(OwnBuffer, ReplayPlacement)(extra=5)
    monkeypatch.setattr(stormlit.runs.assembly, "ReplayBuffer", OwnBuffer)
    assert build_replay(config, processes(1), (8, 8, 3)).extra == 5  # type: ignore[attr-defined]
