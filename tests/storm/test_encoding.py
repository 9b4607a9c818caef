"""Frames are encoded in chunks, and in the memory order that costs no digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from small import random_batch, small_world_model
from stormlit.nn.autocast import training_memory_format
from stormlit.nn.encoders.cnn import BatchNorm
from stormlit.storm.world_model import FRAMES_AT_ONCE


def shake_statistics(module: nn.Module) -> None:
    """Running statistics and weights as training leaves them, not as they start."""
    for norm in module.modules():
        if isinstance(norm, BatchNorm):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0.0, 0.3)
            norm.running_var.uniform_(0.3, 3.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.0, 0.3)


@pytest.mark.parametrize("encoder", ["cnn", "resnet"])
def test_encoding_in_chunks_is_encoding_at_once(encoder: str) -> None:
    """More frames than one chunk holds, the same posterior and, from the same random numbers, the same latents."""
    world_model = small_world_model(encoder={"name": encoder, "stem_channels": 4})
    shake_statistics(world_model.encoder)
    obs = random_batch(rows=5, length=(2 * FRAMES_AT_ONCE) // 5 + 3).obs
    with torch.no_grad():
        whole = world_model.posterior(obs)
        torch.manual_seed(3)
        drawn = world_model.sample_posterior(obs)
        torch.manual_seed(3)
        expected = world_model.latent.sample(whole)
    assert torch.equal(drawn, expected)


def trained_encoder(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The encoder's gradients and running statistics after 2048 frames, in float64."""
    torch.manual_seed(0)
    world_model = small_world_model().train().to(dtype)
    obs = torch.randint(256, (32, 64, 16, 16, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    if dtype == torch.float32:
        posterior = world_model.posterior(obs).flatten(0, 1)
    else:
        embed = world_model.encoder((obs / 255.0).to(dtype).flatten(0, 1).contiguous())
        posterior = torch.log_softmax(world_model.latent.posterior_head(embed).unflatten(-1, (4, 4)), dim=-1)
        posterior = torch.log(posterior.exp() * 0.99 + 0.01 / 4)
    posterior[..., 0].square().sum().backward()
    gradients = [p.grad.double() for p in world_model.encoder.parameters() if p.grad is not None]
    return gradients, [buffer.double() for buffer in world_model.encoder.buffers()]


def error(exact: list[torch.Tensor], seen: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(exact, seen, strict=True))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Each thread sums a part of the batch, so that with many of them the sums are short."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_float32_statistics_and_gradients_are_exact_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside float64, and because every BatchNorm sees maps in the order that ``training_memory_format`` asks for."""
    exact_gradients, exact_statistics = trained_encoder(torch.float64)
    orders: list[bool] = []
    forward = BatchNorm.forward

    def noting(self: BatchNorm, x: torch.Tensor) -> torch.Tensor:
        orders.append(x.is_contiguous(memory_format=training_memory_format(x.device)))
        return forward(self, x)

    monkeypatch.setattr(BatchNorm, "forward", noting)
    gradients, statistics = trained_encoder(torch.float32)
    assert error(exact_gradients, gradients) < 1e-4
    assert error(exact_statistics, statistics) < 1e-6
    assert len(orders) >= 2 and all(orders)


@pytest.mark.parametrize(
    ("device", "mixed", "order"),
    [
        ("cpu", False, torch.contiguous_format),
        ("cpu", True, torch.channels_last),
        ("cuda", False, torch.channels_last),
        ("cuda", True, torch.channels_last),
    ],
)
def test_channels_last_wherever_it_costs_no_digits(device: str, mixed: bool, order: torch.memory_format) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert training_memory_format(torch.device(device)) == order
