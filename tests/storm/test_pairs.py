"""Every two words that choose a part go together: a run of them trains, dreams and plays, and goes on bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from small import pairwise
from stormlit.registry import names
from training import assert_same_run, resume, train

SMALL_PARTS = {
    "world_model.encoder=resnet": ("world_model.encoder.stem_channels=4",),
    "world_model.encoder=patches": ("world_model.encoder.patch=8", "world_model.encoder.width=8"),
    "world_model.decoder=resnet": ("world_model.decoder.stem_channels=4",),
    "world_model.latent=vq": ("world_model.latent.groups=4", "world_model.latent.codes=8"),
    "world_model.latent=fsq": ("world_model.latent.groups=8",),
    "world_model.latent=gaussian": ("world_model.latent.dimensions=8",),
    "world_model.latent=deterministic": ("world_model.latent.dimensions=8",),
    "world_model.sequence_model=rotary_transformer": ("world_model.sequence_model.num_heads=2",),
    "world_model.sequence_model=mamba2": ("world_model.sequence_model.num_heads=2",),
}
# What is seen and done, each with the policies that fit it.
TASKS = {
    "pixels": ("agent.policy=categorical", "agent.policy.unimix=0.01"),
    "pixels, a number to do": ("env.kwargs.continuous=true", "agent.policy=bounded_normal"),
    "a dictionary": ("env.kwargs.ball_as_numbers=true",),
    "vectors": ("env.id=CartPole-v1", "env.max_episode_steps=9"),
    "pixels, several choices": ("env.id=action_envs:Multi-v0", "agent.policy=categoricals"),
}
ENDLESS = [name for name in names("sequence_model") if name != "transformer"]
WORDS: dict[str, list[Any]] = {
    "task": list(TASKS),
    "world_model.encoder": names("encoder"),
    "world_model.decoder": names("decoder"),
    "world_model.latent": names("latent"),
    # Only those that step on for ever can be carried along; `player.memory=carried` refuses the others.
    "world_model.sequence_model": [*names("sequence_model"), *(f"{name} player.memory=carried" for name in ENDLESS)],
    "world_model.decoder_input": ["latent", "hidden", "both"],
    "world_model.tokens": ["merged", "separate"],
    "world_model.reward_loss": ["twohot", "hl_gauss", "symexp_twohot", "squared"],
    "world_model.loss_balance": ["fixed", "harmony"],
    "world_model.objectives": ["[]", "[contrastive]"],
    "agent.agent_state": names("agent_state"),
    "agent.value_loss": ["twohot", "hl_gauss", "symexp_twohot", "squared"],
    "replay.sampler": names("sampler"),
}


def _rows() -> Iterator[Any]:
    """Every pair of words; the fast suite has the rows that bring a word for the first time."""
    seen: set[tuple[str, Any]] = set()
    for row in pairwise(WORDS):
        new = row.items() - seen
        yield pytest.param(row, marks=() if new else pytest.mark.slow)
        seen |= new


@pytest.mark.parametrize("chosen", _rows(), ids=lambda chosen: "-".join(map(str, chosen.values()))[:120])
def test_every_pair_of_words_trains_dreams_plays_and_goes_on(chosen: dict[str, str], tmp_path: Path) -> None:
    words = " ".join(f"{key}={value}" for key, value in chosen.items() if key != "task").split()
    words = [*TASKS[chosen["task"]], *(each for word in words for each in (word, *SMALL_PARTS.get(word, ())))]
    unbroken = train(tmp_path / "a", "run", *words, "loop.env_steps=40")
    resumed = train(tmp_path / "b", "run", *words, "loop.env_steps=32")
    torch.rand(17)  # another process would stand elsewhere
    resume(resumed, 40)
    assert_same_run(unbroken, resumed)
    for run in (unbroken, resumed):
        pictures = {path.stem.partition("-")[0] for path in (run / "media").glob("*-000000040.*")}
        assert pictures & {"dream", "curves"} and (run / "evaluation" / "step-000000040.json").is_file()
