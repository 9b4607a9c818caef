"""The commands that look at what was trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from stormlit import registry
from stormlit.analysis.dream import dream, dream_length, dream_window
from stormlit.analysis.pictures import write_dream_video
from stormlit.analysis.plots import write_curves
from stormlit.cli.output import written
from stormlit.config.components import PART_KEYS, PART_LISTS, check_part
from stormlit.config.compose import compose, to_yaml
from stormlit.config.schema import KEYS, Config
from stormlit.errors import ConfigError
from stormlit.runs.api import load, play
from stormlit.runs.assembly import run_baselines, run_evaluation
from stormlit.runs.device import make_fabric
from stormlit.runs.estimate import settle_threads
from stormlit.runs.progress import evaluation_bar


def evaluate_run(reference: str, root: Path, overrides: Sequence[str]) -> str:
    """Play ``evaluation.episodes`` episodes; returns the report and leaves it in the run's evaluation folder too."""
    trained = load(reference, run_dir=str(root), overrides=tuple(overrides))
    config = trained.config
    fabric = make_fabric(config)
    trained.world_model.to(fabric.device)
    trained.agent.to(fabric.device)
    settle_threads(config, fabric.device, trained.world_model, trained.agent)
    with evaluation_bar(config.evaluation.episodes) as on_step:
        result = run_evaluation(config, fabric, trained.world_model, trained.agent, on_step)
        baselines = run_baselines(config, lambda _: on_step)
    how = "greedy" if config.evaluation.greedy else "sampled"
    file = trained.directory.evaluation / f"{trained.checkpoint.name}-{how}-{config.evaluation.episodes}.json"
    lines = [f"{result.game}, {trained.checkpoint}"]
    lines += [
        f"  episode {index:3d}  return {episode.episode_return:10.2f}  {episode.length:6d} steps"
        for index, episode in enumerate(result.episodes)
    ]
    lines += [f"  {played.policy:<20} {played.summary()}" for played in (result, *baselines)]
    found = {**result.as_dict(), "baselines": [baseline.as_dict() for baseline in baselines]}
    return "\n".join([*lines, written(file, found)])


def dream_run(reference: str, root: Path, overrides: Sequence[str], output: Path | None, dreams: int) -> str:
    """Let the agent play, dream along, and write the video, or curves of vectors; returns where they are."""
    if dreams < 1:
        raise ConfigError(f"--dreams={dreams}: expected at least 1")
    if output is not None and output.suffix not in (".mp4", ".gif", ".png"):
        raise ConfigError(f"--output={output}: expected a file ending in .mp4 or .gif, or in .png for curves")
    trained = load(reference, run_dir=str(root), overrides=tuple(overrides))
    config = trained.config
    settle_threads(config, torch.device("cpu"), trained.world_model, trained.agent)
    torch.manual_seed(config.seed)
    length = dream_length(trained.world_model, config.loop.batch_length)
    replay = play(trained, max(4 * dreams * length, 512))
    seen = [
        dream(
            trained.world_model,
            dream_window(replay, length, torch.device("cpu"), seed=config.seed + index),
            config.imagination.context_length,
        )
        for index in range(dreams)
    ]
    media, space = trained.directory.media, trained.world_model.observation_space
    lines = []
    if space.names and (output is None or output.suffix == ".png"):
        for index, dreamt in enumerate(seen, start=1):
            path = output or media / f"curves-{trained.checkpoint.name}.png"
            path = path.with_stem(f"{path.stem}-{index}") if dreams > 1 else path
            assert dreamt.vector is not None  # it has names
            lines.append(f"curves      {write_curves(path, dreamt.vector, space.names, dreamt.context_length)}")
    if space.image and (output is None or output.suffix != ".png"):
        path = output or media / f"dream-{trained.checkpoint.name}.mp4"
        lines.append(f"dream video {write_dream_video(path, seen, trained.action_meanings)}")
    if not lines:
        wanted = ".png: it shows no image" if space.names else ".mp4 or .gif: it shows no vectors"
        raise ConfigError(f"--output={output}: expected a file ending in {wanted}")
    return "\n".join(lines)


def components(kind: str | None, name: str | None, check: bool) -> str:
    """List parts, or hold one to the laws of its kind; raises ``ConfigError`` with those that it does not keep."""
    if not check:
        return list_components(kind, name)
    if kind is None or name is None:
        raise ConfigError("--check needs a part: stormlit components KIND NAME --check")
    if sentences := check_part(kind, name):
        raise ConfigError("\n".join(sentences))
    from stormlit.checks.laws import LAWS  # a training never needs the laws

    laws = "".join(f"\n  {law.__doc__}" for law in LAWS.get(kind, ()))
    return f"{kind.replace('_', ' ')} '{name}' holds:{laws}" if laws else f"there are no laws for a {kind} yet"


def show_config(files: Sequence[str], overrides: Sequence[str], keys: bool) -> str:
    """The resolved configuration, as YAML or as a table of keys."""
    config = compose(files, overrides)
    return list_keys(config) if keys else to_yaml(config).rstrip("\n")


def list_components(kind: str | None, name: str | None = None) -> str:
    """One part, every part of a kind, or of all kinds, with options, defaults, and the keys where it is chosen."""
    lines: list[str] = []
    for shown in [kind] if kind else registry.kinds():
        keys = [key for key, part_kind in PART_KEYS.items() if part_kind == shown]
        chosen_by = [f"{key}=NAME" for key in keys]
        chosen_by += [f"{key}=[NAME,...]" for key, part_kind in PART_LISTS.items() if part_kind == shown]
        lines.append(f"{shown}  (chosen by {', '.join(chosen_by)})")
        for each in [name] if name else registry.names(shown):
            cls = registry.part_class(shown, each)
            lines.append(f"  {each:<12} {(cls.__doc__ or '').strip().partition(chr(10))[0]}".rstrip())
            for option in registry.options(cls).values():
                told = f"  {option.help}" if option.help else ""
                default, allowed = _as_word(option.default), registry.allowed_values(option)
                lines.append(f"      {option.name} = {default}{told} ({allowed})")
    return "\n".join(lines)


def list_keys(config: Config) -> str:
    """Every key with its meaning, its value and what it may be, as a table in Markdown."""
    lines = ["| key | meaning | default | range |", "|---|---|---|---|"]
    values = {**dict(registry.leaves(dataclasses.asdict(config))), "env.kwargs": config.env.kwargs}
    for key, option in KEYS.items():
        rows = [(key, option)]
        if key in PART_KEYS:
            chosen = registry.part_class(option.part, values[f"{key}.name"])
            values[key] = values[f"{key}.name"]
            rows += [(f"{key}.{name}", below) for name, below in registry.options(chosen).items()]
        lines += [f"| `{k}` | {o.help} | `{_as_word(values[k])}` | {registry.allowed_values(o)} |" for k, o in rows]
    return "\n".join(lines)


def _as_word(value: object) -> str:
    """A value as it is written in a file, on one line."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=math.inf)).removesuffix("...\n").strip()
