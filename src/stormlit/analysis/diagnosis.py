"""How good a world model is by itself: measured on real steps that it was not trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stormlit.analysis.dream import Dream, Views
from stormlit.data import Batch
from stormlit.errors import CheckpointError
from stormlit.files import read_json
from stormlit.nn.latents.quantised import CodeLatent, code_use
from stormlit.ops.losses import MOVES
from stormlit.storm.agent import ActorCritic
from stormlit.storm.imagination import Imagination
from stormlit.storm.replay import ReplayRows
from stormlit.storm.world_model import WorldModel, hidden_before

FORMAT = 1
FOLDER = "diagnosis"  # of a run's, with a file for each checkpoint that was diagnosed
BINS = 10  # of a calibration
AT_ONCE = 16  # windows
Found = dict[str, Any]


def open_loop_errors(dreams: Sequence[Dream]) -> Found:
    """Mean squared error of imagined frames in [0, 1], by how many steps ago a real one was last seen.

    Beside it those of repeating that last frame, and of the reconstruction, which sees each frame. All pixels, and
    with the ending ``_moving`` those that move in a window (``ops.moving``); where no image is seen, the numbers of the
    vectors in symlog take the place of pixels. Windows end with their episode, so that fewer of them reach far:
    ``windows`` counts them.
    """
    errors: dict[str, list[list[float]]] = {}
    for seen in dreams:
        first = seen.context_length
        views = _measured(seen)
        real = views.real
        moves = (np.abs(real - real.mean(axis=0)) > MOVES).any(axis=-1)
        last = np.broadcast_to(real[first - 1], real[first:].shape)
        predicted = {"imagined": views.imagined[first:], "repeated": last, "reconstructed": views.reconstructed[first:]}
        for name, frames in predicted.items():
            squared = np.square(frames - real[first:]).mean(axis=-1)
            for step, (error, where) in enumerate(zip(squared, moves[first:], strict=True)):
                _at(errors.setdefault(name, []), step).append(float(error.mean()))
                if where.any():
                    _at(errors.setdefault(f"{name}_moving", []), step).append(float(error[where].mean()))
    return {
        "horizon": list(range(1, len(errors["imagined"]) + 1)),
        "windows": [len(values) for values in errors["imagined"]],
        **{name: [float(np.mean(values)) if values else None for values in steps] for name, steps in errors.items()},
    }


def _measured(seen: Dream) -> Views:
    """Frames in [0, 1], (T, Y, X, C), or where there are none the vectors in symlog, (T, V, 1)."""
    if seen.frames is not None:
        return seen.frames.map(lambda film: film.astype(np.float32) / np.float32(255.0))
    assert seen.vector is not None
    return seen.vector.map(lambda numbers: (np.sign(numbers) * np.log1p(np.abs(numbers)))[..., np.newaxis])


def _at(steps: list[list[float]], step: int) -> list[float]:
    steps += [[] for _ in range(step + 1 - len(steps))]
    return steps[step]


def windows(rows: ReplayRows, length: int) -> Batch:
    """All of ``rows`` in windows of ``length`` steps that do not overlap; what is left at the end is not in any."""
    count, num_envs = rows.reward.shape[0] // length, rows.reward.shape[1]

    def cut(stored: Tensor) -> Tensor:
        return stored[: count * length].unflatten(0, (count, length)).transpose(1, 2).reshape(
            count * num_envs, length, *stored.shape[2:]
        )  # fmt: skip

    obs, action, reward, terminated, is_first = map(cut, rows.tensors())
    return Batch(obs.permute(0, 1, 4, 2, 3) if obs.ndim == 5 else obs, action, reward, terminated, is_first)


@torch.no_grad()
def read_windows(world_model: WorldModel, agent: ActorCritic, batch: Batch) -> dict[str, Tensor]:
    """What is predicted along real windows, each step from what was really seen before it; (W, T) float32 on the CPU.

    reward, end: predicted for each action.  value: the critic's at each frame.  kl: nats from the prior to the next
    frame's posterior, NaN where there is none.  posterior: the latent's distribution, (W, T, ...).
    """
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(batch.reward), AT_ONCE):
        part = batch.map(lambda tensor, start=start: tensor[start : start + AT_ONCE])  # type: ignore[misc]
        latent = world_model.sample_posterior(part.obs)
        hidden = world_model.sequence_model(latent, world_model.encode_action(part.action), part.is_first)
        posterior = world_model.posterior(part.obs)
        kl = world_model.latent.divergence(posterior[:, 1:], world_model.latent.prior(hidden)[:, :-1])
        kl = torch.cat([kl.masked_fill(part.is_first[:, 1:], np.nan), torch.full_like(kl[:, :1], np.nan)], dim=1)
        found = {
            "reward": world_model.reward(hidden),
            "end": 1.0 - world_model.continuation(hidden),
            "value": agent.value(latent, hidden_before(hidden, part.is_first)),
            "kl": kl,
            "posterior": posterior,
        }
        for name, value in found.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def reward_quality(predicted: np.ndarray, real: np.ndarray) -> Found:
    """Errors of predicted rewards, and how well steps with a reward are told from others.

    A reward is predicted where it is at least half of the smallest that was seen, in size.
    """
    sizes = np.abs(real[real != 0.0])
    threshold = float(sizes.min() / 2) if sizes.size else None
    told = np.abs(predicted) >= threshold if threshold is not None else np.zeros(len(real), bool)
    return {
        "steps": len(real),
        "mean_absolute_error": float(np.abs(predicted - real).mean()),
        "bias": float((predicted - real).mean()),
        "threshold": threshold,
        **detection(told, real != 0.0),
    }


def end_quality(probability: np.ndarray, ended: np.ndarray) -> Found:
    """How well ends are told at a probability of one half, and whether probabilities are what they say."""
    return {
        "steps": len(ended),
        "brier_score": float(np.square(probability - ended).mean()),
        **detection(probability >= 0.5, ended),
        "calibration": calibration(probability, ended.astype(float), np.linspace(0.0, 1.0, BINS + 1)),
    }


def detection(told: np.ndarray, true: np.ndarray) -> Found:
    """precision: the share of those told that are true; recall: of the true that are told; None of nothing.

    >>> detection(np.array([True, True, False]), np.array([True, False, False]))
    {'told': 2, 'true': 1, 'precision': 0.5, 'recall': 1.0}
    """
    hits, count, all_true = int((told & true).sum()), int(told.sum()), int(true.sum())
    return {
        "told": count,
        "true": all_true,
        "precision": hits / count if count else None,
        "recall": hits / all_true if all_true else None,
    }


def calibration(predicted: np.ndarray, real: np.ndarray, edges: np.ndarray) -> list[Found]:
    """Means of what was predicted and of what came, in bins of the prediction; empty bins are left out."""
    inside = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, len(edges) - 2)
    return [
        {"predicted": float(predicted[here].mean()), "real": float(real[here].mean()), "count": int(here.sum())}
        for index in range(len(edges) - 1)
        if (here := inside == index).any()
    ]


def realised_returns(rows: ReplayRows, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each step to the end of its episode, NaN where that was not seen.  (R, N)."""
    returns = torch.full_like(rows.reward, torch.nan)
    following = torch.full_like(rows.reward[0], torch.nan)
    for step in reversed(range(len(rows.reward))):
        following = rows.reward[step] + gamma * following.masked_fill(rows.terminated[step], 0.0)
        returns[step] = following
        # What comes before an episode's first step is of another one, cut off by a limit unless it says that it ended.
        following = following.masked_fill(rows.is_first[step], torch.nan)
    return returns


