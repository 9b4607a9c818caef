"""What only a GPU does, stood in for: results that the next graph overwrites, and copies that do not wait."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stormlit.runs.assembly
from stormlit.runs.assembly import imagination
from stormlit.storm.replay import ReplayBuffer
from stormlit.types import Batch, Trajectory
from test_resume import assert_same_run
from test_training_run import train

CUDA = torch.device("cuda")


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


def test_the_replay_buffer_never_waits_for_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[str, bool]] = []

    def noted(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        copies.append((device.type, non_blocking))
        return tensor

    buffer = ReplayBuffer(8, 1, (2, 2, 3), device=torch.device("cpu"), seed=0)
    monkeypatch.setattr(buffer, "device", CUDA)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "to", noted)
    for _ in range(4):
        buffer.append(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), [1], [0.5], [False], [False])
    assert buffer.sample(3, 2).reward.tolist() == [[0.5, 0.5]] * 3
    assert copies == [("cuda", True)] * (4 * 5 + 1)
