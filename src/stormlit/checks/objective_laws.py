"""What an objective promises; ``laws`` runs these for every objective."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from stormlit.checks.trials import ask, expect_losses, some_reading
from stormlit.data import Reading


def adds_a_term(case: Any) -> None:
    """it returns at least one term, whose gradient reaches every parameter of its own and something that it sees"""
    part, reading = case.part().train(), some_reading(*case.given)
    seen = [x.requires_grad_() for x in _tensors(reading)]
    losses = ask(case.who, part, reading)
    if not losses.terms:
        raise case.fail(" returns no term")
    total = torch.stack(list(losses.terms.values())).sum()
    if total.requires_grad:
        total.backward()
    if not any(x.grad is not None and x.grad.any() for x in seen):
        raise case.fail(" passes no gradient to what it sees")
    for name, parameter in part.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any()):
            raise case.fail(f": no gradient reaches its parameter '{name}'")


def leaves_the_reading_alone(case: Any) -> None:
    """it changes nothing that it sees"""
    part, reading = case.part(), some_reading(*case.given)
    seen = [*_tensors(reading), *reading.batch.tensors()]
    before = [x.clone() for x in seen]
    with torch.no_grad():
        ask(case.who, part, reading)
    if not all(torch.equal(x, y) for x, y in zip(seen, before, strict=True)):
        raise case.fail(" changes what it is given in place")


def rounds_safely(case: Any) -> None:
    """under bfloat16 autocast its terms are float32 and about the same, with finite gradients"""
    part, reading = case.part(), some_reading(*case.given)
    with torch.no_grad():
        plain = part(reading).terms
    reading.hidden = reading.hidden.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        losses = ask(f"{case.who} under bfloat16 autocast", part, reading)
    expect_losses(f"{case.who} under bfloat16 autocast", losses)
    for name, term in losses.terms.items():
        if abs(float(term.detach()) - float(plain[name])) > 0.1 * (1.0 + abs(float(plain[name]))):
            raise case.fail(f" gives another '{name}' under bfloat16 autocast")
    torch.stack(list(losses.terms.values())).sum().backward()
    if not all(p.grad is None or p.grad.isfinite().all() for p in part.parameters()):
        raise case.fail(" gets gradients that are not finite under bfloat16 autocast")


def _tensors(reading: Reading) -> list[Tensor]:
    return [getattr(reading, field.name) for field in fields(reading) if field.name != "batch"]


OBJECTIVE_LAWS = (adds_a_term, leaves_the_reading_alone, rounds_safely)
