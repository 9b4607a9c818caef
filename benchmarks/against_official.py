"""stormlit beside a clone of the released code: same weights, inputs and random choices; the largest differences.

    python benchmarks/against_official.py --official PATH_TO_A_CLONE [--device cpu] [--width 512 --layers 2 --heads 8]
    python benchmarks/against_official.py --official PATH_TO_A_CLONE --time [--size 4x64 --precision fp32 --rounds 5]

With --games, environment streams are compared too, byte for byte. PATH_TO_A_CLONE is a checkout of
github.com/weipu-zhang/STORM (einops has to be installed). Its hard-coded "cuda" is redirected when there is none.
Nothing of the clone is contained here; it is imported from where it is.
"""

from __future__ import annotations

import argparse
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official_timing
import torch
from official_play import acting, print_streams, their_modules
from torch import Tensor, nn

from stormlit.config.compose import compose
from stormlit.data import Batch, Trajectory
from stormlit.runs.assembly import build_modules
from stormlit.runs.official import agent_state, official_sizes, world_model_state
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel

Differences = dict[str, tuple[float, float]]  # what -> largest absolute and relative difference
OBS_SHAPE = (64, 64, 3)


def import_official(path: Path, device: str) -> Any:
    """The clone's modules, with logging stubbed and "cuda" redirected where needed."""
    stubs: list[tuple[str, list[str]]] = [("tensorboardX", ["SummaryWriter"]), ("yacs", []), ("colorama", [])]
    for name, attributes in (*stubs, ("yacs.config", ["CfgNode"])):
        stub = types.ModuleType(name)
        for attribute in attributes:
            setattr(stub, attribute, object)
        sys.modules.setdefault(name, stub)
    if device == "cpu":
        for function in ("zeros", "ones", "empty"):
            setattr(torch, function, _on_cpu(getattr(torch, function)))
        nn.Module.cuda = Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment, method-assign]
    sys.path.insert(0, str(path))
    import agents  # type: ignore[import-not-found]
    import train  # type: ignore[import-not-found]
    from sub_models import world_models  # type: ignore[import-not-found]

    return types.SimpleNamespace(agents=agents, world_models=world_models, train=train)


def _on_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*arguments: Any, **options: Any) -> Tensor:
        if str(options.get("device", "")).startswith("cuda"):
            options["device"] = "cpu"
        return make(*arguments, **options)

    return made


class Pair:
    """Both implementations with the same random weights, in float32 and without dropout."""

    def __init__(self, official: Any, sizes: argparse.Namespace) -> None:
        torch.manual_seed(sizes.seed)
        self.device, self.actions = torch.device(sizes.device), sizes.actions
        self.their_model, self.their_agent = their_modules(
            official, sizes, sizes.width, sizes.actions, self.device, bf16=False
        )
        found = official_sizes(self.their_model.state_dict(), self.their_agent.state_dict())
        assert found.num_actions == sizes.actions, "the sizes inferred from the shapes are wrong"
        heads = f"world_model.sequence_model.num_heads={sizes.heads}"
        config = compose(["official"], [*found.overrides(), heads])
        self.model, self.agent = (m.to(self.device) for m in build_modules(config, OBS_SHAPE, sizes.actions))
        self.model.load_state_dict(world_model_state(self.their_model.state_dict()))
        self.agent.load_state_dict(agent_state(self.their_agent.state_dict(), self.agent.state_dict()))
        for module in (self.their_model, self.model):
            for part in module.modules():
                for name in ("attention_dropout", *(["p"] if isinstance(part, nn.Dropout) else ["probability"])):
                    if hasattr(part, name):
                        setattr(part, name, 0.0)

    def force_samples(self, hard: Tensor) -> None:
        """Make both draw the given one-hot latents, (B, T, G, K), with straight-through gradients."""

        def forced(logits: Tensor, sample_mode: str = "") -> Tensor:
            probabilities = logits.softmax(-1)
            return hard + probabilities - probabilities.detach()

        self.their_model.stright_throught_gradient = forced
        self.model.latent.sample = lambda log_probs: forced(log_probs).flatten(-2)


def compare(name: str, theirs: Tensor, ours: Tensor, into: Differences) -> None:
    difference = (theirs.float() - ours.float()).abs().max().item()
    into[name] = (difference, difference / max(theirs.float().abs().max().item(), 1e-12))


