"""What a training counts and when it is due; what it logs, summed where the values are."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from stormlit.storm.training import Every, MetricBuffer, Ratio

STEPS = st.lists(st.integers(1, 64), max_size=200)


@given(STEPS, st.integers(1, 100))
def test_every_is_due_exactly_when_another_interval_has_passed(increments: list[int], interval: int) -> None:
    every, env_steps = Every(interval), 0
    for increment in increments:
        before, env_steps = env_steps, env_steps + increment
        assert every.due(env_steps) == (env_steps // interval > before // interval)
        assert not every.due(env_steps)


@pytest.mark.parametrize("interval", [0, -1])
def test_an_interval_of_zero_is_never_due(interval: int) -> None:
    every = Every(interval)
    assert not any(every.due(step) for step in range(100))


def test_ratio_by_hand() -> None:
    half, three, tenth = Ratio(0.5), Ratio(3.0), Ratio(0.1)
    assert [half.owed(1) for _ in range(5)] == [0, 1, 0, 1, 0]
    assert [three.owed(2) for _ in range(2)] == [6, 6]
    assert sum(tenth.owed(1) for _ in range(10)) == 1, "ten times 0.1 makes one"
    assert Ratio(0.0).owed(1000) == 0


@given(STEPS, st.fractions(0, 4, max_denominator=64))
def test_ratio_owes_neither_more_nor_less_than_the_steps_taken(increments: list[int], rate: Fraction) -> None:
    ratio, owed, env_steps = Ratio(float(rate)), 0, 0
    for increment in increments:
        updates = ratio.owed(increment)
        assert updates >= 0
        owed += updates
        env_steps += increment
        assert owed == env_steps * rate // 1


# ---- The means of what is logged between two steps, summed where the values are


def test_buffer_means_since_the_last_drain() -> None:
    buffer = MetricBuffer()
    buffer.add("agent", {"entropy": torch.tensor(1.0, requires_grad=True), "updates": 4})
    buffer.add("agent", {"entropy": torch.tensor([2.0], dtype=torch.bfloat16), "updates": 2})
    buffer.add("agent", {"entropy": torch.tensor(6), "loss": torch.tensor(0.5)})  # another set of keys
    buffer.add("", {"env_steps": 7})
    assert buffer.drain() == {"agent/entropy": 3.0, "agent/updates": 3.0, "agent/loss": 0.5, "env_steps": 7.0}
    assert buffer.drain() == {}


def test_buffer_shows_nan() -> None:
    buffer = MetricBuffer()
    for value in (1.0, math.nan, 2.0):
        buffer.add("x", {"tensor": torch.tensor(value), "float": value, "fine": torch.tensor(1.0)})
    drained = buffer.drain()
    assert math.isnan(drained["x/tensor"]) and math.isnan(drained["x/float"]) and drained["x/fine"] == 1.0


class CountTransfers(TorchDispatchMode):
    """Counts the operations that copy a value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default)
        return func(*args, **(kwargs or {}))


def test_adding_never_waits_for_the_device() -> None:
    buffer = MetricBuffer()
    values = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    with CountTransfers() as transfers:
        buffer.add("x", values)
        buffer.add("x", values)
        assert transfers.count == 0
        values["a"].item()
        assert transfers.count == 1, "the counter itself works"
    # Reading a value of the meta device raises, so this would fail at any host copy.
    buffer.add("y", {"a": torch.empty((), device="meta")})
    buffer.add("y", {"a": torch.empty((), device="meta")})


def test_buffer_takes_values_made_in_inference_mode() -> None:
    buffer = MetricBuffer()
    with torch.inference_mode():
        buffer.add("x", {"a": torch.tensor(1.0)})
    buffer.add("x", {"a": torch.tensor(3.0)})
    assert buffer.drain() == {"x/a": 2.0}
