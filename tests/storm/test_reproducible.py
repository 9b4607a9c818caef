"""Two runs of one seed on one machine are the same run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training import assert_same_run, differences, newest, read, train

WORDS = ("loop.env_steps=40", "evaluation.every_env_steps=20", "env.num_envs=2")


@pytest.fixture
def algorithms() -> Iterator[None]:
    """What ``deterministic`` sets holds for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.usefixtures("algorithms")
def test_one_seed_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path / "a", "run", *WORDS)
    torch.rand(17)
    second = train(tmp_path / "b", "run", *WORDS)
    assert_same_run(first, second)
    assert_same_run(second, first)  # each has every metric of the other
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    third = train(tmp_path / "c", "run", *WORDS, "deterministic=true")
    assert torch.are_deterministic_algorithms_enabled()
    assert_same_run(first, third)  # on the CPU it changes nothing
    other = train(tmp_path / "d", "run", *WORDS, "seed=1")
    assert list(differences(read(newest(first) / "weights.pt"), read(newest(other) / "weights.pt")))