def value_quality(predicted: np.ndarray, realised: np.ndarray) -> Found:
    """Whether states are worth what the critic says, by the returns that followed."""
    if len(realised) < 2:
        return {"steps": len(realised)}
    spread = predicted.std() > 0 and realised.std() > 0
    edges = np.unique(np.quantile(predicted, np.linspace(0.0, 1.0, BINS + 1)))
    return {
        "steps": len(realised),
        "bias": float((predicted - realised).mean()),
        "root_mean_squared_error": float(np.sqrt(np.square(predicted - realised).mean())),
        "spread_of_returns": float(realised.std()),
        "correlation": float(np.corrcoef(predicted, realised)[0, 1]) if spread else None,
        "calibration": calibration(predicted, realised, edges) if len(edges) > 1 else [],
    }


def latent_use(world_model: WorldModel, read: dict[str, Tensor]) -> Found:
    """Nats of surprise a step, and how many of the codes are used: the exponential of their frequencies' entropy."""
    latent, posterior = world_model.latent, read["posterior"]
    kl = read["kl"][~read["kl"].isnan()]
    found: Found = {
        "kl": float(kl.mean()) if len(kl) else None,
        "posterior_entropy": float(latent.entropy(posterior).mean()),
    }
    if isinstance(latent, CodeLatent):
        found |= {"codes": latent.count, "codes_used": float(code_use(latent.split(posterior)[0]))}
    elif hasattr(latent, "classes"):
        found |= {"codes": latent.classes, "codes_used": float(code_use(posterior))}
    return found


