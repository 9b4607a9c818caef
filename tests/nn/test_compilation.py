"""Compiled parts give what the plain ones give, and a compiler that fails costs a warning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch._dynamo.exc import Unsupported
from torch._inductor.exc import InductorError

from small import imagine, random_batch, random_trajectory, small_agent, small_world_model
from stormlit.cli.phases import OperationCounter
from stormlit.data import Batch, Losses, Trajectory
from stormlit.errors import ConfigError
from stormlit.nn import compilation
from stormlit.nn.compilation import Compiled, compile_report, should_compile
from stormlit.storm.acting import Player
from stormlit.storm.agent import ActorCritic
from stormlit.storm.learner import Learner
from stormlit.storm.world_model import WorldModel

CPU = torch.device("cpu")


def silenced(module: WorldModel | ActorCritic) -> WorldModel | ActorCritic:
    """Without dropout, whose random numbers come in another order when layers are fused."""
    for part in module.modules():
        for name in ("probability", "attention_dropout"):
            if hasattr(part, name):
                setattr(part, name, 0.0)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("of", ["world_model", "agent"])
def test_compiled_updates_are_the_plain_ones(of: str) -> None:
    """Losses, gradient norm, weights and running statistics after three steps."""
    fabric = Fabric(accelerator="cpu", devices=1)
    module = silenced(small_world_model() if of == "world_model" else small_agent())
    twin, data = copy.deepcopy(module), list[Batch | Trajectory]()
    for seed in range(3):
        data.append(random_batch(seed=seed) if of == "world_model" else random_trajectory(seed=seed))
    results = []
    for compiled, taught in ((False, module), (True, twin)):
        learner = Learner(fabric, taught, name=of, max_nonfinite=2, compile=compiled)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*could not be compiled")
            results.append([learner.update(one).metrics for one in data])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(twin.state_dict(), module.state_dict(), atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_compiled_rollout_is_the_plain_one() -> None:
    world_model = small_world_model()
    agent, context = small_agent(world_model), random_batch(4, 6, starts=((0, 3),))
    plain = partial(imagine, world_model, agent, horizon=4, from_posterior=False)
    compiled = Compiled(plain, "imagination", CPU)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = plain(context)
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*could not be compiled")
            found = compiled(context)
        assert torch.equal(found.latent, expected.latent) and torch.equal(found.action, expected.action)
        for name in ("hidden", "reward", "continuation", "weight"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)


# Where more than one tensor is drawn before the next is needed, older compilers draw them in another order.
IN_ORDER = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="compiled draws come in another order before torch 2.13"
)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["latents", pytest.param("frames", marks=IN_ORDER)])
def test_compiled_acting_is_the_plain_one(context: Literal["latents", "frames"]) -> None:
    """Over two episodes, the second of which begins while the context is full; counting does not disturb it."""
    world_model, frames = small_world_model(), np.random.default_rng(0).integers(256, size=(8, 2, 16, 16, 3))
    played = []
    for compiled in (False, True):
        agent = small_agent(world_model)
        player = Player(world_model, agent, num_envs=2, context_length=3, context=context, compile=compiled)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*could not be compiled")
            actions = [player.act(obs, np.full(2, t in (0, 5))) for t, obs in enumerate(frames.astype(np.uint8))]
            with OperationCounter() as counter:
                actions.append(player.act(frames[0].astype(np.uint8), np.zeros(2, dtype=bool)))
            actions.append(player.act(frames[1].astype(np.uint8), np.zeros(2, dtype=bool)))
        assert counter.operations.total() > 50
        played.append((np.stack(actions).tolist(), player.state_dict()))
    assert played[1][0] == played[0][0]
    torch.testing.assert_close(played[1][1], played[0][1])


def test_what_cannot_be_compiled_runs_uncompiled_after_one_warning() -> None:
    def depends_on_values(x: torch.Tensor) -> float:
        return float(x.sum()) if float(x.max()) > 0 else 0.0

    function: Callable[[Any], Any] = Compiled(depends_on_values, "the sum", CPU)
    with pytest.warns(UserWarning, match="the sum could not be compiled and runs uncompiled") as warned:
        assert function(torch.ones(3)) == 3.0
    assert len([w for w in warned if "could not be compiled" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(torch.full((2,), 2.0)) == 4.0


class Unrecordable(torch.autograd.Function):
    """The identity, without a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("capture failed")


def test_a_backward_pass_that_cannot_be_recorded_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it is recorded after the forward pass, outside of what was compiled."""

    def compile(step: Callable[[Any], Losses], **_: Any) -> Callable[[Any], Losses]:
        def compiled(batch: Any) -> Losses:
            losses = step(batch)
            losses.terms["reward"] = Unrecordable.apply(losses.terms["reward"])
            return losses

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    world_model = small_world_model()
    before = copy.deepcopy(world_model.state_dict())
    learner = Learner(
        Fabric(accelerator="cpu", devices=1), world_model, name="world_model", max_nonfinite=2, compile=True
    )
    once = small_world_model()
    Learner(Fabric(accelerator="cpu", devices=1), once, name="world_model", max_nonfinite=2).update(random_batch())
    with pytest.warns(UserWarning, match="update could not be compiled and runs uncompiled: capture failed"):
        assert learner.update(random_batch()).finite
    found = dict(world_model.encoder.named_buffers())
    torch.testing.assert_close(found, dict(once.encoder.named_buffers()))  # moved once
    assert not torch.equal(world_model.reward_head.output.weight, before["reward_head.output.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learner.update(random_batch()).finite


def test_a_mistake_in_the_function_itself_is_raised_without_a_word_about_compiling() -> None:
    def mistaken(x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(7)

    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="size mismatch"):
        warnings.simplefilter("error")
        Compiled(mistaken, "the product", CPU)(torch.ones(2, 3))


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(
    ("error", "falls_back"),
    [
        (Unsupported("a graph break", gb_type="test"), True),
        (InductorError(RuntimeError("no valid triton configs"), None), True),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), True),
        (OUT_OF_MEMORY, False),
        (InductorError(OUT_OF_MEMORY, None), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 49152000000 bytes"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_only_errors_of_the_compiler_are_worked_around(
    error: BaseException, falls_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(compilation, "FAILURES", [])
    double = Compiled(lambda x: 2 * x, "doubling", CPU)
    double.compiled = fails
    if falls_back:
        with pytest.warns(UserWarning, match="doubling could not be compiled and runs uncompiled: "):
            assert double(torch.ones(())) == 2
        [told] = compile_report()["not_compiled"]
        assert told.startswith("doubling: ")
    else:
        with pytest.raises(type(error)) as raised:
            double(torch.ones(()))
        assert raised.value is error
    assert (double.compiled is None) == falls_back


def test_compiling_is_left_to_gpus_unless_asked_for() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    assert not should_compile("auto", fabric) and not should_compile(False, fabric) and should_compile(True, fabric)


def test_several_processes_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    monkeypatch.setattr(Fabric, "world_size", 2)
    assert not should_compile("auto", fabric)
    with pytest.raises(ConfigError, match=r"compile=true works with one process, not with 2"):
        should_compile(True, fabric)
