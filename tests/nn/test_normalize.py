"""The percentile scale of the returns, by hand and against numpy."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from stormlit.storm.agent import ReturnNormalizer


def test_moving_average_by_hand() -> None:
    # Of 0, 1, ..., 20 the 5th percentile is 1 and the 95th is 19: the scale starts at 18, without a bias to zero.
    # Then all of it times 2: bounds 2 and 38. With decay 0.9: 0.9 * 1 + 0.1 * 2 = 1.1 and 0.9 * 19 + 0.1 * 38 = 20.9.
    # Then 100 everywhere: 0.9 * 1.1 + 10 = 10.99 and 0.9 * 20.9 + 10 = 28.81.
    scale = ReturnNormalizer(decay=0.9, low=5.0, high=95.0, minimum=1.0)
    returns = torch.arange(21.0)
    assert float(scale.update(returns)) == pytest.approx(18.0)
    assert float(scale.update(2 * returns)) == pytest.approx(19.8)
    assert float(scale.update(torch.full((3, 7), 100.0))) == pytest.approx(17.82)
    assert scale.bounds.tolist() == pytest.approx([10.99, 28.81])


def test_the_scale_is_at_least_its_minimum() -> None:
    assert float(ReturnNormalizer().update(torch.tensor([3.0, 3.1]))) == 1.0
    assert float(ReturnNormalizer(minimum=0.01).update(torch.zeros(4))) == pytest.approx(0.01)


def test_percentiles_are_torch_s_to_the_bit() -> None:
    for size in (1, 2, 3, 16, 17, 255, 256, 1000, 1024, 16_384):
        for low, high in ((5.0, 95.0), (0.0, 100.0), (12.3, 77.7)):
            for seed in range(5):
                returns = 10.0 ** (seed - 2) * torch.randn(size, generator=torch.Generator().manual_seed(seed))
                scale = ReturnNormalizer(low=low, high=high)
                scale.update(returns)
                assert torch.equal(scale.bounds, torch.quantile(returns, torch.tensor([low, high]) / 100)), size


def _half_of_the_returns(rank: int, store: str, told: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    scale = ReturnNormalizer()
    scale.gathers = True
    told.put(float(scale.update(torch.arange(10.0) + 10 * rank)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_returns_of_all_processes_enter_the_scale(tmp_path: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    told = spawning.Queue()
    processes = [
        spawning.Process(target=_half_of_the_returns, args=(rank, str(tmp_path / "store"), told)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    scales = [told.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert scales == [float(ReturnNormalizer().update(torch.arange(20.0)))] * 2
