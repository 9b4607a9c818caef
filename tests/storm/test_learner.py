"""One optimiser step: a loss that is not finite must leave no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from lightning.fabric import Fabric

from small import bad_batch, random_batch, random_trajectory, small_agent, small_world_model, state_of
from stormlit.data import Batch, Losses
from stormlit.errors import TrainingError
from stormlit.nn.optimizers import OptimizerSettings
from stormlit.storm.agent import ActorCritic
from stormlit.storm.learner import Learner
from stormlit.storm.world_model import WorldModel
from training import differences


def learner_of(
    module: WorldModel | ActorCritic, name: str, *, precision: str = "32-true", tolerated: int = 2
) -> Learner:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    return Learner(fabric, module, name=name, max_nonfinite=tolerated)


def test_the_step_size_decays_over_the_last_share_of_a_run() -> None:
    settings = OptimizerSettings(decay=0.5)
    assert [settings.decayed(done) for done in (0.0, 0.5, 0.625, 0.75, 1.0, 1.1)] == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert OptimizerSettings().decayed(0.99) == 1.0


def test_adams_first_step_is_as_long_as_the_step_size_at_that_time() -> None:
    moves = []
    for done in (0.0, 0.75):
        world_model = small_world_model()
        world_model.optimizer_settings.decay = 0.5
        before = state_of(world_model)
        learner_of(world_model, "world_model").update(random_batch(), done)
        moves.append(max(float((p.detach() - before[name]).abs().max()) for name, p in world_model.named_parameters()))
    assert moves == pytest.approx([1e-3, 0.5e-3], rel=1e-3)


def test_gradients_are_clipped() -> None:
    """The optimiser sees the clipped gradient, the metrics its norm before."""
    agent = small_agent()
    learner = learner_of(agent, "agent")
    learner.settings.clip_norm = 0.125
    seen: list[float] = []

    def record_norm(*_: object) -> None:
        gradients = [parameter.grad for parameter in agent.parameters() if parameter.grad is not None]
        seen.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))

    learner.optimizer.optimizer.register_step_pre_hook(record_norm)
    trajectory = random_trajectory()
    trajectory.reward.mul_(100.0)
    metrics = learner.update(trajectory).metrics
    assert metrics["gradient_norm"] > 0.125  # the norm before clipping
    assert seen == [pytest.approx(0.125, rel=1e-3)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_non_finite_loss_of_the_world_model_leaves_no_trace(precision: str) -> None:
    world_model = small_world_model()
    learner = learner_of(world_model, "world_model", precision=precision)
    learner.update(random_batch())
    before, optimiser = state_of(world_model), copy.deepcopy(learner.optimizer.state_dict())
    assert not learner.update(bad_batch()).finite
    assert list(differences(before, state_of(world_model))) == []
    assert list(differences(optimiser, learner.optimizer.state_dict())) == []
    assert not world_model.training
    assert learner.update(random_batch()).finite
    assert list(differences(before, state_of(world_model)))


def test_an_update_that_breaks_off_leaves_no_trace() -> None:
    """For want of memory, say, after the forward pass has moved the running statistics."""
    world_model = small_world_model()
    learner = learner_of(world_model, "world_model")
    learner.update(random_batch())
    before, complete = state_of(world_model), learner.loss_fn

    def broken_off(batch: Batch) -> Losses:
        complete(batch)
        raise MemoryError

    learner.loss_fn = broken_off
    with pytest.raises(MemoryError):
        learner.update(random_batch(seed=1))
    assert list(differences(before, state_of(world_model))) == []
    assert not world_model.training and all(parameter.grad is None for parameter in world_model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_rewards_and_weights_are_survived_not_crashed_on(value: float) -> None:
    agent = small_agent()
    learner = learner_of(agent, "agent")
    trajectory = random_trajectory()
    trajectory.reward[0, 0] = value
    assert not learner.update(trajectory).finite
    with torch.no_grad():
        next(iter(agent.critic.parameters())).fill_(value)
    assert not learner.update(random_trajectory()).finite


def test_a_non_finite_gradient_alone_is_skipped_too() -> None:
    """The loss is finite, its derivative is not."""
    world_model = small_world_model()
    learner = learner_of(world_model, "world_model")
    weight = world_model.reward_head.get_parameter(next(iter(dict(world_model.reward_head.named_parameters()))))
    weight.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    before = state_of(world_model)
    assert not learner.update(random_batch()).finite
    assert list(differences(before, state_of(world_model))) == []


def test_a_step_that_another_process_cannot_take_is_skipped_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world_model = small_world_model()
    learner, peer = learner_of(world_model, "world_model"), 1.0
    monkeypatch.setattr(Fabric, "world_size", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: tensor.clamp_(max=peer))
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: None)
    assert learner.update(random_batch()).finite
    before, peer = state_of(world_model), 0.0
    assert not learner.update(random_batch()).finite
    assert list(differences(before, state_of(world_model))) == []


def test_running_statistics_are_the_first_process_s_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its own are in a checkpoint, so that a resumed process would act otherwise."""
    world_model = small_world_model()
    learner = learner_of(world_model, "world_model")
    monkeypatch.setattr(Fabric, "world_size", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: None)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: tensor.fill_(0.25))
    assert learner.update(random_batch()).finite
    statistics = [tensor for name, tensor in world_model.named_buffers() if "running" in name]
    assert statistics and all((tensor == 0.25).all() for tensor in statistics)


