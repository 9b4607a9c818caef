"""Beats of the training loop: never lost, never doubled, the same after a resume."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormlit.storm.training import Every, Ratio

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
