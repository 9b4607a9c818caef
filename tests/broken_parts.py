"""Parts as somebody outside the package might get them wrong, each in one way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stormlit.data import Losses
from stormlit.ops import categorical
from stormlit.tracking.base import Tracker


class SoundEncoder(nn.Module):
    def __init__(self, obs_shape: tuple[int, int, int], *, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(obs_shape[0], width, 4, stride=4), nn.SiLU())
        self.embed_dim = width * (obs_shape[1] // 4) * (obs_shape[2] // 4)

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs).flatten(1)


class WrongWidth(SoundEncoder):
    def __init__(self, obs_shape: tuple[int, int, int]) -> None:
        super().__init__(obs_shape)
        self.embed_dim += 1


class NoWidth(SoundEncoder):
    def __init__(self, obs_shape: tuple[int, int, int]) -> None:
        super().__init__(obs_shape)
        del self.embed_dim


class NoModule:
    def __init__(self, obs_shape: tuple[int, int, int]) -> None:
        self.embed_dim = 3


class NoStar(SoundEncoder):
    def __init__(self, obs_shape: tuple[int, int, int], width: int = 48) -> None:
        super().__init__(obs_shape)


class ScalesInPlace(SoundEncoder):
    def forward(self, obs: Tensor) -> Tensor:
        return super().forward(obs.sub_(0.5))


class UnusedLayer(SoundEncoder):
    def __init__(self, obs_shape: tuple[int, int, int]) -> None:
        super().__init__(obs_shape)
        self.spare = nn.Linear(3, 3)


class OneDtype(SoundEncoder):
    """Adds to rows of another dtype, which PyTorch does not convert."""

    def forward(self, obs: Tensor) -> Tensor:
        features = super().forward(obs)
        return torch.zeros(len(features), self.embed_dim).index_add(0, torch.arange(len(features)), features)


class ViewsImages(nn.Module):
    def __init__(self, obs_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.embed_dim = 4
        self.layer = nn.Linear(obs_shape[0] * obs_shape[1] * obs_shape[2], 4)

    def forward(self, obs: Tensor) -> Tensor:
        return self.layer(obs.view(len(obs), -1))


class NoAnnotation(SoundEncoder):
    def __init__(self, obs_shape: tuple[int, int, int], *, w=8) -> None:  # type: ignore[no-untyped-def]
        super().__init__(obs_shape, width=w)


class SmallFrames(nn.Module):
    def __init__(self, latent_dim: int, obs_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layer = nn.Linear(latent_dim, obs_shape[0] * 16)

    def forward(self, latent: Tensor) -> Tensor:
        return self.layer(latent).unflatten(1, (3, 4, 4))


class SoundLatent(nn.Module):
    def __init__(self, embed_dim: int, hidden_dim: int, *, groups: int = 4, classes: int = 4) -> None:
        super().__init__()
        self.groups, self.latent_dim = groups, groups * classes
        self.embed, self.hidden = nn.Linear(embed_dim, self.latent_dim), nn.Linear(hidden_dim, self.latent_dim)

    def posterior(self, embed: Tensor) -> Tensor:
        return self.embed(embed).unflatten(-1, (self.groups, -1)).float().log_softmax(-1)

    def prior(self, hidden: Tensor) -> Tensor:
        return self.hidden(hidden).unflatten(-1, (self.groups, -1)).float().log_softmax(-1)

    def sample(self, distribution: Tensor) -> Tensor:
        return nn.functional.gumbel_softmax(distribution, hard=True).flatten(-2)

    def entropy(self, distribution: Tensor) -> Tensor:
        return categorical.entropy(distribution).sum(-1)

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        return categorical.divergence(posterior, prior)


class Gaussian(nn.Module):
    """As one would write it for a world model that takes the divergence itself."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.latent_dim = 8
        self.embed, self.hidden = nn.Linear(embed_dim, 16), nn.Linear(hidden_dim, 16)

    def posterior(self, embed: Tensor) -> Tensor:
        return self.embed(embed).float().unflatten(-1, (2, 8))

    def prior(self, hidden: Tensor) -> Tensor:
        return self.hidden(hidden).float().unflatten(-1, (2, 8))

    def sample(self, distribution: Tensor) -> Tensor:
        mean, log_std = distribution.unbind(-2)
        return mean + log_std.exp() * torch.randn_like(mean)

    def entropy(self, distribution: Tensor) -> Tensor:
        return (distribution[..., 1, :] + 1.4189).sum(-1)