def test_too_many_in_a_row_stop_training() -> None:
    learner = learner_of(small_world_model(), "world_model", tolerated=2)
    for _ in range(3):  # one good step starts the count again
        learner.update(bad_batch())
        learner.update(bad_batch())
        learner.update(random_batch())
    learner.update(bad_batch())
    learner.update(bad_batch())
    learner.check()
    learner.update(bad_batch())
    learner.update(random_batch())  # which does not undo that there were three
    with pytest.raises(TrainingError, match=r"world_model.* 3 times in a row .*loop\.max_nonfinite_updates=2"):
        learner.check()
    assert learner.skipped == 9


def test_the_count_and_the_optimiser_survive_a_restart() -> None:
    world_model = small_world_model()
    learner = learner_of(world_model, "world_model", tolerated=2)
    learner.update(random_batch())
    learner.update(bad_batch())
    learner.update(bad_batch())
    restarted_model = small_world_model(seed=1)
    restarted_model.load_state_dict(state_of(world_model))
    restarted = learner_of(restarted_model, "world_model", tolerated=2)
    restarted.load_state_dict(copy.deepcopy(learner.state_dict()))
    restarted.check()
    restarted.update(bad_batch())
    with pytest.raises(TrainingError):
        restarted.check()
    for continued in (learner, restarted):
        torch.manual_seed(3)
        continued.update(random_batch(seed=5))
    assert list(differences(world_model.state_dict(), restarted_model.state_dict())) == []


def test_moments_from_a_checkpoint_lie_in_memory_as_their_weights_do() -> None:
    """In a checkpoint of weights that were stored otherwise they do not, and the fused kernel would mix them up."""
    states = []
    for relaid in (False, True):
        world_model = small_world_model()
        learner = learner_of(world_model, "world_model")
        torch.manual_seed(0)
        learner.update(random_batch())
        state = copy.deepcopy(learner.state_dict())
        if relaid:
            for entry in state["optimizer"]["state"].values():
                entry.update({name: tensor.contiguous() for name, tensor in entry.items()})
        learner.load_state_dict(state)
        learner.update(random_batch(seed=1))
        states.append(state_of(world_model))
    assert list(differences(*states)) == []


@pytest.mark.parametrize(
    ("precision", "order"), [("32-true", torch.contiguous_format), ("bf16-mixed", torch.channels_last)]
)
def test_weights_and_their_gradients_lie_in_memory_as_feature_maps_do(
    precision: str, order: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or every use and every gradient of a weight would begin with a copy."""
    world_model = small_world_model()
    learner = learner_of(world_model, "world_model", precision=precision)
    monkeypatch.setattr(learner.optimizer, "zero_grad", lambda set_to_none: None)
    learner.update(random_batch())
    weights = [parameter for parameter in world_model.parameters() if parameter.dim() == 4 and parameter.shape[1] > 1]
    assert len(weights) >= 4
    for weight in weights:
        assert weight.grad is not None
        assert weight.is_contiguous(memory_format=order) and weight.grad.is_contiguous(memory_format=order)
