"""What bf16-mixed changes: which tensors it rounds, and by how much losses and sampled frequencies differ from float32.

    python benchmarks/precision.py --run runs/upndown-UpNDown-s0 [--device cpu] [--draws 8]
    python benchmarks/precision.py --config storm

With a run, its newest checkpoint and its own play; with a configuration, random weights and random play. Prints the
three tables of docs/precision.md.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

import stormlit
from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.data import Batch, Losses, Trajectory
from stormlit.envs import VectorEnv
from stormlit.ops.categorical import sample
from stormlit.runs.assembly import build_modules, player_factory
from stormlit.storm.agent import ActorCritic
from stormlit.storm.collect import Collector
from stormlit.storm.imagination import Imagination
from stormlit.storm.replay import ReplayBuffer
from stormlit.storm.world_model import WorldModel

Table = dict[str, list[str]]  # row -> cells
# Off: a mask drawn in another precision is another mask, and would hide what rounding does.
NO_DROPOUT = "world_model.sequence_model.dropout=0.0"


class Subject:
    """Both modules, a batch they can learn from, and the two precisions."""

    def __init__(self, config: Config, modules: tuple[WorldModel, ActorCritic], *, device: str, random: bool) -> None:
        self.world_model, self.agent = (module.to(device).eval() for module in modules)
        self.device, self.settings = torch.device(device), config.imagination
        rows, length = config.loop.batch_size, config.loop.batch_length
        with closing(VectorEnv(config.env, seed=config.seed)) as envs:
            steps = max(rows * length // envs.num_envs, length)  # of each environment: a window at least
            replay = ReplayBuffer(
                steps * envs.num_envs, envs.num_envs, envs.obs_shape, device=self.device, seed=config.seed
            )
            player = player_factory(config, self.world_model, self.agent)(envs.num_envs)
            collector = Collector(envs, player, replay, seed=config.seed)
            torch.manual_seed(config.seed)
            for _ in range(steps):
                collector.step(collector.select_action(random=random))
        self.batch, self.contexts = replay.sample(rows, length), replay.sample(256, self.settings.context_length)

    def autocast(self, mixed: bool) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)

    def dream(self, seed: int) -> Trajectory:
        torch.manual_seed(seed)
        options = {"horizon": self.settings.horizon, "start": self.settings.start}
        return Imagination(self.world_model, self.agent, **options)(self.contexts)

    def losses(self, of: str, data: Batch | Trajectory, seed: int, mixed: bool) -> Losses:
        """Of copies in training mode, so that no call leaves a trace in BatchNorm or in the return scale."""
        module = copy.deepcopy(getattr(self, of)).train()
        torch.manual_seed(seed)
        with self.autocast(mixed):
            return module.losses(data)


def load(run: str | None, config_name: str, device: str, words: tuple[str, ...] = ()) -> Subject:
    if run is not None:
        trained = stormlit.load(run, overrides=(NO_DROPOUT, *words))
        return Subject(trained.config, (trained.world_model, trained.agent), device=device, random=False)
    config = compose([config_name], [NO_DROPOUT, *words])
    torch.manual_seed(config.seed)
    with closing(VectorEnv(config.env, seed=config.seed)) as envs:
        modules = build_modules(config, envs.obs_shape, envs.num_actions)
    return Subject(config, modules, device=device, random=True)


def kinds(subject: Subject) -> Table:
    """The dtype of everything that passes through one update of both modules."""
    found: dict[str, torch.dtype] = {}

    def watch(owner: Any, method: str, name: str) -> None:
        inner = getattr(owner, method)

        def noted(*arguments: Any) -> Any:
            result = inner(*arguments)
            found[name] = result.dtype
            return result

        setattr(owner, method, noted)

    def only(name: str, tensors: Iterable[Tensor | None]) -> None:
        [found[name]] = {tensor.dtype for tensor in tensors if tensor is not None}

    world_model, agent = copy.deepcopy(subject.world_model).train(), copy.deepcopy(subject.agent).train()
    for part in ("encoder", "sequence_model", "decoder", "reward_head", "continuation_head"):
        watch(getattr(world_model, part), "forward", f"output of the {part.replace('_', ' ')}")
    for part in ("actor", "critic"):
        watch(getattr(agent, part), "forward", f"output of the {part}")
    for method, name in (("posterior", "posterior"), ("prior", "prior"), ("sample", "latent sample")):
        watch(world_model.latent, method, name)
    watch(agent.return_normalizer, "update", "return scale")
    for of, module, data in (("world model", world_model, subject.batch), ("agent", agent, subject.dream(0))):
        optimizer = module.configure_optimizers(fused=False)
        with subject.autocast(True):
            losses = module.losses(data)  # type: ignore[arg-type]
        losses.total.backward()
        optimizer.step()
        only(f"loss terms of the {of}", losses.terms.values())
        weights = [parameter for parameter in module.parameters() if parameter.grad is not None]
        only(f"weights and gradients of the {of}", [tensor for p in weights for tensor in (p, p.grad)])
        moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        only(f"Adam's averages of the {of}", moments)
    running = [tensor for name, tensor in world_model.named_buffers() if "running_" in name]
    only("running statistics of BatchNorm", running)
    with subject.autocast(True), torch.no_grad():
        dreamt = subject.dream(0)
        found["policy, log-probabilities"] = agent.policy(dreamt.latent, dreamt.hidden).dtype
        found["values"] = agent.value(dreamt.latent, dreamt.hidden).dtype
    for field in ("reward", "continuation", "weight"):
        found[f"imagined {field}"] = getattr(dreamt, field).dtype
    return {name: [str(dtype).removeprefix("torch.")] for name, dtype in found.items()}


def loss_differences(subject: Subject, draws: int) -> Table:
    """Mean in float32, its spread over random numbers, and bf16-mixed minus float32 with the same random numbers."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for seed in range(draws):
        for of, data in (("world_model", subject.batch), ("agent", subject.dream(seed))):
            exact, mixed = (subject.losses(of, data, seed, half) for half in (False, True))
            terms, others = ({**losses.terms, "total": losses.total} for losses in (exact, mixed))
            for name, term in terms.items():
                pairs = seen.setdefault(f"{of.replace('_', ' ')}: {name}", [])
                pairs.append((float(term.detach()), float(others[name].detach())))
    table = {}
    for name, pairs in seen.items():
        terms, others = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
        rest = (terms.std(), (others - terms).mean(), (others - terms).abs().max())
        table[name] = [f"{terms.mean():.4g}", *(f"{number:.2g}" for number in rest)]
    return table


