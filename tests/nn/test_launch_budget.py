"""How much the paper's architecture may launch. Operations are counted by dispatch, so no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stormlit.cli.phases import AGENT, IMAGINATION, WORLD_MODEL, Phases, prepared
from stormlit.config.compose import compose
from stormlit.nn.encoders import cnn
from stormlit.storm import learner, observer

# The number of operations does not depend on how many rows there are, nor on the size of the buffer.
FEW_ROWS = ("imagination.batch_size=8", "loop.batch_size=2", "loop.warmup_steps=64", "replay.capacity=200")
BUDGETS = {IMAGINATION: 1300, WORLD_MODEL: 400, AGENT: 350}


@pytest.fixture(scope="module")
def phases() -> Iterator[Phases]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (cnn, learner, observer):  # feature maps lie as on a GPU
            patch.setattr(module, "training_memory_format", lambda device: torch.channels_last)
        with prepared(compose(["storm"], ["precision=32-true", "accelerator=cpu", *FEW_ROWS])) as prepared_phases:
            for phase in BUDGETS:  # an optimiser's first step also sets its state up
                prepared_phases.run(phase)
            yield prepared_phases


@pytest.mark.parametrize("phase", BUDGETS)
def test_a_phase_stays_within_its_launch_budget(phases: Phases, phase: str) -> None:
    counter = phases.count(phase)
    assert counter.operations.total() <= BUDGETS[phase], f"{phase}: {counter.operations}"


@pytest.mark.parametrize("phase", BUDGETS)
def test_a_phase_never_makes_the_host_wait(phases: Phases, phase: str) -> None:
    counter = phases.count(phase)
    assert not counter.syncs, f"{phase}: {counter.syncs}"
