"""How the configuration of a run may change when it goes on, or is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from stormlit.config.compose import compose, to_tree
from stormlit.config.schema import Config, keys_of
from stormlit.errors import ConfigError, MisfitError
from stormlit.registry import leaves
from stormlit.runs.directory import RunDirectory

# What ``resume=auto`` lets a job script change on the way: everything else changes what is learned.
MAY_CHANGE = keys_of("place", "threads", "speed", "operation", "saving", "evaluation", "budget")


@contextlib.contextmanager
def changed_configuration(checkpoint: Path, directory: RunDirectory, overrides: Sequence[str]) -> Iterator[Config]:
    """The configuration of a checkpoint with ``key=value`` changes, for a block that fits it to what was learned.

    Raises ``ConfigError`` for another name, and ``MisfitError`` with the keys that are to blame where the block does.
    """
    file = str(checkpoint / "config.yaml")
    config = compose([file], overrides)
    if any(word.startswith("run.name=") for word in overrides) and config.run.name != directory.name:
        raise ConfigError(f"run.name={config.run.name}: a run keeps its name, and this one is '{directory.name}'")
    try:
        yield config
    except MisfitError as error:
        changed = [f"{key}={now} is {before}" for key, before, now in _changes(compose([file]), config)]
        if not changed:
            raise
        raise MisfitError(
            f"the checkpoint is of another configuration: {', '.join(changed)} in the run '{directory.name}', and what "
            "it has learned does not fit"
        ) from error


def _changes(before: Config, now: Config) -> Iterator[tuple[str, object, object]]:
    """The keys that differ and may not, with both values."""
    old, new = _values(before), _values(now)
    for key in new:
        # Another part has options of its own, and its name is the change.
        if key in old and old[key] != new[key] and not key.startswith(MAY_CHANGE):
            yield key, old[key], new[key]


def _values(config: Config) -> dict[str, object]:
    """Every key's value; a mapping of names that nothing declares is one value."""
    tree = to_tree(config)
    kwargs = tree["env"].pop("kwargs")
    return {**dict(leaves(tree)), "env.kwargs": kwargs}


def refuse_other_configuration(saved: Config, given: Config, directory: RunDirectory) -> None:
    """Raise ``ConfigError`` naming the first key that differs and may not."""
    for key, before, now in _changes(saved, given):
        raise ConfigError(
            f"resume=auto: {key}={now} is {before} in the run '{directory.name}' in {directory.root}, which goes on as "
            "it began; give the same value or another run.name"
        )
    if given.loop.env_steps < saved.loop.env_steps:
        raise ConfigError(
            f"resume=auto: loop.env_steps={given.loop.env_steps} is less than the {saved.loop.env_steps} of the run "
            f"'{directory.name}' in {directory.root}: it may only grow"
        )