def random_batch(rows: int, length: int, actions: int, device: torch.device) -> Batch:
    return Batch(
        obs=torch.randint(256, (rows, length, 3, *OBS_SHAPE[:2]), dtype=torch.uint8).to(device),
        action=torch.randint(actions, (rows, length)).to(device),
        reward=(torch.randn(rows, length) * 3).to(device),
        terminated=(torch.rand(rows, length) < 0.1).to(device),
        is_first=torch.zeros(rows, length, dtype=torch.bool).to(device),
    )


def one_hot_latents(rows: int, length: int, device: torch.device) -> Tensor:
    return nn.functional.one_hot(torch.randint(32, (rows, length, 32)), 32).float().to(device)


@torch.no_grad()
def compare_forward(pair: Pair, batch: Batch, into: Differences) -> None:
    """Every module in evaluation mode."""
    model, theirs = pair.model.eval(), pair.their_model.eval()
    pair.agent.eval(), pair.their_agent.eval()
    embed = theirs.encoder(batch.obs.float() / 255)
    compare("posterior logits", theirs.dist_head.forward_post(embed), model.posterior(batch.obs), into)
    latent = one_hot_latents(*batch.action.shape, pair.device).flatten(2)
    mask = torch.ones(1, *[batch.action.shape[1]] * 2, device=pair.device).tril().bool()
    their_hidden = theirs.storm_transformer(latent, batch.action, mask)
    hidden = model.sequence_model(latent, batch.action, batch.is_first)
    compare("hidden states", their_hidden, hidden, into)
    compare("prior logits", theirs.dist_head.forward_prior(their_hidden), model.latent.prior(hidden), into)
    compare("reward logits", theirs.reward_decoder(their_hidden), model.reward_head(hidden), into)
    their_ends = theirs.termination_decoder(their_hidden)
    compare("termination logits", their_ends, -model.continuation_head(hidden).squeeze(-1), into)
    compare("reconstructions", theirs.image_decoder(latent), model.decode(latent).image, into)
    state = torch.cat([latent, their_hidden], dim=-1)
    compare("policy", pair.their_agent.policy(state).log_softmax(-1), pair.agent.policy(latent, hidden), into)
    compare("values", pair.their_agent.value(state), pair.agent.value(latent, hidden), into)


@torch.no_grad()
def compare_imagination(pair: Pair, into: Differences, rows: int = 8, context: int = 8, horizon: int = 16) -> None:
    """Hidden states, rewards and ends along a rollout with forced latents and actions, through both caches."""
    model, theirs = pair.model.eval(), pair.their_model.eval()
    length = context + horizon
    latent = one_hot_latents(rows, length, pair.device).flatten(2)
    action = torch.randint(pair.actions, (rows, length), device=pair.device)
    none_first = torch.zeros_like(action[:, :context], dtype=torch.bool)
    theirs.storm_transformer.reset_kv_cache_list(rows, dtype=torch.float32)
    their_step = theirs.storm_transformer.forward_with_kv_cache
    their_hidden = torch.cat([their_step(latent[:, t : t + 1], action[:, t : t + 1]) for t in range(length)], dim=1)
    _, memory = model.sequence_model.prefill(latent[:, :context], action[:, :context], none_first, length)
    stepped = [model.sequence_model.step(latent[:, t], action[:, t], memory) for t in range(context, length)]
    hidden, their_hidden = torch.stack(stepped, dim=1), their_hidden[:, context:]
    compare("imagined hidden states", their_hidden, hidden, into)
    decoded = theirs.symlog_twohot_loss_func.decode(theirs.reward_decoder(their_hidden))
    compare("imagined rewards", decoded, model.reward(hidden), into)
    ends = (theirs.termination_decoder(their_hidden) > 0).float()
    compare("imagined ends", ends, 1 - (model.continuation(hidden) >= 0.5).float(), into)


class Log(dict[str, Any]):
    def log(self, name: str, value: Any) -> None:
        self[name] = value