class BorrowedDivergence(Gaussian):
    """Takes the categorical one of means and deviations."""

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        return categorical.divergence(posterior, prior)


class FixedPrior(SoundLatent):
    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        return super().divergence(posterior, prior.detach())


class Unequal(SoundLatent):
    def prior(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.pad(super().prior(hidden), (0, 1), value=-100.0)

    def sample(self, distribution: Tensor) -> Tensor:
        return super().sample(distribution[..., :4])


class UnnamedTerm(SoundLatent):
    def auxiliary(self, posterior: Tensor) -> Losses:
        return Losses({"more": posterior.mean()}, {})


class NoGradient(SoundLatent):
    def sample(self, distribution: Tensor) -> Tensor:
        return nn.functional.one_hot(distribution.argmax(-1), 4).float().flatten(-2)


class HalfPrecision(SoundLatent):
    def prior(self, hidden: Tensor) -> Tensor:
        return self.hidden(hidden).unflatten(-1, (self.groups, -1)).log_softmax(-1).to(self.hidden(hidden).dtype)


class SoundSequence(nn.Module):
    """A memory of one number for every row: a decaying sum of what came in."""

    max_length = None

    def __init__(self, latent_dim: int, num_actions: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.latent, self.action = nn.Linear(latent_dim, hidden_dim), nn.Embedding(num_actions, hidden_dim)

    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        return self.prefill(latent, action, is_first, action.shape[1])[0]

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, Sum]:
        memory, hidden = self.empty(len(action), capacity), []
        for t in range(action.shape[1]):
            memory.cut(is_first[:, t])
            hidden.append(self.step(latent[:, t], action[:, t], memory))
        return torch.stack(hidden, dim=1), memory

    def empty(self, rows: int, capacity: int) -> Sum:
        return Sum(torch.zeros(rows, self.hidden_dim))

    def step(self, latent: Tensor, action: Tensor, memory: Sum) -> Tensor:
        memory.total = 0.5 * memory.total + self.latent(latent) + self.action(action)
        return torch.tanh(memory.total)


class Sum:
    def __init__(self, total: Tensor) -> None:
        self.total, self.room = total, 0

    def cut(self, where: Tensor) -> None:
        self.total = self.total.masked_fill(where.unsqueeze(-1), 0.0)


class Short(SoundSequence):
    def __init__(self, latent_dim: int, num_actions: int, hidden_dim: int) -> None:
        super().__init__(latent_dim, num_actions, hidden_dim)
        self.max_length = 4


class DropsTheNewest(SoundSequence):
    def empty(self, rows: int, capacity: int) -> Sum:
        memory = super().empty(rows, capacity)
        memory.room = capacity
        return memory

    def step(self, latent: Tensor, action: Tensor, memory: Sum) -> Tensor:
        memory.room -= 1
        return super().step(latent, action, memory if memory.room >= 0 else Sum(torch.zeros_like(memory.total)))


class ForgetsTheCut(SoundSequence):
    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        return super().forward(latent, action, torch.zeros_like(is_first))


class IgnoresActions(SoundSequence):
    def step(self, latent: Tensor, action: Tensor, memory: Sum) -> Tensor:
        return super().step(latent, torch.zeros_like(action), memory)


class ForgetsWhenStepping(SoundSequence):
    def step(self, latent: Tensor, action: Tensor, memory: Sum) -> Tensor:
        return 0.9 * super().step(latent, action, memory)

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, Sum]:
        hidden, memory = super().prefill(latent, action, is_first, capacity)
        return hidden / 0.9, memory


class NeverCuts(SoundSequence):
    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, Any]:
        hidden, memory = super().prefill(latent, action, is_first, capacity)
        memory.cut = lambda where: None  # type: ignore[method-assign]
        return hidden, memory