@torch.no_grad()
def dream_returns(
    world_model: WorldModel,
    agent: ActorCritic,
    rows: ReplayRows,
    *,
    context_length: int,
    horizon: int,
    from_posterior: bool,
) -> Found:
    """Discounted rewards of the policy inside its dream, and what it really got from the same states on.

    Both over ``horizon`` steps from each context; ends weigh by their probability inside and cut off outside. A
    context whose episode was over already, or was cut off by a limit within the horizon, is left out.
    """
    batch = windows(rows, context_length + horizon)
    starts = context_length - 1 if from_posterior else context_length
    ahead = slice(starts, starts + horizon)
    discount = agent.gamma ** torch.arange(horizon)
    ended = batch.terminated[:, ahead].long()
    alive = ended.cumsum(dim=1) - ended == 0
    cut = (batch.is_first[:, ahead][:, 1:] & alive[:, 1:]).any(dim=1)
    over = torch.zeros_like(cut) if from_posterior else batch.terminated[:, starts - 1] | batch.is_first[:, starts]
    kept = batch.map(lambda tensor: tensor[~(cut | over)])
    outside = (kept.reward[:, ahead] * alive[~(cut | over)] * discount).sum(dim=1).numpy()
    parts = []
    start_at: Literal["prior", "posterior"] = "posterior" if from_posterior else "prior"
    imagine = Imagination(world_model, agent, horizon=horizon, start=start_at)
    device = next(world_model.parameters()).device
    for start in range(0, len(outside), AT_ONCE):
        context = kept.map(lambda tensor, start=start: tensor[start : start + AT_ONCE, :context_length])  # type: ignore[misc]
        dreamt = imagine(context.to(device))
        parts.append((dreamt.reward * dreamt.weight).cpu() @ discount)
    inside = torch.cat(parts).numpy() if parts else np.zeros(0)
    return {
        "horizon": horizon,
        "contexts": len(outside),
        **{name: _mean(values) for name, values in
           (("inside", inside), ("outside", outside), ("difference", inside - outside))},
    }  # fmt: skip


def _mean(values: np.ndarray) -> Found:
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return {"mean": float(values.mean()) if len(values) else None, "standard_error": error}


def newest_diagnosis(folder: Path) -> dict[str, Any] | None:
    """The diagnosis of a run's newest checkpoint that has one; None where there is none that can be read."""
    for file in sorted((folder / FOLDER).glob("step-*.json"), reverse=True):
        with contextlib.suppress(CheckpointError):
            if (found := read_json(file)).get("format") == FORMAT:
                return found
    return None
