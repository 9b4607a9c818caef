"""The laws of samplers: what draws windows from the replay buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stormlit.checks.trials import ask

WINDOWS = 50


def windows() -> tuple[Tensor, Tensor]:
    """Uses and losses of windows, the first 10 of which were never drawn."""
    uses, loss = torch.randint(1, 200, (WINDOWS,)).float(), 3.0 * torch.rand(WINDOWS)
    uses[:10], loss[:10] = 0.0, float("inf")
    return uses, loss


def probabilities(case: Any, part: Any, uses: Tensor, loss: Tensor) -> Tensor:
    weights: Tensor = ask(case.who, part, uses, loss)
    return weights / weights.sum()


def fair_weights(case: Any) -> None:
    """weights are finite and at least 0, those of windows never drawn above 0, whatever uses and losses there are"""
    part, (uses, loss) = case.part(), windows()
    for what, given in (
        ("some windows", (uses, loss)),
        ("one window that was never drawn", (uses[:1], loss[:1])),
        ("windows drawn a million times", (uses + 1e6, loss)),
        ("losses of a million", (uses, loss + 1e6)),
        ("losses of 0", (uses, torch.where(loss.isinf(), loss, 0.0))),
    ):
        weights = ask(f"{case.who} for {what}", part, *given)
        if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
            raise case.fail(f" gives weights that are not finite, negative or all 0 for {what}")
        if not (weights[given[0] == 0] > 0).all():
            raise case.fail(f" gives a weight of 0 to a window that was never drawn, for {what}")


def window_by_window(case: Any) -> None:
    """the order of the windows does not matter, it gives the same answer twice, and changes nothing it is given"""
    part, given, order = case.part(), windows(), torch.randperm(WINDOWS)
    before = [x.clone() for x in given]
    first = probabilities(case, part, *given)
    if not all(torch.equal(x, y) for x, y in zip(given, before, strict=True)):
        raise case.fail(" changes what it is given in place")
    if not torch.equal(first, probabilities(case, part, *given)):
        raise case.fail(" gives another answer to the same windows")
    if not torch.allclose(first[order], probabilities(case, part, *(x[order] for x in given)), atol=1e-6):
        raise case.fail(" gives a window another weight in another order of the windows")


SAMPLER_LAWS = (fair_weights, window_by_window)
