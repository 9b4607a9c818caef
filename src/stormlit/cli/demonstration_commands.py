"""What ``stormlit demos`` does: show, convert and record demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stormlit.analysis.evaluate import Policy, RandomPolicy
from stormlit.config.compose import compose
from stormlit.demonstrations import Demonstration, check_fits, origin_of, read_demonstration, record, write_npz
from stormlit.demonstrations.files import LARGEST_BYTES, shortened
from stormlit.envs import env_facts
from stormlit.envs.settings import env_key
from stormlit.errors import ConfigError
from stormlit.files import sha256
from stormlit.runs.api import load
from stormlit.runs.estimate import settle_threads


def describe_all(demonstrations: Sequence[Path]) -> str:
    """What `stormlit demos info` prints."""
    return "\n".join(describe(file) for file in demonstrations)


def describe(file: Path) -> str:
    """A demonstration for a person: frames, episodes, returns, actions, and where it comes from."""
    demonstration = read_demonstration(file)
    origin, obs = demonstration.origin, demonstration.obs
    returns, unfinished = _returns(demonstration)
    actions = f", {origin.num_actions} actions" if origin.num_actions else ""
    rows = (
        ("environment", (origin.env_id or "unknown") + actions),
        ("played by", origin.policy),
        ("frames", f"{len(obs):,} of {'x'.join(map(str, obs.shape[1:]))}, {obs.nbytes / 2**20:,.1f} MiB"),
        ("episodes", f"{len(returns)} complete" + (f", returns {_listed(returns)}" if returns else "")),
        ("", unfinished if unfinished is None else f"1 not complete at the end of the file, return {unfinished:g}"),
        ("lives lost", int(demonstration.life_lost.sum())),
        ("actions", _actions(demonstration)),
        ("SHA-256", sha256(file)),
    )
    return "\n".join([str(file), *(f"  {name:<12} {shortened(row, 1000)}" for name, row in rows if row is not None)])


def convert(file: Path, output: Path, overrides: Sequence[str]) -> str:
    """Write a demonstration in stormlit's own format; returns what was done, for a person.

    overrides: name the environment it is of, which is checked and written down; without any the file's own word stays.
    """
    demonstration = read_demonstration(file)
    if overrides:
        if not any(word.startswith(("env.game=", "env.id=")) for word in overrides):
            raise ConfigError("settings tell which environment the demonstration is of: add env.game=NAME or env.id=ID")
        config = compose([], overrides)
        facts = env_facts(config.env)
        check_fits(file, demonstration, config.env, facts)
        # Its own word on how its frames were made is better than a guess, and none is better too.
        told = demonstration.origin
        demonstration.origin = origin_of(config.env, facts, told.policy, with_settings=False)
        demonstration.origin.env = told.env
    write_npz(demonstration, output)
    return f"{len(demonstration):,} steps of {demonstration.origin.env_id or 'an unknown environment'}: {output}"


def record_run(reference: str, root: Path, overrides: Sequence[str], output: Path, steps: int) -> str:
    """Record a trained run, or ``random`` play, and write it; returns what was done, for a person.

    reference: as for ``load``, or "random".  root: where runs are looked for.  overrides: of the run's configuration,
    or of the defaults.
    """
    if reference == "random":
        config, player, policy = compose([], overrides), None, "random"
    else:
        trained = load(reference, run_dir=str(root), overrides=tuple(overrides))
        settle_threads(trained.config, torch.device("cpu"), trained.world_model, trained.agent)
        config, player, policy = trained.config, trained.player, f"{trained.directory.name}, {trained.checkpoint.name}"
    facts = env_facts(config.env)
    most = LARGEST_BYTES // facts.observation_space.nbytes
    if not 1 <= steps <= most:
        raise ConfigError(f"--steps={steps} is out of range: expected 1 to {most} steps of this size")
    if output.suffix != ".npz":
        raise ConfigError(f"--output={output}: expected a file ending in .npz")
    torch.manual_seed(config.seed)
    chosen: Policy = player or RandomPolicy(facts.action_space, config.seed)
    demonstration = record(config.env, chosen, steps=steps, seed=config.seed, greedy=config.evaluation.greedy)
    demonstration.origin = origin_of(config.env, facts, policy, with_settings=True)
    write_npz(demonstration, output)
    words = f"{env_key(config.env)} demonstrations.path={output}"
    return f"{describe(output)}\nto train with it: stormlit train storm {words}"


def _returns(demonstration: Demonstration) -> tuple[list[float], float | None]:
    """Returns of the complete episodes, and of the one the file ends in."""
    ends = np.flatnonzero(demonstration.terminated | demonstration.truncated) + 1
    sums = [float(part.sum()) for part in np.split(demonstration.reward.astype(np.float64), ends)]
    unfinished = sums.pop() if len(ends) == 0 or ends[-1] < len(demonstration) else None
    return sums[: len(ends)], unfinished


def _listed(returns: list[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in returns[:10])
    return shown if len(returns) <= 10 else f"{shown}, ... (mean {np.mean(returns):g})"


def _actions(demonstration: Demonstration) -> str:
    meanings = demonstration.origin.action_meanings
    if demonstration.action.ndim == 2:  # of several parts
        low, high = demonstration.action.min(axis=0), demonstration.action.max(axis=0)
        return ", ".join(f"{least:g} to {most:g}" for least, most in zip(low, high, strict=True))
    shown = []
    for action, count in zip(*np.unique(demonstration.action, return_counts=True), strict=True):
        name = f" ({meanings[action]})" if meanings and action < len(meanings) else ""
        shown.append(f"{action}{name} {count:,}x")
    return ", ".join(shown[:18])