class NoTensors(SoundSequence):
    carries = True


class Counted(Sum):
    def __init__(self, total: Tensor) -> None:
        super().__init__(total)
        self.steps = 0

    def tensors(self) -> list[Tensor]:
        return [self.total]


class KeepsSomethingAside(SoundSequence):
    carries = True

    def empty(self, rows: int, capacity: int) -> Sum:
        return Counted(torch.zeros(rows, self.hidden_dim))

    def step(self, latent: Tensor, action: Tensor, memory: Sum) -> Tensor:
        if isinstance(memory, Counted):
            memory.steps += 1
            return super().step(latent, action, memory) + 1e-6 * memory.steps
        return super().step(latent, action, memory)


class NoMemory(SoundSequence):
    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        return super().prefill(latent, action, is_first, action.shape[1])[0]

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> Any:
        return super().prefill(latent, action, is_first, capacity)[0]


class SoundHead(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WrongInput(SoundHead):
    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int) -> None:
        super().__init__(in_dim + 1, out_dim, hidden_dim)


class SoundState(nn.Module):
    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = latent_dim + hidden_dim

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor:
        return torch.cat([latent, hidden], dim=-1)


class WrongState(SoundState):
    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__(latent_dim, hidden_dim)
        self.state_dim = latent_dim


class SoundSampler(nn.Module):
    needs_losses = False

    def forward(self, uses: Tensor, loss: Tensor) -> Tensor:
        return 1.0 / (1.0 + uses).sqrt()


class ByInfinity(SoundSampler):
    def forward(self, uses: Tensor, loss: Tensor) -> Tensor:
        return 1.0 + loss


class Absolves(SoundSampler):
    def forward(self, uses: Tensor, loss: Tensor) -> Tensor:
        return 1.0 / uses.add_(1.0)


class BrokenTracker(Tracker):
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        raise RuntimeError("no space for numbers")


def changed(
    part: type[nn.Module], method: str, change: Callable[[Tensor], Any], name: str = "Changed"
) -> type[nn.Module]:
    """The part with what one of its methods answers changed."""

    def answer(self: nn.Module, *given: Any) -> Any:
        return change(getattr(part, method)(self, *given))

    return type(name, (part,), {method: answer})


# What each answers instead.
ANSWERS: dict[str, tuple[type[nn.Module], str, Callable[[Tensor], Any]]] = {
    "Doubles": (SoundEncoder, "forward", lambda features: features.double()),
    "CentresTheBatch": (SoundEncoder, "forward", lambda features: features - features.mean(dim=0)),
    "Noisy": (SoundEncoder, "forward", lambda features: features + torch.randn_like(features)),
    "Constant": (SoundEncoder, "forward", lambda features: 0 * features),
    "Detached": (SoundEncoder, "forward", lambda features: features.detach()),
    "NotZero": (SoundLatent, "divergence", lambda nats: nats + 1.0),
    "OneNumber": (SoundLatent, "divergence", lambda nats: nats.mean()),
    "InfiniteEntropy": (SoundLatent, "entropy", lambda nats: nats.log().sub(9.0).log()),
    "MixesSteps": (SoundLatent, "entropy", lambda nats: nats + nats.mean()),
    "ShortLatent": (SoundLatent, "sample", lambda drawn: drawn[..., 1:]),
    "SeesTheNext": (SoundSequence, "forward", lambda hidden: hidden + 0.1 * hidden.roll(-1, dims=1)),
    "FlatHead": (SoundHead, "forward", lambda output: output.flatten(0, -2)),
    "Tuple": (SoundHead, "forward", lambda output: (output,)),
    "NeverTheNew": (SoundSampler, "forward", lambda weights: 1.0 - weights),
    "OneWeight": (SoundSampler, "forward", lambda weights: weights.mean()),
    "ByPlace": (SoundSampler, "forward", lambda weights: torch.arange(1.0, 1.0 + len(weights))),
    "Whimsical": (SoundSampler, "forward", lambda weights: 0.1 + torch.rand(len(weights))),
}
globals().update({name: changed(*how, name) for name, how in ANSWERS.items()})
