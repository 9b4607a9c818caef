"""Trying a part on one small input: what does not fit is said with the part's name."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from stormlit.checks.interfaces import INTERFACES
from stormlit.data import Batch, Losses, Reading
from stormlit.errors import PartError, StormlitError
from stormlit.ops.spaces import channels_first, random_like
from stormlit.spaces import ActionSpace, ObservationSpace

IMAGES, ACTIONS = ObservationSpace.of((8, 8, 3)), ActionSpace.of(3)


def try_part(
    who: str,
    kind: str,
    part: Any,
    *surroundings: Any,
    observations: ObservationSpace = IMAGES,
    actions: ActionSpace | None = None,
) -> None:
    """Raise ``PartError`` unless the part has what its kind needs and gives the shapes it promises.

    who: the part in the sentence.  surroundings: what its constructor was given.  observations, actions: what a
    sequence model or an objective is tried on; without, images and as many discrete actions as it was built for.
    Random numbers, running statistics and modes are what they were afterwards.
    """
    interface = INTERFACES[kind]
    for member in [*interface.__annotations__, *(name for name in vars(interface) if name[0] != "_")]:
        if not hasattr(part, member):
            raise PartError(f"{who} has no '{member}', which every {kind.replace('_', ' ')} has (checks/interfaces.py)")
    modes = [(module, module.training) for module in part.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            spaces = {"sequence_model": (actions,), "objective": (observations, actions)}.get(kind, ())
            _TRIALS[kind](who, part.eval(), *surroundings, *spaces)
    finally:
        for module, training in modes:
            module.training = training


def ask(who: str, function: Callable[..., Any], *given: Any) -> Any:
    """``function(*given)``; raises ``PartError`` with the part's name and the shapes in place of any other error."""
    try:
        return function(*given)
    except StormlitError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in given if isinstance(x, Tensor))
        reason = " ".join(str(error).split())
        frames = traceback.extract_tb(error.__traceback__)
        frame = ([f for f in frames[1:] if f"{os.sep}torch{os.sep}" not in f.filename] or frames)[-1]
        at = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        on = f" on {shapes}" if shapes else ""
        raise PartError(f"{who} fails{on}: {type(error).__name__}: {reason[:200]} ({at})") from error


def expect(who: str, output: Any, shape: tuple[int, ...], why: str) -> None:
    """Raise ``PartError`` unless ``output`` is a float32 tensor of that shape; ``why``: what says so."""
    if not isinstance(output, Tensor):
        raise PartError(f"{who} gives a {type(output).__name__} where a tensor {shape} is expected")
    if tuple(output.shape) != shape:
        raise PartError(f"{who} gives {tuple(output.shape)} where {why}")
    if output.dtype != torch.float32:
        raise PartError(f"{who} gives {output.dtype} where torch.float32 is expected")


def _try_encoder(who: str, part: Any, shape: tuple[int, int, int] | int) -> None:
    """Of images (C, Y, X), or of vectors of so many numbers."""
    given = torch.rand(1, shape) if isinstance(shape, int) else torch.rand(1, *shape)
    expect(who, ask(who, part, given), (1, part.embed_dim), f"its embed_dim says {part.embed_dim}")


def _try_decoder(who: str, part: Any, latent_dim: int, shape: tuple[int, int, int] | int) -> None:
    what, decoded = ("vectors", (1, shape)) if isinstance(shape, int) else ("frames", (1, *shape))
    expect(who, ask(who, part, torch.randn(1, latent_dim)), decoded, f"the {what} are {decoded}")


