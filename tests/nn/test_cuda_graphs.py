"""Results that the next CUDA graph overwrites: on a CPU a stand-in overwrites them, on a GPU there are real graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stormlit.runs.assembly
from small import random_batch, small_agent, small_world_model
from stormlit.config.compose import compose
from stormlit.data import Batch, Trajectory
from stormlit.nn.compilation import compile_report
from stormlit.runs.assembly import imagination
from stormlit.storm.replay import ReplayBuffer
from training import assert_same_run, train

CUDA = torch.device("cuda")
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def tensors(result: Any) -> Iterator[Tensor]:
    """All tensors in what a compiled function returns."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict | tuple | list):
        for value in result.values() if isinstance(result, dict) else result:
            yield from tensors(value)
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from tensors(getattr(result, field.name))


class Graphs:
    """In place of ``torch.compile``: functions whose results are overwritten at the next call of any of them."""

    def __init__(self) -> None:
        self.returned: list[Tensor] = []
        self.lengths: list[int] = []  # of the windows that were given
        self.called: set[str] = set()

    def compile(self, function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def replay(*args: Any) -> Any:
            for tensor in self.returned:
                tensor.data.fill_(float("nan") if tensor.is_floating_point() else -1)
            self.called.add(function.__qualname__)
            self.lengths += [arg.action.shape[1] for arg in args if isinstance(arg, Batch)]
            result = function(*args)
            self.returned = list(tensors(result))
            return result

        return replay


def train_with_graphs(root: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Graphs:
    def on_cuda(*args: Any, **kwargs: Any) -> Callable[[Batch], Trajectory]:
        *others, _ = args
        return imagination(*others, CUDA, **kwargs)

    graphs = Graphs()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", graphs.compile)
        patch.setattr(stormlit.runs.assembly, "imagination", on_cuda)
        patch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)  # from a GPU it is a copy
        train(root, "run", *words, "compile=on")
    return graphs


@pytest.mark.parametrize("overlap", ["false", "true"])
def test_nothing_that_a_graph_returned_is_used_after_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    words = (f"loop.overlap={overlap}", "loop.env_steps=36")
    graphs = train_with_graphs(tmp_path / "a", monkeypatch, *words)
    assert len(graphs.called) == 4  # both updates, imagination and acting
    assert_same_run(train(tmp_path / "b", "run", *words), tmp_path / "a" / "run")


def test_windows_that_still_grow_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("loop.warmup_steps=2", "loop.env_steps=14", "loop.batch_length=8", "imagination.context_length=8")
    graphs = train_with_graphs(tmp_path / "a", monkeypatch, *words)
    assert set(graphs.lengths) == {8} and len(graphs.lengths) > 4
    assert_same_run(train(tmp_path / "b", "run", *words), tmp_path / "a" / "run")


@ON_GPU
def test_the_replay_buffer_never_makes_the_host_wait() -> None:
    buffer = ReplayBuffer(8, 1, (2, 2, 3), device=CUDA, seed=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            buffer.append(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), [1], [0.5], [False], [False])
        batch = buffer.sample(3, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.reward.tolist() == [[0.5, 0.5]] * 3


@ON_GPU
@pytest.mark.slow
def test_a_real_graph_is_recorded_and_draws_anew_at_each_replay() -> None:
    """Imagination's result outlives the next replay, since it is copied."""
    world_model = small_world_model().to(CUDA)
    config = compose(["tiny"], ["imagination.context_length=4", "imagination.horizon=6"])
    rollouts = imagination(config, world_model, small_agent(world_model).to(CUDA), CUDA, compile=True)
    context = random_batch(64, 4).to(CUDA)
    skipped = compile_report()["cuda_graphs_skipped"]
    first, *_, last = [rollouts(context) for _ in range(4)]
    kept = first.latent.clone()
    rollouts(context)
    assert torch.equal(first.latent, kept) and not torch.equal(first.latent, last.latent)
    assert compile_report()["cuda_graphs_skipped"] == skipped
