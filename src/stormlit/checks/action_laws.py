"""The laws of what deals with actions: policies, and how sequence models take them. Part of ``laws``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from stormlit.checks.trials import ask
from stormlit.errors import PartError
from stormlit.spaces import ActionSpace

SPACES = (
    ActionSpace.of(3),
    ActionSpace.choices("multi_discrete", (3, 2)),
    ActionSpace.choices("multi_binary", (2, 2)),
    ActionSpace.box(2),
)
DRAWS = 4096
REACH, STEP = 8.0, 0.05  # of the grid over which a density is integrated


class Case(Protocol):
    """A part under test, see ``laws.Case``."""

    who: str
    given: tuple[Any, ...]

    def part(self) -> Any: ...

    def passes(self, part: Any) -> list[Any]: ...

    def fail(self, what: str) -> PartError: ...


def spaces_for(policy: type) -> list[ActionSpace]:
    """Those of ``SPACES`` that a policy says it is for; the first of all if it says nothing, to be told about."""
    return [space for space in SPACES if space.kind in getattr(policy, "fits", ())] or [SPACES[0]]


def _space(case: Case) -> ActionSpace:
    space: ActionSpace = case.given[0]
    return space


def _output(part: Any, rows: int = 3, scale: float = 0.7) -> Tensor:
    return scale * torch.randn(rows, part.out_dim)


def probabilities_sum_to_one(case: Case) -> None:
    """the probabilities of all actions sum to 1, and a density integrates to 1"""
    part, space = case.part(), _space(case)
    if space.kind == "box":
        line = torch.arange(-REACH, REACH, STEP) + STEP / 2
        actions, cell = torch.cartesian_prod(*[line] * space.dims), STEP**space.dims
    else:
        every = torch.tensor(list(itertools.product(*(range(count) for count in space.classes))))
        actions, cell = (every.squeeze(-1) if space.is_discrete else every), 1.0
    with torch.no_grad():
        for output in _output(part):
            distribution = part(output.expand(len(actions), -1))
            total = float(part.log_prob(distribution, actions).double().exp().sum()) * cell
            if abs(total - 1.0) > 0.01:
                raise case.fail(f": the probabilities of all {space} actions sum to {total:.3g}, not to 1 (log_prob)")


def entropy_is_of_samples(case: Case) -> None:
    """the entropy is the mean of -log_prob over what is drawn, and draws differ"""
    part, space = case.part(), _space(case)
    with torch.no_grad():
        for output in _output(part):
            distribution = part(output.expand(DRAWS, -1))
            drawn = part.sample(distribution)
            if torch.equal(drawn, drawn[:1].expand_as(drawn)):
                raise case.fail(f": sample draws the same {space} action every time")
            surprise = -part.log_prob(distribution, drawn)
            told, error = float(part.entropy(distribution[0])), float(surprise.std()) / DRAWS**0.5
            if abs(told - float(surprise.mean())) > 5 * error + 1e-3:
                raise case.fail(
                    f": entropy gives {told:.3g} nats for {space} actions, and the mean of -log_prob over "
                    f"{DRAWS} drawn ones is {float(surprise.mean()):.3g}"
                )


def mode_is_likeliest(case: Case) -> None:
    """no drawn action is likelier than the mode, and a Box's mode is in [-1, 1]"""
    part, space = case.part(), _space(case)
    with torch.no_grad():
        distribution = part(_output(part, 64, 2.0)).expand(64, 64, -1)
        mode = part.mode(distribution)
        drawn = part.log_prob(distribution, part.sample(distribution))
        if (drawn > part.log_prob(distribution, mode) + 1e-4).any():
            raise case.fail(f": a drawn {space} action is likelier than the mode")
        if space.first_outside(mode.flatten(0, 1).numpy()) is not None:
            raise case.fail(f": the mode is outside {space}")


def policy_trains(case: Case) -> None:
    """log_prob and entropy pass gradients to the actor's output, each row to its own alone, and nothing is changed"""
    part = case.part()
    output = _output(part, 4)
    kept = output.clone()
    with torch.no_grad():
        action = part.sample(part(output))
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "log_prob": lambda given: part.log_prob(part(given), action),
        "entropy": lambda given: part.entropy(part(given)),
    }
    for name, function in ways.items():
        given = output.clone().requires_grad_()
        value = ask(f"{case.who}: {name}", function, given)
        value[0].backward()
        if given.grad is None or not given.grad[0].any():
            raise case.fail(f": {name} passes no gradient to the actor's output")
        if given.grad[1:].any():
            raise case.fail(f": {name} lets one row of a batch depend on the others")
        if not given.grad.isfinite().all():
            raise case.fail(f": {name} passes a gradient that is not finite")
    if not torch.equal(output, kept):
        raise case.fail(" changes the actor's output in place")


def policy_in_mixed_precision(case: Case) -> None:
    """what it makes of a bfloat16 output is float32, and the same as of that output in float32"""
    part = case.part()
    output = _output(part).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = ask(f"{case.who} under bfloat16 autocast", part, output)
        mode = part.mode(mixed)
        values = {"log_prob": part.log_prob(mixed, mode), "entropy": part.entropy(mixed)}
    with torch.no_grad():
        plain = part(output.float())
        expected = {"log_prob": part.log_prob(plain, mode), "entropy": part.entropy(plain)}
    for name, value in values.items():
        if value.dtype != torch.float32:
            raise case.fail(f": {name} is {value.dtype} under bfloat16 autocast where float32 is expected")
        if not torch.allclose(value, expected[name], atol=1e-3):
            raise case.fail(f": {name} is rounded under bfloat16 autocast")


def action_vectors(case: Case) -> None:
    """if it takes actions as vectors too, a one-hot is the same to it as its number"""
    part = case.part()
    latent, action, is_first = case.passes(part)[0][2]
    one_hot = F.one_hot(action, case.given[1]).float()
    with torch.no_grad():
        hidden = part(latent, action, is_first)
        try:
            seen = part(latent, one_hot, is_first)
        except Exception:  # it is for discrete actions alone, and refused for others when it is built
            return
        stepped = ask(f"{case.who}: step", part.step, latent[:, 0], one_hot[:, 0], part.empty(2, 1))
        same = (seen.shape == hidden.shape) and torch.allclose(seen, hidden, atol=1e-4)
        if not same or not torch.allclose(stepped, hidden[:, 0], atol=1e-4):
            raise case.fail(" answers differently to an action's number and to its one-hot vector")


POLICY_LAWS = (
    probabilities_sum_to_one,
    entropy_is_of_samples,
    mode_is_likeliest,
    policy_trains,
    policy_in_mixed_precision,
)
