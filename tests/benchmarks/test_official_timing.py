"""Timing beside the released code, without the released code: settings, turns and the table."""

from __future__ import annotations

import argparse
import functools
import importlib
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("official_timing")


def arguments(timing: ModuleType, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    timing.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args(words)), device="cpu", layers=2, heads=8)


def test_our_side_has_the_sizes_asked_for(timing: ModuleType) -> None:
    given = arguments(timing, "--size", "4x32", "--precision", "bf16", "--frames", "500", "--set", "env.game=Pong")
    config = timing._config(given, timing.SIZES["4x32"])
    assert (config.loop.batch_size, config.loop.batch_length, config.imagination.batch_size) == (4, 32, 64)
    assert config.world_model.hidden_dim == config.agent.hidden_dim == 128
    assert (config.precision, config.accelerator, config.env.game) == ("bf16-mixed", "cpu", "Pong")
    assert config.replay.capacity == 500


def test_sides_take_turns_and_the_ratio_is_theirs_to_ours(timing: ModuleType) -> None:
    seen: list[str] = []

    def run(side: str, phase: str, seconds: float) -> None:
        if phase == timing.IMAGINATION:
            seen.append(side)
        time.sleep(seconds)

    rows = (timing.SAMPLE_16X64, *timing.STEP)
    sides = [
        {row: functools.partial(run, side, row, seconds) for row in rows}
        for side, seconds in (("official", 0.02), ("stormlit", 0.001))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stormlit.cli.bench_command.SECONDS_A_ROUND", 0.0)
        seconds = timing._alternate(sides, 2, torch.device("cpu"))
    # Alone and within the whole step: once in the warm-up; in each of two rounds once untimed, and once timed.
    assert seen == ["official", "stormlit"] * 2 + ["official", "official", "stormlit", "stormlit"] * 4
    numbers = timing._numbers(seconds)
    assert list(numbers) == list(timing.ROWS)
    assert all(row["ratio"]["median"] > 2 for row in numbers.values())  # 20, but for what a busy machine adds
    assert numbers[timing.WHOLE]["official_seconds"]["median"] > 6 * 0.02

    table = timing._table(seconds, arguments(timing), timing.SIZES["4x64"], {"device": "cpu", "threads": "1"})
    assert [line.split("|")[1].strip() for line in table.splitlines()[4:]] == list(timing.ROWS)


def test_cuda_autocast_is_taken_for_the_cpus(timing: ModuleType) -> None:
    with timing.CpuAutocast(device_type="cuda", dtype=torch.bfloat16, enabled=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with timing.CpuAutocast(device_type="cuda", dtype=torch.bfloat16, enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
