"""Every fast path equals the plain one it stands for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from small import assert_distributed_as, dense, random_batch, random_trajectory, small_agent, small_world_model
from stormlit.data import OneHots, Trajectory
from stormlit.nn.encoders.cnn import ConvEncoder
from stormlit.nn.encoders.norm import BatchNorm, training_memory_format
from stormlit.nn.encoders.resnet import ResidualEncoder
from stormlit.nn.frozen import frozen
from stormlit.nn.sparse import InputLinear
from stormlit.ops.categorical import sample, sample_unimix, unimix_log_probs
from stormlit.ops.observations import normalize_pixels
from stormlit.storm.world_model import FRAMES_AT_ONCE, WorldModel


def one_hots(*leading: int, groups: int = 4, classes: int = 4, seed: int = 0) -> OneHots:
    """Random latents in sparse form, with positions (*leading, G)."""
    generator = torch.Generator().manual_seed(seed)
    return OneHots(torch.randint(classes, (*leading, groups), generator=generator) + torch.arange(groups) * classes)


@pytest.mark.parametrize("bias", [False, True])
def test_adding_rows_is_multiplying_with_one_hots(bias: bool) -> None:
    torch.manual_seed(0)
    layer, sparse, features = InputLinear(16 + 5, 7, bias=bias), one_hots(6), torch.randn(6, 5)
    for given, plain in (
        (OneHots(sparse.positions, features), torch.cat([dense(sparse), features], dim=1)),
        (OneHots(sparse.positions, features)[2:4], torch.cat([dense(sparse), features], dim=1)[2:4]),
    ):
        expected = plain @ layer.weight.T + (layer.bias if bias else 0.0)
        torch.testing.assert_close(layer(given), expected)
        torch.testing.assert_close(layer(plain), expected)
    alone = InputLinear(16, 7, bias=bias)
    torch.testing.assert_close(alone(sparse), alone(dense(sparse)))


def test_the_weight_s_gradient_is_the_same_in_either_form() -> None:
    torch.manual_seed(0)
    layer, sparse, features, direction = InputLinear(16 + 5, 7), one_hots(6), torch.randn(6, 5), torch.randn(6, 7)
    gradients = [
        torch.autograd.grad((layer(x) * direction).sum(), layer.weight)[0]
        for x in (OneHots(sparse.positions, features), torch.cat([dense(sparse), features], dim=1))
    ]
    torch.testing.assert_close(*gradients)


def test_an_input_layer_keeps_its_storage_through_optimiser_and_checkpoint() -> None:
    """Stored input by input, or gathering rows of it would be slower than the product it replaces."""
    layer = InputLinear(16, 7)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    layer(torch.randn(3, 16)).sum().backward()
    optimizer.step()
    layer.load_state_dict({name: tensor.clone().contiguous() for name, tensor in layer.state_dict().items()})
    assert layer.weight.shape == (7, 16) and layer.weight.t().is_contiguous()


@pytest.mark.parametrize("state", ["latent", "hidden", "both"])
def test_the_agent_learns_the_same_from_either_form(state: str) -> None:
    trajectory, sparse = random_trajectory(), one_hots(4, 6)
    gradients = []
    for latent in (dense(sparse), sparse):
        agent = small_agent(agent_state={"name": state})
        tensors = {name: getattr(trajectory, name) for name in Trajectory.__slots__}
        losses = agent.training_step(Trajectory(**{**tensors, "latent": latent}))
        losses.total.backward()
        gradients.append([p.grad for p in agent.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


def shake_statistics(module: nn.Module) -> None:
    """Running statistics and weights as training leaves them, not as they start."""
    for norm in module.modules():
        if isinstance(norm, BatchNorm):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0.0, 0.3)
            norm.running_var.uniform_(0.3, 3.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.0, 0.3)


@pytest.mark.parametrize("kind", [ConvEncoder, ResidualEncoder])
def test_folding_batch_norm_away_changes_nothing(kind: type[ConvEncoder | ResidualEncoder]) -> None:
    torch.manual_seed(0)
    encoder, obs = kind((3, 64, 64)).eval(), torch.rand(4, 3, 64, 64)
    shake_statistics(encoder)
    with torch.no_grad():
        torch.testing.assert_close(frozen(encoder)(obs), encoder(obs), atol=1e-5, rtol=0)


def test_what_is_folded_follows_the_weights_and_training_mode_is_left_alone() -> None:
    encoder, obs = ConvEncoder((3, 16, 16), stem_channels=4).eval(), torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        before = frozen(encoder)(obs)
        shake_statistics(encoder)
        after = frozen(encoder)(obs)
    assert not torch.allclose(before, after, atol=1e-3)
    assert frozen(encoder.train()) is encoder


@pytest.mark.parametrize("encoder", ["cnn", "resnet"])
def test_encoding_in_chunks_is_encoding_at_once(encoder: str) -> None:
    """More frames than one chunk holds, the same posterior and, from the same random numbers, the same latents."""
    world_model = small_world_model(encoder={"name": encoder, "stem_channels": 4})
    shake_statistics(world_model.encoder)
    obs = random_batch(rows=5, length=(2 * FRAMES_AT_ONCE) // 5 + 3).obs
    with torch.no_grad():
        whole = world_model.posterior(obs)
        embed = torch.cat([frozen(world_model.encoder)(part / 255.0) for part in obs.flatten(0, 1).split(7)])
        parts = world_model.latent.posterior(embed).unflatten(0, obs.shape[:2])
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
        torch.manual_seed(3)
        drawn = world_model.sample_posterior(obs)
        torch.manual_seed(3)
        sparse = world_model._draw_posterior(obs, sparse=True)
        torch.manual_seed(3)
        expected = world_model.latent.sample(whole)
    assert torch.equal(dense(sparse), drawn)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
def test_drawing_without_logarithms_is_drawing(unimix: float) -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, -30.0])
    log_probs = unimix_log_probs(logits, unimix)
    torch.manual_seed(0)
    plain = sample(log_probs.expand(100_000, -1))
    torch.manual_seed(0)
    fast = sample_unimix(logits.expand(100_000, -1), unimix)
    assert (plain != fast).sum() <= 2  # a uniform number within rounding of a boundary
    probabilities = log_probs.exp()
    assert_distributed_as(fast.bincount(minlength=4), probabilities.where(probabilities > 1e-9, 0.0))


@pytest.mark.parametrize("kind", ["prior", "posterior"])
def test_draws_of_the_latent_are_distributed_as_it_says(kind: str) -> None:
    """Chi-square over every group, of the fast draw against the distribution the losses are taken of."""
    world_model = small_world_model()
    latent = world_model.latent
    torch.manual_seed(1)
    x = 3 * torch.randn(latent.prior_head.in_features if kind == "prior" else latent.posterior_head.in_features)
    probabilities = getattr(latent, kind)(x).exp().detach()
    with torch.no_grad():
        drawn = getattr(latent, f"draw_{kind}")(x.expand(20_000, -1), sparse=False).unflatten(-1, (4, 4)).sum(dim=0)
    for counts, expected in zip(drawn, probabilities, strict=True):
        assert_distributed_as(counts, expected)


def test_pixels_are_scaled_alike_in_any_memory_order() -> None:
    obs = random_batch().obs
    scaled = normalize_pixels(obs)
    assert scaled.stride() == obs.stride() and scaled.dtype == torch.float32
    assert torch.equal(scaled, obs.contiguous().float() / 255.0)


def trained_encoder(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The encoder's gradients and running statistics after 2048 frames, in float64."""
    torch.manual_seed(0)
    world_model = small_world_model().train().to(dtype)
    obs = torch.randint(256, (32, 64, 16, 16, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    if dtype == torch.float32:
        posterior = world_model.posterior(obs).flatten(0, 1)
    else:
        embed = world_model.encoder(normalize_pixels(obs).to(dtype).flatten(0, 1).contiguous())
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


def test_the_player_s_encoding_is_the_world_model_s() -> None:
    world_model: WorldModel = small_world_model()
    shake_statistics(world_model.encoder)
    frames = random_batch(rows=3, length=1).obs[:, 0]
    torch.manual_seed(0)
    one = world_model.sample_posterior(frames)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(one, world_model.latent.sample(world_model.posterior(frames)))
