"""BatchNorm is PyTorch's, and with channels last on a CPU as exact as with channels first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stormlit.nn import norm
from stormlit.nn.norm import BatchNorm, adds_in_a_row


def maps(shape: tuple[int, ...], mean: float = 0.0, seed: int = 0) -> Tensor:
    """Random feature maps (M, C, Y, X), channels last, each channel with a spread of its own."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(shape[1], generator=generator).add(0.5).view(-1, 1, 1)
    return (torch.randn(shape, generator=generator) * spread + mean).contiguous(memory_format=torch.channels_last)


def trained(layer: nn.BatchNorm2d, x: Tensor) -> list[Tensor]:
    """Output, gradients of input, weight and bias, and running statistics after one training step, in float64."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
        layer.bias.copy_(torch.randn(layer.num_features, generator=generator))
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = layer(x)
    above = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    gradients = torch.autograd.grad(out, [x, layer.weight, layer.bias], above)
    assert layer.running_mean is not None and layer.running_var is not None
    return [each.detach().double() for each in (out, *gradients, layer.running_mean, layer.running_var)]


def plain(x: Tensor) -> list[Tensor]:
    """What PyTorch's own makes of it in float64."""
    return trained(nn.BatchNorm2d(x.shape[1]).double(), x.double().contiguous())


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(2, most) for most in (9, 6, 7, 7))),
    mean=st.floats(-5.0, 5.0),
    part=st.integers(1, 500),
    seed=st.integers(0, 99),
)
def test_a_step_with_channels_last_is_pytorch_s(shape: tuple[int, ...], mean: float, part: int, seed: int) -> None:
    x = maps(shape, mean, seed)
    assert adds_in_a_row(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "PART", part)
        found = trained(BatchNorm(shape[1]), x)
    for name, a, b in zip(("out", "x", "weight", "bias", "mean", "variance"), found, plain(x), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_mean_far_from_zero_costs_its_last_digits_only() -> None:
    """Squares are of what is left without the mean; naive ones would have lost the variance, 1 in a million."""
    x = maps((64, 8, 16, 16), mean=1000.0)
    for exact, found in zip(plain(x), trained(BatchNorm(8), x), strict=True):
        assert (exact - found).abs().max() / exact.abs().max() < 2e-4, "twice the distance of float32 numbers at 1000"


def test_it_is_pytorch_s_own_wherever_that_is_exact_or_rounded_anyway() -> None:
    x = maps((4, 3, 5, 5))
    assert adds_in_a_row(x)
    for other in (x.contiguous(), x.bfloat16(), x.double(), x.to("meta")):
        assert not adds_in_a_row(other)
    layer = BatchNorm(3).eval()
    trained_mean = layer.running_mean
    assert trained_mean is not None
    torch.testing.assert_close(layer(x), nn.BatchNorm2d(3).eval()(x))
    assert not trained_mean.any(), "evaluation moves nothing"


def test_a_gradient_in_another_memory_order_is_the_same() -> None:
    x, layer = maps((4, 3, 5, 5)).requires_grad_(), BatchNorm(3)
    above = torch.randn(4, 3, 5, 5)
    found = [
        torch.autograd.grad(layer(x), x, above.contiguous(memory_format=order))[0]
        for order in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(*found)