def recorded_step(module: Any) -> dict[str, Tensor]:
    """Have the clone's optimiser note the (clipped) gradients before it steps; returns where they will be."""
    gradients: dict[str, Tensor] = {}
    step = module.optimizer.step

    def noted(*arguments: Any, **options: Any) -> Any:
        gradients.update({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        return step(*arguments, **options)

    module.optimizer.step = noted
    return gradients


def our_step(module: WorldModel | ActorCritic, batch: Any) -> tuple[Any, dict[str, Tensor]]:
    module.train()
    optimizer = module.configure_optimizers()
    losses = module.losses(batch)
    losses.total.backward()
    nn.utils.clip_grad_norm_(module.parameters(), module.optimizer_settings.clip_norm)
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    optimizer.step()
    return losses, gradients


def compare_tensors(name: str, theirs: dict[str, Tensor], ours: dict[str, Tensor], into: Differences) -> None:
    """The largest difference over named tensors, relative to each tensor's own largest value."""
    worst = [0.0, 0.0]
    for key, their_tensor in theirs.items():
        if not their_tensor.is_floating_point() or key not in ours:
            continue
        difference = (their_tensor - ours[key]).abs().max().item()
        worst = [max(worst[0], difference), max(worst[1], difference / max(their_tensor.abs().max().item(), 1e-6))]
    into[name] = (worst[0], worst[1])


def compare_world_model_update(pair: Pair, batch: Batch, into: Differences) -> None:
    pair.force_samples(one_hot_latents(*batch.action.shape, pair.device))
    log, gradients = Log(), recorded_step(pair.their_model)
    floats = (batch.obs.float() / 255, batch.action, batch.reward, batch.terminated.float())
    pair.their_model.update(*floats, logger=log)
    losses, own = our_step(pair.model, batch)
    names = {"reconstruction": "reconstruction", "reward": "reward", "continuation": "termination"}
    names |= {"dyn": "dynamics", "rep": "representation"}
    for term, their_name in names.items():
        their_loss = torch.tensor(log[f"WorldModel/{their_name}_loss"])
        compare(f"world model loss: {term}", their_loss, losses.terms[term].detach().cpu(), into)
    compare_tensors("world model gradients", world_model_state(gradients), own, into)
    after = world_model_state(pair.their_model.state_dict())
    compare_tensors("world model after one step", after, pair.model.state_dict(), into)


def compare_agent_update(pair: Pair, into: Differences, rows: int = 64, horizon: int = 16) -> None:
    latent = one_hot_latents(rows, horizon + 1, pair.device).flatten(2)
    hidden = torch.randn(rows, horizon + 1, pair.model.hidden_dim, device=pair.device)
    action = torch.randint(pair.actions, (rows, horizon), device=pair.device)
    reward = torch.randn(rows, horizon, device=pair.device) * 5
    ends = (torch.rand(rows, horizon, device=pair.device) < 0.1).float()
    log, gradients = Log(), recorded_step(pair.their_agent)
    pair.their_agent.update(torch.cat([latent, hidden], -1), action, None, None, reward, ends, logger=log)
    trajectory = Trajectory(latent, hidden, action, reward, 1 - ends, torch.ones_like(reward))
    losses, own = our_step(pair.agent, trajectory)
    pair.agent.update_slow_critic(torch.tensor(True, device=pair.device))
    for term, name, sign in (("policy", "policy_loss", 1), ("value", "value_loss", 1), ("entropy", "entropy_loss", -1)):
        compare(f"agent loss: {term}", torch.tensor(log[f"ActorCritic/{name}"]), sign * losses.terms[term].cpu(), into)
    compare("return scale", torch.tensor(log["ActorCritic/norm_ratio"]), losses.metrics["return_scale"].cpu(), into)
    compare_tensors("agent gradients", agent_state(gradients, {}), own, into)
    after = agent_state(pair.their_agent.state_dict(), {})
    compare_tensors("agent after one step", after, pair.agent.state_dict(), into)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="a checkout of weipu-zhang/STORM")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for option, default in (("width", 512), ("layers", 2), ("heads", 8), ("actions", 9), ("rows", 4), ("length", 32)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--games", nargs="*", default=[], help="compare the environment streams of these, too")
    official_timing.add_arguments(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    official = import_official(arguments.official, arguments.device)
    if arguments.time:
        official_timing.compare_times(official, arguments)
        return 0
    pair = Pair(official, arguments)
    batch = random_batch(arguments.rows, arguments.length, arguments.actions, pair.device)
    differences: Differences = {}
    compare_forward(pair, batch, differences)
    compare_imagination(pair, differences)
    for name, tensors in acting(pair.their_model, pair.their_agent, pair.model, pair.agent).items():
        compare(name, *tensors, differences)
    compare_world_model_update(pair, batch, differences)
    compare_agent_update(pair, differences)
    print(f"width {arguments.width}, {arguments.layers} layers, {arguments.heads} heads, {arguments.actions} actions")
    print("| what | largest absolute difference | relative |\n|---|---|---|")
    for name, (absolute, relative) in differences.items():
        print(f"| {name} | {absolute:.1e} | {relative:.1e} |")
    if arguments.games:
        print_streams(official.train, arguments.games)
    return 0


if __name__ == "__main__":
    sys.exit(main())