def _try_latent(who: str, part: Any, embed_dim: int, hidden_dim: int) -> None:
    distributions: list[Tensor] = []
    sides: tuple[tuple[Literal["posterior", "prior"], int], ...] = (("posterior", embed_dim), ("prior", hidden_dim))
    for side, width in sides:
        features = torch.randn(8, 2, width)
        given = ask(f"{who}: {side}", getattr(part, side), features)
        if not isinstance(given, Tensor) or given.shape[:2] != (8, 2) or given.dtype != torch.float32:
            what = f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else "no tensor"
            raise PartError(f"{who}: {side} gives {what} where float32 with the leading axes (8, 2) is expected")
        why = f"its latent_dim says {part.latent_dim}"
        expect(f"{who}: sample", ask(f"{who}: sample", part.sample, given), (8, 2, part.latent_dim), why)
        entropy = ask(f"{who}: entropy", part.entropy, given)
        expect(f"{who}: entropy", entropy, (8, 2), "nats over the leading axes (8, 2) are expected")
        if not entropy.isfinite().all():
            raise PartError(f"{who}: entropy of the {side} is not finite")
        distributions.append(given)
    posterior, prior = distributions
    if posterior.shape != prior.shape:
        raise PartError(f"{who}: prior gives {tuple(prior.shape)} where the posterior gives {tuple(posterior.shape)}")
    for one, other in ((posterior, prior), (prior, posterior), (posterior, posterior), (prior, prior)):
        nats = ask(f"{who}: divergence", part.divergence, one, other)
        expect(f"{who}: divergence", nats, (8, 2), "nats over the leading axes (8, 2) are expected")
        worst = float(nats.abs().max() if one is other else -nats.min())
        if not worst <= 1e-3:
            why = "0 is expected between equal distributions" if one is other else "at least 0 is expected"
            raise PartError(f"{who}: divergence gives {worst if one is other else -worst:.3g} nats where {why}")


def _try_sequence_model(
    who: str, part: Any, latent_dim: int, num_actions: int, hidden_dim: int, action_space: ActionSpace | None
) -> None:
    length = min(part.max_length or 2, 2)
    latent, action = torch.randn(1, length, latent_dim), torch.zeros(1, length, dtype=torch.long)
    if action_space is not None and not action_space.is_discrete:
        who = f"{who}, given {action_space} actions as vectors,"
        action = torch.zeros(1, length, num_actions)
    tokens = (latent, action, torch.zeros(1, length, dtype=torch.bool))
    why = f"the width is world_model.hidden_dim={hidden_dim}: (1, {length}, {hidden_dim})"
    expect(who, ask(who, part, *tokens), (1, length, hidden_dim), why)
    filled = ask(f"{who}: prefill", part.prefill, *tokens, length)
    if not isinstance(filled, tuple) or len(filled) != 2 or not hasattr(filled[1], "cut"):
        raise PartError(f"{who}: prefill must return the hidden states and a memory that has the method 'cut'")
    expect(f"{who}: prefill", filled[0], (1, length, hidden_dim), why)
    memory = ask(f"{who}: empty", part.empty, 1, length)
    stepped = ask(f"{who}: step", part.step, latent[:, 0], action[:, 0], memory)
    expect(f"{who}: step", stepped, (1, hidden_dim), f"(1, {hidden_dim}) is expected")


def _try_head(who: str, part: Any, in_dim: int, out_dim: int, hidden_dim: int) -> None:
    for leading in ((2,), (1, 2)):
        given, shape = torch.randn(*leading, in_dim), (*leading, out_dim)
        expect(who, ask(who, part, given), shape, f"{shape} is expected for {(*leading, in_dim)}")


def _try_agent_state(who: str, part: Any, latent_dim: int, hidden_dim: int) -> None:
    for leading in ((2,), (1, 2)):
        seen = ask(who, part, torch.randn(*leading, latent_dim), torch.randn(*leading, hidden_dim))
        shape = (*leading, part.state_dim)
        expect(who, seen, shape, f"its state_dim says {part.state_dim}: {shape}")


def _try_objective(who: str, part: Any, *surroundings: Any) -> None:
    expect_losses(who, ask(who, part, some_reading(*surroundings)))


