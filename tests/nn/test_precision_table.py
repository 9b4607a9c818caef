"""docs/precision.md shows what benchmarks/precision.py prints: the same rows, and the same dtypes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]


def tables(text: str) -> list[dict[str, list[str]]]:
    """Every table of a page, without its head: first cell -> the others."""
    found = re.findall(r"^\|[^\n]*\|\n\|(?:---\|)+\n((?:\|[^\n]*\|\n)+)", text, flags=re.MULTILINE)
    rows = [[[cell.strip() for cell in row.strip("|").split("|")] for row in body.splitlines()] for body in found]
    return [{first: others for first, *others in table} for table in rows]


DTYPES, *MEASURED = tables((REPOSITORY / "docs" / "precision.md").read_text())


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("precision", REPOSITORY / "benchmarks" / "precision.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def subject(script: Any) -> Any:
    """Small modules whose heads are not zero and whose latents are not nearly uniform, as random weights make them."""
    heads = ("world_model.reward_head", "world_model.continuation_head", "agent.actor", "agent.critic")
    small = ("loop.batch_size=2", "loop.batch_length=8", "world_model.latent.classes=32", "world_model.latent.groups=2")
    made = script.load(None, "tiny", "cpu", (*small, *(f"{head}.zero_output=false" for head in heads)))
    with torch.no_grad():
        for head, factor in (("posterior_head", 50.0), ("prior_head", 3.0)):
            for parameter in getattr(made.world_model.latent, head).parameters():
                parameter.mul_(factor)
    return made


def test_the_dtypes_are_those_told(script: Any, subject: Any) -> None:
    assert script.kinds(subject) == DTYPES


def test_the_losses_are_those_measured_and_nearly_those_of_float32(script: Any, subject: Any) -> None:
    table = script.loss_differences(subject, draws=2)
    assert [list(table)] * 2 == [list(losses) for losses in MEASURED[:2]]
    for name, (exact, _, mean, largest) in table.items():
        assert abs(float(mean)) <= float(largest) <= max(0.03 * abs(float(exact)), 1e-3), name


def test_latents_and_actions_are_drawn_by_their_probabilities(script: Any, subject: Any) -> None:
    """Pearson's chi-square a class; a running sum in bfloat16 is told apart."""
    table = script.frequencies(subject, draws=10_000)
    assert [list(table)] * 2 == [list(drawn) for drawn in MEASURED[2:]]
    for name, (change, _, exact, mixed, summed_in_half) in table.items():
        assert 0 < float(change) < 0.02  # the networks did run in bfloat16
        assert 0.7 < float(exact) < 1.3 and 0.7 < float(mixed) < 1.3
        assert name == "actions" or float(summed_in_half) > 2
