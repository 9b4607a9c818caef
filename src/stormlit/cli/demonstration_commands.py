"""What ``stormlit demos`` does: show, convert and record demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stormlit.config.compose import compose
from stormlit.envs import env_facts
from stormlit.errors import ConfigError
from stormlit.files import sha256
from stormlit.runs.load import load
from stormlit.storm.demonstrations import (
    LARGEST_BYTES,
    Demonstration,
    check_fits,
    origin_of,
    read_demonstration,
    record,
    write_npz,
)
from stormlit.storm.evaluate import Policy, RandomPolicy


def describe(file: Path) -> str:
    """A demonstration for a person: frames, episodes, returns, actions, and where it comes from."""
    demonstration = read_demonstration(file)
    origin = demonstration.origin
    frame = "x".join(str(n) for n in demonstration.obs.shape[1:])
    returns, unfinished = _returns(demonstration)
    lines = [
        f"{file}",
        f"  environment  {origin.env_id or 'unknown'}" + (f", {origin.num_actions} actions" * bool(origin.num_actions)),
        f"  frames       {len(demonstration):,} of {frame}, {demonstration.obs.nbytes / 2**20:,.1f} MiB",
        f"  episodes     {len(returns)} complete" + f", returns {_listed(returns)}" * bool(returns),
        f"  lives lost   {int(demonstration.life_lost.sum())}",
        f"  actions      {_actions(demonstration)}",
        f"  SHA-256      {sha256(file)}",
    ]
    if unfinished is not None:
        lines.insert(4, f"               1 not complete at the end of the file, return {unfinished:g}")
    if origin.policy is not None:
        lines.insert(2, f"  played by    {origin.policy}")
    return "\n".join(lines)


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
        config, player = compose([], overrides), None
        policy = "random"
    else:
        trained = load(reference, run_dir=str(root), overrides=tuple(overrides))
        config, player, policy = trained.config, trained.player, f"{trained.directory.name}, {trained.checkpoint.name}"
    facts = env_facts(config.env)
    most = LARGEST_BYTES // math.prod(facts.obs_shape)
    if not 1 <= steps <= most:
        raise ConfigError(f"--steps={steps} is out of range: expected 1 to {most} steps of this size")
    if output.suffix != ".npz":
        raise ConfigError(f"--output={output}: expected a file ending in .npz")
    torch.manual_seed(config.seed)
    chosen: Policy = player or RandomPolicy(facts.num_actions, config.seed)
    demonstration = record(config.env, chosen, steps=steps, seed=config.seed, greedy=config.evaluation.greedy)
    demonstration.origin = origin_of(config.env, facts, policy, with_settings=True)
    write_npz(demonstration, output)
    return f"{describe(output)}\nto train with it: stormlit train storm demonstrations.path={output}"


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
    actions, counts = np.unique(demonstration.action, return_counts=True)
    named = [
        f"{action} ({meanings[action]})" if meanings and action < len(meanings) else str(action) for action in actions
    ]
    return ", ".join(f"{name} {count:,}x" for name, count in zip(named[:18], counts[:18], strict=True))
