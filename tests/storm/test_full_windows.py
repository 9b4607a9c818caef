"""Nothing is learned from less than a window, and what the configuration says of the buffer reaches it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import torch

import stormlit.runs.assembly
from stormlit.config.compose import compose
from stormlit.config.schema import ReplayPlacement
from stormlit.errors import ConfigError
from stormlit.registry import Option, settings
from stormlit.runs.assembly import build_replay
from stormlit.storm.replay import ReplayBuffer
from training import logged, train


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