def some_reading(
    latent_dim: int,
    embed_dim: int,
    hidden_dim: int,
    num_actions: int,
    observations: ObservationSpace = IMAGES,
    actions: ActionSpace | None = None,
) -> Reading:
    """A random reading of 2 windows of 4 steps; an episode starts at step 2 of the second."""
    actions = actions or ActionSpace.of(num_actions)
    is_first = torch.zeros(2, 4, dtype=torch.bool)
    is_first[1, 2] = True
    frames = channels_first(observations, torch.from_numpy(observations.zeros(2, 4)))
    if frames.is_floating_point():
        frames = torch.randn_like(frames)
    else:
        frames = torch.randint(256, frames.shape).to(frames.dtype)
    action = random_like(actions, torch.from_numpy(actions.zeros(2, 4)))
    batch = Batch(frames, action, torch.randn(2, 4), is_first.roll(-1, 1), is_first)
    embed, latent, hidden = (torch.randn(2, 4, width) for width in (embed_dim, latent_dim, hidden_dim))
    posterior, prior = torch.randn(2, 2, 4, 4, 4).log_softmax(-1).unbind()
    return Reading(batch, embed, posterior, latent, hidden, prior)


def expect_losses(who: str, losses: Any) -> None:
    """Raise ``PartError`` unless these are ``Losses`` of finite float32 scalars, with a scale for every term."""
    if not isinstance(losses, Losses):
        raise PartError(f"{who} gives a {type(losses).__name__} where Losses (stormlit.data) are expected")
    if losses.terms.keys() != losses.scales.keys():
        raise PartError(f"{who} names the terms {sorted(losses.terms)} and the scales {sorted(losses.scales)}")
    for name, value in {**losses.terms, **losses.metrics}.items():
        if not isinstance(value, Tensor) or value.shape != () or value.dtype != torch.float32:
            raise PartError(f"{who} gives '{name}', which is no float32 scalar")
        if not value.isfinite():
            raise PartError(f"{who} gives '{name}', which is not finite")
        if name in losses.metrics and value.requires_grad:
            raise PartError(f"{who} gives the metric '{name}' with a gradient, which a metric must not carry")


def _try_policy(who: str, part: Any, action_space: ActionSpace) -> None:
    for leading in ((2,), (1, 2)):
        output = torch.randn(*leading, part.out_dim)
        distribution = ask(who, part, output)
        if not isinstance(distribution, Tensor) or distribution.shape[:-1] != output.shape[:-1]:
            raise PartError(f"{who} gives no distribution (..., P) for the actor's output {tuple(output.shape)}")
        expect(who, distribution, tuple(distribution.shape), "it is one number")
        for name in ("mode", "sample"):
            action = ask(f"{who}: {name}", getattr(part, name), distribution)
            stored = torch.from_numpy(action_space.zeros(*leading))
            if not isinstance(action, Tensor) or (action.shape, action.dtype) != (stored.shape, stored.dtype):
                raise PartError(f"{who}: {name} gives no {action_space} actions {tuple(stored.shape)} {stored.dtype}")
            scored = ask(f"{who}: log_prob", part.log_prob, distribution, action)
            expect(f"{who}: log_prob", scored, leading, f"one number an action is expected: {leading}")
        expect(f"{who}: entropy", ask(f"{who}: entropy", part.entropy, distribution), leading, f"{leading} is expected")


def _try_sampler(who: str, part: Any) -> None:
    uses, loss = torch.arange(4.0), torch.tensor([float("inf"), 1.0, 2.0, 3.0])
    expect(who, ask(who, part, uses, loss), (4,), "one weight a window is expected: (4,)")


_TRIALS: dict[str, Callable[..., None]] = {
    "encoder": _try_encoder,
    "decoder": _try_decoder,
    "vector_encoder": _try_encoder,
    "vector_decoder": _try_decoder,
    "latent": _try_latent,
    "sequence_model": _try_sequence_model,
    "head": _try_head,
    "agent_state": _try_agent_state,
    "objective": _try_objective,
    "policy": _try_policy,
    "sampler": _try_sampler,
}
