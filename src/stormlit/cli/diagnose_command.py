"""``stormlit diagnose``: the quality of a run's world model, as JSON, as a picture, and in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stormlit.analysis.diagnosis import (
    FOLDER,
    FORMAT,
    dream_returns,
    end_quality,
    latent_use,
    open_loop_errors,
    read_windows,
    realised_returns,
    reward_quality,
    value_quality,
    windows,
)
from stormlit.analysis.dream import dream, dream_length, dream_window
from stormlit.analysis.plots import plot_diagnosis
from stormlit.errors import ConfigError, StormlitError
from stormlit.files import write_json
from stormlit.registry import build
from stormlit.runs.api import Trained, load, play
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.runs.estimate import settle_threads
from stormlit.tracking import MlflowTracker

DREAMS = 48  # windows that are dreamt


def diagnose_run(reference: str, root: Path, overrides: Sequence[str], steps: int) -> str:
    """Play ``steps`` environment steps with a run's policy and measure its world model on them.

    Returns what to tell.  Raises ``ConfigError`` for too few steps.
    """
    trained = load(reference, run_dir=str(root), overrides=tuple(overrides))
    length = dream_length(trained.world_model, trained.config.loop.batch_length)
    if steps < 4 * length:
        raise ConfigError(f"--steps={steps}: expected at least {4 * length}, four windows of this world model")
    settle_threads(trained.config, torch.device("cpu"), trained.world_model, trained.agent)
    found = diagnosis(trained, steps, length)
    folder = trained.directory.path / FOLDER
    file, picture = (folder / f"{trained.checkpoint.name}{suffix}" for suffix in (".json", ".png"))
    try:
        write_json(file, found)
        plot_diagnosis(picture, found)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror or error})") from error
    sent = _track(trained, [file, picture])
    return "\n".join([f"{trained.directory.name}, {trained.checkpoint.name}, on {steps:,} new steps of its policy",
                      *told(found), f"written to {file} and {picture}", *sent])  # fmt: skip


def diagnosis(trained: Trained, steps: int, length: int) -> dict[str, Any]:
    """All that is measured, in built-in types."""
    config, world_model, agent = trained.config, trained.world_model, trained.agent
    torch.manual_seed(config.seed)
    replay = play(trained, steps // trained.config.env.num_envs)
    rows = replay.read(0, replay.rows)
    context = config.imagination.context_length
    dreams = [
        dream(world_model, dream_window(replay, length, torch.device("cpu"), seed=index), context)
        for index in range(DREAMS)
    ]
    batch = windows(rows, length)
    read = read_windows(world_model, agent, batch)
    # The first steps of a window have less of a past than the model is used to.
    seen = (slice(None), slice(min(context, length // 2), None))
    realised = windows(rows.map(lambda _: realised_returns(rows, agent.gamma)), length).reward[seen].flatten().numpy()
    known = ~np.isnan(realised)
    predicted = {name: read[name][seen].flatten().numpy() for name in ("reward", "end", "value")}
    return {
        "format": FORMAT,
        "run": trained.directory.name,
        "checkpoint": trained.checkpoint.name,
        "steps": steps,
        "open_loop": open_loop_errors(dreams),
        "reward": reward_quality(predicted["reward"], batch.reward[seen].flatten().numpy()),
        "end": end_quality(predicted["end"], batch.terminated[seen].flatten().numpy()),
        "latent": latent_use(world_model, read),
        "value": value_quality(predicted["value"][known], realised[known]),
        "dream_return": dream_returns(
            world_model,
            agent,
            rows,
            context_length=context,
            horizon=config.imagination.horizon,
            from_posterior=config.imagination.start == "posterior",
        ),
    }


def told(found: dict[str, Any]) -> list[str]:
    """The numbers that say most, as lines."""
    loop, reward, end = found["open_loop"], found["reward"], found["end"]
    latent, value, returns = found["latent"], found["value"], found["dream_return"]
    far = len(loop["horizon"]) - 1
    codes = f", {latent['codes_used']:.1f} of {latent['codes']} codes in use" if "codes" in latent else ""
    inside, outside = (_number(returns[name]["mean"]) for name in ("inside", "outside"))
    return [
        *(
            f"  open loop  error after {loop['horizon'][step]:2d} steps {loop['imagined'][step]:.5f}, "
            f"repeating the last frame {loop['repeated'][step]:.5f}"
            for step in sorted({0, far // 2, far})
        ),
        f"  rewards    precision {_number(reward['precision'])}, recall {_number(reward['recall'])} of "
        f"{reward['true']} in {reward['steps']} steps",
        f"  ends       precision {_number(end['precision'])}, recall {_number(end['recall'])} of {end['true']}, "
        f"Brier score {end['brier_score']:.4f}",
        f"  latent     KL {_number(latent['kl'])} nats a step{codes}",
        f"  value      bias {_number(value.get('bias'))}, correlation {_number(value.get('correlation'))} with the "
        f"returns of {value['steps']} steps",
        f"  policy     return {inside} inside its dream, {outside} outside, over {returns['horizon']} steps from "
        f"{returns['contexts']} states",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _track(trained: Trained, files: Sequence[Path]) -> list[str]:
    """Keep files as artifacts of the run in MLflow; returns what to tell when that is not possible."""
    directory: RunDirectory = trained.directory
    try:
        tracker = build("tracker", trained.config.tracking, directory.path, directory.root, key="tracking")
        run_id = directory.run_id()
        if isinstance(tracker, MlflowTracker) and run_id is not None:
            with exclusive(directory, otherwise="try again when it is done"):
                for file in files:
                    tracker.keep(run_id, file, FOLDER)
                tracker.send_backlog()
    except StormlitError as error:
        return [f"not in the tracker: {error}"]
    return []
