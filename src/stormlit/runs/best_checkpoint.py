"""The weights that were evaluated best, kept beside the newest checkpoints.

``checkpoints/best-000001000/`` has a manifest, the configuration and the weights: all that evaluating, dreaming and
loading need. A run does not go on from it. An outdone one is kept while there is a checkpoint from before the better
one was found: a run that goes on from there may find it no more.
"""

from __future__ import annotations

import math

from stormlit.config.compose import to_yaml
from stormlit.runs.checkpoint import best_checkpoint
from stormlit.runs.checkpoint_writer import CheckpointWriter
from stormlit.runs.directory import BEST
from stormlit.runs.run import Run


def keep_if_best(run: Run, mean: float) -> None:
    """Keep the weights of this step if no earlier evaluation had such a mean return; raises ``OSError``."""
    known = best_checkpoint(run.directory)
    if not math.isfinite(mean) or (known is not None and known[1] >= mean):
        return
    folder = run.directory.checkpoints / f"best-{run.env_steps:09d}"
    writer = CheckpointWriter(run.directory, run.env_steps, folder)
    try:
        writer.begin()
        writer.add("config.yaml", to_yaml(run.config).encode())
        modules = {"world_model": run.training.world_model, "agent": run.training.agent}
        writer.add_tensors("weights.pt", {name: module.state_dict() for name, module in modules.items()})
        writer.commit(run.config.checkpoint.keep, run.run_id, mean_return=mean)
    finally:
        writer.close(abandon=True)


def told_best(run: Run) -> list[str]:
    """A line on it for the end of a run, nothing where it was not asked for."""
    known = best_checkpoint(run.directory) if run.config.checkpoint.keep_best else None
    if known is None:
        return []
    return [
        f"best        {known[0].resolve()}  (mean return {known[1]:.4g}; the highest of several evaluations is "
        f"optimistic: evaluate it anew, with `stormlit eval {run.directory.path.resolve()}{BEST} seed=N`)"
    ]