@torch.no_grad()
def frequencies(subject: Subject, states: int = 16, draws: int = 20_000) -> Table:
    """How far the network's rounding moves probabilities, and how far draws are from the probabilities they are of.

    The latter as Pearson's chi-square for each degree of freedom: 1 for an exact sampler. The last cell is what it
    would be for a sampler that sums up probabilities in bfloat16.
    """
    table = {}
    dreamt = subject.dream(0)
    latent, hidden = dreamt.latent[:, 0], dreamt.hidden[:, 0]
    heads: dict[str, Callable[[], Tensor]] = {
        "posterior": lambda: subject.world_model.posterior(subject.contexts.obs[:states, 0]),
        "prior": lambda: subject.world_model.latent.prior(hidden[:states]),
        "actions": lambda: subject.agent.policy(latent, hidden),
    }
    for name, head in heads.items():
        exact = head().flatten(0, -2)
        with subject.autocast(True):
            mixed = head().flatten(0, -2)
            statistic = chi_square(sample, mixed, draws)
        moved = (exact.exp() - mixed.exp()).abs()
        others = [chi_square(sample, exact, draws), statistic, chi_square(sample_in_bfloat16, exact, draws)]
        cells = [f"{moved.max():.1e}", f"{moved.sum(-1).mean() / 2:.1e}"]
        table[name] = cells + [f"{other:.2f}" for other in others]
    return table


def sample_in_bfloat16(log_probs: Tensor) -> Tensor:
    """What not to do."""
    cumulative = log_probs.exp().bfloat16().cumsum(-1)
    threshold = torch.rand_like(cumulative[..., :1]) * cumulative[..., -1:]
    return (cumulative <= threshold).sum(-1).clamp_(max=log_probs.shape[-1] - 1)


def chi_square(draw: Callable[[Tensor], Tensor], log_probs: Tensor, draws: int) -> float:
    """Of ``draws`` for each row of (M, K), over the classes expected at least five times, for each such class."""
    torch.manual_seed(0)
    counts, probabilities = torch.zeros_like(log_probs), log_probs.exp()
    for _ in range(draws // 1000):
        drawn = draw(log_probs.expand(1000, *log_probs.shape))
        counts += nn.functional.one_hot(drawn, log_probs.shape[-1]).sum(0)
    expected = probabilities * (draws // 1000 * 1000)
    variance = expected * (1 - probabilities).clamp(min=1e-6)  # of a multinomial's cell
    return float(((counts - expected).square() / variance)[expected >= 5].mean())


def show(columns: str, table: Table) -> None:
    print(f"| {columns} |\n{'|---' * (columns.count('|') + 1)}|")
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(cells)} |")
    print()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", help="a run's name or path")
    source.add_argument("--config", default="storm", help="a configuration, for random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--draws", type=int, default=8, help="random numbers that the losses are measured with")
    arguments = parser.parse_args()
    subject = load(arguments.run, arguments.config, arguments.device)
    show("tensor | dtype under bf16-mixed", kinds(subject))
    losses = loss_differences(subject, arguments.draws)
    show("loss term | float32 | its spread | mean difference | largest difference", losses)
    columns = "drawn | largest change of a probability | mean total variation"
    columns += "".join(f" | chi-square, {of}" for of in ("float32", "bf16-mixed", "summed in bfloat16"))
    show(columns, frequencies(subject))
    return 0


if __name__ == "__main__":
    sys.exit(main())
